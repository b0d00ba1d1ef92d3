"""Sketches of all documents, from the index and from the texts, and the shingle sets of those that are compared.

Memory is bounded whatever the corpus: texts are read part by part, to sketch them and, where the shingles neither found
room in memory nor lie in the index, again for the shingles of those with company.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from lm_core.corpus.characters import character_table
from lm_core.corpus.config import DeduplicateConfig
from lm_core.corpus.dedup.containment import Samples
from lm_core.corpus.dedup.greedy import ShingleSets
from lm_core.corpus.dedup.index import Index
from lm_core.corpus.dedup.means import Means
from lm_core.corpus.dedup.segments import Segments, SegmentWriter, checksums
from lm_core.corpus.dedup.shingles import distinct_shingles, shingle_sets
from lm_core.corpus.dedup.sketch import Sketches, sketch, text_buffers
from lm_core.corpus.dedup.texts import Part, Texts
from lm_core.mapping import in_threads

# All shingles are kept in the index. They take more room than the text, but to read again the few long documents that
# new ones are compared with would be most of the work.
_EVERY = 1 << 62
# Rows, how many shingles each has, these, and a checksum of each row's where they come from a file.
Shingles = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]


@dataclass
class Sketched:
    """Sketches of n documents.

    Attributes:
        content: (n, 2) uint64, hash of the bytes; keys: (n, bands) uint64; num_shingles: (n,) int64.
        segments: of the index, the new documents' among them; rows: (n,) of each document in them. Both None without.
        new: what the new documents' segment was written with.
        samples: rows and sampled shingles of parts, where there is no index.
        at_hand: shingles of parts that found room in memory; free_bytes: what room is left.
    """

    content: np.ndarray
    keys: np.ndarray
    num_shingles: np.ndarray
    free_bytes: int
    segments: Segments | None = None
    rows: np.ndarray | None = None
    new: SegmentWriter | None = None
    samples: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    at_hand: list[Shingles] = field(default_factory=list)

    def today(self) -> np.ndarray:
        """The document of each row of the segments, -1 for one that is gone."""
        assert self.segments is not None and self.rows is not None
        numbers = np.full(len(self.segments), -1, np.int64)
        numbers[self.rows] = np.arange(len(self.rows))
        return numbers

    def all_samples(self) -> Samples:
        """Sampled shingles of all documents."""
        if self.segments is None:
            return Samples.of(self.samples)
        blocks = self.segments.blocks(["samples"], self.today())
        return Samples.of((rows, values) for rows, values in blocks)


def sketch_all(texts: Texts, config: DeduplicateConfig, index: Index | None, means: Means) -> Sketched:
    """Sketches of all texts: copied where they are known, computed where not."""
    count = len(texts)
    keys = means.array("keys", (count, config.num_bands), np.uint64)
    # What other machines have sketched stays there.
    free_bytes = means.memory_bytes // 5 if means.mapper is None else 0
    found = Sketched(np.empty((count, 2), np.uint64), keys, np.empty(count, np.int64), free_bytes)
    new = np.ones(count, bool)
    if index is not None:
        found.rows, found.segments, new = index.rows.copy(), index.segments, index.rows < 0
        known = np.flatnonzero(~new)
        for name, column in (("keys", keys), ("content", found.content), ("num_shingles", found.num_shingles)):
            index.segments.gather(name, index.rows, column) if len(known) else None
        if new.any():
            assert means.folder is not None
            found.new = SegmentWriter(means.folder / "sketches", index.segments.layout)
    if new.any():
        _sketch_new(texts, new, config, index, means, found)
    return found


def _sketch_new(
    texts: Texts, new: np.ndarray, config: DeduplicateConfig, index: Index | None, means: Means, found: Sketched
) -> None:
    arrived: list[np.ndarray] = []

    def take(result: tuple[np.ndarray, Sketches]) -> None:
        rows, own = result
        found.keys[rows], found.content[rows], found.num_shingles[rows] = own.keys, own.content, own.num_shingles
        if index is not None and found.new is not None:
            found.new.write(vars(own) | {"ids": index.doc_ids[rows]})
            arrived.append(rows)
        else:
            found.samples.append((np.repeat(rows, own.num_samples), own.samples))
        if found.free_bytes > 0:
            found.free_bytes -= own.shingles.nbytes
            found.at_hand.append((rows, own.num_kept, own.shingles, None))

    work = partial(_sketch_part, config=config, kept=found if found.free_bytes else None, stored=index is not None)
    means.over(texts.parts(new), work, take, "parts")
    if index is not None and found.new is not None and found.rows is not None:
        found.rows[np.concatenate(arrived)] = len(index.segments) + np.arange(int(new.sum()))
        segments = index.segments
        found.segments = Segments(segments.layout, [*segments.parts, found.new.finish()], segments.names)


def _sketch_part(
    part: Part, *, config: DeduplicateConfig, kept: Sketched | None, stored: bool
) -> tuple[np.ndarray, Sketches]:
    rows, texts = part()
    return rows, sketch(
        texts,
        shingle_tokens=config.shingle_tokens,
        num_bands=config.num_bands,
        band_rows=config.band_rows,
        min_sampled_shingles=None if config.containment_threshold is None else config.min_contained_shingles,
        most_kept=_EVERY if stored or (kept is not None and kept.free_bytes > 0) else 0,
    )


def load_sets(
    texts: Texts, rows: np.ndarray, wanted: np.ndarray, found: Sketched, config: DeduplicateConfig, means: Means
) -> ShingleSets:
    """Shingle sets of the documents rows[wanted]: from memory, from the index, and of the others from their texts."""
    room = np.where(wanted, found.num_shingles[rows], 0)
    starts = np.concatenate([[0], np.cumsum(room)]).astype(np.int64)
    shingles = means.array("shingles", (int(starts[-1]),), np.uint64)
    lengths = np.full(len(rows), -1, np.int64)
    places = np.full(len(texts), -1, np.int64)
    places[rows] = np.arange(len(rows))
    mask = np.zeros(len(texts), bool)
    mask[rows[wanted]] = True

    def take(result: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        own_rows, own_lengths, own_shingles = result
        begin = 0
        for place, length in zip(places[own_rows].tolist(), own_lengths.tolist(), strict=True):
            shingles[starts[place] : starts[place] + length] = own_shingles[begin : begin + length]
            lengths[place] = length
            begin += length
        mask[own_rows] = False

    for parts in (found.at_hand, _of_index(found)) if mask.any() else ():
        chosen = [_chosen(part, mask, found.num_shingles) for part in parts]
        for result in in_threads(means.num_threads)(_distinct_of_part, [one for one in chosen if len(one[1])]):
            take(result)
    if mask.any():
        means.over(texts.parts(mask), partial(_sets_of_part, shingle_tokens=config.shingle_tokens), take, "parts")
    return ShingleSets(shingles, starts, lengths)


def _of_index(found: Sketched) -> list[Shingles]:
    if found.segments is None:
        return []
    today = found.today()
    parts: list[Shingles] = []
    for first, part in zip(found.segments.firsts(), found.segments.parts, strict=True):
        rows = today[first : first + len(part["ids"])]
        parts.append((rows, part["num_kept"], part["shingles"], part["shingle_sums"]))
    return parts


def _chosen(part: Shingles, mask: np.ndarray, num_shingles: np.ndarray) -> tuple[Shingles, np.ndarray]:
    """Places in a part of the rows of a mask all of whose shingles are there, and are what was written."""
    rows, counts, shingles, sums = part
    chosen = np.flatnonzero((rows >= 0) & mask[rows] & (counts == num_shingles[rows]))
    return part, chosen if sums is None else chosen[checksums(shingles, counts, chosen) == sums[chosen]]


def _distinct_of_part(chosen_part: tuple[Shingles, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_sets_of_part`, of shingles that are there."""
    (rows, counts, given, _), chosen = chosen_part
    given_starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    starts = np.concatenate([[0], np.cumsum(counts[chosen], dtype=np.int64)])
    room, lengths = np.empty(starts[-1], np.uint64), np.empty(len(chosen), np.int64)
    distinct_shingles(given, given_starts, chosen, starts, room, lengths)
    return rows[chosen], lengths, _close(room, starts, lengths)


def _sets_of_part(part: Part, *, shingle_tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of a part, the sizes of their shingle sets, and the sets one after the other."""
    rows, texts = part()
    offsets, data = text_buffers(texts)
    # No text has more shingles than bytes; only the pages that are filled cost memory.
    starts = np.concatenate([[0], np.cumsum(np.diff(offsets) + 1)]).astype(np.int64)
    room, lengths = np.empty(starts[-1], np.uint64), np.empty(len(rows), np.int64)
    shingle_sets(offsets, data, character_table(), shingle_tokens, starts, room, lengths)
    return rows, lengths, _close(room, starts, lengths)


def _close(room: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Sets that begin at `starts`, one after the other without the room between them."""
    pairs = zip(starts[:-1].tolist(), lengths.tolist(), strict=True)
    return np.concatenate([np.empty(0, np.uint64), *(room[begin : begin + length] for begin, length in pairs)])
