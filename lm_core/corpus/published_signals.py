"""Signals that published rules judge: Gopher's (Rae et al. 2021), C4's (Raffel et al. 2020), FineWeb's (Penedo et al.
2024), each as its paper defines it; where a paper leaves something open, the line below says what is done here.

A line is one that is not blank, taken without the spaces around it; a paragraph is what lies between blank lines.
"""

# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from lm_core.corpus.character_classes import BLANK, CLOSING, DOTS, END, IDEOGRAPH, character_classes, decode
from lm_core.corpus.characters import TABLE_SIZE, character_table
from lm_core.corpus.dedup.shingles import mix, token_hashes
from lm_core.corpus.dedup.sketch import text_buffers
from lm_core.corpus.repetition import DUPLICATE_SIZES, TOP_SIZES, measure_repetition
from lm_core.corpus.stop_words import STOP_WORDS

PUBLISHED_SIGNALS = (
    "hashes_per_word",  # Gopher: '#' for each word
    "ellipses_per_word",  # Gopher: "..." and "…" for each word
    "num_stop_words",  # Gopher: different stop words of its language; NaN where there is no list
    "num_sentences",  # C4: ends of sentences in lines of three words or more that end in one, but not in an ellipsis
    "curly_brackets",  # C4: how many "{"
    "lorem_ipsum",  # C4: 1 when the phrase occurs
    "punctuated_line_fraction",  # FineWeb: of the lines, those that end in terminal punctuation or a quotation mark
    "short_line_fraction",  # FineWeb: of the lines, those of 30 characters or fewer
    "newlines_per_word",  # FineWeb
    "duplicate_lines",  # Gopher: of the lines, those that stood before
    "duplicate_line_characters",  # Gopher, FineWeb: their characters, of those of all lines
    "duplicate_paragraphs",  # Gopher
    "duplicate_paragraph_characters",  # Gopher
    *(f"top_{size}_gram" for size in TOP_SIZES),  # Gopher, see `lm_core.corpus.repetition`
    *(f"duplicate_{size}_grams" for size in DUPLICATE_SIZES),  # Gopher
)

_NEWLINE, _SPACE, _HASH, _DOT, _BRACE = np.uint32(10), np.uint32(32), np.uint32(35), np.uint32(46), np.uint32(123)
_PRIME = np.uint64(0x9E3779B97F4A7C15)
_TABLE_SIZE = np.uint32(TABLE_SIZE)
_CJK = np.uint32(0x3000)
_SHORT_LINE, _SENTENCE_WORDS = 30, 3
_REPETITION = PUBLISHED_SIGNALS.index("top_2_gram")
_STOP_SLOTS = 4096


@njit(nogil=True, cache=True)
def _line(data, first, last, kinds):
    """Of a line without the spaces around: (characters, words, sentences, hash, last character's class, closed).

    A sentence ends in a mark that a blank, a quotation mark and a blank, or (without spaces) anything follows; `closed`
    tells whether the line ends with one.
    """
    characters, words, sentences, in_word, closed, spaceless, state, kind = 0, 0, 0, False, False, False, _PRIME, 0
    position = first
    while position < last:
        code, position = decode(data, position)
        kind = kinds[code] if code < _TABLE_SIZE else 0
        characters += 1
        state = np.uint64((state ^ np.uint64(code)) * _PRIME)
        state = np.uint64(state ^ (state >> np.uint64(29)))
        blank = (kind & BLANK) != 0
        words += not blank and not in_word
        words += (kind & IDEOGRAPH) != 0
        in_word = not blank
        if closed and kind & (END | CLOSING) == 0:
            sentences += blank or spaceless
            closed = False
        if kind & END:
            closed, spaceless = True, code > _CJK
    return characters, words, sentences + closed, mix(state), kind, closed


@njit(nogil=True, cache=True)
def _seen(table, value):
    """Whether a value stood in the table; it stands there afterwards."""
    bits = np.uint64(len(table) - 1)
    value = max(value, np.uint64(1))
    slot = value & bits
    while table[slot] != 0 and table[slot] != value:
        slot = (slot + np.uint64(1)) & bits
    known = table[slot] == value
    table[slot] = value
    return known


@njit(nogil=True, cache=True)
def _lines(data, start, end, kinds, lines_seen, blocks_seen, out):
    """Fill out[3] and out[6..12]."""
    lines = punctuated = short = sentences = characters = repeated = repeated_characters = newlines = 0
    blocks = repeated_blocks = repeated_block_characters = block_characters = 0
    block = _PRIME
    position = start
    while position <= end:
        stop = position
        while stop < end and data[stop] != _NEWLINE:
            stop += 1
        newlines += stop < end
        first, last = position, stop
        position = stop + 1
        while first < last and data[first] == _SPACE:
            first += 1
        while last > first and data[last - 1] == _SPACE:
            last -= 1
        length, words, ends, hashed, kind, closed = _line(data, first, last, kinds)
        if length:
            lines += 1
            characters += length
            three_dots = last - first > 2 and data[last - 1] == data[last - 2] == data[last - 3] == _DOT
            punctuated += (kind & (END | CLOSING | DOTS)) != 0
            short += length <= _SHORT_LINE
            if words >= _SENTENCE_WORDS and closed and not three_dots:
                sentences += ends
            if _seen(lines_seen, hashed):
                repeated += 1
                repeated_characters += length
            block = mix(np.uint64(block ^ hashed) * _PRIME)
            block_characters += length
        if block_characters and (length == 0 or position > end):
            blocks += 1
            if _seen(blocks_seen, block):
                repeated_blocks += 1
                repeated_block_characters += block_characters
            block, block_characters = _PRIME, 0
    out[3] = sentences
    out[6], out[7] = punctuated / max(lines, 1), short / max(lines, 1)
    out[8] = newlines
    out[9], out[10] = repeated / max(lines, 1), repeated_characters / max(characters, 1)
    out[11], out[12] = repeated_blocks / max(blocks, 1), repeated_block_characters / max(characters, 1)


@njit(nogil=True, cache=True)
def _num_stop_words(tokens, words, numbers):
    """Different stop words among tokens; their hashes stand in `words`, and numbers below 64, by their lowest bits."""
    found = np.uint64(0)
    for token in tokens:
        slot = token & np.uint64(_STOP_SLOTS - 1)
        if words[slot] == token:
            found |= np.uint64(1) << np.uint64(numbers[slot])
    count = 0
    while found:
        found &= found - np.uint64(1)
        count += 1
    return count


@njit(nogil=True, cache=True)
def _measure(offsets, data, kinds, table, stop_words, languages, num_words, out):
    longest = 0
    for row in range(len(out)):
        longest = max(longest, offsets[row + 1] - offsets[row])
    scratch = np.empty(longest + 1, np.uint64), np.empty(longest + 1, np.uint64), np.empty(longest + 2, np.int64)
    for row in range(len(out)):
        start, end, own = offsets[row], offsets[row + 1], out[row]
        hashes = ellipses = brackets = dots = 0
        num_lines = 1
        for index in range(start, end):
            byte = data[index]
            num_lines += byte == _NEWLINE
            hashes += byte == _HASH
            brackets += byte == _BRACE
            dots = dots + 1 if byte == _DOT else 0
            if dots == 3:
                ellipses += 1
                dots = 0
            ellipses += byte == 0xE2 and index + 2 < end and data[index + 1] == 0x80 and data[index + 2] == 0xA6
        size = 4
        while size < 2 * num_lines:
            size *= 2
        _lines(data, start, end, kinds, np.zeros(size, np.uint64), np.zeros(size, np.uint64), own)
        words = max(num_words[row], 1)
        own[0], own[1], own[4], own[8] = hashes / words, ellipses / words, brackets, own[8] / words
        own[2] = np.nan
        if languages[row] >= 0:
            tokens = scratch[0][: token_hashes(data, start, end, table, scratch[0])]
            own[2] = _num_stop_words(tokens, stop_words[0][languages[row]], stop_words[1][languages[row]])
        measure_repetition(data, start, end, kinds, scratch, own[_REPETITION:])


@lru_cache(maxsize=1)
def _stop_words() -> tuple[pa.Array, tuple[np.ndarray, np.ndarray]]:
    """Languages that have a list; (languages, slots) hashes and numbers of its words, for `_num_stop_words`."""
    hashes = np.zeros((len(STOP_WORDS), _STOP_SLOTS), np.uint64)
    numbers = np.zeros((len(STOP_WORDS), _STOP_SLOTS), np.uint8)
    for language, words in enumerate(STOP_WORDS.values()):
        data = np.frombuffer(words.encode(), np.uint8)
        tokens = np.empty(len(data) + 1, np.uint64)
        count = token_hashes(data, 0, len(data), character_table(), tokens)
        slots = (tokens[:count] & np.uint64(_STOP_SLOTS - 1)).astype(np.int64)
        hashes[language, slots], numbers[language, slots] = tokens[:count], np.arange(count)
    return pa.array(STOP_WORDS), (hashes, numbers)


def published_signals(texts: pa.Array, languages: pa.Array, num_words: np.ndarray) -> np.ndarray:
    """(texts, signals) float64, the columns in the order of `PUBLISHED_SIGNALS`."""
    offsets, data = text_buffers(texts)
    listed, stop_words = _stop_words()
    numbers = pc.fill_null(pc.index_in(languages, value_set=listed), -1).to_numpy(zero_copy_only=False)
    out = np.zeros((len(texts), len(PUBLISHED_SIGNALS)))
    tables = character_classes(), character_table(), stop_words
    _measure(offsets, data, *tables, numbers.astype(np.int64), num_words, out)
    phrase = pc.match_substring(texts, "lorem ipsum", ignore_case=True)
    out[:, PUBLISHED_SIGNALS.index("lorem_ipsum")] = phrase.to_numpy(zero_copy_only=False)
    return out
