"""What was read before is not read again: the items of each unchanged part of a source, kept in the workspace.

A part is whatever has an identity of its own: a file, a package, a page. One pack for each source holds the items of
its parts as zstd frames, with an index at its end:

    frame frame ... index (JSON, one frame) length of the index (8 bytes)

A frame is a JSON array of items; one that was written by another process goes into the pack as it is.

A run writes a new pack with the parts it used and renames it over the old one when the source
has been read to its end. So a pack holds exactly what the last run used, and a run that was killed costs nothing. A
frame that is damaged (zstd keeps a checksum) is a part that was never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import islice
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import zstandard

from lm_core.corpus.text import Document, Item, Rejected, Tally
from lm_core.mapping import Mapper

# Raised whenever a reader yields something else for the same bytes.
READERS_VERSION = 6
_FRAME_BYTES = 4_000_000
_LENGTH = struct.Struct("<Q")
_KINDS: dict[str, type[Item]] = {"d": Document, "r": Rejected, "t": Tally}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_FIELDS = {kind: attrgetter(*(field.name for field in fields(kind))) for kind in _NAMES}
_Frames = list[tuple[int, int]]


def identity(*parts: Any) -> str:
    """Digest of JSON-ready values and of the version of the readers."""
    spelled = json.dumps([READERS_VERSION, *parts], sort_keys=True)
    return hashlib.sha256(spelled.encode()).hexdigest()


class ReadBefore:
    """The items that a source yielded in the last run, by the identity of their part.

    Args:
        path: of the pack; None reads everything anew and keeps nothing.
        mapper: reads parts elsewhere, by way of `folder`; None reads them here, one after the other.
    """

    def __init__(self, path: Path | None, mapper: Mapper | None = None, folder: Path | None = None) -> None:
        self._path = path
        self._mapper, self._folder = mapper, folder
        self._elsewhere: dict[str, Iterator[Path]] = {}
        self._draft = path and path.with_name(f"{path.name}.{os.getpid()}")
        self._old: BinaryIO | None = None
        self._new: BinaryIO | None = None
        self._known: dict[str, _Frames] = {}
        self._index: dict[str, _Frames] = {}
        self.num_reused = 0
        self.num_read = 0

    def __enter__(self) -> ReadBefore:
        if self._path and self._draft:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._open_old(self._path)
            self._new = open(self._draft, "wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._old:
            self._old.close()
        if self._new and self._path and self._draft:
            if kind is None:
                self._new.write(index := _pack(json.dumps(self._index).encode()))
                self._new.write(_LENGTH.pack(len(index)))
            self._new.close()
            self._draft.replace(self._path) if kind is None else self._draft.unlink()

    def known(self, parts: Any) -> bool:
        """Whether the part of this identity was read before."""
        return identity(parts) in self._known

    @property
    def reads_elsewhere(self) -> bool:
        """Whether parts are read by a runner and not here."""
        return self._mapper is not None and self._folder is not None

    def read_elsewhere(self, parts: Sequence[tuple[Any, Callable[[], Iterator[Item]]]]) -> None:
        """Have the parts that are not known read elsewhere; `items` must then be asked for them in this order."""
        if self._mapper is None or self._folder is None:
            return
        unknown = {key: read for values, read in parts if (key := identity(values)) not in self._known}
        work = [(read, self._folder / f"{key}.part") for key, read in unknown.items()]
        self._elsewhere = dict.fromkeys(unknown, self._mapper(_write_part, work))

    def packed(self, parts: Any, frames: Iterable[bytes]) -> Iterator[Item]:
        """Items of a part that is not known, from frames that another process has packed (see `pack_items`)."""
        places = []
        self.num_read += 1
        for frame in frames:
            if self._new is not None:
                places.append(self._append(frame))
            yield from _items(frame)
        self._index[identity(parts)] = places

    def items(self, parts: Any, read: Callable[[], Iterator[Item]]) -> Iterator[Item]:
        """Items of one part: those kept, when its identity is known, else those that `read()` finds.

        Args:
            parts: JSON-ready values that identify the part, its content included.
        """
        key = identity(parts)
        if key in self._elsewhere:
            yield from self.packed(parts, _frames_of(next(self._elsewhere.pop(key))))
            return
        if self._new is None:
            self.num_read += 1
            yield from read()
            return
        writer = _PartWriter(self._append)
        num_kept = 0
        try:
            for item in self._kept(key):
                writer.add(item)
                yield item
                num_kept += 1
        except (OSError, zstandard.ZstdError):
            self._known.pop(key)
        if key in self._known:
            self.num_reused += 1
        else:
            self.num_read += 1
            # After a damaged frame: the readers find the same items in the same order, some of which are out already.
            for item in islice(read(), num_kept, None):
                writer.add(item)
                yield item
        self._index[key] = writer.close()

    def _kept(self, key: str) -> Iterator[Item]:
        if self._old is None:
            return
        for offset, length in self._known.get(key, ()):
            self._old.seek(offset)
            yield from _items(self._old.read(length))

    def _append(self, frame: bytes) -> tuple[int, int]:
        assert self._new is not None
        place = self._new.tell()
        self._new.write(frame)
        return place, len(frame)

    def _open_old(self, path: Path) -> None:
        try:
            self._old = open(path, "rb")  # noqa: SIM115, closed with the pack
            self._old.seek(-_LENGTH.size, os.SEEK_END)
            length = _LENGTH.unpack(self._old.read(_LENGTH.size))[0]
            self._old.seek(-_LENGTH.size - length, os.SEEK_END)
            self._known = json.loads(zstandard.ZstdDecompressor().decompress(self._old.read(length)))
        except (OSError, ValueError, MemoryError, zstandard.ZstdError):
            self._known = {}


class _PartWriter:
    """Gathers items into frames."""

    def __init__(self, append: Callable[[bytes], tuple[int, int]]) -> None:
        self._append = append
        self._frames: _Frames = []
        self._rows: list[tuple[Any, ...]] = []
        self._size = 0

    def add(self, item: Item) -> None:
        self._rows.append((_NAMES[type(item)], *_FIELDS[type(item)](item)))
        self._size += len(item.text) if isinstance(item, Document) else 100
        if self._size >= _FRAME_BYTES:
            self._flush()

    def close(self) -> _Frames:
        if self._rows:
            self._flush()
        return self._frames

    def _flush(self) -> None:
        self._frames.append(self._append(_pack(json.dumps(self._rows, check_circular=False).encode())))
        self._rows, self._size = [], 0


def pack_items(read: Callable[[], Iterator[Item]], take: Callable[[bytes], object]) -> None:
    """Hand the items of a part over as frames, one at a time."""

    def append(frame: bytes) -> tuple[int, int]:
        take(frame)
        return 0, len(frame)

    writer = _PartWriter(append)
    for item in read():
        writer.add(item)
    writer.close()


def _write_part(work: tuple[Callable[[], Iterator[Item]], Path]) -> Path:
    """Read a part, on whatever machine this runs, into a file: each frame after its length."""
    read, path = work
    with open(path, "wb") as file:
        pack_items(read, lambda frame: file.write(_LENGTH.pack(len(frame)) + frame))
    return path


def _frames_of(path: Path) -> Iterator[bytes]:
    """The frames of a part file, which is gone afterwards."""
    with open(path, "rb") as file:
        while length := file.read(_LENGTH.size):
            yield file.read(_LENGTH.unpack(length)[0])
    path.unlink()


def _pack(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(content)


def _items(frame: bytes) -> Iterator[Item]:
    for kind, *values in json.loads(zstandard.ZstdDecompressor().decompress(frame)):
        yield _KINDS[kind](*values)
