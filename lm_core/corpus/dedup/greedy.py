"""Who stays: one greedy pass over the documents, in compiled code.

Documents come in the order of preference. Each is compared with the *kept* documents that share a band with it, by the
exact Jaccard similarity of their shingle sets; it is a copy when one of them is similar enough, and kept otherwise.

A similarity that an earlier run has computed is not computed again. With few new documents nearly all are known, so
that no text but that of the new documents' neighbours is read; the pass itself is the same, and so is its result.
"""

# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numba import njit

from lm_core.corpus.dedup.shingles import mix

_STEP = 4096
_SHIFT = np.uint64(32)
_FREE = np.uint64(0xFFFFFFFFFFFFFFFF)
# With more new documents than this share, everything is computed afresh.
_FEW = 0.2


@dataclass(frozen=True)
class Pass:
    """Result of the greedy pass over m documents; numbers are places in the order of preference.

    Attributes:
        keepers: (m,) int64, place of the most similar kept document, -1 for a document that is kept.
        scores: (m,) float64, Jaccard similarity to the keeper, 0 for a kept document.
        joins: (j, 2) int64, kept documents that share a cluster: a spanning forest of the clusters.
        pairs: (p, 2) int64, all pairs that were compared.
        similarities: (p,) float64, their similarities; 0 where the sizes alone keep it below `cluster_threshold`.
    """

    keepers: np.ndarray
    scores: np.ndarray
    joins: np.ndarray
    pairs: np.ndarray
    similarities: np.ndarray


@dataclass(frozen=True)
class ShingleSets:
    """Shingle sets of some of m documents: set i is shingles[starts[i] : starts[i] + lengths[i]], or unknown.

    Attributes:
        lengths: (m,) int64, -1 for a document whose set was not loaded.
    """

    shingles: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray


@njit(nogil=True, cache=True)
def _jaccard(a, b):
    """Jaccard similarity of two sorted sets without repeats."""
    shared, i, j = 0, 0, 0
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            shared += 1
            i += 1
            j += 1
        elif a[i] < b[j]:
            i += 1
        else:
            j += 1
    return shared / (len(a) + len(b) - shared)


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
def _fill(table, values, keys, scores):
    for index in range(len(keys)):
        slot = _slot(table, keys[index])
        table[slot] = keys[index]
        values[slot] = scores[index]


@njit(nogil=True, cache=True)
def _similarity(sets, known, place, other, least):
    """Jaccard similarity of two documents; 0 when their sizes alone keep it below `least`; nan when it is unknown."""
    shingles, starts, lengths = sets
    if lengths[place] < 0 or lengths[other] < 0:
        table, values = known
        slot = _slot(table, (np.uint64(place) << _SHIFT) | np.uint64(other))
        return values[slot] if table[slot] != _FREE else np.nan
    if min(lengths[place], lengths[other]) < least * max(lengths[place], lengths[other]):
        return 0.0
    return _jaccard(
        shingles[starts[place] : starts[place] + lengths[place]],
        shingles[starts[other] : starts[other] + lengths[other]],
    )


@njit(nogil=True, cache=True)
def _candidates(place, stamp, groups, heads, links, seen, found):
    """Collect the kept documents that share a bucket with `place`, each once; returns how many."""
    count = 0
    for band in range(groups.shape[1]):
        other = heads[groups[place, band]]
        while other >= 0:
            if seen[other] != stamp:
                seen[other] = stamp
                found[count] = other
                count += 1
            other = links[other, band]
    return count


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
def _visit(first, last, groups, heads, links, seen, sets, known, bounds, keepers, scores, parents, joins, pairs,
           similarities, counts):  # fmt: skip
    """Visit the places first..last, or fewer when the room for pairs does not suffice; returns the next place.

    Args:
        groups: (m, bands) int32, number of the bucket in each band.
        heads, links: kept documents of each bucket as a linked list; -1 ends it.
        seen: (m,) int64, the last visit that each document was compared in.
        known: (table, values) of similarities by pair.
        bounds: (similarity of a copy, similarity within a cluster).
        joins: (m, 2); pairs: uint64, `place << 32 | other`; similarities: all filled from the front.
        counts: (pairs, joins, visits) so far.
    """
    threshold, cluster_threshold = bounds
    found = np.empty(len(keepers), np.int64)
    for place in range(first, last):
        counts[2] += 1
        num_found = _candidates(place, counts[2], groups, heads, links, seen, found)
        if counts[0] + num_found > len(pairs):
            return place
        num_near = 0
        for other in found[:num_found]:
            score = _similarity(sets, known, place, other, cluster_threshold)
            pairs[counts[0]] = (np.uint64(place) << _SHIFT) | np.uint64(other)
            similarities[counts[0]] = score
            counts[0] += 1
            # Of keepers as similar the preferred one, whatever the order in which the buckets are searched.
            if score >= threshold and (score > scores[place] or (score == scores[place] and other < keepers[place])):
                keepers[place], scores[place] = other, score
            if score >= cluster_threshold:
                found[num_near] = other
                num_near += 1
        if keepers[place] >= 0:
            continue
        for band in range(groups.shape[1]):
            links[place, band] = heads[groups[place, band]]
            heads[groups[place, band]] = place
        counts[1] = _join(place, found[:num_near], parents, joins, counts[1])
    return last


def _buckets(keys: np.ndarray) -> tuple[np.ndarray, int]:
    """Band keys (m, bands) as numbers of buckets (m, bands) that count through all bands, and how many there are."""
    groups = np.empty(keys.shape, np.int32)
    total = 0
    for band in range(keys.shape[1]):
        distinct, numbers = np.unique(keys[:, band], return_inverse=True)
        groups[:, band] = numbers + total
        total += len(distinct)
    return groups, total


def _table(pairs: np.ndarray, similarities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hash table of the similarities of pairs (p, 2), the later place first in each."""
    size = 1 << max(4, (2 * len(pairs)).bit_length())
    table, values = np.full(size, _FREE, np.uint64), np.zeros(size)
    keys = (pairs.max(axis=1).astype(np.uint64) << _SHIFT) | pairs.min(axis=1).astype(np.uint64)
    _fill(table, values, keys, similarities)
    return table, values


def _one_pass(
    keys: np.ndarray, sets: ShingleSets, known: tuple[np.ndarray, np.ndarray], bounds: tuple[float, float],
    progress: Callable[[int, int], None],
) -> Pass:  # fmt: skip
    count = len(keys)
    groups, num_buckets = _buckets(keys)
    heads, links = np.full(num_buckets, -1, np.int32), np.full(keys.shape, -1, np.int32)
    seen, parents = np.full(count, -1, np.int64), np.arange(count)
    keepers, scores = np.full(count, -1, np.int64), np.zeros(count)
    joins, counts = np.empty((count, 2), np.int64), np.zeros(3, np.int64)
    pairs, similarities = np.empty(16 * count + 1, np.uint64), np.empty(16 * count + 1)
    place = 0
    while place < count:
        progress(place, count)
        stop = _visit(place, min(place + _STEP, count), groups, heads, links, seen,
                      (sets.shingles, sets.starts, sets.lengths), known, bounds, keepers, scores, parents, joins,
                      pairs, similarities, counts)  # fmt: skip
        if stop == place:
            pairs = np.concatenate([pairs, np.empty_like(pairs)])
            similarities = np.concatenate([similarities, np.empty_like(similarities)])
        place = stop
    used = pairs[: counts[0]]
    apart = np.stack([used >> _SHIFT, used & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int64)
    return Pass(keepers, scores, joins[: counts[1]], apart, similarities[: counts[0]])


def greedy_pass(
    keys: np.ndarray,
    load: Callable[[np.ndarray], ShingleSets],
    *,
    known_pairs: np.ndarray,
    known_similarities: np.ndarray,
    num_new: int,
    threshold: float,
    cluster_threshold: float,
    progress: Callable[[int, int], None],
) -> Pass:
    """Decide for each of m documents (in the order of preference) whether it stays.

    Args:
        keys: (m, bands) uint64, their band keys.
        load: gives the shingle sets of the documents of a mask (m,).
        known_pairs: (p, 2) places of pairs whose similarities are known.
        num_new: how many of the documents no earlier run has seen.
    """
    bounds = (threshold, cluster_threshold)
    known = _table(known_pairs, known_similarities)
    wanted = np.full(len(keys), num_new > _FEW * len(keys))
    while True:
        sets = load(wanted)
        found = _one_pass(keys, sets, known, bounds, progress)
        missing = np.isnan(found.similarities)
        if not missing.any():
            return found
        # Similarities yet unknown counted as none: load what they need, and see whether others are needed then.
        wanted = wanted.copy()
        wanted[found.pairs[missing].ravel()] = True
