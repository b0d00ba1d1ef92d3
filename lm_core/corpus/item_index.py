# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.
"""Which texts hold most of an item: containment of its n-grams of tokens, in compiled code.

Containment and not a single shared n-gram: in documentation *any* shared 13-gram flags half of all documents. Short
items are compared by shorter n-grams: of their few 13-grams most reach into the words that a task puts around them.
What many items begin with ("Give the shell command, with") is such a template and does not count. A character is the
same however it is written: "it&#8217;s" is "it’s", of which every fourth 13-gram of an old article would be another.

All n-grams of the items lie in one sorted table (their hashes are even draws, so their leading bits are an index into
it) behind a bit filter that answers nearly every n-gram of an ordinary text from the cache. The table lies in files,
so that threads and other machines share it by its path.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from lm_core.corpus.characters import character_table
from lm_core.corpus.dedup.shingles import shingle_hashes, sort_hashes, token_hashes
from lm_core.corpus.dedup.sketch import text_buffers

_BATCH_ITEMS = 4096
_FILTER_BITS_PER_GRAM = 8
_INDEX_BITS = 20
_OPENING_TOKENS = 4


@njit(nogil=True, cache=True)
def _is_common(gram, common):
    """Whether an n-gram is in a sorted array."""
    low, high = 0, len(common)
    while low < high:
        middle = (low + high) // 2
        if common[middle] < gram:
            low = middle + 1
        else:
            high = middle
    return low < len(common) and common[low] == gram


@njit(nogil=True, cache=True)
def _item_grams(offsets, data, table, sizes, least, common, grams, counts, widths):
    """Sorted distinct n-grams of each item without the template it begins with, one item after the other.

    Args:
        sizes: (n-grams of an item, n-grams of one shorter than two of them).
        least: (items,) int64, fewest tokens of an item that is searched at all.
        common: sorted, the openings of `_OPENING_TOKENS` tokens that many items have.
        counts, widths: (items,) int64, filled with the number of n-grams and their length in tokens.

    Returns:
        How many n-grams there are.
    """
    longest = 0
    for row in range(len(counts)):
        longest = max(longest, offsets[row + 1] - offsets[row])
    tokens, scratch = np.empty(longest + 1, np.uint64), np.empty(longest + 1, np.uint64)
    end = 0
    for row in range(len(counts)):
        counts[row] = widths[row] = 0
        num_tokens = token_hashes(data, offsets[row], offsets[row + 1], table, tokens)
        first = 0
        if len(common) and num_tokens > _OPENING_TOKENS:
            total = shingle_hashes(tokens, num_tokens, _OPENING_TOKENS, scratch)
            while first < total and _is_common(scratch[first], common):
                first += 1
            if first:
                first += _OPENING_TOKENS - 1
        own = tokens[first:num_tokens]
        if len(own) < least[row]:
            continue
        widths[row] = sizes[0] if len(own) >= 2 * sizes[0] else min(sizes[1], len(own))
        total = shingle_hashes(own, len(own), widths[row], scratch)
        sort_hashes(scratch[:total], tokens[:total])
        for index in range(total):
            if index == 0 or scratch[index] != scratch[index - 1]:
                grams[end + counts[row]] = scratch[index]
                counts[row] += 1
        end += counts[row]
    return end


@njit(nogil=True, cache=True)
def _place(gram, grams, leading):
    """Place of an n-gram in the sorted table, -1 when it is not there."""
    first = gram >> np.uint64(64 - _INDEX_BITS)
    for place in range(leading[first], leading[first + np.uint64(1)]):
        if grams[place] == gram:
            return place
    return -1


@njit(nogil=True, cache=True)
def _places_of(hashes, mask, bits, grams, leading, places):
    """Collect the places of the n-grams that are in the table, sorted; returns how many.

    Args:
        bits: the filter of n-grams of this length.
    """
    count = 0
    for gram in hashes:
        low = gram & mask
        if (bits[low >> np.uint64(6)] >> (low & np.uint64(63))) & np.uint64(1):
            place = _place(gram, grams, leading)
            if place >= 0:
                places[count] = place
                count += 1
    places[:count].sort()
    return count


@njit(nogil=True, cache=True)
def _count_owners(places, starts, owners, shared, touched, num_touched):
    """Count each distinct place for the items that hold its n-gram; returns how many items are touched now."""
    for number in range(len(places)):
        if number and places[number] == places[number - 1]:
            continue
        for owner in owners[starts[places[number]] : starts[places[number] + 1]]:
            if shared[owner] == 0:
                touched[num_touched] = owner
                num_touched += 1
            shared[owner] += 1
    return num_touched


@njit(nogil=True, cache=True)
def _held(offsets, data, table, index, least, rows, items, counts):
    """Find the items that texts hold.

    Args:
        index: the arrays of an `ItemIndex`, in their order.
        rows, items, counts: filled with text, item, and how many of the item's n-grams the text holds.

    Returns:
        How many were found, or -1 when there was no room for them.
    """
    widths, masks, filters, bits, grams, leading, starts, owners, num_grams = index
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    tokens, hashes = np.empty(longest + 1, np.uint64), np.empty(longest + 1, np.uint64)
    places = np.empty(longest + 1, np.int64)
    shared, touched = np.zeros(len(num_grams), np.int64), np.empty(len(num_grams), np.int64)
    found = 0
    for row in range(len(offsets) - 1):
        num_tokens = token_hashes(data, offsets[row], offsets[row + 1], table, tokens)
        num_touched = 0
        for kind in range(len(widths)):
            if num_tokens < widths[kind]:
                break
            total = shingle_hashes(tokens, num_tokens, widths[kind], hashes)
            num_places = _places_of(hashes[:total], masks[kind], bits[filters[kind] :], grams, leading, places)
            num_touched = _count_owners(places[:num_places], starts, owners, shared, touched, num_touched)
        for item in touched[:num_touched]:
            if shared[item] >= least * num_grams[item]:
                if found == len(rows):
                    return -1
                rows[found], items[found], counts[found] = row, item, shared[item]
                found += 1
            shared[item] = 0
    return found


def _without_references(texts: pa.Array) -> pa.Array:
    """The texts with HTML's character references as the characters that they stand for."""
    have = pc.match_substring_regex(texts, r"&#?\w+;")
    if not pc.any(have).as_py():
        return texts
    written = pa.array([html.unescape(text) for text in texts.filter(have).to_pylist()], texts.type)
    return pc.replace_with_mask(texts, have, written)


@dataclass(frozen=True)
class ItemIndex:
    """The n-grams of n items.

    Attributes:
        widths: (w,) int64, the lengths of n-grams there are, ascending.
        masks: (w,) uint64, the bits of an n-gram that count in the filter of its length.
        filters: (w,) int64, where in `bits` the filter of each length begins.
        bits: uint64, the filters.
        grams: (g,) uint64, sorted and distinct.
        leading: (2^k + 1,) int64, where in `grams` each value of the leading bits begins.
        starts: (g + 1,) int64, where in `owners` the items of each n-gram begin.
        owners: int32, the items that hold an n-gram.
        num_grams: (n,) int64, distinct n-grams of each item; 0 for one that is not searched.
    """

    widths: np.ndarray
    masks: np.ndarray
    filters: np.ndarray
    bits: np.ndarray
    grams: np.ndarray
    leading: np.ndarray
    starts: np.ndarray
    owners: np.ndarray
    num_grams: np.ndarray

    def save(self, folder: Path) -> Path:
        """Write the arrays into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for column in fields(self):
            np.save(folder / f"{column.name}.npy", getattr(self, column.name))
        return folder

    def held(self, texts: pa.Array, least: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The items of whose n-grams each text holds at least a share.

        Returns:
            Rows of the texts, items, shares: in the order of (row, item).
        """
        offsets, data = text_buffers(_without_references(texts))
        index = tuple(getattr(self, column.name) for column in fields(self))
        room, found = 1024, -1
        while found < 0:
            room *= 4
            rows, items, counts = (np.empty(room, np.int64) for _ in range(3))
            found = _held(offsets, data, character_table(), index, least, rows, items, counts)
        order = np.lexsort((items[:found], rows[:found]))
        rows, items, counts = rows[order], items[order], counts[order]
        return rows, items, counts / self.num_grams[items]


@dataclass(frozen=True)
class _Grams:
    """N-grams of items: the item that holds each, and the length of each in tokens."""

    grams: np.ndarray
    owners: np.ndarray
    widths: np.ndarray

    @classmethod
    def of(cls, texts: pa.ChunkedArray, fewest: np.ndarray, sizes: tuple[int, int], common: np.ndarray) -> _Grams:
        """The n-grams of texts; see `_item_grams`."""
        parts = [(np.empty(0, np.uint64), np.empty(0, np.int32), np.empty(0, np.int64))]
        first = 0
        for batch in texts.cast(pa.large_string()).chunks:
            for begin in range(0, len(batch), _BATCH_ITEMS):
                part = batch[begin : begin + _BATCH_ITEMS]
                offsets, data = text_buffers(_without_references(part))
                grams = np.empty(offsets[-1] - offsets[0] + len(part), np.uint64)
                counts, widths = np.empty(len(part), np.int64), np.empty(len(part), np.int64)
                least = fewest[first : first + len(part)]
                end = _item_grams(offsets, data, character_table(), sizes, least, common, grams, counts, widths)
                owners = np.arange(first, first + len(part), dtype=np.int32)
                parts.append((grams[:end].copy(), np.repeat(owners, counts), np.repeat(widths, counts)))
                first += len(part)
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def index_items(
    texts: pa.ChunkedArray, fewest_tokens: np.ndarray, *, ngram_tokens: int, short_tokens: int, max_items: int
) -> ItemIndex:
    """Index the texts of items.

    Args:
        fewest_tokens: (n,) int64, an item of fewer tokens is not searched.
        short_tokens: length of the n-grams of items shorter than two times `ngram_tokens`.
        max_items: an n-gram that stands in more items than this is no evidence of any of them; an opening that more
            have is the template of their task.
    """
    nothing = np.empty(0, np.uint64)
    openings = _Grams.of(texts, np.full(len(texts), _OPENING_TOKENS), (1 << 30, _OPENING_TOKENS), nothing)
    distinct, counts = np.unique(openings.grams, return_counts=True)
    found = _Grams.of(texts, fewest_tokens, (ngram_tokens, short_tokens), distinct[counts > max_items])
    return _indexed(found, len(texts), max_items)


def _indexed(found: _Grams, num_items: int, max_items: int) -> ItemIndex:
    order = np.argsort(found.grams, kind="stable")
    owners = found.owners[order]
    distinct, places, counts = np.unique(found.grams[order], return_index=True, return_counts=True)
    width_of = found.widths[order][places]
    telling = counts <= max_items
    owners = owners[np.repeat(telling, counts)]
    distinct, counts, width_of = distinct[telling], counts[telling], width_of[telling]
    masks, filters, bits = _filters([distinct[width_of == width] for width in np.unique(width_of)])
    firsts = np.arange(1 << _INDEX_BITS, dtype=np.uint64) << np.uint64(64 - _INDEX_BITS)
    return ItemIndex(
        widths=np.unique(width_of),
        masks=masks,
        filters=filters,
        bits=bits,
        grams=distinct,
        leading=np.append(np.searchsorted(distinct, firsts), len(distinct)).astype(np.int64),
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        owners=owners,
        num_grams=np.bincount(owners, minlength=num_items).astype(np.int64),
    )


def _filters(grams_by_width: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bit filter for each length of n-gram: the few short ones must not spread over the cache that 13-grams need."""
    masks, filters, all_bits = [], [], [np.empty(0, np.uint64)]
    for grams in grams_by_width:
        size = max(64, 1 << int(_FILTER_BITS_PER_GRAM * len(grams)).bit_length())
        low = grams & np.uint64(size - 1)
        bits = np.zeros(size // 64, np.uint64)
        np.bitwise_or.at(bits, (low >> np.uint64(6)).astype(np.int64), np.uint64(1) << (low & np.uint64(63)))
        masks.append(size - 1)
        filters.append(sum(map(len, all_bits)))
        all_bits.append(bits)
    return np.array(masks, np.uint64), np.array(filters, np.int64), np.concatenate(all_bits)


@lru_cache(maxsize=2)
def open_index(folder: Path) -> ItemIndex:
    """The index that `ItemIndex.save` wrote into a folder; threads of a process share it."""
    return ItemIndex(**{column.name: np.load(folder / f"{column.name}.npy") for column in fields(ItemIndex)})
