"""Lines and paragraphs that stand in many of the documents that were kept.

Boilerplate: a line that a good share of a source's documents have goes from all of them. Repeated passages: a long line
or paragraph that stands in several documents, of whatever source, stays in the preferred one and goes from the others.
Both are places to cut where the text is read for learning, as redactions are; no text is written.

The text of a document is read once and for all: its lines and passages are kept, as hashes and places, beside the band
index. Counters of hashes tell which can be common at all, and only these are counted exactly, by document.
"""

# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
from numba import njit

from lm_core.corpus.config import DeduplicateConfig
from lm_core.corpus.dedup.passage_store import UNIT, Segment, SegmentWriter, load_segments, save_segment
from lm_core.corpus.dedup.search import Means
from lm_core.corpus.dedup.shingles import mix
from lm_core.corpus.dedup.sketch import text_buffers
from lm_core.corpus.dedup.texts import Part, Texts

BOILERPLATE, REPEATED = "boilerplate", "repeated"
_LINE, _PASSAGE = np.uint64(0), np.uint64(1)
_KIND = np.uint64(1)
_PRIME = np.uint64(0x9E3779B97F4A7C15)
_NEWLINE, _SPACE = 10, 32
# Counters for each byte of text; a unit takes some forty bytes.
_COUNTERS_PER_BYTE = 1 / 16
_MOST = 255
# What would lose more than that is left whole.
_MAX_CUT_FRACTION = 0.5


@njit(nogil=True, cache=True)
def _line_end(data, position, end):
    while position < end and data[position] != _NEWLINE:
        position += 1
    return position


@njit(nogil=True, cache=True)
def _measure(data, first, last):
    """Hash, characters and letters of a line without the spaces around it."""
    while first < last and data[first] == _SPACE:
        first += 1
    while last > first and data[last - 1] == _SPACE:
        last -= 1
    state, characters, letters = _PRIME, 0, 0
    for index in range(first, last):
        byte = data[index]
        characters += (byte & 0xC0) != 0x80
        letters += 97 <= (byte | 32) <= 122 or byte >= 0xC0
        state = np.uint64((state ^ np.uint64(byte)) * _PRIME)
        state = np.uint64(state ^ (state >> np.uint64(29)))
    return state, characters, letters


@njit(nogil=True, cache=True)
def _emit(out, count, hashed, kind, row, start, end):
    out[0][count] = (mix(hashed) & ~_KIND) | kind
    out[1][count], out[2][count], out[3][count] = row, start, end
    return count + 1


@njit(nogil=True, cache=True)
def _units(offsets, data, sources, least_line, least_passage, lengths, out):
    """Find the lines and passages of all texts.

    Args:
        sources: (texts,) uint64, hash of each text's source; a line counts for its source alone.
        least_line, least_passage: characters from which on one counts.
        lengths: (texts,) int64, filled with the characters of the texts.
        out: (hashes, rows, starts, ends) in characters with the newlines after it; filled from the front.

    Returns:
        How many there are.
    """
    count = 0
    for row in range(len(lengths)):
        position, end = offsets[row], offsets[row + 1]
        place, block, block_start, block_characters, block_lines = 0, _PRIME, 0, 0, 0
        while position < end:
            stop = _line_end(data, position, end)
            after = place + (stop < end)
            for index in range(position, stop):
                after += (data[index] & 0xC0) != 0x80
            state, characters, letters = _measure(data, position, stop)
            if 2 * letters > characters:
                if characters >= least_line:
                    count = _emit(out, count, state ^ mix(sources[row]), _LINE, row, place, after)
                if characters >= least_passage:
                    count = _emit(out, count, state, _PASSAGE, row, place, after)
            if characters:
                block_start = block_start if block_lines else place
                block = mix(np.uint64(block ^ state) * _PRIME)
                block_characters, block_lines = block_characters + characters, block_lines + 1
            place, position = after, stop + 1
            if characters == 0 or position >= end:
                if block_lines > 1 and block_characters >= least_passage:
                    count = _emit(out, count, block, _PASSAGE, row, block_start, place)
                block, block_characters, block_lines = _PRIME, 0, 0
        lengths[row] = place
    return count


@njit(nogil=True, cache=True)
def _count(hashes, counters):
    bits = np.uint64(len(counters) - 1)
    for value in hashes:
        place = (value >> np.uint64(1)) & bits
        counters[place] += counters[place] < _MOST


@njit(nogil=True, cache=True)
def _merged(rows, starts, ends, kinds):
    """Join places (in the order of row and start) that touch, in place; returns how many are left."""
    count = 0
    for index in range(len(rows)):
        if count and rows[count - 1] == rows[index] and starts[index] <= ends[count - 1]:
            ends[count - 1] = max(ends[count - 1], ends[index])
            continue
        rows[count], starts[count], ends[count], kinds[count] = rows[index], starts[index], ends[index], kinds[index]
        count += 1
    return count


class _Reader:
    """Units of the texts of a part."""

    def __init__(self, sources: np.ndarray, config: DeduplicateConfig) -> None:
        self.sources = sources
        never = 1 << 62
        self.least_line = config.min_boilerplate_characters if config.boilerplate_fraction is not None else never
        self.least_passage = config.min_passage_characters if config.max_passage_documents is not None else never

    def __call__(self, part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Rows of the texts, their lengths, how many units each has, and these."""
        rows, texts = part()
        offsets, data = text_buffers(texts)
        room = 3 * int(offsets[-1] - offsets[0]) // min(self.least_line, self.least_passage) + 4
        out = (np.empty(room, np.uint64), *(np.empty(room, np.int64) for _ in range(3)))
        lengths = np.empty(len(rows), np.int64)
        least = self.least_line, self.least_passage
        count = _units(offsets, data, self.sources[rows], *least, lengths, out)
        hashes, owners, starts, ends = (column[:count] for column in out)
        units = np.empty(count, UNIT)
        units["hash"], units["start"], units["end"] = hashes, starts, ends
        return rows, lengths, np.bincount(owners, minlength=len(rows)), units


@dataclass(frozen=True)
class Kept:
    """The documents among n texts that were kept.

    Attributes:
        mask: (n,) bool.
        ranks: (n,) int64, place of each row in the order of preference.
        doc_ids: (n, 2) uint64.
        sources: dictionary array, the source of each row.
    """

    mask: np.ndarray
    ranks: np.ndarray
    doc_ids: np.ndarray
    sources: pa.Array

    def rows_of(self, doc_ids: np.ndarray) -> np.ndarray:
        """Row of each identity, -1 for one that is not among them or was not kept."""
        rows = np.flatnonzero(self.mask)
        rows = rows[np.argsort(self.doc_ids[rows, 0], kind="stable")]
        if not len(rows):
            return np.full(len(doc_ids), -1, np.int64)
        places = np.minimum(np.searchsorted(self.doc_ids[rows, 0], doc_ids[:, 0]), len(rows) - 1)
        return np.where((self.doc_ids[rows[places]] == doc_ids).all(axis=1), rows[places], -1)

    def source_numbers(self) -> np.ndarray:
        """(n,) int64, number of each row's source."""
        numbers: np.ndarray = self.sources.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        return numbers

    def source_hashes(self) -> np.ndarray:
        """(n,) uint64, a hash of each row's source: the same in every corpus."""
        digests = [hashlib.sha256(name.encode()).digest()[:8] for name in self.sources.dictionary.to_pylist()]
        return np.frombuffer(b"".join(digests), np.uint64)[self.source_numbers()]


def find_passages(
    texts: Texts, kept: Kept, num_bytes: int, config: DeduplicateConfig, means: Means, *, store: Path, work: Path
) -> pa.Table:
    """Places to cut from the texts that were kept.

    Args:
        num_bytes: length of all texts.
        store: folder of what earlier runs have read; what is new is added.
        work: an empty folder's place, for what is new.

    Returns:
        A table of row, kind, start, length (characters), in the order of row and start.
    """
    known = [(segment, kept.rows_of(segment.documents["id"])) for segment in load_segments(store)]
    new = kept.mask.copy()
    for _, rows in known:
        new[rows[rows >= 0]] = False
    if new.any():
        fresh = _read_new(texts, new, kept, config, means, work)
        known.append((fresh, kept.rows_of(fresh.documents["id"])))
    lengths = np.zeros(len(texts), np.int64)
    for segment, rows in known:
        lengths[rows[rows >= 0]] = segment.documents["length"][rows >= 0]
    hashes, owners, starts, ends = _common(known, _num_counters(num_bytes, means))
    numbers = kept.source_numbers()
    documents_of_source = np.bincount(numbers[kept.mask], minlength=len(kept.sources.dictionary))
    cut = _to_cut(hashes, owners, kept.ranks, documents_of_source[numbers[owners]], config)
    found = _cuts(hashes[cut], owners[cut], starts[cut], ends[cut], lengths)
    if new.any():
        save_segment(work, store, alone=len(known) == 1)
    return found


def _read_new(
    texts: Texts, new: np.ndarray, kept: Kept, config: DeduplicateConfig, means: Means, work: Path
) -> Segment:
    read, lock, writer = _Reader(kept.source_hashes(), config), Lock(), SegmentWriter(work)

    def read_part(part: Part) -> None:
        rows, lengths, counts, units = read(part)
        with lock:
            writer.write(kept.doc_ids[rows], lengths, counts, units)

    means.each(texts.parts(new), read_part, "parts")
    return writer.finish()


def _common(known: list[tuple[Segment, np.ndarray]], num_counters: int) -> tuple[np.ndarray, ...]:
    """Hashes, rows, starts and ends of all units that may stand in more than one place."""
    counters = np.zeros(num_counters, np.uint8)

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for segment, rows in known:
            yield from segment.blocks(rows)

    for units, _ in blocks():
        _count(units["hash"].copy(), counters)
    found = [(np.empty(0, np.uint64), *(np.empty(0, np.int64) for _ in range(3)))]
    for units, owners in blocks():
        often = counters[(units["hash"] >> np.uint64(1)) & np.uint64(num_counters - 1)] > 1
        chosen = units[often]
        found.append((chosen["hash"], owners[often], chosen["start"].astype(np.int64), chosen["end"].astype(np.int64)))
    return tuple(np.concatenate(columns) for columns in zip(*found, strict=True))


def _num_counters(num_bytes: int, means: Means) -> int:
    wanted = max(1024, min(int(num_bytes * _COUNTERS_PER_BYTE), means.memory_bytes // 8))
    return 1 << (wanted.bit_length() - 1)


def _to_cut(
    hashes: np.ndarray, rows: np.ndarray, ranks: np.ndarray, documents_of_source: np.ndarray, config: DeduplicateConfig
) -> np.ndarray:
    """Mask of the places to cut: those of boilerplate, and of passages outside the preferred document that has them."""
    order = np.lexsort((ranks[rows], hashes))
    values, owners = hashes[order], rows[order]
    begins = np.ones(len(values), bool)
    begins[1:] = values[1:] != values[:-1]
    group = np.cumsum(begins) - 1
    new_document = begins.copy()
    new_document[1:] |= owners[1:] != owners[:-1]
    num_documents = np.bincount(group, weights=new_document).astype(np.int64)[group]
    preferred = owners[np.flatnonzero(begins)][group]
    fraction = 1.0 if config.boilerplate_fraction is None else config.boilerplate_fraction
    line = (values & _KIND) == _LINE
    boilerplate = line & (num_documents >= np.maximum(config.min_boilerplate_documents,
                                                      fraction * documents_of_source[order]))  # fmt: skip
    most = config.max_passage_documents or 0
    repeated = ~line & (num_documents > most) & (owners != preferred)
    mask = np.zeros(len(hashes), bool)
    mask[order[boilerplate | repeated]] = True
    return mask


def _cuts(hashes: np.ndarray, rows: np.ndarray, starts: np.ndarray, ends: np.ndarray, lengths: np.ndarray) -> pa.Table:
    kinds = np.where((hashes & _KIND) == _LINE, BOILERPLATE, REPEATED)
    order = np.lexsort((kinds, -ends, starts, rows))
    is_line = kinds[order] == BOILERPLATE
    rows, starts, ends = rows[order], starts[order], ends[order]
    count = _merged(rows, starts, ends, is_line)
    rows, starts, ends, is_line = rows[:count], starts[:count], ends[:count], is_line[:count]
    lost = np.bincount(rows, weights=ends - starts, minlength=len(lengths))
    left = (lost <= _MAX_CUT_FRACTION * lengths)[rows]
    columns = (rows, np.where(is_line, BOILERPLATE, REPEATED), starts, ends - starts)
    return pa.table([pa.array(column[left]) for column in columns], names=["row", "kind", "start", "length"])
