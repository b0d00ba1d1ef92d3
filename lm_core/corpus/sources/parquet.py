"""Parquet: one row, one document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lm_core.corpus.config import LocalFiles
from lm_core.corpus.sources.local_files import LocalFile
from lm_core.corpus.sources.rows import columns_to_read, document_of_row, text_column
from lm_core.corpus.sources.streams import BROKEN_STREAM, on_disk
from lm_core.corpus.text import Item, Rejected
from lm_core.errors import UserError

_BATCH_ROWS, _BATCH_BYTES = 256, 16_000_000


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
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as table:
            total = table.metadata.num_rows
            names = table.schema_arrow.names
            text = text_column(names, config.text_column, file.name)
            columns = columns_to_read(names, text)
            for group in range(table.num_row_groups):
                size = table.metadata.row_group(group)
                if size.total_byte_size > size.num_rows * config.max_document_bytes:
                    yield _too_long(file, number, size.num_rows, config.max_document_bytes)
                    number += size.num_rows
                    continue
                # Long rows come few at a time: the memory is that of a batch.
                rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * size.num_rows // max(size.total_byte_size, 1)))
                for batch in table.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
                    for row in batch.to_pylist():
                        number += 1
                        yield from document_of_row(
                            row,
                            text=text,
                            place=file.name,
                            number=number,
                            source=file.source,
                            max_bytes=config.max_document_bytes,
                        )
    except UserError as error:
        yield Rejected(file.source, file.name, "no_text_column", str(error)[:300])
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = "unreadable_rows" if number else "unreadable_file"
        detail = f"rows {number + 1} to {total}: {error}" if total else str(error)
        yield Rejected(file.source, f"{file.name}#{number + 1}-", reason, detail[:300])


def _too_long(file: LocalFile, number: int, num_rows: int, max_bytes: int) -> Rejected:
    """A group of rows that are too long even on average is not unpacked: one of them could fill the memory."""
    rows = f"rows {number + 1} to {number + num_rows}"
    return Rejected(file.source, f"{file.name}#{number + 1}-", "too_long", f"{rows}: more than {max_bytes} bytes each")
