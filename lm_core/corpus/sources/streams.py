"""Bytes of a file, decompressed as they are read."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

# What a decompressor raises on a file that is cut short, corrupt, or something else altogether.
BROKEN_STREAM = (EOFError, OSError, zlib.error, zstandard.ZstdError)


def open_bytes(path: Path, compression: str) -> BinaryIO:
    """A buffered stream of the plain bytes."""
    if compression == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if compression == ".zst":
        packed = open(path, "rb")  # noqa: SIM115, closed with the reader
        reader = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True, closefd=True)
        return cast(BinaryIO, io.BufferedReader(reader, 1 << 20))
    return open(path, "rb", buffering=1 << 20)
