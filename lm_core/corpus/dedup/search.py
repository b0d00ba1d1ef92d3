"""The search for copies: sketch what is new, collapse equal texts, compare what shares a band, keep greedily.

Memory is bounded whatever the corpus: texts are read part by part, to sketch them and, where the shingles did not find
room in memory, again for the shingles of those with company; arrays that outgrow their share lie in files. Bands are
searched one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lm_core.corpus.characters import character_table
from lm_core.corpus.config import DeduplicateConfig
from lm_core.corpus.dedup.containment import Samples, proposed_pairs
from lm_core.corpus.dedup.greedy import Bounds, KnownPairs, ShingleSets, greedy_pass
from lm_core.corpus.dedup.index import BandIndex
from lm_core.corpus.dedup.shingles import distinct_shingles, shingle_sets
from lm_core.corpus.dedup.sketch import Sketches, sketch, text_buffers
from lm_core.corpus.dedup.texts import Part, Texts
from lm_core.mapping import Mapper, in_threads
from lm_core.store import Progress, silent


@dataclass(frozen=True)
class Means:
    """With what a search works; none of it changes the result.

    Attributes:
        folder: where arrays go that outgrow their share of the memory; None keeps them in memory.
        memory_bytes: of all arrays together; an eighth for each.
        mapper: who works on parts instead of this process' threads.
    """

    num_threads: int = 1
    folder: Path | None = None
    memory_bytes: int = 1_000_000_000
    progress: Progress = silent
    mapper: Mapper | None = None

    def array(self, name: str, shape: tuple[int, ...], kind: Any) -> np.ndarray:
        """A new array, in a file when it is large."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
        if self.folder is None or size <= self.memory_bytes // 8:
            return np.empty(shape, kind)
        return np.memmap(self.folder / f"{name}.array", kind, "w+", shape=shape)

    def over(self, parts: list[Part], function: Callable[[Part], Any], take: Callable[[Any], None], unit: str) -> None:
        """Take the result of a function for each part; the function may run elsewhere (see `lm_core.mapping`)."""
        mapper = self.mapper or in_threads(self.num_threads)
        for done, result in enumerate(mapper(function, parts)):
            take(result)
            self.progress(done, len(parts), unit)

    def over_bands(self, function: Callable[[np.ndarray], np.ndarray], bands: Iterable[np.ndarray]) -> Iterable[Any]:
        """Results of a function for each band: one after the other here (a band is large), side by side elsewhere."""
        return (self.mapper or map)(function, bands)

    def each(self, parts: list[Part], work: Callable[[Part], None], unit: str) -> None:
        """Do the work on all parts, several at a time."""
        with ThreadPoolExecutor(self.num_threads) as pool:
            for done, _ in enumerate(pool.map(work, parts)):
                self.progress(done, len(parts), unit)


SMALL = Means()


@dataclass(frozen=True)
class Findings:
    """What was found among n documents; numbers are rows.

    Attributes:
        keepers: (n,) int64, the row kept instead; -1 for a document that is kept.
        figures: (n, 2) float64, Jaccard similarity to the keeper and containment in it; 1 for equal texts, 0 for a
            kept document.
        exact: (n,) bool, dropped because the text of the keeper is the same byte for byte.
        related: (j, 2) int64, pairs of kept rows that share a cluster.
        sketches: of all documents.
        pairs: (p, 2) int64, rows that were compared; overlaps: (p, 3) int32, what they share, and both sizes.
    """

    keepers: np.ndarray
    figures: np.ndarray
    exact: np.ndarray
    related: np.ndarray
    sketches: Sketches
    pairs: np.ndarray
    overlaps: np.ndarray

    @property
    def similarities(self) -> np.ndarray:
        """(p,) float64, Jaccard similarities of the pairs that were compared."""
        shared, first, second = self.overlaps.T.astype(np.float64)
        similarities: np.ndarray = shared / np.maximum(first + second - shared, 1)
        return similarities


@dataclass
class AtHand:
    """Shingles of texts that were sketched in this run, as far as their share of the memory goes.

    Attributes:
        parts: for each part of the texts its rows, where the shingles of each begin and end (rows + 1,), and these.
    """

    free_bytes: int
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]

    def keep(self, rows: np.ndarray, found: Sketches) -> None:
        """Keep the shingles of a part."""
        if found.shingles is not None:
            self.free_bytes -= found.shingles.nbytes
            starts = np.concatenate([[0], np.cumsum(found.num_shingles)]).astype(np.int64)
            self.parts.append((rows, starts, found.shingles))


@dataclass(frozen=True)
class Known:
    """What a band index knows of n documents: `rows` (n,) holds their rows in it, -1 for new ones."""

    index: BandIndex
    rows: np.ndarray


def find_duplicates(
    texts: Texts,
    preference: np.ndarray,
    config: DeduplicateConfig,
    *,
    known: Known | None = None,
    means: Means = SMALL,
) -> Findings:
    """Find the copies among texts.

    Args:
        preference: all rows, in the order in which they may become keepers.
        known: what need not be computed again.
    """
    known = known or Known(BandIndex.empty(config.num_bands), np.full(len(texts), -1, np.int64))
    # What other machines have sketched stays there.
    at_hand = AtHand(means.memory_bytes // 5 if means.mapper is None else 0, [])
    sketches = _sketches(texts, config, known, means, at_hand)
    keepers = equal_texts(sketches.content, preference)
    exact = keepers >= 0
    survivors = preference[~exact[preference]]
    containers = _containers(sketches.samples, survivors, config)
    crowded = _with_company(sketches, survivors, means)
    crowded[containers.ravel()] = True
    rows = survivors[crowded[survivors]]
    places = np.full(len(texts), -1, np.int64)
    places[rows] = np.arange(len(rows))
    found = greedy_pass(
        sketches.keys[rows],
        places[containers],
        lambda wanted: _load_sets(texts, rows, wanted, places, sketches.num_shingles, config, means, at_hand),
        known=_known_pairs(known, places),
        num_new=int((known.rows[rows] < 0).sum()),
        bounds=Bounds(
            config.threshold, config.cluster_threshold, config.containment_threshold, config.min_contained_shingles
        ),
        progress=lambda done, total: means.progress(done, total, "candidates"),
    )
    figures = np.repeat(np.where(exact, 1.0, 0.0)[:, None], 2, axis=1)
    near = found.keepers >= 0
    keepers[rows[near]], figures[rows[near]] = rows[found.keepers[near]], found.figures[near]
    # A copy of a document that was itself dropped is justified by what that document was dropped for.
    moved = np.flatnonzero(exact & (keepers[keepers] >= 0))
    exact[moved], figures[moved], keepers[moved] = False, figures[keepers[moved]], keepers[keepers[moved]]
    return Findings(keepers, figures, exact, rows[found.joins], sketches, rows[found.pairs], found.overlaps)


def _containers(samples: Samples, survivors: np.ndarray, config: DeduplicateConfig) -> np.ndarray:
    """(p, 2) rows: a text, and one preferred to it that may contain it."""
    if config.containment_threshold is None:
        return np.empty((0, 2), np.int64)
    ranks = np.full(len(survivors) and int(survivors.max()) + 1, -1, np.int64)
    ranks[survivors] = np.arange(len(survivors))
    if len(samples.rows):
        ranks = np.append(ranks, np.full(max(0, int(samples.rows.max()) + 1 - len(ranks)), -1))
    return proposed_pairs(samples, ranks, config.containment_threshold)


def _sketches(texts: Texts, config: DeduplicateConfig, known: Known, means: Means, at_hand: AtHand) -> Sketches:
    """Sketches of all texts: copied where they are known, computed where not."""
    count = len(texts)
    keys = means.array("keys", (count, config.num_bands), np.uint64)
    content, num_shingles = np.empty((count, 2), np.uint64), np.empty(count, np.int64)
    old = np.flatnonzero(known.rows >= 0)
    source = known.rows[old]
    keys[old], content[old], num_shingles[old] = (
        known.index.keys[source],
        known.index.content[source],
        known.index.num_shingles[source],
    )

    new_samples: list[Samples] = []

    def take(result: tuple[np.ndarray, Sketches]) -> None:
        rows, found = result
        keys[rows], content[rows], num_shingles[rows] = found.keys, found.content, found.num_shingles
        new_samples.append(Samples(found.samples.values, rows[found.samples.rows]))
        at_hand.keep(rows, found)

    work = partial(_sketch_part, config=config, at_hand=at_hand if at_hand.free_bytes else None)
    means.over(texts.parts(known.rows < 0), work, take, "parts")
    return Sketches(content, keys, num_shingles, _known_samples(known).with_others(new_samples))


def _sketch_part(part: Part, *, config: DeduplicateConfig, at_hand: AtHand | None) -> tuple[np.ndarray, Sketches]:
    rows, texts = part()
    return rows, sketch(
        texts,
        shingle_tokens=config.shingle_tokens,
        num_bands=config.num_bands,
        band_rows=config.band_rows,
        min_sampled_shingles=None if config.containment_threshold is None else config.min_contained_shingles,
        keep_shingles=at_hand is not None and at_hand.free_bytes > 0,
    )


def _known_samples(known: Known) -> Samples:
    new_rows = np.full(len(known.index.doc_ids), -1, np.int64)
    old = np.flatnonzero(known.rows >= 0)
    new_rows[known.rows[old]] = old
    return Samples(known.index.sample_values, known.index.sample_rows).renumbered(new_rows)


def equal_texts(content: np.ndarray, preference: np.ndarray) -> np.ndarray:
    """For each text the preferred of those equal to it; -1 for this one itself."""
    ranks = np.empty(len(preference), np.int64)
    ranks[preference] = np.arange(len(preference))
    order = np.lexsort((ranks, content[:, 1], content[:, 0]))
    begins = np.ones(len(order), bool)
    begins[1:] = (content[order[1:]] != content[order[:-1]]).any(axis=1)
    first = order[np.flatnonzero(begins)][np.cumsum(begins) - 1]
    keepers = np.full(len(order), -1, np.int64)
    keepers[order[~begins]] = first[~begins]
    return keepers


def _with_company(sketches: Sketches, survivors: np.ndarray, means: Means) -> np.ndarray:
    """Mask of the rows that share a band with another survivor: only these can have copies."""
    mask = np.zeros(len(sketches.keys), bool)
    rows = survivors[sketches.num_shingles[survivors] > 0]
    bands = (sketches.keys[rows, band] for band in range(sketches.keys.shape[1]))
    for shared in means.over_bands(_shared_in_band, bands):
        mask[rows[shared]] = True
    return mask


def _shared_in_band(keys: np.ndarray) -> np.ndarray:
    """Places of the keys that stand in a band more than once."""
    order = np.argsort(keys)
    same = keys[order[1:]] == keys[order[:-1]]
    return np.concatenate([order[1:][same], order[:-1][same]])


def _known_pairs(known: Known, places: np.ndarray) -> KnownPairs:
    """The pairs of the index both of whose documents have a place, as places."""
    of_index = np.full(len(known.index.doc_ids), -1, np.int64)
    old = np.flatnonzero(known.rows >= 0)
    of_index[known.rows[old]] = places[old]
    pairs = of_index[known.index.pairs]
    usable = (pairs >= 0).all(axis=1)
    return KnownPairs(pairs[usable], np.asarray(known.index.overlaps)[usable])


def _load_sets(
    texts: Texts, rows: np.ndarray, wanted: np.ndarray, places: np.ndarray, num_shingles: np.ndarray,
    config: DeduplicateConfig, means: Means, at_hand: AtHand,
) -> ShingleSets:  # fmt: skip
    """Shingle sets of the documents rows[wanted]: from the shingles at hand, and of the others from their texts."""
    room = np.where(wanted, num_shingles[rows], 0)
    starts = np.concatenate([[0], np.cumsum(room)]).astype(np.int64)
    shingles = means.array("shingles", (int(starts[-1]),), np.uint64)
    lengths = np.full(len(rows), -1, np.int64)
    mask = np.zeros(len(texts), bool)
    mask[rows[wanted]] = True

    def take(result: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        own_rows, own_lengths, own_shingles = result
        begin = 0
        for place, length in zip(places[own_rows].tolist(), own_lengths.tolist(), strict=True):
            shingles[starts[place] : starts[place] + length] = own_shingles[begin : begin + length]
            lengths[place] = length
            begin += length

    for result in in_threads(means.num_threads)(partial(_sets_at_hand, mask=mask), at_hand.parts):
        take(result)
    for part_rows, _, _ in at_hand.parts:
        mask[part_rows] = False
    means.over(texts.parts(mask), partial(_sets_of_part, shingle_tokens=config.shingle_tokens), take, "parts")
    return ShingleSets(shingles, starts, lengths)


def _sets_at_hand(
    part: tuple[np.ndarray, np.ndarray, np.ndarray], *, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_sets_of_part`, of the rows of a mask."""
    rows, given_starts, given = part
    chosen = np.flatnonzero(mask[rows])
    starts = np.concatenate([[0], np.cumsum(np.diff(given_starts)[chosen])]).astype(np.int64)
    room, lengths = np.empty(starts[-1], np.uint64), np.empty(len(chosen), np.int64)
    distinct_shingles(given, given_starts, chosen, starts, room, lengths)
    sets = [room[begin : begin + length] for begin, length in zip(starts[:-1], lengths, strict=True)]
    return rows[chosen], lengths, np.concatenate([np.empty(0, np.uint64), *sets])


def _sets_of_part(part: Part, *, shingle_tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of a part, the sizes of their shingle sets, and the sets one after the other."""
    rows, texts = part()
    offsets, data = text_buffers(texts)
    # No text has more shingles than bytes; only the pages that are filled cost memory.
    starts = np.concatenate([[0], np.cumsum(np.diff(offsets) + 1)]).astype(np.int64)
    room, lengths = np.empty(starts[-1], np.uint64), np.empty(len(rows), np.int64)
    shingle_sets(offsets, data, character_table(), shingle_tokens, starts, room, lengths)
    sets = [room[begin : begin + length] for begin, length in zip(starts[:-1], lengths, strict=True)]
    return rows, lengths, np.concatenate([np.empty(0, np.uint64), *sets])
