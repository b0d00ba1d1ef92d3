"""Numbered lines of a file of any encoding, each within the limit; and files of which each line is a document."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator
from typing import AnyStr, BinaryIO

from lm_core.corpus.config import LocalFiles
from lm_core.corpus.sources.encodings import decode, wide_encoding
from lm_core.corpus.sources.found import Origin, found
from lm_core.corpus.sources.local_files import LocalFile
from lm_core.corpus.sources.streams import BROKEN_STREAM, BombError
from lm_core.corpus.text import Item, Rejected, Tally

SAMPLE_BYTES = 65_536
_SKIPPED_AT_ONCE = 1 << 20
# Number, offset in the file, and bytes in an encoding of which a newline is one byte.
Line = tuple[int, int, bytes]


def lines_of(stream: BinaryIO, max_bytes: int) -> tuple[Iterator[Line], str | None]:
    """Lines, and the encoding they were in where that is a wide one: then they come in UTF-8.

    A line that is too long comes cut to a little more than max_bytes, its rest is skipped.
    """
    wide = wide_encoding(stream.peek(SAMPLE_BYTES)[:SAMPLE_BYTES])  # type: ignore[attr-defined]
    return (_wide_lines(stream, wide, max_bytes) if wide else _lines(stream, max_bytes)), wide


def _lines(stream: BinaryIO, max_bytes: int) -> Iterator[Line]:
    yield from _numbered(stream.readline, len, 0, max_bytes)


def _wide_lines(stream: BinaryIO, encoding: str, max_bytes: int) -> Iterator[Line]:
    """Of UTF-16 and UTF-32, where the byte of a newline may be a part of another character."""
    characters = io.TextIOWrapper(stream, encoding, errors="replace", newline="\n")
    # As many bytes as the characters have here, without the mark that stands before the first.
    without_mark = f"{encoding.removesuffix('-le').removesuffix('-be')}-le"
    mark = 0 if encoding.endswith(("-le", "-be")) else len(" ".encode(without_mark))
    lines = _numbered(characters.readline, lambda line: len(line.encode(without_mark)), mark, max_bytes)
    for number, offset, line in lines:
        yield number, offset, line.encode()


def _numbered(
    readline: Callable[[int], AnyStr], size: Callable[[AnyStr], int], offset: int, longest: int
) -> Iterator[tuple[int, int, AnyStr]]:
    """Number, offset in bytes and content of each line; one that is too long is cut to longest + 1."""
    number = 0
    while line := readline(longest + 1):
        number += 1
        yield number, offset, line
        offset += size(line)
        too_long = len(line) > longest
        while too_long and line and line[-1:] not in (b"\n", "\n"):
            line = readline(_SKIPPED_AT_ONCE)
            offset += size(line)


def broken(file: LocalFile, error: Exception, offset: int) -> Rejected:
    """The row for a file that cannot be read beyond a line."""
    reason = "bomb" if isinstance(error, BombError) else "unreadable_rows" if offset else "unreadable_file"
    detail = f"after byte {offset}: {type(error).__name__}: {error}"
    return Rejected(file.source, file.name, reason, detail[:300])


def read(file: LocalFile, config: LocalFiles) -> Iterator[Item]:
    """Each line as a document; an empty one is a row without text."""
    offset = 0
    encodings = Counter[str]()
    try:
        with file.open() as stream:
            lines, wide = lines_of(stream, config.max_document_bytes)
            for number, offset, line in lines:
                key, where = f"{file.name}#{number}", f"line {number} at byte {offset}"
                if len(line) > config.max_document_bytes:
                    detail = f"{where}: longer than {config.max_document_bytes} bytes"
                    yield Rejected(file.source, key, "too_long", detail)
                    continue
                try:
                    decoded = decode(line, config.encoding)
                except ValueError as error:
                    yield Rejected(file.source, key, "binary", f"{where}: {error}"[:300])
                    continue
                encodings[wide or decoded.encoding] += 1
                yield from found(
                    decoded.text, Origin(file.source, key), max_bytes=config.max_document_bytes, place=where
                )
    except BROKEN_STREAM as error:
        yield broken(file, error, offset)
    for encoding, count in sorted(encodings.items()):
        yield Tally("encodings", encoding, count)
