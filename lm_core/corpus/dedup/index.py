"""The band index: what earlier runs have computed of documents that are still there.

Identities are hashes of the text, so a sketch holds for ever, and so does what two documents share. The index saves
time and changes nothing else: a missing or damaged one is rebuilt.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa

_NIBBLES = np.zeros(256, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_WEIGHTS = np.uint64(16) ** np.arange(15, -1, -1, dtype=np.uint64)


def identities(doc_ids: pa.Array) -> np.ndarray:
    """Document ids (32 hex digits) as (n, 2) uint64."""
    digits = np.frombuffer("".join(doc_ids.to_pylist()).encode(), np.uint8).reshape(-1, 2, 16)
    return (_NIBBLES[digits] * _WEIGHTS).sum(axis=2, dtype=np.uint64)


@dataclass(frozen=True)
class BandIndex:
    """Sketches of n documents in the order of their identity, and what p pairs of them share.

    Attributes:
        doc_ids: (n, 2) uint64.
        content: (n, 2) uint64, hash of the bytes.
        keys: (n, bands) uint64.
        num_shingles: (n,) int64.
        sample_values, sample_rows: sampled shingles (see `containment.Samples`) by rows of the index.
        pairs: (p, 2) int64, rows of the index.
        overlaps: (p, 3) int32, shingles that the two share, and how many the first and the second have.
    """

    doc_ids: np.ndarray
    content: np.ndarray
    keys: np.ndarray
    num_shingles: np.ndarray
    sample_values: np.ndarray
    sample_rows: np.ndarray
    pairs: np.ndarray
    overlaps: np.ndarray

    @classmethod
    def empty(cls, num_bands: int) -> BandIndex:
        """An index of no documents."""
        none = np.empty((0, 2), np.uint64)
        numbers, keys, pairs = np.empty(0, np.int64), np.empty((0, num_bands), np.uint64), np.empty((0, 2), np.int64)
        samples = np.empty(0, np.uint64), numbers
        return cls(none, none, keys, numbers, *samples, pairs, np.empty((0, 3), np.int32))

    @classmethod
    def load(cls, folder: Path, num_bands: int) -> BandIndex:
        """The index in a folder; an empty one when there is none, or when it is not what was saved."""
        try:
            digests = json.loads((folder / "digests.json").read_text())
            columns = {}
            for column in fields(cls):
                path = folder / f"{column.name}.npy"
                with open(path, "rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != digests[column.name]:
                        return cls.empty(num_bands)
                columns[column.name] = np.load(path, mmap_mode="r")
        except (OSError, ValueError, KeyError):
            return cls.empty(num_bands)
        return cls(**columns)

    def save(self, folder: Path) -> None:
        """Put this index in the place of the one in the folder."""
        new, old = (folder.with_name(f"{folder.name}.{word}-{os.getpid()}") for word in ("new", "old"))
        new.mkdir(parents=True)
        digests = {}
        for column in fields(self):
            path = new / f"{column.name}.npy"
            np.save(path, getattr(self, column.name))
            with open(path, "rb") as file:
                digests[column.name] = hashlib.file_digest(file, "sha256").hexdigest()
        (new / "digests.json").write_text(json.dumps(digests))
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)

    def rows_of(self, doc_ids: np.ndarray) -> np.ndarray:
        """Row of each identity (n, 2), -1 for a document that is not in the index."""
        if not len(self.doc_ids):
            return np.full(len(doc_ids), -1, np.int64)
        rows = np.minimum(np.searchsorted(self.doc_ids[:, 0], doc_ids[:, 0]), len(self.doc_ids) - 1)
        return np.where((self.doc_ids[rows] == doc_ids).all(axis=1), rows, -1)
