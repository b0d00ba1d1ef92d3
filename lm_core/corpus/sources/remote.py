"""Files on an object store or any other place that fsspec reaches: listed, identified, downloaded one at a time."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_core.errors import MachineError, TryLaterError, UserError

# Web addresses go another way (sources/web.py), which looks where they lead before it follows.
_WEB = ("http://", "https://")
_EXTRAS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
_CHECKSUMS = ("ETag", "etag", "md5Hash", "checksum")
_STATES = ("size", "mtime", "LastModified", "updated", "created")


def is_remote(path: str) -> bool:
    """Whether the path is an address such as s3://bucket/folder."""
    return "://" in path


@dataclass(frozen=True)
class RemoteFile:
    """A file of a listing.

    Attributes:
        state: digest of what the store says of the content: its checksum when there is one, else size and time.
    """

    url: str
    state: str


@contextmanager
def downloaded(url: str) -> Iterator[Path | str]:
    """A temporary copy of a file, or one line that says why there is none."""
    system, path = _open(url)
    with tempfile.TemporaryDirectory(prefix="millrace-") as folder:
        copy = Path(folder) / "download"
        try:
            system.get_file(path, str(copy))
        except OSError as error:
            yield f"{type(error).__name__}: {error}"[:300]
            return
        yield copy


def _open(url: str) -> tuple[Any, str]:
    import fsspec

    protocol = url.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError:
        name = _EXTRAS.get(protocol, f"the fsspec package for {protocol}")
        raise MachineError(f"{url} needs {name}: pip install {name}") from None
    except ValueError:
        raise UserError(f"{url}: there is no file system called {protocol}") from None


def listing(url: str) -> dict[str, RemoteFile]:
    """Files at an address (a file, a folder or a glob pattern) by their names relative to its folder.

    Raises:
        UserError: nothing there.
        MachineError: the package for such addresses is not installed.
        TryLaterError: the store does not answer.
    """
    if url.startswith(_WEB) or "::" in url:
        raise UserError(f"{url} is a web address: give it as a source of kind web")
    system, path = _open(url)
    try:
        if any(character in path for character in "*?["):
            found = {name: info for name, info in system.glob(path, detail=True).items() if info["type"] == "file"}
            root = path[: min(path.index(c) for c in "*?[" if c in path)].rpartition("/")[0]
        else:
            found = system.find(path, detail=True)
            root = path.rpartition("/")[0] if list(found) == [path] else path
    except FileNotFoundError:
        found, root = {}, path
    except OSError as error:
        raise TryLaterError(f"{url} does not answer: {str(error)[:200]}; try again later") from None
    if not found:
        raise UserError(f"{url} does not exist and matches no file; give a file, a folder or a glob")
    protocol = url.partition("://")[0]
    return {
        name.removeprefix(root).lstrip("/"): RemoteFile(f"{protocol}://{name}", _state(info))
        for name, info in sorted(found.items())
    }


def _state(info: Mapping[str, Any]) -> str:
    known = {key: str(info[key]) for key in (*_CHECKSUMS, *_STATES) if info.get(key) is not None}
    checksum = next((key for key in _CHECKSUMS if key in known), None)
    kept = (checksum, "size") if checksum else tuple(known)
    return hashlib.sha256(repr([(key, known.get(key)) for key in kept]).encode()).hexdigest()
