"""Texts as sets of shingles: the kernels that read every byte of the corpus once.

A token is a maximal run of letters, digits and marks in lower case, or one character of a script without spaces
(`lm_core.corpus.characters`). A shingle is `n` consecutive tokens; a text of fewer tokens is one shingle. Tokens and
shingles are 64-bit hashes, so two texts with the same tokens are equal here whatever their punctuation and layout.

All kernels take raw Arrow buffers (`offsets`, `data` of a string array), hold no reference to Python and run without
the GIL, so that threads share the work.
"""

# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.

from __future__ import annotations

import numpy as np
from numba import njit

from lm_core.corpus.characters import ALONE, CLASS_SHIFT, SEPARATOR, TABLE_SIZE

_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)  # constants of splitmix64
_MIX_2 = np.uint64(0x94D049BB133111EB)
_TOKEN_SEED = np.uint64(0x51ED270B27A2C5D3)
_LOWER_MASK = np.uint32((1 << CLASS_SHIFT) - 1)
_SHIFT = np.uint32(CLASS_SHIFT)
_SEPARATOR, _ALONE = np.uint32(SEPARATOR), np.uint32(ALONE)
_TABLE_SIZE = np.uint32(TABLE_SIZE)
_HAN_PLANES_END = np.uint32(0x40000)


@njit(nogil=True, cache=True, inline="always")
def mix(value):
    """The finaliser of splitmix64: every input bit reaches every output bit."""
    value = np.uint64((value ^ (value >> np.uint64(30))) * _MIX_1)
    value = np.uint64((value ^ (value >> np.uint64(27))) * _MIX_2)
    return np.uint64(value ^ (value >> np.uint64(31)))


@njit(nogil=True, cache=True)
def token_hashes(data, start, end, table, tokens):
    """Hash the tokens of data[start:end] (UTF-8) into `tokens`.

    Args:
        table: `character_table()`.
        tokens: uint64, at least end - start long.

    Returns:
        How many tokens there are.
    """
    count = 0
    state = _TOKEN_SEED
    in_word = False
    position = start
    while position < end:
        byte = np.uint32(data[position])
        if byte < 0x80:
            code = byte
            position += 1
        elif byte < 0xE0:
            code = ((byte & np.uint32(0x1F)) << np.uint32(6)) | (np.uint32(data[position + 1]) & np.uint32(0x3F))
            position += 2
        elif byte < 0xF0:
            code = (
                ((byte & np.uint32(0x0F)) << np.uint32(12))
                | ((np.uint32(data[position + 1]) & np.uint32(0x3F)) << np.uint32(6))
                | (np.uint32(data[position + 2]) & np.uint32(0x3F))
            )
            position += 3
        else:
            code = (
                ((byte & np.uint32(0x07)) << np.uint32(18))
                | ((np.uint32(data[position + 1]) & np.uint32(0x3F)) << np.uint32(12))
                | ((np.uint32(data[position + 2]) & np.uint32(0x3F)) << np.uint32(6))
                | (np.uint32(data[position + 3]) & np.uint32(0x3F))
            )
            position += 4
        if code < _TABLE_SIZE:
            entry = table[code]
            kind = entry >> _SHIFT
            code = entry & _LOWER_MASK
        else:
            kind = _ALONE if code < _HAN_PLANES_END else _SEPARATOR
        if kind == 1:
            state = np.uint64((state ^ np.uint64(code)) * _ODD)
            state = np.uint64(state ^ (state >> np.uint64(29)))
            in_word = True
            continue
        if in_word:
            tokens[count] = mix(state)
            count += 1
            state = _TOKEN_SEED
            in_word = False
        if kind == _ALONE:
            tokens[count] = mix(np.uint64((_TOKEN_SEED ^ np.uint64(code)) * _ODD))
            count += 1
    if in_word:
        tokens[count] = mix(state)
        count += 1
    return count


@njit(nogil=True, cache=True)
def shingle_hashes(tokens, count, size, shingles):
    """Hash each run of `size` tokens, or all of them when they are fewer, by a rolling polynomial modulo 2^64.

    Returns:
        How many shingles there are; they are not yet distinct.
    """
    if count == 0:
        return 0
    width = min(size, count)
    state = np.uint64(0)
    leaving = np.uint64(1)  # weight of the token that leaves the window
    for index in range(width):
        state = np.uint64(state * _ODD + tokens[index])
        if index:
            leaving = np.uint64(leaving * _ODD)
    shingles[0] = mix(state)
    for index in range(width, count):
        state = np.uint64((state - tokens[index - width] * leaving) * _ODD + tokens[index])
        shingles[index - width + 1] = mix(state)
    return count - width + 1


_RADIX_FROM = 512


@njit(nogil=True, cache=True)
def sort_hashes(values, scratch):
    """Sort hashes in place: by radix on the upper half, which leaves hardly anything to the pass that finishes.

    Args:
        scratch: uint64, as long as values.
    """
    count = len(values)
    if count < _RADIX_FROM:
        values.sort()
        return
    source, target = values, scratch
    for shift in (32, 40, 48, 56):
        places = np.zeros(257, np.int64)
        for value in source:
            places[((value >> np.uint64(shift)) & np.uint64(255)) + np.uint64(1)] += 1
        for digit in range(256):
            places[digit + 1] += places[digit]
        for value in source:
            digit = (value >> np.uint64(shift)) & np.uint64(255)
            target[places[digit]] = value
            places[digit] += 1
        source, target = target, source
    for index in range(1, count):
        value, place = values[index], index
        while place > 0 and values[place - 1] > value:
            values[place] = values[place - 1]
            place -= 1
        values[place] = value


@njit(nogil=True, cache=True)
def shingle_sets(offsets, data, table, size, starts, shingles, lengths):
    """Sorted distinct shingles of all texts.

    Args:
        starts: (texts + 1,) int64, where the set of each text goes in `shingles`; its room is its number of shingles.
        lengths: (texts,) int64, filled with the sizes of the sets.
    """
    longest = 0
    for row in range(len(lengths)):
        longest = max(longest, offsets[row + 1] - offsets[row])
    tokens = np.empty(longest + 1, np.uint64)
    for row in range(len(lengths)):
        count = token_hashes(data, offsets[row], offsets[row + 1], table, tokens)
        own = shingles[starts[row] : starts[row + 1]]
        total = shingle_hashes(tokens, count, size, own)
        lengths[row] = distinct(own[:total], tokens[:total])


@njit(nogil=True, cache=True)
def distinct(values, scratch):
    """Sort values in place and move the distinct ones to the front; returns how many there are."""
    sort_hashes(values, scratch)
    length = 0
    for index in range(len(values)):
        if length == 0 or values[index] != values[length - 1]:
            values[length] = values[index]
            length += 1
    return length


@njit(nogil=True, cache=True)
def distinct_shingles(given, given_starts, chosen, starts, shingles, lengths):
    """Sorted distinct shingles of some texts whose shingles are at hand.

    Args:
        given: shingles of all texts, those of text i in given[given_starts[i] : given_starts[i + 1]].
        chosen: numbers of the texts wanted.
        starts: (chosen + 1,) int64, where the set of each goes in `shingles`.
        lengths: (chosen,) int64, filled with the sizes of the sets.
    """
    scratch = np.empty(len(shingles), np.uint64)
    for number in range(len(chosen)):
        text = chosen[number]
        own = shingles[starts[number] : starts[number + 1]]
        own[:] = given[given_starts[text] : given_starts[text + 1]]
        lengths[number] = distinct(own, scratch[: len(own)])
