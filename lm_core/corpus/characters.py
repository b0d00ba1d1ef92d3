"""What a character is to the kernels: part of a word, a word by itself, or a separator; and its lower case.

Scripts that are written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) have no words to find without a
dictionary: there each character is a token, so shingles of tokens are character shingles.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import numpy as np

SEPARATOR, IN_WORD, ALONE = 0, 1, 2
TABLE_SIZE = 0x20000
CLASS_SHIFT = 24

# Unicode blocks of scripts without spaces between words; the kernels take all of planes 2 and 3 as Han too.
_ALONE_BLOCKS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3105, 0x312F),  # Bopomofo
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # Han extension A
    (0x4E00, 0x9FFF),  # Han
    (0xF900, 0xFAFF),  # Han compatibility
    (0xFF66, 0xFF9F),  # half-width Katakana
)


@lru_cache(maxsize=1)
def character_table() -> np.ndarray:
    """(TABLE_SIZE,) uint32: class << 24 | simple lower case, for each code point of planes 0 and 1."""
    kinds = np.zeros(TABLE_SIZE, np.uint32)
    lower = np.arange(TABLE_SIZE, dtype=np.uint32)
    for code in range(TABLE_SIZE):
        character = chr(code)
        if unicodedata.category(character)[0] not in "LNM":
            continue
        kinds[code] = IN_WORD
        small = character.lower()
        if len(small) == 1:
            lower[code] = ord(small)
    for first, last in _ALONE_BLOCKS:
        block = kinds[first : last + 1]
        block[block == IN_WORD] = ALONE
    return kinds << np.uint32(CLASS_SHIFT) | lower
