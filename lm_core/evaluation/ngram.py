"""The classical baseline of a language model: an interpolated Kneser-Ney n-gram over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
UNSEEN = -1


@dataclass(frozen=True)
class _Order:
    """Counts of one order: n-grams by key, and what their histories have seen.

    The key of an n-gram is (place of its history among the n-grams one shorter) * vocabulary + its last token: any
    order of any vocabulary fits 63 bits.

    Attributes:
        keys: of all n-grams there are, sorted.
        counts: occurrences (highest order) or distinct left neighbours (lower orders), as keys.
        totals: sum of counts after each history, by its place among the n-grams one shorter.
        types: distinct words counted after each history, likewise.
        discount: absolute discount, n1 / (n1 + 2 n2) (Ney, Essen and Kneser 1994).
    """

    keys: Ids
    counts: NDArray[np.float64]
    totals: NDArray[np.float64]
    types: NDArray[np.float64]
    discount: float


class KneserNey:
    """Interpolated Kneser-Ney smoothing (Chen and Goodman 1998), exact, in sorted arrays.

    Args:
        order: length of the n-grams.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], *, vocab_size: int, order: int) -> None:
        self.vocab_size, self.order = vocab_size, order
        self._orders = self._count([np.asarray(sequence, np.int64) for sequence in sequences])

    def _count(self, sequences: list[Ids]) -> list[_Order]:
        """Tables from order 1 to the highest; lower orders count distinct left neighbours."""
        places = [np.zeros(len(sequence) + 1, np.int64) for sequence in sequences]  # of the empty history
        keys_of: list[Ids] = []
        suffixes: list[Ids] = []
        occurrences: NDArray[np.float64] = np.empty(0)
        for length in range(1, self.order + 1):
            packed = [
                place[: max(0, len(sequence) - length + 1)] * self.vocab_size + sequence[length - 1 :]
                for place, sequence in zip(places, sequences, strict=True)
            ]
            whole = np.concatenate(packed) if packed else np.empty(0, np.int64)
            keys, first, inverse, counts = np.unique(whole, return_index=True, return_inverse=True, return_counts=True)
            # The suffix of an n-gram is the n-gram one shorter that begins a token later.
            later = [place[1 : len(part) + 1] for place, part in zip(places, packed, strict=True)]
            suffixes.append(np.concatenate(later or [whole])[first])
            keys_of.append(keys)
            occurrences = counts.astype(np.float64)
            places = np.split(inverse, np.cumsum([len(part) for part in packed])[:-1]) if packed else []
        counts_of = [
            np.bincount(suffix, minlength=len(keys)).astype(np.float64)
            for keys, suffix in zip(keys_of[:-1], suffixes[1:], strict=True)
        ]
        histories = [1, *(len(keys) for keys in keys_of[:-1])]
        made = zip(keys_of, [*counts_of, occurrences], histories, strict=True)
        return [self._table(keys, counts, num_histories) for keys, counts, num_histories in made]

    def _table(self, keys: Ids, counts: NDArray[np.float64], num_histories: int) -> _Order:
        owners = keys // self.vocab_size
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        return _Order(
            keys,
            counts,
            np.bincount(owners, weights=counts, minlength=num_histories).astype(np.float64),
            np.bincount(owners, weights=counts > 0, minlength=num_histories).astype(np.float64),
            once / (once + 2 * twice) if once and twice else 0.5,
        )

    def bits(self, sequence: Sequence[int]) -> NDArray[np.float64]:
        """-log2 p of each token after the first, given those before it."""
        ids = np.asarray(sequence, np.int64)
        if len(ids) < 2:
            return np.empty(0)
        probability = np.full(len(ids) - 1, 1.0 / self.vocab_size)
        histories = np.zeros(len(ids), np.int64)  # place of the history that ends before each token
        for length, table in enumerate(self._orders, 1):
            start = max(1, length - 1)  # the first token is not scored; those near it have no longer history
            if start >= len(ids):
                break
            found = self._find(table, histories[length - 1 :], ids[length - 1 :])
            scored = slice(start - length + 1, None)
            probability[start - 1 :] = self._interpolate(
                table, histories[length - 1 :][scored], found[scored], probability[start - 1 :]
            )
            histories = np.full(len(ids), UNSEEN, np.int64)
            histories[length:] = found[:-1] if length < len(ids) else found[:0]
        return -np.log2(probability)

    def _find(self, table: _Order, histories: Ids, words: Ids) -> Ids:
        """Places of n-grams among the table's; UNSEEN where there are none."""
        keys = histories * self.vocab_size + words
        if not len(table.keys):
            return np.full(len(keys), UNSEEN, np.int64)
        at = np.minimum(np.searchsorted(table.keys, keys), len(table.keys) - 1)
        return np.where((histories >= 0) & (table.keys[at] == keys), at, UNSEEN)

    def _interpolate(
        self, table: _Order, histories: Ids, found: Ids, lower: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Discounted share of the n-gram plus the mass set free, given to the lower order."""
        if not len(table.keys):
            return lower
        total = np.where(histories >= 0, table.totals[histories], 0.0)
        count = np.where(found >= 0, table.counts[found], 0.0)
        known = np.maximum(total, 1.0)
        share = np.maximum(count - table.discount, 0) / known
        free = table.discount * table.types[histories] / known
        return np.where(total > 0, share + free * lower, lower)
