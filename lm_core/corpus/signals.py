"""Signals: the statistics of a text that the quality rules judge, measured in one compiled pass over its bytes.

A word is a run of characters between blanks; each character of a script without spaces counts as a word besides. Lines
are taken without the spaces around them, and only those longer than three characters: shorter ones are closing brackets
and table rules.
"""

# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numba import njit

from lm_core.corpus.character_classes import BLANK, BROKEN, BULLET, DOTS, IDEOGRAPH, LETTER, character_classes, decode
from lm_core.corpus.characters import TABLE_SIZE
from lm_core.corpus.dedup.shingles import mix
from lm_core.corpus.dedup.sketch import text_buffers
from lm_core.corpus.published_signals import PUBLISHED_SIGNALS, published_signals

OWN_SIGNALS = (
    "num_words",
    "mean_word_length",  # in characters; 1 where most words are single characters of a script without spaces
    "alphabetic_fraction",  # of the words, those that hold a letter
    "symbol_fraction",  # runs of '#' and ellipses for each word; "###" is one heading and counts once
    "duplicate_line_fraction",  # of the characters in lines, those in lines that stood before
    "replacement_fraction",  # U+FFFD for each character
    "bullet_fraction",  # of the lines, those that start with a bullet
    "ellipsis_fraction",  # of the lines, those that end in an ellipsis
)
SIGNALS = (*OWN_SIGNALS, *PUBLISHED_SIGNALS)

_PRIME = np.uint64(0x9E3779B97F4A7C15)
_TABLE_SIZE = np.uint32(TABLE_SIZE)
_HASH, _DOT, _SPACE, _NEWLINE = np.uint32(35), np.uint32(46), np.uint32(32), np.uint32(10)
_MIN_LINE = 3


@njit(nogil=True, cache=True)
def _words(data, start, end, kinds, out):
    """Signals of words and characters: fills out[0..3] and out[5]."""
    words = letters = word_characters = ideographs = symbols = characters = broken = dots = 0
    in_word = in_hashes = lettered = False
    position = start
    while position < end:
        code, position = decode(data, position)
        kind = np.uint8(LETTER) if code >= _TABLE_SIZE else kinds[code]
        characters += 1
        broken += (kind & BROKEN) != 0
        ideographs += (kind & IDEOGRAPH) != 0
        symbols += (kind & DOTS) != 0
        symbols += code == _HASH and not in_hashes
        in_hashes = code == _HASH
        dots = dots + 1 if code == _DOT else 0
        if dots == 3:
            symbols += 1
            dots = 0
        if kind & BLANK:
            in_word = lettered = False
            continue
        words += not in_word
        in_word = True
        word_characters += 1
        if kind & LETTER and not lettered:
            lettered = True
            letters += 1
    total = max(words + ideographs, 1)
    out[0] = words + ideographs
    out[1] = 1.0 if ideographs > words else word_characters / max(words, 1)
    out[2] = (letters + ideographs) / total
    out[3] = symbols / total
    out[5] = broken / max(characters, 1)


@njit(nogil=True, cache=True)
def _lines(data, start, end, kinds, seen, out):
    """Signals of lines: fills out[4], out[6] and out[7]; `seen` is scratch, a power of two, twice the number of lines.

    A line is known again by a hash of its bytes.
    """
    lines = bullets = ellipses = characters = repeated = 0
    seen[:] = 0
    bits = np.uint64(len(seen) - 1)
    position = start
    while position <= end:
        stop = position
        while stop < end and data[stop] != _NEWLINE:
            stop += 1
        first, last = position, stop
        position = stop + 1
        while first < last and data[first] == _SPACE:
            first += 1
        while last > first and data[last - 1] == _SPACE:
            last -= 1
        length, state = 0, _PRIME
        for index in range(first, last):
            length += (data[index] & 0xC0) != 0x80
            state = np.uint64((state ^ np.uint64(data[index])) * _PRIME)
            state = np.uint64(state ^ (state >> np.uint64(29)))
        if length <= _MIN_LINE:
            continue
        lines += 1
        characters += length
        code, _ = decode(data, first)
        bullets += code < _TABLE_SIZE and (kinds[code] & BULLET) != 0
        three_dots = data[last - 1] == _DOT and data[last - 2] == _DOT and data[last - 3] == _DOT
        ellipses += three_dots or (data[last - 3] == 0xE2 and data[last - 2] == 0x80 and data[last - 1] == 0xA6)
        value = max(mix(state), np.uint64(1))
        slot = value & bits
        while seen[slot] != 0 and seen[slot] != value:
            slot = (slot + np.uint64(1)) & bits
        repeated += length if seen[slot] == value else 0
        seen[slot] = value
    out[4] = 1.0 - (characters - repeated) / max(characters, 1)
    out[6] = bullets / max(lines, 1)
    out[7] = ellipses / max(lines, 1)


@njit(nogil=True, cache=True)
def _measure(offsets, data, kinds, out):
    for row in range(len(out)):
        start, end = offsets[row], offsets[row + 1]
        num_lines = 1
        for index in range(start, end):
            num_lines += data[index] == _NEWLINE
        size = 4
        while size < 2 * num_lines:
            size *= 2
        _words(data, start, end, kinds, out[row])
        _lines(data, start, end, kinds, np.empty(size, np.uint64), out[row])


def signals_of(texts: pa.Array, languages: pa.Array) -> np.ndarray:
    """(texts, signals) float64, the columns in the order of `SIGNALS`.

    Args:
        languages: ISO 639 code of each text, for the lists of stop words.
    """
    offsets, data = text_buffers(texts)
    own = np.zeros((len(texts), len(OWN_SIGNALS)))
    _measure(offsets, data, character_classes(), own)
    return np.concatenate([own, published_signals(texts, languages, own[:, 0])], axis=1)
