"""JSONL and JSON: one object, one document. Broken lines are rejected one by one, the rest is used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from lm_core.corpus.config import LocalFiles
from lm_core.corpus.sources.encodings import decode
from lm_core.corpus.sources.local_files import LocalFile
from lm_core.corpus.sources.rows import TEXT_COLUMNS, document_of_row
from lm_core.corpus.sources.streams import BROKEN_STREAM, BombError
from lm_core.corpus.sources.text_files import decode_whole, whole
from lm_core.corpus.text import Item, Rejected, Tally

# Each value costs many times its bytes once parsed: this bounds what one line can become in memory.
_MAX_VALUES = 500_000


def read(file: LocalFile, config: LocalFiles) -> Iterator[Item]:
    """Documents of a file of JSON lines; of one JSON value when the suffix says so."""
    if file.format == ".json":
        yield from _read_value(file, config)
        return
    offset = 0
    encodings = Counter[str]()
    text = config.text_column
    try:
        with file.open() as stream:
            for number, offset, line in _lines(stream, config.max_document_bytes):
                if not line or line.isspace():
                    continue
                where = f"line {number} at byte {offset}"
                parsed = _object(line, config)
                if isinstance(parsed, str):
                    yield Rejected(file.source, f"{file.name}#{number}", "bad_line", f"{where}: {parsed}"[:300])
                    continue
                row, encoding = parsed
                encodings[encoding] += 1
                # Rows may differ in their keys; the first that has a text column decides for all.
                text = text or next((name for name in TEXT_COLUMNS if name in row), None)
                yield from _document(row, text or TEXT_COLUMNS[0], number, file, config, where)
    except BROKEN_STREAM as error:
        reason = "bomb" if isinstance(error, BombError) else "unreadable_rows" if offset else "unreadable_file"
        detail = f"after byte {offset}: {type(error).__name__}: {error}"
        yield Rejected(file.source, file.name, reason, detail[:300])
    for encoding, count in sorted(encodings.items()):
        yield Tally("encodings", encoding, count)


def _lines(stream: BinaryIO, max_bytes: int) -> Iterator[tuple[int, int, bytes]]:
    """Number, offset and bytes of each line; one that is too long comes cut to max_bytes + 1, its rest is skipped."""
    number = offset = 0
    while line := stream.readline(max_bytes + 1):
        number += 1
        yield number, offset, line
        offset += len(line)
        while len(line) > max_bytes and not line.endswith(b"\n"):
            line = stream.readline(min(max_bytes, 1 << 20) + 1)
            offset += len(line)
            if not line or line.endswith(b"\n"):
                break


def _object(line: bytes, config: LocalFiles) -> tuple[dict[str, Any], str] | str:
    """A JSON object and its encoding, or what the line is instead."""
    if len(line) > config.max_document_bytes:
        return f"longer than {config.max_document_bytes} bytes"
    if line.count(b"{") + line.count(b"[") > _MAX_VALUES:
        return f"more than {_MAX_VALUES} objects and arrays"
    try:
        decoded = decode(line, config.encoding)
        row = json.loads(decoded.text)
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:
        return str(error)
    return (row, decoded.encoding) if isinstance(row, dict) else f"not an object but {type(row).__name__}"


def _read_value(file: LocalFile, config: LocalFiles) -> Iterator[Item]:
    """A whole file that is one object, or an array of them."""
    content = whole(file, config.max_document_bytes)
    if isinstance(content, bytes) and content.count(b"{") + content.count(b"[") > _MAX_VALUES:
        content = Rejected(file.source, file.name, "too_long", f"more than {_MAX_VALUES} objects and arrays; use JSONL")
    decoded = content if isinstance(content, Rejected) else decode_whole(content, file, config.encoding)
    if isinstance(decoded, Rejected):
        yield decoded
        return
    try:
        value = json.loads(decoded.text)
    except (ValueError, RecursionError) as error:
        yield Rejected(file.source, file.name, "unreadable_file", f"no JSON: {error}"[:300])
        return
    yield Tally("encodings", decoded.encoding)
    rows = value if isinstance(value, list) else [value]
    objects = [row for row in rows if isinstance(row, dict)]
    text = config.text_column or next((name for row in objects for name in TEXT_COLUMNS if name in row), "text")
    for number, row in enumerate(rows, 1):
        if isinstance(row, dict):
            yield from _document(row, text, number, file, config, f"item {number}")
        else:
            detail = f"item {number}: not an object but {type(row).__name__}"
            yield Rejected(file.source, f"{file.name}#{number}", "bad_line", detail)


def _document(
    row: dict[str, Any], text: str, number: int, file: LocalFile, config: LocalFiles, where: str
) -> Iterator[Item]:
    yield from document_of_row(
        row,
        text=text,
        place=file.name,
        number=number,
        source=file.source,
        max_bytes=config.max_document_bytes,
        where=where,
    )
