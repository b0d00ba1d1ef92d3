"""Lines and passages of documents that earlier runs have read, and which of them stood in more than one.

With few documents that came or went, only the hashes of those that came are looked for among all.
"""

# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numba import njit

from lm_core.corpus.dedup.hash_tables import HashSet
from lm_core.corpus.dedup.segments import Layout, Segments, SegmentWriter, load_arrays, save_arrays

# Of each document: identity, characters of its text, number of its units; of each unit: hash and place, in characters.
LAYOUT = Layout(
    {"ids": ("u8", 2), "lengths": ("i8", 1), "num_units": ("i4", 1)},
    {"hashes": ("u8", "num_units"), "starts": ("u4", "num_units"), "ends": ("u4", "num_units")},
)
_UNIT = ("hashes", "starts", "ends")
_MOST = 255
_FEW = 0.2


@dataclass(frozen=True)
class Common:
    """Units that stand in more than one kept document, in the order of hash and row.

    Attributes:
        hashes: (u,) uint64; rows: (u,) int64, of the segments; starts, ends: (u,) int64.
        kept: (rows,) bool, the documents that were looked at.
    """

    hashes: np.ndarray
    rows: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    kept: np.ndarray


@dataclass(frozen=True)
class StoredPassages:
    """What earlier runs have read, in a folder.

    Attributes:
        common: what was common in the run before, if it is of these segments.
    """

    folder: Path
    segments: Segments
    common: Common | None

    @classmethod
    def load(cls, folder: Path) -> StoredPassages:
        """What lies in a folder; nothing, when there is none."""
        segments = Segments.load(folder, LAYOUT)
        arrays, definition = load_arrays(folder / "common")
        known = bool(arrays) and json.loads(definition) == segments.names
        return cls(folder, segments, Common(**arrays) if known else None)


@njit(nogil=True, cache=True)
def _count(hashes, counters):
    bits = np.uint64(len(counters) - 1)
    for value in hashes:
        place = (value >> np.uint64(1)) & bits
        counters[place] += counters[place] < _MOST


@njit(nogil=True, cache=True)
def _in_several(hashes, rows):
    """Mask of the entries whose hash more than one document has; entries in the order of hash and row."""
    mask = np.zeros(len(hashes), np.bool_)
    first = 0
    while first < len(hashes):
        last = first
        while last < len(hashes) and hashes[last] == hashes[first]:
            last += 1
        mask[first:last] = rows[first] != rows[last - 1]
        first = last
    return mask


def common_units(
    segments: Segments, kept: np.ndarray, was: Common | None, num_counters: int, num_threads: int
) -> Common:
    """What is common to the documents that are kept.

    Args:
        kept: (rows,) bool of the segments.
        was: what was common to those that an earlier run kept.
        num_counters: a power of two; fewer take less memory and more time.
    """
    columns = None
    if was is not None:
        before = np.zeros(len(kept), bool)
        before[: len(was.kept)] = was.kept
        if (before != kept).sum() <= _FEW * kept.sum():
            columns = _updated(segments, kept, before, was, num_threads)
    if columns is None:
        columns = _found(segments, kept, num_counters)
    hashes, rows, starts, ends = columns
    several = _in_several(hashes, rows)
    return Common(hashes[several], rows[several], starts[several], ends[several], kept)


def _found(segments: Segments, kept: np.ndarray, num_counters: int) -> tuple[np.ndarray, ...]:
    """All units that may stand in more than one place: counters of hashes tell which."""
    counters, numbers = np.zeros(num_counters, np.uint8), np.where(kept, np.arange(len(kept)), -1)
    for _, hashes in segments.blocks(["hashes"], numbers):
        _count(hashes, counters)
    found = [(np.empty(0, np.uint64), *(np.empty(0, np.int64) for _ in range(3)))]
    for rows, hashes, starts, ends in segments.blocks(_UNIT, numbers):
        often = counters[(hashes >> np.uint64(1)) & np.uint64(num_counters - 1)] > 1
        found.append((hashes[often], rows[often], starts[often].astype(np.int64), ends[often].astype(np.int64)))
    return _sorted(tuple(np.concatenate(columns) for columns in zip(*found, strict=True)))


def _sorted(columns: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    order = np.lexsort((columns[1], columns[0]))
    return tuple(column[order] for column in columns)


def _updated(
    segments: Segments, kept: np.ndarray, before: np.ndarray, was: Common, num_threads: int
) -> tuple[np.ndarray, ...]:
    """As it was, without what has gone, and with all units of the hashes that came."""
    came = np.unique(segments.of_documents("hashes", kept & ~before))
    wanted = HashSet(came)
    rest = kept[was.rows]
    rest[wanted.places_in(was.hashes)] = False
    old = [column[rest] for column in (was.hashes, was.rows, was.starts, was.ends)]
    rows, hashes, starts, ends = (
        segments.owners(_UNIT, wanted, num_threads) if segments.parts else (came, came, came, came)
    )
    here = kept[rows]
    new = _sorted((hashes[here], rows[here], starts[here].astype(np.int64), ends[here].astype(np.int64)))
    is_new = np.zeros(len(old[0]) + len(new[0]), bool)
    is_new[np.searchsorted(old[0], new[0]) + np.arange(len(new[0]))] = True
    both = tuple(np.empty(len(is_new), column.dtype) for column in old)
    for column, its_old, its_new in zip(both, old, new, strict=True):
        column[is_new], column[~is_new] = its_new, its_old
    return both


def save_common(folder: Path, segments: Segments, new: SegmentWriter | None, kept: np.ndarray, common: Common) -> None:
    """Add a new segment, and what is common now."""
    numbers = segments.add(folder, new, kept)
    looked_at = np.zeros(int(numbers.max(initial=-1)) + 1, bool)
    looked_at[numbers[kept]] = True
    arrays = vars(common) | {"rows": numbers[common.rows], "kept": looked_at}
    save_arrays(folder / "common", arrays, json.dumps(segments.names))
