"""Who stays: one greedy pass over the documents, in compiled code.

Documents come in the order of preference. Each is compared with the *kept* documents that share a band with it or may
contain it, by the exact overlap of their shingle sets. It is a copy when one of them is similar enough (Jaccard) or,
failing that, holds enough of its shingles (containment), and kept otherwise.

An overlap that an earlier run has counted is not counted again. With few new documents nearly all are known, so that no
text but that of the new documents' neighbours is read; the pass itself is the same, and so is its result.
"""

# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numba import njit

from lm_core.corpus.dedup.shingles import mix

_STEP = 4096
_SHIFT = np.uint64(32)
_FREE = np.uint64(0xFFFFFFFFFFFFFFFF)
_MUCH_LONGER = 32


class Room(Protocol):
    """Gives a new array."""

    def __call__(self, name: str, shape: tuple[int, ...], kind: Any) -> np.ndarray: ...


def in_memory(name: str, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    """A new array, wherever there is room."""
    return np.empty(shape, kind)


@dataclass(frozen=True)
class Bounds:
    """From which figure on a document is a copy, and from which on two kept ones share a cluster.

    Attributes:
        containment: share of a document's shingles that another holds; None looks at similarity alone.
        min_contained: shingles of which a document that is contained has at least so many.
    """

    threshold: float
    cluster_threshold: float
    containment: float | None = None
    min_contained: int = 1

    def numbers(self) -> tuple[float, float, float, int]:
        """For the kernels: no containment reaches 2."""
        containment = 2.0 if self.containment is None else self.containment
        return self.threshold, self.cluster_threshold, containment, self.min_contained


@dataclass(frozen=True)
class Pass:
    """Result of the greedy pass over m documents; numbers are places in the order of preference.

    Attributes:
        keepers: (m,) int64, place of the kept document that justifies the removal, -1 for a document that is kept.
        figures: (m, 2) float64, Jaccard similarity to the keeper and containment in it, 0 for a kept document.
        joins: (j, 2) int64, kept documents that share a cluster: a spanning forest of the clusters.
        components: (m,) int64, for each document one that stands for all those that have to do with each other, by
            shared bands or proposed containment: what becomes of one cannot concern those of another.
        pairs: (p, 2) int64, all pairs that were compared.
        overlaps: (p, 3) int32, shingles that the two share, and how many each has; -1 for an overlap yet unknown, 0
            shared where the sizes alone rule out what `Bounds` asks for.
    """

    keepers: np.ndarray
    figures: np.ndarray
    joins: np.ndarray
    components: np.ndarray
    pairs: np.ndarray
    overlaps: np.ndarray


@dataclass(frozen=True)
class ShingleSets:
    """Shingle sets of some of m documents: set i is shingles[starts[i] : starts[i] + lengths[i]], or unknown.

    Attributes:
        lengths: (m,) int64, -1 for a document whose set was not loaded.
    """

    shingles: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class KnownPairs:
    """Pairs (p, 2) of places whose overlaps (p, 3) are known, as in `Pass`."""

    pairs: np.ndarray
    overlaps: np.ndarray


@njit(nogil=True, cache=True)
def _shared(a, b):
    """How many values two sorted sets without repeats share."""
    shared, i, j = 0, 0, 0
    if len(b) > _MUCH_LONGER * len(a):
        for value in a:
            place = np.searchsorted(b, value)
            shared += place < len(b) and b[place] == value
        return shared
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            shared += 1
            i += 1
            j += 1
        elif a[i] < b[j]:
            i += 1
        else:
            j += 1
    return shared


@njit(nogil=True, cache=True)
def _root(parents, place):
    while parents[place] != place:
        parents[place] = parents[parents[place]]
        place = parents[place]
    return place


@njit(nogil=True, cache=True)
def _slot(table, key):
    """Place of a key in an open hash table, or of the free place where it would go."""
    bits = np.uint64(len(table) - 1)
    slot = mix(key) & bits
    while table[slot] != key and table[slot] != _FREE:
        slot = (slot + np.uint64(1)) & bits
    return slot


@njit(nogil=True, cache=True)
def _fill(table, values, keys):
    for index in range(len(keys)):
        slot = _slot(table, keys[index])
        table[slot] = keys[index]
        values[slot] = index


@njit(nogil=True, cache=True)
def _overlap(sets, known, place, other, bounds, out):
    """Fill `out` with the shared shingles of two documents and their sizes; -1 when they are unknown."""
    shingles, starts, lengths = sets
    table, values, overlaps = known
    slot = _slot(table, (np.uint64(place) << _SHIFT) | np.uint64(other))
    if table[slot] != _FREE:
        out[:] = overlaps[values[slot]]
        return
    out[1], out[2] = lengths[place], lengths[other]
    if out[1] < 0 or out[2] < 0:
        out[:] = -1
        return
    if bounds[2] > 1 and min(out[1], out[2]) < bounds[1] * max(out[1], out[2]):
        out[0] = 0
        return
    short, long = (place, other) if out[1] <= out[2] else (other, place)
    out[0] = _shared(
        shingles[starts[short] : starts[short] + lengths[short]], shingles[starts[long] : starts[long] + lengths[long]]
    )


@njit(nogil=True, cache=True)
def _candidates(place, stamp, groups, heads, links, containers, keepers, seen, found):
    """Collect the kept documents that share a bucket with `place` or may contain it, each once; returns how many."""
    count = 0
    for band in range(groups.shape[1]):
        other = heads[groups[place, band]]
        while other >= 0:
            if seen[other] != stamp:
                seen[other] = stamp
                found[count] = other
                count += 1
            other = links[other, band]
    starts, others = containers
    for other in others[starts[place] : starts[place + 1]]:
        if keepers[other] < 0 and seen[other] != stamp:
            seen[other] = stamp
            found[count] = other
            count += 1
    return count


@njit(nogil=True, cache=True)
def _justify(place, other, overlap, bounds, keepers, figures):
    """Let `other` be the keeper of `place` if it justifies that better than the one so far; returns whether they join.

    Similarity justifies before containment, the higher figure before the lower, and of equals the preferred document,
    so that the order in which candidates are found does not matter.
    """
    shared = overlap[0]
    similarity = shared / max(overlap[1] + overlap[2] - shared, 1)
    contained = shared / overlap[1] if overlap[1] >= bounds[3] else 0.0
    containing = shared / overlap[2] if overlap[2] >= bounds[3] else 0.0
    copy = similarity >= bounds[0]
    if copy or contained >= bounds[2]:
        was_copy = keepers[place] >= 0 and figures[place, 0] >= bounds[0]
        better = keepers[place] < 0 or (copy and not was_copy)
        if not better and copy == was_copy:
            new, old = (similarity, figures[place, 0]) if copy else (contained, figures[place, 1])
            better = new > old or (new == old and other < keepers[place])
        if better:
            keepers[place], figures[place, 0], figures[place, 1] = other, similarity, shared / max(overlap[1], 1)
    return similarity >= bounds[1] or contained >= bounds[2] or containing >= bounds[2]


@njit(nogil=True, cache=True)
def _join(place, near, parents, joins, num_joins):
    """Join `place` to the clusters of `near`; returns the new number of joins."""
    for other in near:
        root, other_root = _root(parents, place), _root(parents, other)
        if root != other_root:
            parents[root] = other_root
            joins[num_joins] = place, other
            num_joins += 1
    return num_joins


@njit(nogil=True, cache=True)
def _visit(first, last, groups, heads, links, containers, seen, sets, known, bounds, keepers, figures, parents, joins,
           pairs, overlaps, counts):  # fmt: skip
    """Visit the places first..last, or fewer when the room for pairs does not suffice; returns the next place.

    Args:
        groups: (m, bands) int32, number of the bucket in each band.
        heads, links: kept documents of each bucket as a linked list; -1 ends it.
        containers: (starts, others), those that may contain a document.
        seen: (m,) int64, the last visit that each document was compared in.
        known: (table, values, overlaps) of pairs.
        bounds: `Bounds.numbers()`.
        joins: (m, 2); pairs: uint64, `place << 32 | other`; overlaps: all filled from the front.
        counts: (pairs, joins, visits) so far.
    """
    found = np.empty(len(keepers), np.int64)
    for place in range(first, last):
        counts[2] += 1
        num_found = _candidates(place, counts[2], groups, heads, links, containers, keepers, seen, found)
        if counts[0] + num_found > len(pairs):
            return place
        num_near = 0
        for other in found[:num_found]:
            overlap = overlaps[counts[0]]
            _overlap(sets, known, place, other, bounds, overlap)
            pairs[counts[0]] = (np.uint64(place) << _SHIFT) | np.uint64(other)
            counts[0] += 1
            if overlap[0] >= 0 and _justify(place, other, overlap, bounds, keepers, figures):
                found[num_near] = other
                num_near += 1
        if keepers[place] >= 0:
            continue
        for band in range(groups.shape[1]):
            links[place, band] = heads[groups[place, band]]
            heads[groups[place, band]] = place
        counts[1] = _join(place, found[:num_near], parents, joins, counts[1])
    return last


@njit(nogil=True, cache=True)
def _components(groups, firsts, starts, others, parents):
    """Fill `parents` (0, 1, 2...) with one document for each component; firsts: -1 for each bucket."""
    for place in range(len(groups)):
        for group in groups[place]:
            if firsts[group] < 0:
                firsts[group] = place
            else:
                parents[_root(parents, place)] = _root(parents, firsts[group])
        for other in others[starts[place] : starts[place + 1]]:
            parents[_root(parents, place)] = _root(parents, other)
    for place in range(len(groups)):
        parents[place] = _root(parents, place)


def _buckets(keys: np.ndarray, room: Room) -> tuple[np.ndarray, int]:
    """Band keys (m, bands) as numbers of buckets (m, bands) that count through all bands, and how many there are."""
    groups = room("groups", keys.shape, np.int32)
    total = 0
    for band in range(keys.shape[1]):
        distinct, numbers = np.unique(keys[:, band], return_inverse=True)
        groups[:, band] = numbers + total
        total += len(distinct)
    return groups, total


def _table(known: KnownPairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hash table of known pairs, the later place first in each: (keys, rows of overlaps, overlaps)."""
    size = 1 << max(4, (2 * len(known.pairs)).bit_length())
    table, values = np.full(size, _FREE, np.uint64), np.zeros(size, np.int64)
    one, other = known.pairs.T
    turned, overlaps = np.flatnonzero(one < other), known.overlaps.astype(np.int32)
    overlaps[turned] = overlaps[turned][:, [0, 2, 1]]
    keys = (np.maximum(one, other).astype(np.uint64) << _SHIFT) | np.minimum(one, other).astype(np.uint64)
    _fill(table, values, keys)
    return table, values, overlaps


def _one_pass(
    groups: np.ndarray, num_buckets: int, containers: tuple[np.ndarray, np.ndarray], sets: ShingleSets,
    known: tuple[np.ndarray, np.ndarray, np.ndarray], bounds: Bounds, progress: Callable[[int, int], None], room: Room,
) -> Pass:  # fmt: skip
    count = len(groups)
    heads, links = np.full(num_buckets, -1, np.int32), room("links", groups.shape, np.int32)
    seen, parents = np.full(count, -1, np.int64), np.arange(count)
    keepers, figures = np.full(count, -1, np.int64), np.zeros((count, 2))
    joins, counts = np.empty((count, 2), np.int64), np.zeros(3, np.int64)
    pairs, overlaps = np.empty(16 * count + 1, np.uint64), np.empty((16 * count + 1, 3), np.int32)
    place = 0
    while place < count:
        progress(place, count)
        stop = _visit(place, min(place + _STEP, count), groups, heads, links, containers, seen,
                      (sets.shingles, sets.starts, sets.lengths), known, bounds.numbers(), keepers, figures, parents,
                      joins, pairs, overlaps, counts)  # fmt: skip
        if stop == place:
            pairs = np.concatenate([pairs, np.empty_like(pairs)])
            overlaps = np.concatenate([overlaps, np.empty_like(overlaps)])
        place = stop
    used = pairs[: counts[0]]
    apart = np.stack([used >> _SHIFT, used & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int64)
    components = np.arange(count)
    _components(groups, np.full(num_buckets, -1, np.int32), *containers, components)
    return Pass(keepers, figures, joins[: counts[1]], components, apart, overlaps[: counts[0]])


def greedy_pass(
    keys: np.ndarray,
    containers: np.ndarray,
    load: Callable[[np.ndarray], ShingleSets],
    *,
    known: KnownPairs,
    first: np.ndarray,
    bounds: Bounds,
    progress: Callable[[int, int], None],
    room: Room = in_memory,
) -> Pass:
    """Decide for each of m documents (in the order of preference) whether it stays.

    Args:
        keys: (m, bands) uint64, their band keys.
        containers: (p, 2) places of documents, and of an earlier one that may contain it.
        load: gives the shingle sets of the documents of a mask (m,).
        first: (m,) bool, documents of which some overlap is likely to be unknown: their sets are loaded at once.
        room: gives the large arrays; see `Means.array`.
    """
    order = np.argsort(containers[:, 0], kind="stable")
    starts = np.searchsorted(containers[order, 0], np.arange(len(keys) + 1))
    containing = starts, containers[order, 1]
    groups, num_buckets = _buckets(keys, room)
    wanted = first
    while True:
        sets = load(wanted)
        found = _one_pass(groups, num_buckets, containing, sets, _table(known), bounds, progress, room)
        missing = found.overlaps[:, 0] < 0
        if not missing.any():
            return found
        # Overlaps yet unknown counted as none: count them, and see whether others are needed then. What was counted is
        # known from now on, so that each pass knows more than the one before.
        pairs, overlaps = np.concatenate([known.pairs, found.pairs[~missing]]), found.overlaps[~missing]
        known = KnownPairs(pairs, np.concatenate([known.overlaps, overlaps]))
        wanted = np.zeros(len(first), bool)
        wanted[found.pairs[missing].ravel()] = True
