"""Lines and passages of documents that earlier runs have read: a document's never change, as its identity is a hash.

A run appends a segment with what it read; when there are many, or most of what they hold is gone, the next run reads
everything anew. Segments save time and change nothing else: what is missing or damaged is read from the text.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

UNIT = np.dtype([("hash", np.uint64), ("start", np.uint32), ("end", np.uint32)])
_MAX_SEGMENTS = 12
_BLOCK = 1 << 20
_FILES = ("documents.npy", "units.bin")
# Of each document: identity, characters of its text, number of its units.
_DOCUMENT = np.dtype([("id", np.uint64, (2,)), ("length", np.int64), ("units", np.int64)])


@dataclass(frozen=True)
class Segment:
    """Units of some documents, one document after the other.

    Attributes:
        documents: what `_DOCUMENT` names, (n,); units: (u,) of `UNIT`.
    """

    documents: np.ndarray
    units: np.ndarray

    def blocks(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Units and the rows of their documents, a block at a time.

        Args:
            rows: (n,) row of each document; the units of those at -1 are left out.
        """
        ends = np.cumsum(self.documents["units"])
        first = 0
        while first < len(ends):
            begin = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, begin + _BLOCK)))
            owners = np.repeat(rows[first:last], self.documents["units"][first:last])
            wanted = owners >= 0
            units = self.units[begin : int(ends[last - 1])]
            yield (units, owners) if wanted.all() else (units[wanted], owners[wanted])
            first = last


class SegmentWriter:
    """A new segment, written document by document; use it from one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._documents: list[np.ndarray] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / "units.bin", "wb")  # noqa: SIM115

    def write(self, ids: np.ndarray, lengths: np.ndarray, counts: np.ndarray, units: np.ndarray) -> None:
        """Append documents and their units."""
        documents = np.empty(len(ids), _DOCUMENT)
        documents["id"], documents["length"], documents["units"] = ids, lengths, counts
        self._documents.append(documents)
        units.tofile(self._file)

    def finish(self) -> Segment:
        """The segment, as it lies in its folder."""
        self._file.close()
        np.save(self._folder / "documents.npy", np.concatenate([np.empty(0, _DOCUMENT), *self._documents]))
        return _opened(self._folder)


def _opened(folder: Path) -> Segment:
    documents = np.load(folder / "documents.npy", allow_pickle=False)
    path = folder / "units.bin"
    units = np.memmap(path, UNIT, "r") if path.stat().st_size else np.empty(0, UNIT)
    if documents.dtype != _DOCUMENT or len(units) != documents["units"].sum():
        raise ValueError(f"{folder} is no segment")
    return Segment(documents, units)


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for name in _FILES:
        with open(folder / name, "rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def load_segments(folder: Path) -> list[Segment]:
    """The segments in a folder that are what was saved; none when it is time to read everything anew."""
    segments = []
    found = sorted(path for path in folder.glob("segment-*") if path.is_dir())
    for path in found if len(found) < _MAX_SEGMENTS else ():
        try:
            if json.loads((path / "digests.json").read_text()) == _digests(path):
                segments.append(_opened(path))
        except (OSError, ValueError):
            continue
    return segments


def save_segment(new: Path, folder: Path, *, alone: bool) -> None:
    """Move a finished segment among the others, or into their place."""
    folder.mkdir(parents=True, exist_ok=True)
    old = sorted(folder.glob("segment-*"))
    number = 1 + max((int(path.name.rpartition("-")[2]) for path in old), default=0)
    (new / "digests.json").write_text(json.dumps(_digests(new)))
    target = folder / f"segment-{number:06d}"
    staged = folder / f"new-{os.getpid()}"
    shutil.move(new, staged)
    try:
        staged.rename(target)
    except OSError:  # another run was quicker
        shutil.rmtree(staged)
        return
    for path in old if alone else ():
        shutil.rmtree(path, ignore_errors=True)
