"""Files on an object store or any other place that fsspec reaches: listed, identified, downloaded one at a time."""

from __future__ import annotations

import base64
import hashlib
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lm_core.corpus.sources.streams import disk_is_full
from lm_core.errors import MachineError, MillraceError, TryLaterError, UserError

# Web addresses go another way (sources/web.py), which looks where they lead before it follows.
_WEB = ("http://", "https://")
_EXTRAS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
_CHECKSUMS = ("ETag", "etag", "md5Hash", "checksum")
# Before each try: what fails for a moment, or comes cut short, is asked for again.
_PAUSES_SECONDS = (0, 1, 4)
_STATES = ("size", "mtime", "LastModified", "updated", "created")


def is_remote(path: str) -> bool:
    """Whether the path is an address such as s3://bucket/folder."""
    return "://" in path


@dataclass(frozen=True)
class RemoteFile:
    """A file of a listing.

    Attributes:
        state: digest of what the store says of the content: its checksum when there is one, else size and time.
        num_bytes: as the store states it.
        md5: of the content, base64, where the store states one.
    """

    url: str
    state: str
    num_bytes: int | None = None
    md5: str | None = None


@contextmanager
def downloaded(there: RemoteFile) -> Iterator[Path | str]:
    """A temporary copy of a file, whole as its listing says, or one line that says why there is none."""
    problem = ""
    with tempfile.TemporaryDirectory(prefix="millrace-") as folder:
        copy = Path(folder) / "download"
        for pause in _PAUSES_SECONDS:
            time.sleep(pause)
            try:
                system, path = _open(there.url)
                system.get_file(path, str(copy))
                problem = _differs(copy, there)
            except MillraceError:
                raise
            except FileNotFoundError as error:
                problem = f"it is gone: {error}"
                break
            except Exception as error:
                if disk_is_full(error):
                    raise
                problem = f"{type(error).__name__}: {error}"
            if not problem:
                yield copy
                return
    yield " ".join(problem.split())[:300]


def _differs(copy: Path, there: RemoteFile) -> str:
    """How a copy differs from what was listed; empty when it does not."""
    num_bytes = copy.stat().st_size
    if there.num_bytes is not None and num_bytes != there.num_bytes:
        return f"{num_bytes} bytes came, {there.num_bytes} were listed"
    if there.md5 is not None:
        with open(copy, "rb") as stream:
            md5 = hashlib.file_digest(stream, partial(hashlib.md5, usedforsecurity=False)).digest()
        if base64.b64encode(md5).decode() != there.md5:
            return "the MD5 of what came is not the one that was listed"
    return ""


def _open(url: str) -> tuple[Any, str]:
    import fsspec

    protocol = url.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError:
        name = _EXTRAS.get(protocol)
        if name is None:
            raise MachineError(f"{url} needs the package that fsspec names for {protocol}") from None
        raise MachineError(f"{url} needs {name}: pip install {name}") from None
    except ValueError as error:
        if protocol in fsspec.available_protocols():
            raise
        raise UserError(f"{url}: there is no file system called {protocol}") from error


def listing(url: str) -> dict[str, RemoteFile]:
    """Files at an address (a file, a folder or a glob pattern) by their names relative to its folder.

    Raises:
        UserError: nothing there, or nothing that may be read.
        MachineError: the package for such addresses is not installed.
        TryLaterError: the store does not answer.
    """
    if url.lower().startswith(_WEB) or "::" in url:
        raise UserError(f"{url} is a web address: give it as a source of kind web")
    with _in_one_line(url):
        found, root = _found(url)
    if not found:
        raise _nothing_there(url)
    protocol = url.partition("://")[0]
    return {
        name.removeprefix(root).lstrip("/"): RemoteFile(
            f"{protocol}://{name}", _state(info), info.get("size"), info.get("md5Hash")
        )
        for name, info in sorted(found.items())
    }


def _found(url: str) -> tuple[dict[str, Any], str]:
    """What the store says of each file, and the folder that names are relative to."""
    system, path = _open(url)
    if any(character in path for character in "*?["):
        matched = system.glob(path, detail=True).items()
        root = path[: min(path.index(c) for c in "*?[" if c in path)].rpartition("/")[0]
        return {name: info for name, info in matched if info["type"] == "file"}, root
    found = system.find(path, detail=True)
    return found, path.rpartition("/")[0] if list(found) == [path] else path


def _nothing_there(url: str) -> UserError:
    return UserError(f"{url} does not exist and matches no file; give a file, a folder or a glob")


@contextmanager
def _in_one_line(url: str) -> Iterator[None]:
    """The file systems of others raise what they like, on opening as on listing: each is said in one line."""
    try:
        yield
    except MillraceError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, FileNotFoundError):
            raise _nothing_there(url) from None
        if isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME:
            raise UserError(f"{url}: no host has that name") from None
        unreadable = IsADirectoryError | NotADirectoryError | PermissionError
        if isinstance(error, OSError) and not isinstance(error, unreadable):
            raise TryLaterError(f"{url} does not answer: {said}; try again later") from None
        raise UserError(f"{url} cannot be read: {type(error).__name__}: {said}") from None


def _state(info: Mapping[str, Any]) -> str:
    known = {key: str(info[key]) for key in (*_CHECKSUMS, *_STATES) if info.get(key) is not None}
    checksum = next((key for key in _CHECKSUMS if key in known), None)
    kept = (checksum, "size") if checksum else tuple(known)
    return hashlib.sha256(repr([(key, known.get(key)) for key in kept]).encode()).hexdigest()
