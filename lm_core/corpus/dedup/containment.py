"""Which documents may be contained in another: quotations, chapters beside their book, editions with a longer preface.

MinHash bands find sets of like size. For a short text within a long one, a fixed sample of *all* shingles serves: those
whose hash ends in zeros (FracMinHash, Irber et al. 2022), so that a shingle is sampled in every document or in none.
A document proposes those preferred to it that hold at least half of the threshold's share of its `QUERIES` smallest
sampled shingles. The true containment disposes, as the true Jaccard similarity does.

Shingles that stand in more than `MAX_OWNERS` documents are a form that they share, not a quotation; a document of
fewer than `min_contained_shingles` shingles is never proposed.
"""

# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numba import njit

SAMPLE_BITS = 4
QUERIES = 32
_MIN_SHARED = 2
MAX_OWNERS = 128
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
    def of(cls, parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> Samples:
        """Samples of parts of any order: the rows and the values of each."""
        found = [(np.empty(0, np.int64), np.empty(0, np.uint64)), *parts]
        rows, values = (np.concatenate(columns) for columns in zip(*found, strict=True))
        order = np.argsort(values)
        return cls(values[order], rows[order])


@dataclass(frozen=True)
class Proposals:
    """Which of n documents may lie within another.

    Attributes:
        pairs: (p, 2) int64 rows, a document and one preferred to it that may contain it.
        taken: (n,) int32, how many of its sampled shingles each document was looked up by, and limits: (n,) uint64,
            the last of them.
    """

    pairs: np.ndarray
    taken: np.ndarray
    limits: np.ndarray

    @classmethod
    def none(cls, count: int) -> Proposals:
        """No proposal among so many documents."""
        return cls(np.empty((0, 2), np.int64), np.zeros(count, np.int32), np.zeros(count, np.uint64))


@njit(nogil=True, cache=True)
def _looks_up(row, value, asked, taken, limits):
    """Whether a document is looked up by a value; values come in order."""
    if not asked[row]:
        return taken[row] < QUERIES or value <= limits[row]
    if taken[row] == QUERIES:
        return False
    taken[row] += 1
    limits[row] = value
    return True


@njit(nogil=True, cache=True)
def _pairs(values, rows, ranks, asked, added, taken, limits, out):
    """Fill `out` with `later << 32 | preferred` for each query shingle that two documents share.

    Args:
        ranks: (n,) int64, place of each document in the order of preference, -1 for one that takes no part.
        asked: (n,) bool, documents whose proposals are wanted; the others are proposed to lie in `added` ones alone.
        taken, limits: as in `Proposals`; those of documents that are not asked are given, the others filled.

    Returns:
        How many there are; when `out` is too short it is filled as far as it goes.
    """
    count, first = 0, 0
    while first < len(values):
        last, owners = first, 0
        while last < len(values) and values[last] == values[first]:
            owners += ranks[rows[last]] >= 0
            last += 1
        if owners <= MAX_OWNERS:
            for index in range(first, last):
                row = rows[index]
                if ranks[row] < 0 or not _looks_up(row, values[first], asked, taken, limits):
                    continue
                for other in rows[first:last]:
                    if 0 <= ranks[other] < ranks[row] and (asked[row] or added[other]):
                        if count < len(out):
                            out[count] = (np.uint64(row) << _SHIFT) | np.uint64(other)
                        count += 1
        first = last
    return count


def proposals(samples: Samples, ranks: np.ndarray, threshold: float, before: Before | None = None) -> Proposals:
    """Propose which documents lie within another.

    Args:
        samples: of all documents; with `before` only those that one of the documents asked or added has too.
        before: what is known already.
    """
    room = 4 * len(samples.values) + 16
    everything = np.ones(len(ranks), bool)
    asked, added = (everything, everything) if before is None else (before.asked, before.added)
    known = Proposals.none(len(ranks)) if before is None else before.known
    while True:
        out = np.empty(room, np.uint64)
        taken, limits = np.where(asked, 0, known.taken).astype(np.int32), known.limits.astype(np.uint64)
        count = _pairs(samples.values, samples.rows, ranks, asked, added, taken, limits, out)
        if count <= room:
            break
        room = count
    keys, shared = np.unique(out[:count], return_counts=True)
    rows = (keys >> _SHIFT).astype(np.int64)
    likely = (shared >= _MIN_SHARED) & (shared >= 0.5 * threshold * taken[rows])
    return Proposals(np.stack([rows[likely], (keys[likely] & _LOW).astype(np.int64)], axis=1), taken, limits)


@dataclass(frozen=True)
class Before:
    """Proposals of an earlier run, by today's rows.

    Attributes:
        known: those proposals.
        asked: (n,) bool, documents of which nothing is known; added: (n,) bool, documents that are new.
    """

    known: Proposals
    asked: np.ndarray
    added: np.ndarray
