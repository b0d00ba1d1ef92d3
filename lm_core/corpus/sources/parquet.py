"""Parquet: one row, one document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lm_core.corpus.config import LocalFiles
from lm_core.corpus.sources.local_files import LocalFile
from lm_core.corpus.sources.parquet_pages import page_bytes
from lm_core.corpus.sources.rows import columns_to_read, document_of_row, text_column
from lm_core.corpus.sources.streams import BROKEN_STREAM, on_disk
from lm_core.corpus.text import Item, Rejected
from lm_core.errors import UserError

_BATCH_ROWS, _BATCH_BYTES, _EXPANDED_BYTES = 256, 16_000_000, 64_000_000
# A page is unpacked whole, and takes its size twice or thrice.
_MAX_PAGE_BYTES = 128_000_000


def read(file: LocalFile, config: LocalFiles) -> Iterator[Item]:
    """Documents of a table; a broken page costs the rows from there on, counted as one."""
    if file.compression or file.member:
        # Parquet is read from its end: a compressed one must be unpacked first.
        try:
            with file.open() as stream, on_disk(stream, ".parquet") as path:
                yield from _read(path, file, config)
        except BROKEN_STREAM as error:
            yield Rejected(file.source, file.name, "unreadable_file", f"{type(error).__name__}: {error}"[:300])
        return
    yield from _read(file.path, file, config)


def _read(path: Path, file: LocalFile, config: LocalFiles) -> Iterator[Item]:
    number, total = 0, 0
    try:
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as table, open(path, "rb") as pages:
            total = table.metadata.num_rows
            names = table.schema_arrow.names
            text = text_column(names, config.text_column, file.name)
            columns = columns_to_read(names, text)
            for index in range(table.num_row_groups):
                group = table.metadata.row_group(index)
                rows = _rows_at_a_time(pages, group, columns, config.max_document_bytes)
                if isinstance(rows, str):
                    detail = f"rows {number + 1} to {number + group.num_rows}: {rows}"
                    yield Rejected(file.source, f"{file.name}#{number + 1}-", "too_long", detail)
                    number += group.num_rows
                    continue
                for batch in table.iter_batches(rows, row_groups=[index], columns=columns, use_threads=False):
                    yield from _documents(batch, text, number, file, config)
                    number += batch.num_rows
    except UserError as error:
        yield Rejected(file.source, file.name, "no_text_column", str(error)[:300])
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = "unreadable_rows" if number else "unreadable_file"
        detail = f"rows {number + 1} to {total}: {error}" if total else str(error)
        yield Rejected(file.source, f"{file.name}#{number + 1}-", reason, detail[:300])


def _rows_at_a_time(pages: BinaryIO, group: Any, columns: list[str], max_bytes: int) -> int | str:
    """How many rows of a row group fit in the memory of a reader, or why it is not read: none of them may fill it."""
    size, num_rows = group.total_byte_size, max(group.num_rows, 1)
    if size > num_rows * max_bytes:
        return f"more than {max_bytes} bytes each"
    dictionaries = 0
    for column in (group.column(place) for place in range(group.num_columns)):
        if column.path_in_schema.partition(".")[0] in columns:
            largest, dictionary = page_bytes(pages, column)
            if largest > _MAX_PAGE_BYTES:
                return f"a page of {largest} bytes; write smaller pages (in pyarrow write_batch_size) or no such cell"
            dictionaries += dictionary
    # Long rows come few at a time, and each may be the longest of a dictionary: the memory is that of a batch.
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * num_rows // max(size, 1), _EXPANDED_BYTES // max(dictionaries, 1)))


def _documents(batch: pa.RecordBatch, text: str, before: int, file: LocalFile, config: LocalFiles) -> Iterator[Item]:
    """Documents of the rows after the first `before`; what is too long is not unpacked any further."""
    values, too_long = batch.column(text), [False] * batch.num_rows
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        lengths = pc.fill_null(pc.binary_length(values), 0)
        too_long = pc.greater(lengths, config.max_document_bytes).to_pylist()
    rows = [] if any(too_long) else batch.to_pylist()
    for place, skipped in enumerate(too_long):
        number = before + place + 1
        if skipped:
            detail = f"row {number}: more than {config.max_document_bytes} bytes"
            yield Rejected(file.source, f"{file.name}#{number}", "too_long", detail)
            continue
        row = rows[place] if rows else batch.slice(place, 1).to_pylist()[0]
        yield from document_of_row(
            row, text=text, place=file.name, number=number, source=file.source, max_bytes=config.max_document_bytes
        )
