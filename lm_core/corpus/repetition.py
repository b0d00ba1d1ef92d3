"""How much of a text repeats itself: the n-grams of words of Gopher's table A1, measured in characters of words.

`top_n_gram`: characters of all occurrences of the n-gram that occurs most often (twice at least; of several the
longest), for each character. `duplicate_n_grams`: characters of words within an n-gram that stood before, each counted
once, for each character. A character of a script without spaces is a word.
"""

# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.

from __future__ import annotations

import numpy as np
from numba import njit

from lm_core.corpus.character_classes import BLANK, IDEOGRAPH, decode
from lm_core.corpus.characters import TABLE_SIZE
from lm_core.corpus.dedup.shingles import mix, shingle_hashes

TOP_SIZES, DUPLICATE_SIZES = (2, 3, 4), (5, 6, 7, 8, 9, 10)
_PRIME = np.uint64(0x9E3779B97F4A7C15)
_TABLE_SIZE = np.uint32(TABLE_SIZE)


@njit(nogil=True, cache=True)
def _words(data, start, end, kinds, hashes, ends):
    """Hash the words of a text; ends[i] counts the characters of the words up to the i-th. Returns their number."""
    count, characters, in_word, state = 0, 0, False, _PRIME
    position = start
    while position < end:
        code, after = decode(data, position)
        position = after
        kind = kinds[code] if code < _TABLE_SIZE else np.uint8(0)
        alone = (kind & IDEOGRAPH) != 0
        if in_word and (alone or kind & BLANK):
            hashes[count], ends[count + 1] = mix(state), characters
            count, in_word, state = count + 1, False, _PRIME
        if kind & BLANK:
            continue
        characters += 1
        state = np.uint64((state ^ np.uint64(code)) * _PRIME)
        state = np.uint64(state ^ (state >> np.uint64(29)))
        in_word = True
        if alone:
            hashes[count], ends[count + 1] = mix(state), characters
            count, in_word, state = count + 1, False, _PRIME
    if in_word:
        hashes[count], ends[count + 1] = mix(state), characters
        count += 1
    return count


@njit(nogil=True, cache=True, inline="always")
def _slot(table, bits, value):
    slot = value & bits
    while table[slot] != 0 and table[slot] != value:
        slot = (slot + np.uint64(1)) & bits
    return slot


@njit(nogil=True, cache=True)
def _top(grams, size, ends, table, counts):
    bits = np.uint64(len(table) - 1)
    table[:] = 0
    most, longest = 1, 0
    for index in range(len(grams)):
        value = max(grams[index], np.uint64(1))
        slot = _slot(table, bits, value)
        counts[slot] = 1 if table[slot] == 0 else counts[slot] + 1
        table[slot] = value
        characters = ends[index + size] - ends[index]
        if counts[slot] > most:
            most, longest = counts[slot], characters
        elif counts[slot] == most and most > 1:
            longest = max(longest, characters)
    return most * longest


@njit(nogil=True, cache=True)
def _duplicates(grams, size, ends, table):
    bits = np.uint64(len(table) - 1)
    table[:] = 0
    covered, found = 0, 0
    for index in range(len(grams)):
        value = max(grams[index], np.uint64(1))
        slot = _slot(table, bits, value)
        if table[slot] == 0:
            table[slot] = value
            continue
        found += ends[index + size] - ends[max(index, covered)]
        covered = index + size
    return found


@njit(nogil=True, cache=True)
def measure_repetition(data, start, end, kinds, scratch, out):
    """Fill `out` with the fractions for each of TOP_SIZES and DUPLICATE_SIZES.

    Args:
        scratch: (hashes, grams, ends), as long as the text has bytes, and one more.
    """
    hashes, grams, ends = scratch
    ends[0] = 0
    count = _words(data, start, end, kinds, hashes, ends)
    total = max(ends[count], 1)
    size = 4
    while size < 2 * count:
        size *= 2
    table, counts = np.empty(size, np.uint64), np.empty(size, np.int32)
    for number in range(len(TOP_SIZES)):
        width = TOP_SIZES[number]
        num_grams = shingle_hashes(hashes, count, width, grams) if count >= width else 0
        out[number] = min(_top(grams[:num_grams], width, ends, table, counts) / total, 1.0)
    for number in range(len(DUPLICATE_SIZES)):
        width = DUPLICATE_SIZES[number]
        num_grams = shingle_hashes(hashes, count, width, grams) if count >= width else 0
        out[len(TOP_SIZES) + number] = _duplicates(grams[:num_grams], width, ends, table) / total
