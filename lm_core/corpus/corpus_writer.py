"""Writes the corpus artifact: an external merge sort by (source, key) into Parquet shards."""

from __future__ import annotations

import heapq
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.schemas import DOCUMENTS, REJECTED
from lm_core.corpus.text import Document, Item, Rejected, Tally
from lm_core.store import Build

# What a run holds in memory, as Python counts it.
_RUN_BYTES = 192_000_000
_ROW_GROUP_BYTES = 4_000_000
_PROGRESS_EVERY = 500
_IN_ORDER = attrgetter("source", "key", "text")
_COMPUTED = ("doc_id", "num_bytes", "content_hash")
_COLUMNS = [name for name in DOCUMENTS.names if name not in _COMPUTED]
_VALUES = attrgetter(*_COLUMNS)


class CorpusWriter:
    """Takes documents in any order, writes them in the order of (source, key).

    Args:
        max_bytes: keep a sample of at most so much text, chosen by the documents' hashes.
    """

    def __init__(self, build: Build, *, shard_bytes: int, max_bytes: int | None) -> None:
        self._build = build
        self._shard_bytes = shard_bytes
        self._max_bytes = max_bytes
        self._run: list[Document] = []
        self._run_bytes = 0
        self._spilled: list[Path] = []
        self._rejected: list[Rejected] = []
        self._tallies: dict[str, Counter[str]] = {}
        self.first_rejected: str | None = None
        self._num_found = 0
        self._num_bytes = 0

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for path in self._spilled:
            path.unlink(missing_ok=True)

    def add(self, item: Item) -> None:
        """Take one document, one row that could not be read, or something to count."""
        if isinstance(item, Tally):
            self._tallies.setdefault(item.what, Counter())[item.which] += item.count
            return
        if isinstance(item, Rejected):
            # A message of the system may quote a name that is not UTF-8, which no table can hold.
            detail = (item.detail or "").encode("utf-8", "replace").decode()
            self._rejected.append(replace(item, detail=detail or None))
            return
        size = sys.getsizeof(item.text)
        self._run.append(item)
        self._run_bytes += size
        self._num_found += 1
        self._num_bytes += size
        if self._num_found % _PROGRESS_EVERY == 0:
            self._build.progress(self._num_found, None, "documents", megabytes=self._num_bytes / 1e6)
        if self._run_bytes >= _RUN_BYTES:
            self._spill()

    def finish(self) -> dict[str, Any]:
        """Write the artifact.

        Returns:
            Counts of documents, bytes and rejected rows, in all and by source.
        """
        bound = self._sample_bound()
        shards = _ShardWriter(self._build.folder, self._shard_bytes)
        for document in _unique(self._merged()):
            if bound is None or document.doc_id <= bound:
                shards.add(document)
        shards.close()
        num_rejected = self._write_rejected()
        self._build.progress(shards.num_documents, shards.num_documents, "documents", megabytes=shards.num_bytes / 1e6)
        return {
            "num_documents": shards.num_documents,
            "num_bytes": shards.num_bytes,
            "num_rejected": num_rejected,
            "num_not_sampled": self._num_found - shards.num_documents,
            "by_source": dict(sorted(shards.by_source.items())),
            "rejected_by_reason": dict(sorted(Counter(row.reason for row in self._rejected).items())),
            **{name: dict(sorted(counts.items())) for name, counts in sorted(self._tallies.items())},
        }

    def _sample_bound(self) -> str | None:
        """The largest doc_id to keep so that the text fits in max_bytes; None keeps all."""
        if self._max_bytes is None:
            return None
        identities, sizes = [], []
        for document in _unique(self._merged()):
            identities.append(document.doc_id)
            sizes.append(len(document.text.encode()))
        order = np.argsort(np.array(identities)) if identities else np.array([], int)
        total = np.cumsum(np.array(sizes, np.int64)[order])
        fitting = int(np.searchsorted(total, self._max_bytes, side="right"))
        return identities[order[fitting - 1]] if fitting else ""

    def _merged(self) -> Iterator[Document]:
        self._run.sort(key=_IN_ORDER)
        return heapq.merge(*map(_read_run, self._spilled), self._run, key=_IN_ORDER)

    def _spill(self) -> None:
        self._run.sort(key=_IN_ORDER)
        path = self._build.work / f"run-{len(self._spilled):05}.parquet"
        self._spilled.append(path)
        with pq.ParquetWriter(path, pa.schema([DOCUMENTS.field(name) for name in _COLUMNS])) as writer:
            for start in range(0, len(self._run), 2_000):
                part = self._run[start : start + 2_000]
                columns = {name: [getattr(document, name) for document in part] for name in _COLUMNS}
                writer.write_table(pa.table(columns, schema=writer.schema))
        self._run, self._run_bytes = [], 0

    def _write_rejected(self) -> int:
        rows: list[Rejected] = list(_unique(sorted(self._rejected, key=attrgetter("source", "key", "reason"))))
        columns = {name: [getattr(row, name) for row in rows] for name in REJECTED.names}
        pq.write_table(pa.table(columns, schema=REJECTED), self._build.folder / "rejected.parquet", compression="zstd")
        self.first_rejected = f"{rows[0].key}: {rows[0].reason}, {rows[0].detail}" if rows else None
        return len(rows)


class _ShardWriter:
    """Parquet shards of about `shard_bytes` of text, in row groups small enough to be read one at a time."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._writer: pq.ParquetWriter | None = None
        self._num_shards = 0
        self._bytes_in_shard = 0
        self._group: list[tuple[Document, int]] = []
        self._group_bytes = 0
        self.num_documents = 0
        self.num_bytes = 0
        self.by_source: Counter[str] = Counter()

    def add(self, document: Document) -> None:
        size = len(document.text.encode())
        self._group.append((document, size))
        self._group_bytes += size
        self.num_documents += 1
        self.num_bytes += size
        self.by_source[document.source] += 1
        if self._group_bytes >= min(_ROW_GROUP_BYTES, self._shard_bytes):
            self._flush()

    def close(self) -> None:
        if self._group or not self._num_shards:
            self._flush()
        if self._writer:
            self._writer.close()

    def _flush(self) -> None:
        if self._writer is None:
            path = self._folder / f"documents-{self._num_shards:05}.parquet"
            self._writer = pq.ParquetWriter(path, DOCUMENTS, compression="zstd")
            self._num_shards += 1
        values = zip(*(_VALUES(document) for document, _ in self._group), strict=True)
        columns: dict[str, list[Any]] = dict(zip(_COLUMNS, map(list, values), strict=False))
        columns = columns or {name: [] for name in _COLUMNS}
        columns |= {"doc_id": [d.doc_id for d, _ in self._group], "num_bytes": [size for _, size in self._group]}
        columns["content_hash"] = [d.content_hash for d, _ in self._group]
        self._writer.write_table(pa.table(columns, schema=DOCUMENTS))
        self._bytes_in_shard += self._group_bytes
        self._group, self._group_bytes = [], 0
        if self._bytes_in_shard >= self._shard_bytes:
            self._writer.close()
            self._writer, self._bytes_in_shard = None, 0


def _read_run(path: Path) -> Iterator[Document]:
    for batch in pq.ParquetFile(path).iter_batches(500):
        for row in batch.to_pylist():
            yield Document(**row)


def _unique(items: Iterable[Any]) -> Iterator[Any]:
    """Give the second and later items of one (source, key) a key of their own; items come in order.

    An issued key, `KEY~2`, begins with its own key and so comes after it: an item that has it by birth comes later,
    and is given one of its own. Keys that begin alike stand together, so little need be remembered.
    """
    previous: tuple[str, str] | None = None
    source, stem, issued = "", "", dict[str, int]()  # by key: the last number issued
    for item in items:
        if issued and (item.source != source or not item.key.startswith(stem)):
            issued.clear()
        is_repeat = (item.source, item.key) == previous
        previous = (item.source, item.key)
        if not is_repeat and not (issued and _is_issued(item.key, issued)):
            yield item
            continue
        if not issued:
            source, stem = item.source, item.key
        issued[item.key] = issued.get(item.key, 1) + 1
        yield replace(item, key=f"{item.key}~{issued[item.key]}")


def _is_issued(key: str, issued: Mapping[str, int]) -> bool:
    base, _, number = key.rpartition("~")
    is_number = re.fullmatch("[1-9][0-9]{0,9}", number) is not None
    return base in issued and is_number and 2 <= int(number) <= issued[base]
