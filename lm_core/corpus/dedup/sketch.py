"""Sketches: for each text a hash of its bytes, and MinHash band keys of its shingles.

MinHash (Broder 1997): the chance that two sets share the minimum of a random hash equals their Jaccard similarity.
Two texts become candidates when all `band_rows` minima of some band agree: with probability 1 - (1 - J^rows)^bands.
At the defaults (24 bands of 4) a pair of J = 0.8 is missed once in 300,000, one of J = 0.9 never in practice.
"""

# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numba import njit

from lm_core.corpus.characters import character_table
from lm_core.corpus.dedup.containment import SAMPLE_BITS
from lm_core.corpus.dedup.shingles import distinct, mix, shingle_hashes, token_hashes

_ODD = np.uint64(0x9E3779B97F4A7C15)
_SEED_LOW, _SEED_HIGH = np.uint64(0x243F6A8885A308D3), np.uint64(0x13198A2E03707344)  # digits of pi
_ALL_ONES = np.uint32(0xFFFFFFFF)
_SAMPLED = np.uint64((1 << SAMPLE_BITS) - 1)


@njit(nogil=True, cache=True)
def _content_hashes(offsets, data, hashes):
    """128-bit hash of each text's bytes, eight at a time."""
    for row in range(len(offsets) - 1):
        start, end = offsets[row], offsets[row + 1]
        low, high = _SEED_LOW ^ np.uint64(end - start), _SEED_HIGH
        position = start
        while position < end:
            word = np.uint64(0)
            stop = min(position + 8, end)
            if stop - position == 8:
                for index in range(8):
                    word |= np.uint64(data[position + index]) << np.uint64(8 * index)
            else:
                for index in range(stop - position):
                    word |= np.uint64(data[position + index]) << np.uint64(8 * index)
            low = np.uint64((low ^ word) * _ODD)
            low ^= low >> np.uint64(32)
            high = np.uint64((high + word) * _SEED_LOW)
            high ^= high >> np.uint64(29)
            position = stop
        hashes[row, 0] = mix(low)
        hashes[row, 1] = mix(high)


@njit(nogil=True, cache=True)
def _minhash(shingles, count, factors, addends, minima):
    """Minimum of each of the hash functions factor * x + addend (mod 2^32) over the shingles."""
    minima[:] = _ALL_ONES
    for index in range(count):
        value = np.uint32(shingles[index] >> np.uint64(32))
        for function in range(len(factors)):
            # numba promotes the product to 64 bits: without the cast all minima would be of another function.
            hashed = np.uint32(factors[function] * value + addends[function])
            minima[function] = min(minima[function], hashed)


@njit(nogil=True, cache=True)
def _band_keys(offsets, data, table, size, functions, keys, num_shingles, most_kept, kept, least, samples, num_samples):
    """Band keys (rows, bands) of all texts; a text without shingles has num_shingles 0 and meaningless keys.

    Args:
        functions: (factors, addends) of the MinHash functions.
        kept: filled from the front with all shingles of the texts that have no more than `most_kept`.
        least: texts of fewer shingles are not sampled.
        samples: filled from the front with sampled shingles, sorted and each once for a text.
        num_samples: (rows,) int32, how many each text has.
    """
    factors, addends = functions
    all_samples = num_kept = longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    tokens = np.empty(longest + 1, np.uint64)
    scratch = np.empty(longest + 1, np.uint64)
    minima = np.empty(len(factors), np.uint32)
    num_bands = keys.shape[1]
    width = len(factors) // num_bands
    for row in range(len(offsets) - 1):
        count = token_hashes(data, offsets[row], offsets[row + 1], table, tokens)
        fits = max(count - size + 1, min(count, 1)) <= most_kept
        shingles = kept[num_kept:] if fits else scratch
        total = shingle_hashes(tokens, count, size, shingles)
        num_kept += total if fits else 0
        num_shingles[row] = total
        _minhash(shingles, total, factors, addends, minima)
        num_samples[row] = 0
        if total >= least:
            end = all_samples
            for index in range(total):
                if shingles[index] & _SAMPLED == 0:
                    samples[end] = shingles[index]
                    end += 1
            num_samples[row] = distinct(samples[all_samples:end], scratch[: end - all_samples])
            all_samples += num_samples[row]
        for band in range(num_bands):
            state = np.uint64(band + 1)
            for index in range(band * width, (band + 1) * width):
                state = np.uint64((state ^ np.uint64(minima[index])) * _ODD)
                state ^= state >> np.uint64(32)
            keys[row, band] = mix(state)


@dataclass(frozen=True)
class Sketches:
    """Sketches of some texts, in their order.

    Attributes:
        content: (rows, 2) uint64, hash of the bytes.
        keys: (rows, bands) uint64.
        num_shingles: (rows,) int64, 0 for a text without any letter or digit.
        num_samples: (rows,) int32, and samples: uint64, sampled shingles of one text after the other.
        num_kept: (rows,) int32, and shingles: uint64, all shingles of the texts that have no more than was asked for.
    """

    content: np.ndarray
    keys: np.ndarray
    num_shingles: np.ndarray
    num_samples: np.ndarray
    samples: np.ndarray
    num_kept: np.ndarray
    shingles: np.ndarray


def text_buffers(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (rows + 1,) int64 and UTF-8 bytes of a string array, without copying the text."""
    wide = pa.types.is_large_string(texts.type)
    _, offsets, data = texts.buffers()
    positions = np.frombuffer(offsets, np.int64 if wide else np.int32)[texts.offset : texts.offset + len(texts) + 1]
    content = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8)
    return positions.astype(np.int64), content


def content_hashes(texts: pa.Array) -> np.ndarray:
    """128-bit hash (texts, 2) of the bytes of each text: equal texts have equal ones."""
    offsets, data = text_buffers(texts)
    hashes = np.empty((len(texts), 2), np.uint64)
    _content_hashes(offsets, data, hashes)
    return hashes


def hash_functions(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Odd factors and addends (uint32) of the MinHash functions; fixed, or no two runs could be compared."""
    state = np.uint64(0x452821E638D01377)
    values = []
    with np.errstate(over="ignore"):
        for _ in range(count):
            state = state + _ODD
            values.append(int(mix.py_func(state)))
    drawn = np.array(values, np.uint64)
    return (drawn >> np.uint64(32)).astype(np.uint32) | np.uint32(1), (drawn & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def sketch(
    texts: pa.Array,
    *,
    shingle_tokens: int,
    num_bands: int,
    band_rows: int,
    min_sampled_shingles: int | None = None,
    most_kept: int = 0,
) -> Sketches:
    """Sketch each text of a string array.

    Args:
        min_sampled_shingles: texts of fewer shingles are not sampled; None samples none.
        most_kept: return all shingles of the texts that have no more.
    """
    offsets, data = text_buffers(texts)
    functions = hash_functions(num_bands * band_rows)
    keys = np.empty((len(texts), num_bands), np.uint64)
    num_shingles, num_samples = np.empty(len(texts), np.int64), np.empty(len(texts), np.int32)
    # A token takes a byte and a separator at least, or more than one byte; only the pages that are filled cost memory.
    most = int(offsets[-1] - offsets[0] + len(texts)) // 2 + len(texts)
    samples = np.empty(0 if min_sampled_shingles is None else most, np.uint64)
    least = min_sampled_shingles if min_sampled_shingles is not None else 1 << 62
    kept = np.empty(most if most_kept else 0, np.uint64)
    _band_keys(offsets, data, character_table(), shingle_tokens, functions, keys, num_shingles, most_kept or -1, kept,
               least, samples, num_samples)  # fmt: skip
    num_kept = np.where(num_shingles <= most_kept, num_shingles, 0).astype(np.int32)
    return Sketches(
        content_hashes(texts), keys, num_shingles, num_samples, samples[: num_samples.sum()],
        num_kept, kept[: num_kept.sum()],
    )  # fmt: skip
