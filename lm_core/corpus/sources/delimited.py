"""CSV and TSV: one row, one document, with cells of many lines and quotes that nobody closed.

Rows are parsed strictly. Where that fails the quote is at fault: a row on one line is read as sloppy writers mean it,
one that has swallowed others is given up after its first line, and the rest is read again. So an unclosed quote costs
one row and not the file.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, deque
from collections.abc import Iterator
from typing import BinaryIO

from lm_core.corpus.config import LocalFiles
from lm_core.corpus.sources.encodings import decode, wide_encoding
from lm_core.corpus.sources.local_files import LocalFile
from lm_core.corpus.sources.rows import document_of_row, text_column
from lm_core.corpus.sources.streams import BROKEN_STREAM, BombError
from lm_core.corpus.text import Item, Rejected, Tally
from lm_core.errors import UserError

_SAMPLE_BYTES = 65_536
# Bounds the work on a file made of quotes that never match, in documents of the greatest length.
_MAX_REREAD = 8
_UNDECODED = re.compile("[\udc80-\udcff]")
_Record = tuple[int, list[str] | str]


def read(file: LocalFile, config: LocalFiles) -> Iterator[Item]:
    """Documents of a table."""
    lines: _Lines | None = None
    try:
        with file.open() as stream:
            encoding = _encoding(stream, config.encoding)
            wide = encoding.startswith(("utf-16", "utf-32"))
            characters = io.TextIOWrapper(stream, encoding, errors="replace" if wide else "surrogateescape", newline="")
            lines = _Lines(characters, config.max_document_bytes)
            yield from _read(lines, encoding, file, config)
    except UserError as error:
        yield Rejected(file.source, file.name, "no_text_column", str(error)[:300])
    except ValueError as error:
        reason = "bomb" if isinstance(error, BombError) else "binary"
        yield Rejected(file.source, file.name, reason, str(error)[:300])
    except BROKEN_STREAM as error:
        number = lines.number if lines else 0
        reason = "unreadable_rows" if number else "unreadable_file"
        yield Rejected(file.source, file.name, reason, f"after line {number}: {type(error).__name__}: {error}"[:300])


def _encoding(stream: BinaryIO, label: str | None) -> str:
    """What the first bytes are written in; the end of a sample may cut a character in two."""
    sample = stream.peek(_SAMPLE_BYTES)[:_SAMPLE_BYTES]  # type: ignore[attr-defined]
    if wide := wide_encoding(sample):
        return wide
    if len(sample) == _SAMPLE_BYTES:
        sample = sample[: sample.rfind(b"\n") + 1] or sample[:-4]
    encoding = decode(sample, label).encoding
    return "utf-8-sig" if encoding.startswith("utf-8") else encoding


class _Lines:
    """Numbered lines, which can be taken back; a line beyond the limit comes cut, its rest is skipped."""

    def __init__(self, characters: io.TextIOWrapper, max_characters: int) -> None:
        self._characters = characters
        self._max = max_characters
        self._returned: deque[str] = deque()
        self._size = 0
        self._to_reread = _MAX_REREAD * max_characters
        self.taken: list[str] = []
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._returned.popleft() if self._returned else self._read()
        if not line:
            raise StopIteration
        self.number += 1
        self.taken.append(line)
        self._size += len(line)
        if self._size > 2 * self._max or len(line) > self._max:
            raise csv.Error(f"beyond the limit of {self._max} characters")
        return line

    def _read(self) -> str:
        line = rest = self._characters.readline(self._max + 1)
        while len(rest) > self._max and not rest.endswith(("\n", "\r")):
            rest = self._characters.readline(self._max + 1)
        return line

    def next_record(self) -> None:
        """What was taken so far has been used."""
        self.taken.clear()
        self._size = 0

    def give_back(self) -> bool:
        """All lines of the record but its first are to be read again; unless that has been done too often."""
        self._to_reread -= self._size
        if self._to_reread < 0:
            return False
        self._returned.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken) - 1
        return True


def _read(lines: _Lines, encoding: str, file: LocalFile, config: LocalFiles) -> Iterator[Item]:
    first = next(lines, "")
    delimiter = "\t" if file.format == ".tsv" or ("\t" in first and "," not in first) else ","
    if delimiter == "," and ";" in first and "," not in first:
        delimiter = ";"  # as spreadsheets write where the comma is in numbers
    names = next(csv.reader([first], delimiter=delimiter), [])
    if not names:
        return
    text = text_column(names, config.text_column, file.name)
    if (same := names.count(text)) > 1:
        raise UserError(f"{file.name} has {same} columns called {text!r}: only one of them can be the text")
    lines.next_record()
    encodings = Counter[str]()
    for number, (line, values) in enumerate(_records(lines, delimiter, len(names), config.max_document_bytes), 1):
        where = f"row {number} at line {line}"
        if isinstance(values, str):
            yield Rejected(file.source, f"{file.name}#line{line}", "bad_rows", f"{where}: {values}")
        elif _has_more(values, names):
            detail = f"{where}: {len(values)} values under {len(names)} columns; is a {delimiter!r} in them not quoted?"
            yield Rejected(file.source, f"{file.name}#line{line}", "bad_rows", detail)
        elif values:
            row, used = _decoded(dict(zip(names, values, strict=False)), encoding)
            encodings[used] += 1
            yield from document_of_row(
                row,
                text=text,
                place=file.name,
                number=number,
                source=file.source,
                max_bytes=config.max_document_bytes,
                where=where,
            )
    for used, count in sorted(encodings.items()):
        yield Tally("encodings", used, count)


def _has_more(values: list[str], names: list[str]) -> bool:
    """Whether words stand beyond the last column, to which no column belongs; delimiters at the end are harmless."""
    return any(not value.isspace() for value in values[len(names) :] if value)


def _records(lines: _Lines, delimiter: str, num_columns: int, max_characters: int) -> Iterator[_Record]:
    """First line and values of each row; of one that cannot be read, what is wrong with it."""
    csv.field_size_limit(max_characters)
    while True:
        lines.next_record()
        try:
            for values in csv.reader(lines, delimiter=delimiter, strict=True):
                line = lines.number - len(lines.taken) + 1
                if len(lines.taken) > 1 and len(values) > num_columns:
                    raise csv.Error(f"{len(values)} values under {num_columns} columns")
                yield line, values
                lines.next_record()
            return
        except csv.Error as error:
            if not lines.taken:
                return
            line = lines.number - len(lines.taken) + 1
            yield line, _sloppy(lines, delimiter, error)


def _sloppy(lines: _Lines, delimiter: str, error: csv.Error) -> list[str] | str:
    """A row whose quotes break the rules: its values where it stands on one line, else what is wrong."""
    if len(lines.taken) > 1 or "limit" in str(error):
        num_lines = len(lines.taken)
        lost = "" if lines.give_back() else f"; {num_lines} lines are lost with it"
        return f"quotes that do not match: {error}"[:250] + lost
    try:
        if delimiter == "\t":
            return next(csv.reader(lines.taken, delimiter=delimiter, quoting=csv.QUOTE_NONE), [])
        return next(csv.reader(lines.taken, delimiter=delimiter), [])
    except csv.Error as worse:
        return str(worse)[:300]


def _decoded(row: dict[str, str], encoding: str) -> tuple[dict[str, str], str]:
    """Bytes that are not of the file's encoding came as lone surrogates: the row is decoded by itself."""
    if not any(_UNDECODED.search(value) for value in row.values()):
        return row, encoding.removesuffix("-sig")
    spelled = {name: value.encode(encoding.removesuffix("-sig"), "surrogateescape") for name, value in row.items()}
    used = decode(b"\n".join(spelled.values())).encoding
    name = "utf-8" if used == "utf-8, damaged" else used
    return {key: value.decode(name, "replace") for key, value in spelled.items()}, used
