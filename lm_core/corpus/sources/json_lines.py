"""JSONL and JSON: one object, one document. Broken lines are rejected one by one, the rest is used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from lm_core.corpus.config import LocalFiles
from lm_core.corpus.sources.encodings import decode
from lm_core.corpus.sources.lines import SAMPLE_BYTES, broken, lines_of
from lm_core.corpus.sources.local_files import LocalFile
from lm_core.corpus.sources.rows import TextKey, document_of_row
from lm_core.corpus.sources.streams import BROKEN_STREAM
from lm_core.corpus.sources.text_files import decode_whole, whole
from lm_core.corpus.text import Item, Rejected, Tally

# Each value costs many times its bytes once parsed: this bounds what one line can become in memory.
_MAX_VALUES = 500_000


def read(file: LocalFile, config: LocalFiles) -> Iterator[Item]:
    """Documents of a file of JSON lines; of one JSON value when the suffix says so and the content does not object."""
    if file.format == ".json" and not _has_lines(file):
        yield from _read_value(file, config)
        return
    offset = 0
    encodings = Counter[str]()
    text = TextKey(config.text_column)
    try:
        with file.open() as stream:
            lines, wide = lines_of(stream, config.max_document_bytes)
            for number, offset, line in lines:
                if not line or line.isspace():
                    continue
                where = f"line {number} at byte {offset}"
                parsed = _object(line, config)
                if isinstance(parsed, str):
                    yield Rejected(file.source, f"{file.name}#{number}", "bad_line", f"{where}: {parsed}"[:300])
                    continue
                row, encoding = parsed
                encodings[wide or encoding] += 1
                yield from _document(row, text, number, file, config, where)
    except BROKEN_STREAM as error:
        yield broken(file, error, offset)
    for encoding, count in sorted(encodings.items()):
        yield Tally("encodings", encoding, count)


def _has_lines(file: LocalFile) -> bool:
    """Whether a file called .json begins with an object on a line by itself and goes on after it."""
    try:
        with file.open() as stream:
            first, newline, rest = stream.peek(SAMPLE_BYTES)[:SAMPLE_BYTES].partition(b"\n")  # type: ignore[attr-defined]
        return bool(newline and rest.strip()) and isinstance(json.loads(decode(first).text), dict)
    except (ValueError, RecursionError, *BROKEN_STREAM):
        return False


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
    text = TextKey(config.text_column)
    for number, row in enumerate(rows, 1):
        if isinstance(row, dict):
            yield from _document(row, text, number, file, config, f"item {number}")
        else:
            detail = f"item {number}: not an object but {type(row).__name__}"
            yield Rejected(file.source, f"{file.name}#{number}", "bad_line", detail)


def _document(
    row: dict[str, Any], text: TextKey, number: int, file: LocalFile, config: LocalFiles, where: str
) -> Iterator[Item]:
    key = text.of(row)
    yield from document_of_row(
        row,
        text=key,
        place=file.name,
        number=number,
        source=file.source,
        max_bytes=config.max_document_bytes,
        where=where,
        missing="no text" if key else text.missing(row),
    )
