"""Open hash tables of identities and of hashes, to be looked up by millions."""

# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.

from __future__ import annotations

import numpy as np
from numba import njit

from lm_core.mapping import in_threads

_NONE = np.int64(-1)
_FREE = np.uint64(0xFFFFFFFFFFFFFFFF)
_DROP = np.uint64(8)
_WORD, _IN_WORD = np.uint64(6), np.uint64(63)
_BLOCK = 1 << 20


@njit(nogil=True, cache=True)
def _fill_table(ids, table):
    bits = len(table) - 1
    for row in range(len(ids)):
        slot = np.int64(ids[row, 0] & np.uint64(bits))
        while table[slot] >= 0 and not (ids[table[slot], 0] == ids[row, 0] and ids[table[slot], 1] == ids[row, 1]):
            slot = (slot + 1) & bits
        table[slot] = row


@njit(nogil=True, cache=True)
def _look_up(ids, table, wanted, rows):
    bits = len(table) - 1
    for index in range(len(wanted)):
        slot = np.int64(wanted[index, 0] & np.uint64(bits))
        while table[slot] >= 0:
            row = table[slot]
            if ids[row, 0] == wanted[index, 0] and ids[row, 1] == wanted[index, 1]:
                rows[index] = row
                break
            slot = (slot + 1) & bits


def rows_among(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Row of each wanted identity (n, 2) among `ids`, -1 where there is none; of equal ones the last."""
    rows = np.full(len(wanted), _NONE, np.int64)
    if len(ids):
        kind = np.int32 if len(ids) < 1 << 31 else np.int64
        table = np.full(1 << max(4, (2 * len(ids)).bit_length()), _NONE, kind)
        _fill_table(ids, table)
        _look_up(ids, table, wanted, rows)
    return rows


@njit(nogil=True, cache=True)
def _enter(values, table, sieve):
    bits, sieved = np.uint64(len(table) - 1), np.uint64(len(sieve) * 64 - 1)
    for value in values:
        place = (value >> _DROP) & sieved
        sieve[place >> _WORD] |= np.uint64(1) << (place & _IN_WORD)
        slot = (value >> _DROP) & bits
        while table[slot] != value and table[slot] != _FREE:
            slot = (slot + np.uint64(1)) & bits
        table[slot] = value


@njit(nogil=True, cache=True)
def _places(values, table, sieve, out):
    bits, sieved = np.uint64(len(table) - 1), np.uint64(len(sieve) * 64 - 1)
    likely = count = 0
    # Without a branch: nearly all values end here, and which do cannot be foreseen.
    for index in range(len(values)):
        place = (values[index] >> _DROP) & sieved
        out[likely] = index
        likely += int((sieve[place >> _WORD] >> (place & _IN_WORD)) & np.uint64(1))
    for index in out[:likely]:
        value = values[index]
        slot = (value >> _DROP) & bits
        while table[slot] != value and table[slot] != _FREE:
            slot = (slot + np.uint64(1)) & bits
        out[count] = index
        count += int(table[slot] == value)
    return count


@njit(nogil=True, cache=True)
def _met_again(values, met, again, out):
    """Places of values whose slot of the sieve another value, or the same again, fell into; returns how many."""
    slots = np.uint64(len(met) * 64 - 1)
    for value in values:
        slot = (value >> _DROP) & slots
        word, bit = slot >> _WORD, np.uint64(1) << (slot & _IN_WORD)
        again[word] |= met[word] & bit
        met[word] |= bit
    count = 0
    for index in range(len(values)):
        slot = (values[index] >> _DROP) & slots
        out[count] = index
        count += int((again[slot >> _WORD] >> (slot & _IN_WORD)) & np.uint64(1))
    return count


def repeated(values: np.ndarray) -> np.ndarray:
    """Places of the hashes (n,) that stand there more than once.

    A sieve of sixteen bits for each leaves a few percent of those that do not: sorting all took ten times as long.
    """
    met = np.zeros(1 << max(0, (len(values) // 4).bit_length()), np.uint64)
    out = np.empty(len(values) + 1, np.int64)
    likely = out[: _met_again(values, met, np.zeros_like(met), out)]
    chosen = values[likely]
    order = np.argsort(chosen)
    same = chosen[order[1:]] == chosen[order[:-1]]
    return likely[np.concatenate([order[1:][same], order[:-1][same]])]


class HashSet:
    """A set of hashes (uint64), to be looked up by millions."""

    def __init__(self, values: np.ndarray) -> None:
        self._table = np.full(1 << max(6, (4 * len(values)).bit_length()), _FREE, np.uint64)
        self._sieve = np.zeros(max(1, len(self._table) // 32), np.uint64)
        _enter(values, self._table, self._sieve)

    def places_in(self, values: np.ndarray, num_threads: int = 1) -> np.ndarray:
        """Places of the values that are in the set."""

        def of_block(first: int) -> np.ndarray:
            block = values[first : first + _BLOCK]
            out = np.empty(len(block) + 1, np.int64)
            found: np.ndarray = first + out[: _places(block, self._table, self._sieve, out)]
            return found

        blocks = range(0, len(values), _BLOCK)
        found = in_threads(num_threads)(of_block, blocks) if len(blocks) > 1 else map(of_block, blocks)
        return np.concatenate([np.empty(0, np.int64), *found])
