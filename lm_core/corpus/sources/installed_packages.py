"""The corpus that every user has: documentation strings of the standard library and of the installed packages."""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
import platform
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from email.parser import HeaderParser
from functools import partial
from pathlib import Path

from lm_core.corpus.config import InstalledPackages
from lm_core.corpus.sources.docstrings import Package, read_package
from lm_core.corpus.sources.reuse import ReadBefore, pack_items
from lm_core.corpus.text import Item
from lm_core.errors import UserError
from lm_core.runtime import Runtime

STANDARD_LIBRARY = "stdlib"

# Tests say little in their docstrings; vendored copies are documents of another package, or of none.
_LEFT_OUT = {
    "test", "tests", "idle_test", "_test", "testsuite", "__pycache__", "node_modules", "site-packages",
    "_vendor", "vendor", "vendored", "_vendored", "vendored_packages", "third_party", "thirdparty", "extern",
    "externals", "_extern", "lib2to3", "turtledemo", "ensurepip",
}  # fmt: skip


def digests(config: InstalledPackages, runtime: Runtime) -> dict[str, str]:
    """Cheap identity of the source: each distribution's version and the digest of its RECORD, and the Python version.

    Reads no documentation: planning must not cost what collecting costs.
    """
    found = {folder.name: _record_digest(folder) for folder in _dist_infos(config)}
    listing = json.dumps(found, sort_keys=True).encode()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return {"python": python, "packages": hashlib.sha256(listing).hexdigest()}


def check(config: InstalledPackages) -> None:
    """Look for the packages that the configuration names.

    Raises:
        UserError: naming those that are not installed.
    """
    installed = {_normalised(folder.name.partition("-")[0]) for folder in _dist_infos(config)}
    missing = [name for name in config.packages if _normalised(name) not in installed]
    if missing:
        raise UserError(f"packages={missing} not installed in this environment; see `pip list` for the names")


def read(config: InstalledPackages, runtime: Runtime, before: ReadBefore) -> Iterator[Item]:
    """Docstrings of all packages, parsed in `runtime.num_workers` processes; the result does not depend on how many.

    A package whose RECORD is the same as in the last run is not parsed again.
    """
    parts = [(_package(folder, config), _record_digest(folder)) for folder in _dist_infos(config)]
    if config.include_standard_library:
        parts.append((_standard_library(config), platform.python_version()))
    if not any(package.files for package, _ in parts):
        raise UserError(f"no installed package matches packages={list(config.packages)}; see `pip list` for the names")
    # The big ones first, or the last worker would still parse one while the others wait.
    parts.sort(key=lambda part: (-len(part[0].files), part[0].name))
    python = [platform.python_implementation(), platform.python_version()]
    keys = [[package.name, digest, package.max_bytes, *python] for package, digest in parts]
    known = [(key, package) for key, (package, _) in zip(keys, parts, strict=True) if before.known(key)]
    new = [(key, package) for key, (package, _) in zip(keys, parts, strict=True) if not before.known(key)]
    for key, package in known:
        yield from before.items(key, partial(_items, package))
    if runtime.num_workers <= 1 or len(new) < 4 or before.reads_elsewhere:
        before.read_elsewhere([(key, partial(_items, package)) for key, package in new])
        for key, package in new:
            yield from before.items(key, partial(_items, package))
        return
    # A forked child of a process with threads can deadlock; spawned ones import this module and no more.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(runtime.num_workers, mp_context=context) as pool:
        for (key, _), frames in zip(new, pool.map(_packed, [package for _, package in new]), strict=True):
            yield from before.packed(key, frames)


def _packed(package: Package) -> list[bytes]:
    """The items of a package, packed where they were read: the one process that writes has the least to do."""
    frames: list[bytes] = []
    pack_items(partial(_items, package), frames.append)
    return frames


def _items(package: Package) -> Iterator[Item]:
    documents, rejected = read_package(package)
    yield from documents
    yield from rejected


def _dist_infos(config: InstalledPackages) -> list[Path]:
    """The `.dist-info` folder of each distribution on the import path; the first of a name wins, as on import."""
    found: dict[str, Path] = {}
    wanted = {_normalised(name) for name in config.packages}
    for entry in sys.path:
        if not entry or not os.path.isdir(entry):  # noqa: PTH112, called by every `millrace plan`
            continue
        with os.scandir(entry) as items:
            for item in items:
                if not item.name.endswith(".dist-info"):
                    continue
                name = _normalised(item.name.partition("-")[0])
                if not wanted or name in wanted:
                    found.setdefault(name, Path(item.path))
    return [found[name] for name in sorted(found) if (found[name] / "RECORD").exists() and not _editable(found[name])]


def _normalised(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _editable(dist_info: Path) -> bool:
    """Whether it is somebody's working tree: it changes with every edit, and is not an installed package."""
    try:
        origin = json.loads((dist_info / "direct_url.json").read_bytes())
    except (OSError, ValueError):
        return False
    return bool(origin.get("dir_info", {}).get("editable"))


def _record_digest(dist_info: Path) -> str:
    return hashlib.sha256((dist_info / "RECORD").read_bytes()).hexdigest()


def _package(dist_info: Path, config: InstalledPackages) -> Package:
    metadata = HeaderParser().parsestr((dist_info / "METADATA").read_text("utf-8", "replace"))
    with open(dist_info / "RECORD", encoding="utf-8", errors="replace", newline="") as stream:
        names = sorted({row[0] for row in csv.reader(stream) if row and row[0].endswith(".py")})
    return Package(
        name=_normalised(metadata["Name"] or dist_info.name.partition("-")[0]),
        version=metadata["Version"],
        licence=_licence(metadata.get("License-Expression"), metadata.get("License"), metadata.get_all("Classifier")),
        root=dist_info.parent,
        files=_documented_files(names),
        max_bytes=config.max_package_bytes,
    )


def _licence(expression: str | None, field: str | None, classifiers: list[str] | None) -> str | None:
    """SPDX expression when there is one, else the classifier, else the first line of the old free field."""
    if expression:
        return expression
    named = [c.rpartition(" :: ")[2] for c in classifiers or [] if c.startswith("License ::")]
    if named:
        return " AND ".join(sorted(named))
    return (field or "").strip().partition("\n")[0][:100] or None


def _standard_library(config: InstalledPackages) -> Package:
    root = Path(sysconfig.get_path("stdlib"))
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in _LEFT_OUT and not f.startswith("config-"))
        prefix = Path(folder).relative_to(root)
        names += [(prefix / file).as_posix() for file in files if file.endswith(".py")]
    return Package(
        name=STANDARD_LIBRARY,
        version=platform.python_version(),
        licence="PSF-2.0",
        root=root,
        files=_documented_files(sorted(names)),
        max_bytes=config.max_package_bytes,
    )


def _documented_files(names: list[str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, _module(name)) for name in names if _is_wanted(name))


def _is_wanted(name: str) -> bool:
    *folders, file = name.split("/")
    if ".." in folders or name.startswith("/") or file.startswith(("test_", "__editable__")):
        return False
    return file not in ("conftest.py", "tests.py") and not file.endswith("_test.py") and _LEFT_OUT.isdisjoint(folders)


def _module(name: str) -> str:
    parts = name[: -len(".py")].split("/")
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
