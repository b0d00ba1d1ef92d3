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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
from numba import njit

from lm_core.corpus.config import DeduplicateConfig
from lm_core.corpus.dedup.means import Means
from lm_core.corpus.dedup.passage_store import LAYOUT, StoredPassages, common_units, save_common
from lm_core.corpus.dedup.segments import Segments, SegmentWriter
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

    def __call__(self, part: Part) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Rows of the texts, and the columns of `LAYOUT`."""
        rows, texts = part()
        offsets, data = text_buffers(texts)
        room = 3 * int(offsets[-1] - offsets[0]) // min(self.least_line, self.least_passage) + 4
        out = (np.empty(room, np.uint64), *(np.empty(room, np.int64) for _ in range(3)))
        lengths = np.empty(len(rows), np.int64)
        least = self.least_line, self.least_passage
        count = _units(offsets, data, self.sources[rows], *least, lengths, out)
        hashes, owners, starts, ends = (column[:count] for column in out)
        counts = np.bincount(owners, minlength=len(rows))
        return rows, {"lengths": lengths, "num_units": counts, "hashes": hashes, "starts": starts, "ends": ends}


@dataclass(frozen=True)
class Named:
    """What n texts are called.

    Attributes:
        doc_ids: (n, 2) uint64.
        sources: dictionary array, the source of each.
    """

    doc_ids: np.ndarray
    sources: pa.Array

    def source_numbers(self) -> np.ndarray:
        """(n,) int64, number of each text's source."""
        numbers: np.ndarray = self.sources.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        return numbers

    def source_hashes(self) -> np.ndarray:
        """(n,) uint64, a hash of each text's source: the same in every corpus."""
        digests = [hashlib.sha256(name.encode()).digest()[:8] for name in self.sources.dictionary.to_pylist()]
        return np.frombuffer(b"".join(digests), np.uint64)[self.source_numbers()]


class Passages:
    """Lines and passages of n texts: those that earlier runs have read, and those that this one reads.

    Args:
        folder: what earlier runs have read; what is new is added.
        work: an empty folder's place, for what is new.

    Attributes:
        rows: (n,) int64, of each text in the segments, -1 for one that was not read.
    """

    def __init__(self, texts: Texts, named: Named, config: DeduplicateConfig, folder: Path, work: Path) -> None:
        self.named, self.stored = named, StoredPassages.load(folder)
        self.rows = self.stored.segments.rows_of(named.doc_ids)
        self._texts, self._config, self._work, self._lock = texts, config, work, Lock()
        self._writer: SegmentWriter | None = None
        self._num_new = 0

    def read(self, wanted: np.ndarray, means: Means) -> None:
        """Read the texts of a mask that were not read yet."""
        new = wanted & (self.rows < 0)
        if not new.any():
            return
        reader = _Reader(self.named.source_hashes(), self._config)
        if self._writer is None:
            self._writer = SegmentWriter(self._work, LAYOUT)
        means.each(self._texts.parts(new), partial(self._read_part, reader, self._writer), "parts")

    def _read_part(self, reader: _Reader, writer: SegmentWriter, part: Part) -> None:
        rows, columns = reader(part)
        with self._lock:
            writer.write(columns | {"ids": self.named.doc_ids[rows]})
            self.rows[rows] = len(self.stored.segments) + self._num_new + np.arange(len(rows))
            self._num_new += len(rows)

    def finish(self) -> tuple[Segments, SegmentWriter | None]:
        """All that was read, and what the new ones among it were written with."""
        known = self.stored.segments
        if self._writer is None:
            return known, None
        return Segments(LAYOUT, [*known.parts, self._writer.finish()], known.names), self._writer


def find_passages(
    passages: Passages, kept: np.ndarray, ranks: np.ndarray, num_bytes: int, config: DeduplicateConfig, means: Means
) -> pa.Table:
    """Places to cut from the texts that were kept.

    Args:
        kept: (n,) bool; ranks: (n,) int64, place of each text in the order of preference.
        num_bytes: length of the texts that were kept.

    Returns:
        A table of row, kind, start, length (characters), in the order of row and start.
    """
    passages.read(kept, means)
    segments, new = passages.finish()
    rows, stored = passages.rows[kept], passages.stored
    today = np.full(len(segments), -1, np.int64)
    today[rows] = np.flatnonzero(kept)
    common = common_units(segments, today >= 0, stored.common, _num_counters(num_bytes, means), means.num_threads)
    with ThreadPoolExecutor(1) as aside:
        saved = aside.submit(save_common, stored.folder, segments, new, today >= 0, common)
        lengths, own = np.zeros(len(kept), np.int64), np.empty(len(rows), np.int64)
        segments.gather("lengths", rows, own)
        lengths[kept] = own
        numbers = passages.named.source_numbers()
        documents_of_source = np.bincount(numbers[kept], minlength=len(passages.named.sources.dictionary))
        owners = today[common.rows]
        cut = _to_cut(common.hashes, owners, ranks, documents_of_source[numbers[owners]], config)
        found = _cuts(common.hashes[cut], owners[cut], common.starts[cut], common.ends[cut], lengths)
        saved.result()
    return found


def _num_counters(num_bytes: int, means: Means) -> int:
    wanted = max(1024, min(int(num_bytes * _COUNTERS_PER_BYTE), means.memory_bytes // 8))
    return 1 << (wanted.bit_length() - 1)


@njit(nogil=True, cache=True)
def _choose(hashes, rows, ranks, least, most, mask):
    """Mark what is to be cut: see `_to_cut`; a document's entries stand side by side within those of a hash.

    Args:
        least: for each entry, documents that make its line boilerplate; most: documents in which a passage may stand.
    """
    first = 0
    while first < len(hashes):
        last, documents, preferred = first, 0, rows[first]
        while last < len(hashes) and hashes[last] == hashes[first]:
            documents += last == first or rows[last] != rows[last - 1]
            if ranks[rows[last]] < ranks[preferred]:
                preferred = rows[last]
            last += 1
        if hashes[first] & _KIND == _LINE:
            mask[first:last] = documents >= least[first]
        elif documents > most:
            for index in range(first, last):
                mask[index] = rows[index] != preferred
        first = last


def _to_cut(
    hashes: np.ndarray, rows: np.ndarray, ranks: np.ndarray, documents_of_source: np.ndarray, config: DeduplicateConfig
) -> np.ndarray:
    """Mask of the places to cut: those of boilerplate, and of passages outside the preferred document that has them."""
    fraction = 1.0 if config.boilerplate_fraction is None else config.boilerplate_fraction
    least = np.maximum(config.min_boilerplate_documents, fraction * documents_of_source)
    mask = np.zeros(len(hashes), bool)
    _choose(hashes, rows, ranks, least, config.max_passage_documents or 0, mask)
    return mask


def _cuts(hashes: np.ndarray, rows: np.ndarray, starts: np.ndarray, ends: np.ndarray, lengths: np.ndarray) -> pa.Table:
    repeated = (hashes & _KIND) != _LINE
    order = np.lexsort((repeated, -ends, starts, rows))
    rows, starts, ends, repeated = rows[order], starts[order], ends[order], repeated[order]
    count = _merged(rows, starts, ends, repeated)
    rows, starts, ends, repeated = rows[:count], starts[:count], ends[:count], repeated[:count]
    lost = np.bincount(rows, weights=ends - starts, minlength=len(lengths))
    left = (lost <= _MAX_CUT_FRACTION * lengths)[rows]
    kinds = pa.array([BOILERPLATE, REPEATED]).take(pa.array(repeated[left].astype(np.int8)))
    columns = (pa.array(rows[left]), kinds, pa.array(starts[left]), pa.array((ends - starts)[left]))
    return pa.table(columns, names=["row", "kind", "start", "length"])
