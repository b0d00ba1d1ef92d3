"""JSONL, CSV, TSV and Parquet: one row, one document. Broken rows are rejected one by one, the rest is used."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from lm_core.corpus.config import LocalFiles
from lm_core.corpus.sources.local_files import LocalFile
from lm_core.corpus.sources.rows import TEXT_COLUMNS, columns_to_read, document_of_row, text_column
from lm_core.corpus.sources.streams import BROKEN_STREAM, open_bytes
from lm_core.corpus.text import Document, Rejected

_PARQUET_BATCH_ROWS = 256


def read(file: LocalFile, config: LocalFiles) -> Iterator[Document | Rejected]:
    """Documents of a table."""
    reader = {".parquet": _read_parquet, ".csv": _read_csv, ".tsv": _read_csv}.get(file.format, _read_jsonl)
    try:
        yield from reader(file, config)
    except BROKEN_STREAM as error:
        yield Rejected(file.source, file.name, "unreadable_file", str(error)[:300])


def _read_parquet(file: LocalFile, config: LocalFiles) -> Iterator[Document | Rejected]:
    number = 0
    try:
        with open_bytes(file.path, file.compression) as stream:
            # Parquet is read from its end: a compressed one must be unpacked first.
            content = pa.BufferReader(stream.read()) if file.compression else stream
            table = pq.ParquetFile(content)
            names = table.schema_arrow.names
            text = text_column(names, config.text_column, file.name)
            for batch in table.iter_batches(_PARQUET_BATCH_ROWS, columns=columns_to_read(names, text)):
                for row in batch.to_pylist():
                    number += 1
                    yield _document(row, text, number, file, config)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        reason = "unreadable_file" if number == 0 else "unreadable_rows"
        yield Rejected(file.source, f"{file.name}#{number + 1}-", reason, f"after row {number}: {error}"[:300])


def _read_jsonl(file: LocalFile, config: LocalFiles) -> Iterator[Document | Rejected]:
    text = config.text_column
    with open_bytes(file.path, file.compression) as stream:
        for number, line in _lines(stream, config.max_document_bytes):
            if not line or line.isspace():
                continue
            try:
                row = _object(line, config.max_document_bytes)
            except ValueError as error:
                reason = "not_utf8" if isinstance(error, UnicodeDecodeError) else "bad_line"
                yield Rejected(file.source, f"{file.name}#{number}", reason, f"line {number}: {error}"[:300])
                continue
            # Rows may differ in their keys; the first that has a text column decides for all.
            text = text or next((name for name in TEXT_COLUMNS if name in row), None)
            yield _document(row, text or TEXT_COLUMNS[0], number, file, config)


def _lines(stream: BinaryIO, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Numbered lines; one that is too long comes cut to max_bytes + 1 and its rest is skipped."""
    number = 0
    while line := stream.readline(max_bytes + 1):
        number += 1
        yield number, line
        while len(line) > max_bytes and not line.endswith(b"\n"):
            line = stream.readline(max_bytes + 1)


def _object(line: bytes, max_bytes: int) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: saying what the line is instead.
    """
    if len(line) > max_bytes:
        raise ValueError(f"longer than {max_bytes} bytes")
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"not an object but {type(row).__name__}")
    return row


def _read_csv(file: LocalFile, config: LocalFiles) -> Iterator[Document | Rejected]:
    csv.field_size_limit(config.max_document_bytes)
    with (
        open_bytes(file.path, file.compression) as stream,
        io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="") as characters,
    ):
        rows = csv.reader(characters, delimiter="\t" if file.format == ".tsv" else ",")
        try:
            names = next(rows, [])
            text = text_column(names, config.text_column, file.name) if names else ""
            for number, values in enumerate(rows, 1):
                if values:
                    yield _csv_document(dict(zip(names, values, strict=False)), text, number, file, config)
        except csv.Error as error:
            place = f"{file.name}#line{rows.line_num}"
            yield Rejected(file.source, place, "bad_rows", f"from line {rows.line_num} on: {error}"[:300])


def _csv_document(
    row: dict[str, str], text: str, number: int, file: LocalFile, config: LocalFiles
) -> Document | Rejected:
    # Bytes that are not UTF-8 came as lone surrogates, so that only their row is lost and not the file.
    if any("\udc80" <= character <= "\udcff" for character in row.get(text, "") if character >= "\ud800"):
        return Rejected(file.source, f"{file.name}#{number}", "not_utf8", f"row {number}")
    return _document(row, text, number, file, config)


def _document(row: dict[str, Any], text: str, number: int, file: LocalFile, config: LocalFiles) -> Document | Rejected:
    return document_of_row(
        row, text=text, place=file.name, number=number, source=file.source, max_bytes=config.max_document_bytes
    )
