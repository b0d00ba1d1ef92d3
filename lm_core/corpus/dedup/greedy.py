"""Who stays: one greedy pass over the documents, in compiled code.

Documents come in the order of preference. Each is compared with the *kept* documents that share a band with it, by the
exact Jaccard similarity of their shingle sets; it is a copy when one of them is similar enough, and kept otherwise.
"""

# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numba import njit

from lm_core.corpus.characters import character_table
from lm_core.corpus.dedup.shingles import shingle_hashes, token_hashes
from lm_core.corpus.dedup.sketch import text_buffers

_STEP = 4096


@dataclass(frozen=True)
class Pass:
    """Result of the greedy pass over m documents; numbers are places in the order of preference.

    Attributes:
        keepers: (m,) int64, place of the most similar kept document, -1 for a document that is kept.
        scores: (m,) float64, Jaccard similarity to the keeper, 0 for a kept document.
        joins: (j, 2) int64, kept documents that share a cluster: a spanning forest of the clusters.
        num_candidates: pairs that were compared.
        num_verified: those of them that reach the threshold.
    """

    keepers: np.ndarray
    scores: np.ndarray
    joins: np.ndarray
    num_candidates: int
    num_verified: int


@njit(nogil=True, cache=True)
def _shingle_sets(offsets, data, table, size, rows, starts, shingles, lengths):
    """Sorted distinct shingles of the rows, set number i at shingles[starts[i] : starts[i] + lengths[i]]."""
    longest = 0
    for row in rows:
        longest = max(longest, offsets[row + 1] - offsets[row])
    tokens = np.empty(longest + 1, np.uint64)
    for number in range(len(rows)):
        row = rows[number]
        count = token_hashes(data, offsets[row], offsets[row + 1], table, tokens)
        own = shingles[starts[number] : starts[number + 1]]
        own[: shingle_hashes(tokens, count, size, own)].sort()
        length = 0
        for index in range(len(own)):
            if length == 0 or own[index] != own[length - 1]:
                own[length] = own[index]
                length += 1
        lengths[number] = length


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
def _similarity(sets, place, other, least):
    """Jaccard similarity of two documents, or 0 when their sizes alone keep it below `least`."""
    shingles, starts, lengths = sets
    if min(lengths[place], lengths[other]) < least * max(lengths[place], lengths[other]):
        return 0.0
    return _jaccard(
        shingles[starts[place] : starts[place] + lengths[place]],
        shingles[starts[other] : starts[other] + lengths[other]],
    )


@njit(nogil=True, cache=True)
def _candidates(place, groups, heads, links, seen, found):
    """Collect the kept documents that share a bucket with `place`, each once; returns how many."""
    count = 0
    for band in range(groups.shape[1]):
        other = heads[groups[place, band]]
        while other >= 0:
            if seen[other] != place:
                seen[other] = place
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
def _visit(first, last, groups, heads, links, seen, sets, bounds, keepers, scores, parents, joins, counts):
    """Visit the places first..last.

    Args:
        groups: (m, bands) int64, number of the bucket in each band.
        heads, links: kept documents of each bucket as a linked list; -1 ends it.
        seen: (m,) int64, the last place that each document was compared with.
        sets: (shingles, starts, lengths) of the documents.
        bounds: (similarity of a copy, similarity within a cluster).
        joins: (m, 2), filled from the front.
        counts: (candidates, verified, joins) so far.
    """
    threshold, cluster_threshold = bounds
    found = np.empty(len(keepers), np.int64)
    for place in range(first, last):
        num_found = _candidates(place, groups, heads, links, seen, found)
        counts[0] += num_found
        num_near = 0
        for other in found[:num_found]:
            score = _similarity(sets, place, other, cluster_threshold)
            if score >= threshold:
                counts[1] += 1
                # Of keepers as similar the preferred one, whatever the order in which the buckets are searched.
                if score > scores[place] or (score == scores[place] and other < keepers[place]):
                    keepers[place], scores[place] = other, score
            if score >= cluster_threshold:
                found[num_near] = other
                num_near += 1
        if keepers[place] >= 0:
            continue
        for band in range(groups.shape[1]):
            links[place, band] = heads[groups[place, band]]
            heads[groups[place, band]] = place
        counts[2] = _join(place, found[:num_near], parents, joins, counts[2])


def _buckets(keys: np.ndarray) -> tuple[np.ndarray, int]:
    """Band keys (m, bands) as numbers of buckets (m, bands) that count through all bands, and how many there are."""
    groups = np.empty(keys.shape, np.int64)
    total = 0
    for band in range(keys.shape[1]):
        distinct, groups[:, band] = np.unique(keys[:, band], return_inverse=True)
        groups[:, band] += total
        total += len(distinct)
    return groups, total


def greedy_pass(
    texts: pa.Array,
    rows: np.ndarray,
    keys: np.ndarray,
    num_shingles: np.ndarray,
    *,
    shingle_tokens: int,
    threshold: float,
    cluster_threshold: float,
    progress: Callable[[int, int], None],
) -> Pass:
    """Decide for each of `rows` (in the order of preference) whether it stays.

    Args:
        texts: string array that the rows index.
        keys: (m, bands) uint64, band keys of the rows.
        num_shingles: (m,) shingles of the rows, repeats counted.
    """
    count = len(rows)
    starts = np.concatenate([[0], np.cumsum(num_shingles)]).astype(np.int64)
    shingles, lengths = np.empty(starts[-1], np.uint64), np.empty(count, np.int64)
    offsets, data = text_buffers(texts)
    _shingle_sets(offsets, data, character_table(), shingle_tokens, rows, starts, shingles, lengths)
    groups, num_buckets = _buckets(keys)
    heads, links = np.full(num_buckets, -1, np.int64), np.full(keys.shape, -1, np.int64)
    seen, parents = np.full(count, -1, np.int64), np.arange(count)
    keepers, scores = np.full(count, -1, np.int64), np.zeros(count)
    joins, counts = np.empty((count, 2), np.int64), np.zeros(3, np.int64)
    for first in range(0, count, _STEP):
        progress(first, count)
        _visit(first, min(first + _STEP, count), groups, heads, links, seen, (shingles, starts, lengths),
               (threshold, cluster_threshold), keepers, scores, parents, joins, counts)  # fmt: skip
    return Pass(keepers, scores, joins[: counts[2]], int(counts[0]), int(counts[1]))
