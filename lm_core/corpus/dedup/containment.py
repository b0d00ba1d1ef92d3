"""Which documents may be contained in another: quotations, chapters beside their book, editions with a longer preface.

MinHash bands find sets of like size. For a short text within a long one, a fixed sample of *all* shingles serves: those
whose hash ends in zeros (FracMinHash, Irber et al. 2022), so that a shingle is sampled in every document or in none.
A document proposes those preferred to it that hold at least half of the threshold's share of its `_QUERIES` smallest
sampled shingles. The true containment disposes, as the true Jaccard similarity does.

Shingles that stand in more than `_MAX_OWNERS` documents are a form that they share, not a quotation; a document of
fewer than `min_contained_shingles` shingles is never proposed.
"""

# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

SAMPLE_BITS = 4
_QUERIES = 32
_MIN_SHARED = 2
_MAX_OWNERS = 128
_SHIFT = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True)
class Samples:
    """Sampled shingles of some documents, in the order of their values; documents that share one stand in any order.

    Attributes:
        values: (s,) uint64; rows: (s,) int64, the document of each.
    """

    values: np.ndarray
    rows: np.ndarray

    @classmethod
    def empty(cls) -> Samples:
        """Samples of no document."""
        return cls(np.empty(0, np.uint64), np.empty(0, np.int64))

    def renumbered(self, new_rows: np.ndarray) -> Samples:
        """The same with new_rows[row] in the place of each row; rows whose new number is -1 are left out."""
        rows = new_rows[self.rows]
        left = rows >= 0
        return Samples(np.asarray(self.values)[left], rows[left])

    def with_others(self, others: Sequence[Samples]) -> Samples:
        """These and others, of other documents and in any order, merged."""
        values = np.concatenate([np.empty(0, np.uint64), *(other.values for other in others)])
        rows = np.concatenate([np.empty(0, np.int64), *(other.rows for other in others)])
        order = np.argsort(values)
        values, rows = values[order], rows[order]
        if not len(self.values):
            return Samples(values, rows)
        places = np.searchsorted(self.values, values)
        return Samples(np.insert(self.values, places, values), np.insert(self.rows, places, rows))


@njit(nogil=True, cache=True)
def _pairs(values, rows, ranks, taken, max_owners, out):
    """Fill `out` with `later << 32 | preferred` for each query shingle that two documents share.

    Args:
        ranks: (n,) int64, place of each document in the order of preference, -1 for one that takes no part.
        taken: (n,) int32 zeros, filled with the number of query shingles of each document.

    Returns:
        How many there are; when `out` is too short it is filled as far as it goes.
    """
    count, first = 0, 0
    while first < len(values):
        last, owners = first, 0
        while last < len(values) and values[last] == values[first]:
            owners += ranks[rows[last]] >= 0
            last += 1
        if owners <= max_owners:
            for index in range(first, last):
                row = rows[index]
                if ranks[row] < 0 or taken[row] == _QUERIES:
                    continue
                taken[row] += 1
                for other in rows[first:last]:
                    if 0 <= ranks[other] < ranks[row]:
                        if count < len(out):
                            out[count] = (np.uint64(row) << _SHIFT) | np.uint64(other)
                        count += 1
        first = last
    return count


def proposed_pairs(samples: Samples, ranks: np.ndarray, threshold: float) -> np.ndarray:
    """(p, 2) int64 rows: a document, and one preferred to it that may contain it."""
    room = 4 * len(samples.values) + 16
    while True:
        out, taken = np.empty(room, np.uint64), np.zeros(len(ranks), np.int32)
        count = _pairs(samples.values, samples.rows, ranks, taken, _MAX_OWNERS, out)
        if count <= room:
            break
        room = count
    keys, shared = np.unique(out[:count], return_counts=True)
    rows = (keys >> _SHIFT).astype(np.int64)
    likely = (shared >= _MIN_SHARED) & (shared >= 0.5 * threshold * taken[rows])
    return np.stack([rows[likely], (keys[likely] & _LOW).astype(np.int64)], axis=1)
