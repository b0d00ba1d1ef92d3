"""Bytes of a file, decompressed as they are read, with a bound on how far a few packed bytes may swell."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

COMPRESSIONS = {".gz", ".bz2", ".xz", ".zst"}
# Text shrinks three to twenty times; what swells more than this, and beyond the grace, was made to fill memory or disk.
MAX_RATIO = 200
GRACE_BYTES = 64_000_000
_MAX_WINDOW_BYTES = 1 << 27
_CHUNK_BYTES = 1 << 20
_ZSTD_INPUT_BYTES = 1 << 10


class BombError(ValueError):
    """Packed data that swells beyond any text."""


# What a decompressor raises on a file that is cut short, corrupt, encrypted, or something else altogether.
BROKEN_STREAM = (
    EOFError, OSError, zlib.error, zstandard.ZstdError, lzma.LZMAError, zipfile.BadZipFile, RuntimeError,
    NotImplementedError, BombError,
)  # fmt: skip


def disk_is_full(error: Exception) -> bool:
    """Whether an error is this machine's, and no fault of what is read."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


class _Guarded(io.RawIOBase):
    """Counts what comes out of a decompressor and stops a bomb."""

    def __init__(self, plain: BinaryIO, packed_bytes: int) -> None:
        self._plain = plain
        self._left = max(GRACE_BYTES, MAX_RATIO * packed_bytes)
        self._message = f"a bomb: {packed_bytes} packed bytes swell more than {MAX_RATIO} times"

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        part = self._plain.read1(min(len(buffer), _CHUNK_BYTES))  # type: ignore[attr-defined]
        self._left -= len(part)
        if self._left < 0:
            raise BombError(self._message)
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._plain.close()
        super().close()


class _Zstd(io.RawIOBase):
    """Reads .zst and, unlike the library's own stream, says so when it ends too early."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._unpacker = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        self._frame = self._unpacker.decompressobj()
        self._started = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        while not self._ready:
            # Little at a time: what a few bytes become cannot be bounded otherwise.
            packed = self._frame.unused_data if self._frame.eof else b""
            packed = packed or self._packed.read(_ZSTD_INPUT_BYTES)
            if not packed:
                if self._started and not self._frame.eof:
                    raise EOFError("compressed file ended before the end of its last frame")
                return 0
            if self._frame.eof:
                self._frame = self._unpacker.decompressobj()
            self._started = True
            self._ready = memoryview(self._frame.decompress(packed))
        part = self._ready[: len(buffer)]
        self._ready = self._ready[len(part) :]
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._packed.close()
        super().close()


class _Xz(io.RawIOBase):
    """Reads .xz with a bound on the dictionary, which the file itself chooses (up to 4 GB)."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._decompressor = self._new()

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(memlimit=2 * _MAX_WINDOW_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        while True:
            if self._decompressor.eof:  # another stream may follow, or padding
                rest = (self._decompressor.unused_data or self._packed.read(_CHUNK_BYTES)).lstrip(b"\0")
                if not rest:
                    return 0
                self._decompressor = self._new()
            else:
                rest = self._packed.read(_CHUNK_BYTES) if self._decompressor.needs_input else b""
                if self._decompressor.needs_input and not rest:
                    raise EOFError("compressed file ended before the end-of-stream marker was reached")
            part = self._decompressor.decompress(rest, max_length=len(buffer))
            if part:
                buffer[: len(part)] = part
                return len(part)

    def close(self) -> None:
        self._packed.close()
        super().close()


def guarded(plain: BinaryIO, packed_bytes: int) -> BinaryIO:
    """A buffered stream that raises `BombError` when it swells beyond MAX_RATIO times the packed bytes."""
    return cast(BinaryIO, io.BufferedReader(_Guarded(plain, packed_bytes), _CHUNK_BYTES))


def decompressed(packed: BinaryIO, compression: str, packed_bytes: int) -> BinaryIO:
    """The plain bytes of a packed stream; closing it closes the packed one too."""
    if compression == ".gz":
        return guarded(cast(BinaryIO, _Closing(gzip.GzipFile(fileobj=packed), packed)), packed_bytes)
    if compression == ".bz2":
        return guarded(cast(BinaryIO, _Closing(bz2.BZ2File(packed), packed)), packed_bytes)
    if compression == ".xz":
        return guarded(cast(BinaryIO, io.BufferedReader(_Xz(packed))), packed_bytes)
    if compression == ".zst":
        return guarded(cast(BinaryIO, io.BufferedReader(_Zstd(packed))), packed_bytes)
    return packed


class _Closing:
    """A decompressor that closes the file below it, as gzip and bz2 do not."""

    def __init__(self, plain: gzip.GzipFile | bz2.BZ2File, packed: BinaryIO) -> None:
        self.read1 = plain.read1  # `read` would keep to itself what came before the place where a file is cut
        self._both = (plain, packed)

    def close(self) -> None:
        for stream in self._both:
            stream.close()


def open_bytes(path: Path, compression: str) -> BinaryIO:
    """A buffered stream of the plain bytes of a file."""
    packed = open(path, "rb", buffering=_CHUNK_BYTES)  # noqa: SIM115, closed with what is returned
    return decompressed(packed, compression, path.stat().st_size)


@contextmanager
def on_disk(stream: BinaryIO, suffix: str) -> Iterator[Path]:
    """A temporary file with the bytes of a stream, for formats that are read from their end."""
    with tempfile.NamedTemporaryFile(prefix="millrace-", suffix=suffix) as copy:
        shutil.copyfileobj(stream, copy, _CHUNK_BYTES)
        copy.flush()
        yield Path(copy.name)
