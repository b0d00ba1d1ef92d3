"""The classical baseline of a language model: an interpolated Kneser-Ney n-gram over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class _Order:
    """Counts of one order: n-grams by packed key, and what their histories have seen.

    Attributes:
        keys: packed n-grams, sorted.
        counts: occurrences (highest order) or distinct left neighbours (lower orders).
        histories: packed histories, sorted.
        totals: sum of counts after each history.
        types: distinct words after each history.
        discount: absolute discount, n1 / (n1 + 2 n2) (Ney, Essen and Kneser 1994).
    """

    keys: Ids
    counts: NDArray[np.float64]
    histories: Ids
    totals: NDArray[np.float64]
    types: NDArray[np.float64]
    discount: float


class KneserNey:
    """Interpolated Kneser-Ney smoothing (Chen and Goodman 1998), exact, in sorted arrays.

    Args:
        order: length of the n-grams; lowered where packed n-grams would not fit 63 bits.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], *, vocab_size: int, order: int) -> None:
        self.vocab_size = vocab_size
        self._bits = max(1, int(vocab_size - 1).bit_length())
        self.order = max(1, min(order, 63 // self._bits))
        self._orders = self._count([np.asarray(sequence, np.int64) for sequence in sequences])

    def _count(self, sequences: list[Ids]) -> list[_Order]:
        """Tables from order 1 to the highest; lower orders count distinct left neighbours."""
        orders: list[_Order] = []
        packed = np.concatenate(
            [self._windows(sequence, self.order) for sequence in sequences] or [np.empty(0, np.int64)]
        )
        keys, occurrences = np.unique(packed, return_counts=True)
        counts = occurrences.astype(np.float64)
        for length in range(self.order, 0, -1):
            orders.append(self._table(keys, counts))
            shorter = keys & ((1 << self._bits * (length - 1)) - 1)
            keys, distinct = np.unique(shorter, return_counts=True)
            counts = distinct.astype(np.float64)
        return orders[::-1]

    def _table(self, keys: Ids, counts: NDArray[np.float64]) -> _Order:
        histories, places = np.unique(keys >> self._bits, return_inverse=True)
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        return _Order(
            keys,
            counts,
            histories,
            np.bincount(places, weights=counts, minlength=len(histories)).astype(np.float64),
            np.bincount(places, minlength=len(histories)).astype(np.float64),
            once / (once + 2 * twice) if once and twice else 0.5,
        )

    def _windows(self, ids: Ids, length: int) -> Ids:
        """All n-grams of one sequence, packed; the first word has no history, so it starts no count."""
        packed = np.zeros(max(0, len(ids) - length + 1), np.int64)
        for offset in range(length):
            packed = (packed << self._bits) | ids[offset : offset + len(packed)]
        return packed

    def bits(self, sequence: Sequence[int]) -> NDArray[np.float64]:
        """-log2 p of each token after the first, given those before it."""
        ids = np.asarray(sequence, np.int64)
        if len(ids) < 2:
            return np.empty(0)
        probability = np.full(len(ids) - 1, 1.0 / self.vocab_size)
        for length, table in enumerate(self._orders, 1):
            usable = len(ids) - length + 1 if length > 1 else len(ids) - 1
            start = len(ids) - 1 - usable  # tokens nearer to the start have no history of this length
            if usable <= 0:
                break
            packed = self._windows(ids if length > 1 else ids[1:], length)
            probability[start:] = self._interpolate(table, packed, probability[start:])
        return -np.log2(probability)

    def _interpolate(self, table: _Order, packed: Ids, lower: NDArray[np.float64]) -> NDArray[np.float64]:
        """Discounted share of the n-gram plus the mass set free, given to the lower order."""
        if not len(table.keys):
            return lower
        place = np.minimum(np.searchsorted(table.histories, packed >> self._bits), len(table.histories) - 1)
        known = table.histories[place] == packed >> self._bits
        at = np.minimum(np.searchsorted(table.keys, packed), len(table.keys) - 1)
        count = np.where(table.keys[at] == packed, table.counts[at], 0.0)
        total = table.totals[place]
        share = np.maximum(count - table.discount, 0) / total
        free = table.discount * table.types[place] / total
        return np.where(known, share + free * lower, lower)
