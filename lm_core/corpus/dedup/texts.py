"""Texts that are read where they are needed and never all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# Reads some texts: their rows, ascending, and a large_string array of as many.
Part = Callable[[], tuple[np.ndarray, pa.Array]]
_PART_ROWS = 1024


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


@dataclass(frozen=True)
class TextsOfShards:
    """Texts of the documents of a corpus, row group by row group."""

    groups: Sequence[RowGroup]

    def __len__(self) -> int:
        return sum(len(group.places) for group in self.groups)

    def parts(self, wanted: np.ndarray) -> list[Part]:
        """See `Texts`."""
        parts: list[Part] = []
        for group in self.groups:
            own = np.flatnonzero(wanted[group.first : group.first + len(group.places)])
            if len(own):
                parts.append(partial(_read, group, own))
        return parts


def _read(group: RowGroup, chosen: np.ndarray) -> tuple[np.ndarray, pa.Array]:
    """The texts of some of the wanted documents of a row group."""
    file = pq.ParquetFile(group.shard)
    column = file.read_row_group(group.number, columns=["text"], use_threads=False)["text"]
    texts = column.cast(pa.large_string()).combine_chunks()
    places = group.places[chosen]
    return group.first + chosen, texts if len(places) == len(texts) else texts.take(pa.array(places))
