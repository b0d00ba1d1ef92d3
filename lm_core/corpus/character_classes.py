"""What a character is to the signals of the quality rules: letter, ideograph, blank, bullet, end of a sentence."""

# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.

from __future__ import annotations

import unicodedata
from functools import lru_cache

import numpy as np
from numba import njit

from lm_core.corpus.characters import TABLE_SIZE

LETTER, IDEOGRAPH, BLANK, BULLET, DOTS, BROKEN, END, CLOSING = 1, 2, 4, 8, 16, 32, 64, 128
IDEOGRAPHS = ((0x0E00, 0x0EFF), (0x3040, 0x30FF), (0x3400, 0x9FFF))
# Marks that end a sentence in the larger scripts, and those that may follow them.
ENDS = ".!?。！？．।॥؟۔։።"
CLOSINGS = "\"'”’»」』)）]"


@lru_cache(maxsize=1)
def character_classes() -> np.ndarray:
    """(TABLE_SIZE,) uint8: what a code point of planes 0 and 1 is, as bits."""
    kinds = np.zeros(TABLE_SIZE, np.uint8)
    for code in range(TABLE_SIZE):
        kinds[code] = LETTER * unicodedata.category(chr(code)).startswith("L")
    for first, last in IDEOGRAPHS:
        kinds[first : last + 1] |= IDEOGRAPH
    bits = (
        ("\t\n\f\r ", BLANK), ("-*•‣", BULLET), ("…", DOTS), ("\ufffd", BROKEN), (ENDS, END), (CLOSINGS, CLOSING)
    )  # fmt: skip
    for characters, bit in bits:
        for character in characters:
            kinds[ord(character)] |= bit
    return kinds


@njit(nogil=True, cache=True, inline="always")
def decode(data, position):
    """Code point at a position of UTF-8 bytes, and the position after it."""
    byte = np.uint32(data[position])
    if byte < 0x80:
        return byte, position + 1
    low = np.uint32(0x3F)
    second = np.uint32(data[position + 1]) & low
    if byte < 0xE0:
        return ((byte & np.uint32(0x1F)) << np.uint32(6)) | second, position + 2
    third = np.uint32(data[position + 2]) & low
    if byte < 0xF0:
        return ((byte & np.uint32(0x0F)) << np.uint32(12)) | (second << np.uint32(6)) | third, position + 3
    fourth = np.uint32(data[position + 3]) & low
    high = (byte & np.uint32(0x07)) << np.uint32(18)
    return high | (second << np.uint32(12)) | (third << np.uint32(6)) | fourth, position + 4
