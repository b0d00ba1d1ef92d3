"""The band index: what earlier runs have computed of documents, and what the last of them has found.

Identities are hashes of the text, so a sketch holds for ever, and so does what two documents share. The index saves
time and changes nothing else: what is missing or damaged is computed again.
"""

# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numba import njit

from lm_core.corpus.dedup.segments import Layout, Segments, SegmentWriter, load_arrays, save_arrays
from lm_core.corpus.dedup.sketch import text_buffers


@njit(nogil=True, cache=True)
def _read_digits(digits, words):
    """Fill words (uint64) with the numbers that runs of sixteen hex digits spell."""
    for index in range(len(words)):
        word = np.uint64(0)
        for digit in digits[16 * index : 16 * index + 16]:
            value = (digit & 15) + 9 * (digit >> 6)  # letters lie above 64
            word = np.uint64((word << np.uint64(4)) | np.uint64(value))
        words[index] = word


def identities(doc_ids: pa.Array) -> np.ndarray:
    """Document ids (32 hex digits) as (n, 2) uint64."""
    flat = doc_ids.combine_chunks() if isinstance(doc_ids, pa.ChunkedArray) else doc_ids
    if not len(flat):
        return np.empty((0, 2), np.uint64)
    offsets, data = text_buffers(flat)
    words = np.empty((len(flat), 2), np.uint64)
    _read_digits(data[offsets[0] : offsets[-1]], words.reshape(-1))
    return words


def sketch_layout(num_bands: int) -> Layout:
    """Columns of the index: sketches, and all shingles of documents of few, to compare them without their text."""
    return Layout(
        {
            "ids": ("u8", 2), "content": ("u8", 2), "keys": ("u8", num_bands), "num_shingles": ("i8", 1),
            "num_samples": ("i4", 1), "num_kept": ("i4", 1), "shingle_sums": ("u8", 1),
        },
        {"samples": ("u8", "num_samples"), "shingles": ("u8", "num_kept")},
        {"shingles": "shingle_sums"},
    )  # fmt: skip


def both(mask: np.ndarray) -> np.ndarray:
    """(p,) bool, of (p, 2): many times as fast as `mask.all(axis=1)`."""
    true_of_both: np.ndarray = mask[:, 0] & mask[:, 1]
    return true_of_both


@dataclass(frozen=True)
class Found:
    """What a search has found among n documents; numbers are rows.

    Attributes:
        survivors: (n,) bool, documents that are compared: of equal texts only the preferred one.
        keepers: (n,) int64, the row kept instead of a document; -1 for one that is kept.
        figures: (n, 2) float64, Jaccard similarity to the keeper and containment in it; 1 for equal texts, 0 for a
            kept document.
        components, clusters: (n,) int64, the row that stands for all documents that have to do with each other
            (see `greedy.Pass`), and for the kept ones that share a cluster; a cluster's is of the smallest identity.
        taken, limits, containers: as `taken`, `limits` and `pairs` of `containment.Proposals`.
        pairs: (p, 2) int64, rows that were compared; overlaps: (p, 3) int32, what they share, and both sizes.
    """

    survivors: np.ndarray
    keepers: np.ndarray
    figures: np.ndarray
    components: np.ndarray
    clusters: np.ndarray
    taken: np.ndarray
    limits: np.ndarray
    containers: np.ndarray
    pairs: np.ndarray
    overlaps: np.ndarray

    @classmethod
    def nothing(cls, count: int = 0) -> Found:
        """Of so many documents nothing is known."""
        none, nobody = np.empty((0, 2), np.int64), np.full(count, -1, np.int64)
        return cls(
            np.zeros(count, bool), nobody, np.zeros((count, 2)), nobody, nobody, np.zeros(count, np.int32),
            np.zeros(count, np.uint64), none, none, np.empty((0, 3), np.int32),
        )  # fmt: skip

    def renumbered(self, numbers: np.ndarray, count: int) -> Found:
        """The same for `count` documents, row r as numbers[r]; those at -1 are left out, -1 is said in their place."""
        blank, rows = Found.nothing(count), np.flatnonzero(numbers >= 0)
        moved = {}
        for name in ("survivors", "figures", "taken", "limits"):
            moved[name] = getattr(blank, name).copy()
            moved[name][numbers[rows]] = getattr(self, name)[rows]
        for name in ("keepers", "components", "clusters"):
            moved[name] = np.full(count, -1, np.int64)
            value = getattr(self, name)[rows]
            moved[name][numbers[rows]] = np.where(value >= 0, numbers[value], -1)
        containers, pairs = numbers[self.containers], numbers[self.pairs]
        whole, overlaps = both(pairs >= 0), np.asarray(self.overlaps)
        if not whole.all():
            pairs, overlaps = pairs[whole], overlaps[whole]
        return replace(self, **moved, containers=containers[both(containers >= 0)], pairs=pairs, overlaps=overlaps)


@dataclass(frozen=True)
class Index:
    """The index in a folder, and the rows of today's documents in it.

    Attributes:
        doc_ids: (n, 2) uint64; rows: (n,) of each document in the segments, -1 for a new one.
        segments: sketches.
        found: what the last run has found, by the rows of the segments; nothing when that holds no more.
        holds: whether it was found under the same definition of what a copy is and which one stays; if not, what
            documents share is still true.
    """

    folder: Path
    definition: str
    doc_ids: np.ndarray
    segments: Segments
    rows: np.ndarray
    found: Found
    holds: bool

    @classmethod
    def open(cls, folder: Path, num_bands: int, doc_ids: np.ndarray, definition: str, num_threads: int = 1) -> Index:
        """The index in a folder; an empty one when there is none."""
        segments = Segments.load(folder, sketch_layout(num_bands), num_threads)
        arrays, under = load_arrays(folder / "found")
        names, its_definition = json.loads(under or '[null, ""]')
        holds = names == segments.names and definition == its_definition
        found = Found(**arrays) if names == segments.names else Found.nothing(len(segments))
        return cls(folder, definition, doc_ids, segments, segments.rows_of(doc_ids), found, holds)

    def save(self, segments: Segments, new: SegmentWriter | None, rows: np.ndarray, found: Found) -> None:
        """Add what a run has sketched and found; `rows` are those of the documents in its segments."""
        present = np.zeros(len(segments), bool)
        present[rows] = True
        numbers = segments.add(self.folder, new, present)
        rows = numbers[rows]
        definition = json.dumps([segments.names, self.definition])
        save_arrays(self.folder / "found", vars(found.renumbered(rows, int(numbers.max(initial=-1)) + 1)), definition)
