"""Digests of files, from a stat cache: only what changed since is read again, as git's index does it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from lm_core.runtime import Runtime

# A file changed within the clock's grain of being hashed could keep its stat; such entries are not trusted.
_RACY_NANOSECONDS = 2_000_000_000


def file_digests(paths: Iterable[Path], runtime: Runtime) -> dict[Path, str]:
    """SHA-256 (hex) of each file."""
    cache_file = runtime.workspace / "cache" / "file-digests.json"
    try:
        cache = json.loads(cache_file.read_bytes())
    except (OSError, ValueError):
        cache = {}
    digests, changed = {}, False
    for path in paths:
        stat = path.stat()
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        known = cache.get(str(path))
        if known and known[:-1] == state:
            digests[path] = known[-1]
            continue
        with open(path, "rb") as stream:
            digests[path] = hashlib.file_digest(stream, "sha256").hexdigest()
        if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _RACY_NANOSECONDS:
            cache[str(path)] = [*state, digests[path]]
            changed = True
    if changed:
        _replace(cache_file, json.dumps(cache))
    return digests


def _replace(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(content)
    draft.replace(path)
