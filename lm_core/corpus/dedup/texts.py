"""Texts that are read where they are needed and never all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# Reads some texts: their rows, ascending, and a large_string array of as many.
Part = Callable[[], tuple[np.ndarray, pa.Array]]
_PART_ROWS = 1024
_RECENT_BYTES = 32_000_000
_FEW = 0.05


class Texts(Protocol):
    """Texts by row; parts can be read from several threads at a time."""

    def __len__(self) -> int: ...

    def parts(self, wanted: np.ndarray) -> list[Part]:
        """The texts of the rows where `wanted` holds, cut into parts."""


@dataclass(frozen=True)
class TextsInMemory:
    """Texts of a string array."""

    texts: pa.Array

    def __len__(self) -> int:
        return len(self.texts)

    def parts(self, wanted: np.ndarray) -> list[Part]:
        """See `Texts`."""
        rows = np.flatnonzero(wanted)
        cuts = np.array_split(rows, range(_PART_ROWS, len(rows), _PART_ROWS))
        return [partial(self._read, own) for own in cuts]

    def _read(self, rows: np.ndarray) -> tuple[np.ndarray, pa.Array]:
        return rows, self.texts.take(pa.array(rows)).cast(pa.large_string())


@dataclass(frozen=True)
class RowGroup:
    """A row group of a shard, and which of its documents are wanted at all.

    Attributes:
        first: row of its first wanted document.
        places: the wanted documents' places within the row group.
    """

    shard: Path
    number: int
    first: int
    places: np.ndarray


class Recent:
    """Texts that were read when few were wanted: with few new documents each is read more than once."""

    def __init__(self, num_bytes: int = _RECENT_BYTES) -> None:
        self._found: dict[tuple[Path, int], tuple[np.ndarray, pa.Array]] = {}
        self._free_bytes = num_bytes

    def __reduce__(self) -> tuple[type[Recent], tuple[int]]:
        return Recent, (self._free_bytes,)

    def keep(self, group: RowGroup, chosen: np.ndarray, texts: pa.Array) -> None:
        """Keep texts, as far as there is room."""
        if texts.nbytes <= self._free_bytes and (group.shard, group.number) not in self._found:
            self._free_bytes -= texts.nbytes
            self._found[group.shard, group.number] = chosen, texts

    def get(self, group: RowGroup, chosen: np.ndarray) -> pa.Array | None:
        """Texts, if all of them are here."""
        known, texts = self._found.get((group.shard, group.number), (chosen[:0], None))
        if texts is None or not np.isin(chosen, known).all():
            return None
        return texts.take(pa.array(np.searchsorted(known, chosen)))


@dataclass(frozen=True)
class TextsOfShards:
    """Texts of the documents of a corpus, row group by row group."""

    groups: Sequence[RowGroup]
    recent: Recent = field(default_factory=Recent)

    def __len__(self) -> int:
        return sum(len(group.places) for group in self.groups)

    def parts(self, wanted: np.ndarray) -> list[Part]:
        """See `Texts`."""
        parts: list[Part] = []
        recent = self.recent if wanted.sum() <= _FEW * len(wanted) else Recent(0)
        for group in self.groups:
            own = np.flatnonzero(wanted[group.first : group.first + len(group.places)])
            if len(own):
                parts.append(partial(_read, group, own, recent))
        return parts


@lru_cache(maxsize=64)
def _footer(shard: Path, size: int, changed: int) -> pq.FileMetaData:
    """What a shard says of its row groups: read once, not for each of them."""
    return pq.read_metadata(shard)


def _read(group: RowGroup, chosen: np.ndarray, recent: Recent) -> tuple[np.ndarray, pa.Array]:
    """The texts of some of the wanted documents of a row group."""
    known = recent.get(group, chosen)
    if known is not None:
        return group.first + chosen, known
    about = group.shard.stat()
    file = pq.ParquetFile(group.shard, metadata=_footer(group.shard, about.st_size, about.st_mtime_ns))
    column = file.read_row_group(group.number, columns=["text"], use_threads=False)["text"]
    texts = column.cast(pa.large_string()).combine_chunks()
    places = group.places[chosen]
    own = texts if len(places) == len(texts) else texts.take(pa.array(places))
    recent.keep(group, chosen, own)
    return group.first + chosen, own
