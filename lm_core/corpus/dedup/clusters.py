"""Clusters of similar documents, and the split of each: near-copies never straddle train and validation."""

# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.

from __future__ import annotations

import numpy as np
from numba import njit

from lm_core.corpus.config import DeduplicateConfig
from lm_core.corpus.dedup.shingles import mix

SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)


def order_of(doc_ids: np.ndarray) -> np.ndarray:
    """The rows of identities (n, 2) in their order: sorted by one word, as hardly any two share it."""
    order = np.argsort(doc_ids[:, 0])
    words = doc_ids[order, 0]
    same = words[1:] == words[:-1]
    ties = np.flatnonzero(np.append(same, False) | np.append(False, same))
    rows = order[ties]
    order[ties] = rows[np.lexsort((doc_ids[rows, 1], doc_ids[rows, 0]))]
    return order


def clusters_of(doc_ids: np.ndarray, related: np.ndarray) -> np.ndarray:
    """(n,) int64, for each document that of the smallest identity in its cluster; similar documents share one."""
    order = order_of(doc_ids)
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    parents = np.arange(len(order))
    _unite(np.ascontiguousarray(related, np.int64), ranks, parents)
    return parents


@njit(nogil=True, cache=True)
def _unite(related, ranks, parents):
    """Let each document of `parents` (0, 1, 2...) point to the one of the lowest rank in its cluster."""
    for a, b in related:
        while parents[a] != a:
            parents[a] = parents[parents[a]]
            a = parents[a]
        while parents[b] != b:
            parents[b] = parents[parents[b]]
            b = parents[b]
        if ranks[a] < ranks[b]:
            parents[b] = a
        else:
            parents[a] = b
    for row in range(len(parents)):
        while parents[row] != parents[parents[row]]:
            parents[row] = parents[parents[row]]


def splits_of(clusters: np.ndarray, config: DeduplicateConfig) -> np.ndarray:
    """(n,) int8, number in `SPLITS` of the split of each cluster (n, 2).

    A pure function of the cluster's identity, so that adding documents never moves others.
    """
    # Mixed once more: the identity of a cluster is the smallest of its members', so it is no even draw.
    places = (mix.py_func(clusters[:, 0] ^ clusters[:, 1]) >> np.uint64(11)) / 2.0**53
    held_out = config.validation_fraction + config.test_fraction
    splits = (places < held_out).astype(np.int8) * np.int8(TEST)
    splits[places < config.validation_fraction] = VALIDATION
    return _without_empty_split(splits, places, config)


def _without_empty_split(splits: np.ndarray, places: np.ndarray, config: DeduplicateConfig) -> np.ndarray:
    """A split that the draw left empty, in a corpus of a few documents, gets one cluster of the fullest split.

    Training comes first: a single cluster is trained on, of two one is held out.
    """
    wanted = {TRAIN: 1.0, VALIDATION: config.validation_fraction, TEST: config.test_fraction}
    for empty in [split for split, fraction in wanted.items() if fraction and not (splits == split).any()]:
        fullest = max((np.unique(places[splits == split]) for split in wanted), key=len)
        if len(fullest) > 1 or (empty == TRAIN and len(fullest)):
            splits = np.where(places == fullest[0], np.int8(empty), splits)
    return splits
