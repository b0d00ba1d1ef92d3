"""What earlier runs have computed of documents, in segments: a document's never change, as its identity is a hash.

A run appends a segment with what it read. When there are many, or most of what they hold is gone, they are written
anew as one. Segments save time and change nothing else: one that is missing or damaged is computed again.
"""

# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numba import njit

from lm_core.corpus.dedup.hash_tables import HashSet, rows_among
from lm_core.mapping import in_threads

MAX_SEGMENTS = 12
_DESCRIPTION = "description.json"
_ODD = np.uint64(0x9E3779B97F4A7C15)
_LANES = 4
_BLOCK = 1 << 20


@njit(nogil=True, cache=True)
def _checksum(words):
    """64-bit checksum of words; a change of any one of them changes it."""
    a = b = c = d = _ODD
    whole = len(words) // _LANES * _LANES
    for index in range(0, whole, _LANES):
        a = np.uint64((a ^ words[index]) * _ODD)
        b = np.uint64((b ^ words[index + 1]) * _ODD)
        c = np.uint64((c ^ words[index + 2]) * _ODD)
        d = np.uint64((d ^ words[index + 3]) * _ODD)
    for index in range(whole, len(words)):
        a = np.uint64((a ^ words[index]) * _ODD)
    a = np.uint64((a ^ (b >> np.uint64(7))) * _ODD)
    c = np.uint64((c ^ (d >> np.uint64(7))) * _ODD)
    return np.uint64((a ^ (c >> np.uint64(7))) * _ODD) ^ np.uint64(b + d)


def checksum(path: Path) -> str:
    """A fast checksum of a file: against flipped bits, not against a person who means it."""
    content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    whole = len(content) // 8 * 8
    rest = int.from_bytes(content[whole:].tobytes(), "little")
    words = np.frombuffer(content[:whole], np.uint64) if whole else np.empty(0, np.uint64)
    return f"{int(_checksum(words)):016x}-{rest:x}-{len(content)}"


@njit(nogil=True, cache=True)
def _checksums(words, ends, counts, rows, out):
    for index in range(len(rows)):
        end = ends[rows[index]]
        out[index] = _checksum(words[end - counts[rows[index]] : end])


def checksums(words: np.ndarray, counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A checksum (uint64) of the words of each of some documents.

    Args:
        words: (w,) uint64, of all documents, one after the other; counts: (n,) how many each has.
    """
    out = np.empty(len(rows), np.uint64)
    _checksums(words, np.cumsum(counts, dtype=np.int64), counts, rows, out)
    return out


def save_arrays(folder: Path, arrays: Mapping[str, np.ndarray], definition: str) -> None:
    """Put arrays in the place of those in a folder; whole numbers need 32 bits alone."""
    new, old = (folder.with_name(f"{folder.name}.{word}-{os.getpid()}") for word in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    sums = {}
    for name, values in arrays.items():
        path = new / f"{name}.npy"
        np.save(path, values.astype(np.int32) if values.dtype == np.int64 else values)
        sums[name] = checksum(path)
    (new / _DESCRIPTION).write_text(json.dumps({"definition": definition, "sums": sums}))
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_arrays(folder: Path) -> tuple[dict[str, np.ndarray], str]:
    """Arrays that were saved in a folder, and their definition; none when they are not what was saved."""
    try:
        description = json.loads((folder / _DESCRIPTION).read_text())
        arrays = {}
        for name, expected in description["sums"].items():
            path = folder / f"{name}.npy"
            if checksum(path) != expected:
                return {}, ""
            values = np.load(path, mmap_mode="r", allow_pickle=False)
            arrays[name] = values.astype(np.int64) if values.dtype == np.int32 else np.asarray(values)
    except (OSError, ValueError, KeyError):
        return {}, ""
    return arrays, description["definition"]


@njit(nogil=True, cache=True)
def _owners(places, counts, rows):
    """Fill `rows` with the document of each place (ascending) among entries of which documents have `counts`."""
    row, end = -1, 0
    for index in range(len(places)):
        while places[index] >= end:
            row += 1
            end += counts[row]
        rows[index] = row


@njit(nogil=True, cache=True)
def _gather(values, first, rows, out):
    """Fill out[i] with the entry of rows[i] where the entries from row `first` on are `values`."""
    for index in range(len(rows)):
        place = rows[index] - first
        if 0 <= place < len(values):
            out[index] = values[place]


@dataclass(frozen=True)
class Layout:
    """What segments of a kind hold.

    Attributes:
        columns: name -> (type, width) of columns with one entry for each document; all have "ids" (uint64, 2).
        ragged: name -> (type, name of the column with its number of entries) of columns with any number of them.
        sums: name of a ragged column (uint64) -> column with a checksum of each document's entries. Such a column is
            not read over to see whether it is whole: who uses entries of it must look (`checksums`).
    """

    columns: Mapping[str, tuple[str, int]]
    ragged: Mapping[str, tuple[str, str]]
    sums: Mapping[str, str] = field(default_factory=dict)

    def shaped(self, name: str, values: np.ndarray) -> np.ndarray:
        """Values as they lie in a file, in the shape of their column."""
        width = self.columns[name][1] if name in self.columns else 1
        return values.reshape(-1, width) if width > 1 else values

    def kind(self, name: str) -> str:
        """Type of a column."""
        return self.columns[name][0] if name in self.columns else self.ragged[name][0]

    @property
    def names(self) -> list[str]:
        """All columns."""
        return [*self.columns, *self.ragged]

    def file_sums(self, folder: Path, num_threads: int = 1) -> dict[str, str]:
        """Checksums of the files of a segment, but of those that have sums of their own."""
        names = [name for name in self.names if name not in self.sums]
        sums = in_threads(num_threads)(checksum, [folder / f"{name}.bin" for name in names])
        return dict(zip(names, sums, strict=True))


Segment = dict[str, np.ndarray]


class SegmentWriter:
    """A new segment, written some documents at a time; use it from one thread at a time."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder = folder
        self._layout = layout
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._files = {name: open(folder / f"{name}.bin", "wb") for name in layout.names}  # noqa: SIM115

    def write(self, columns: Mapping[str, np.ndarray]) -> None:
        """Append documents; checksums that are not given are computed."""
        for name, own in self._layout.sums.items():
            counts = np.asarray(columns[self._layout.ragged[name][1]])
            if own not in columns:
                columns = {**columns, own: checksums(columns[name], counts, np.arange(len(counts)))}
        for name, file in self._files.items():
            np.ascontiguousarray(columns[name], self._layout.kind(name)).tofile(file)

    def finish(self) -> Segment:
        """The segment, as it lies in its folder."""
        for file in self._files.values():
            file.close()
        (self.folder / _DESCRIPTION).write_text(json.dumps(self._layout.file_sums(self.folder)))
        return _opened(self.folder, self._layout)


def _opened(folder: Path, layout: Layout) -> Segment:
    found = {}
    for name in layout.names:
        path = folder / f"{name}.bin"
        values = np.memmap(path, layout.kind(name), "r") if path.stat().st_size else np.empty(0, layout.kind(name))
        found[name] = layout.shaped(name, np.asarray(values))
    if any(len(found[name]) != len(found["ids"]) for name in layout.columns) or any(
        len(found[name]) != found[counts].sum() for name, (_, counts) in layout.ragged.items()
    ):
        raise ValueError(f"{folder} is no segment")
    return found


class Segments:
    """Segments one after the other: rows count through all of them.

    Attributes:
        parts: the segments; names: of their folders, with their checksums, to tell one set of them from another.
    """

    def __init__(self, layout: Layout, parts: Sequence[Segment] = (), names: Sequence[str] = ()) -> None:
        self.layout = layout
        self.parts = list(parts)
        self.names = list(names)

    def __len__(self) -> int:
        return sum(len(part["ids"]) for part in self.parts)

    @classmethod
    def load(cls, folder: Path, layout: Layout, num_threads: int = 1) -> Segments:
        """The segments in a folder that are what was saved."""
        parts, names = [], []
        for path in sorted(path for path in folder.glob("segment-*") if path.is_dir()):
            try:
                description = (path / _DESCRIPTION).read_text()
                if json.loads(description) == layout.file_sums(path, num_threads):
                    parts.append(_opened(path, layout))
                    names.append(f"{path.name} {description}")
            except (OSError, ValueError, KeyError):
                continue
        return cls(layout, parts, names)

    def column(self, name: str) -> np.ndarray:
        """A column of all documents."""
        if len(self.parts) == 1:
            return self.parts[0][name]
        empty = self.layout.shaped(name, np.empty(0, self.layout.columns[name][0]))
        return np.concatenate([empty, *(part[name] for part in self.parts)])

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """Row of each identity, -1 for a document that is not there."""
        return rows_among(self.column("ids"), ids)

    def firsts(self) -> list[int]:
        """The first row of each segment."""
        return np.cumsum([0, *(len(part["ids"]) for part in self.parts)])[:-1].tolist()

    def gather(self, name: str, rows: np.ndarray, out: np.ndarray) -> None:
        """Fill out[i] with the entry of rows[i] in a column."""
        for first, part in zip(self.firsts(), self.parts, strict=True):
            values = part[name]
            if len(values):
                _gather(values.reshape(len(values), -1), first, rows, out.reshape(len(out), -1))

    def blocks(self, names: Sequence[str], rows: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
        """Entries of ragged columns that are counted by the same column, a block at a time.

        Args:
            rows: what each document is to be called; the entries of those at -1 are left out.

        Yields:
            For each entry the name of its document, and then the entries of each column.
        """
        counts_name = self.layout.ragged[names[0]][1]
        for begin, part in zip(self.firsts(), self.parts, strict=True):
            called, ends = rows[begin : begin + len(part["ids"])], np.cumsum(part[counts_name], dtype=np.int64)
            first = 0
            while first < len(ends):
                start = int(ends[first - 1]) if first else 0
                last = max(first + 1, int(np.searchsorted(ends, start + _BLOCK)))
                owners = np.repeat(called[first:last], part[counts_name][first:last])
                values = [part[name][start : int(ends[last - 1])] for name in names]
                wanted = owners >= 0
                yield (owners, *values) if wanted.all() else (owners[wanted], *(value[wanted] for value in values))
                first = last

    def of_documents(self, name: str, mask: np.ndarray) -> np.ndarray:
        """Entries of a ragged column of the documents of a mask over the rows."""
        found = [np.empty(0, self.layout.kind(name))]
        for first, part in zip(self.firsts(), self.parts, strict=True):
            own, counts = mask[first : first + len(part["ids"])], part[self.layout.ragged[name][1]]
            if own.any():
                ends = np.cumsum(counts, dtype=np.int64)
                rows = np.flatnonzero(own & (counts > 0))
                found += [part[name][ends[row] - counts[row] : ends[row]] for row in rows.tolist()]
        return np.concatenate(found)

    def owners(self, names: Sequence[str], wanted: HashSet, num_threads: int = 1) -> tuple[np.ndarray, ...]:
        """Rows of all documents that have a wanted hash in the first of ragged columns, and their entries in each."""
        counts, found = self.layout.ragged[names[0]][1], []
        for first, part in zip(self.firsts(), self.parts, strict=True):
            places = wanted.places_in(part[names[0]], num_threads)
            rows = np.empty(len(places), np.int64)
            _owners(places, part[counts], rows)
            found.append((first + rows, *(part[name][places] for name in names)))
        return tuple(np.concatenate(columns) for columns in zip(*found, strict=True))

    def add(self, folder: Path, new: SegmentWriter | None, present: np.ndarray) -> np.ndarray:
        """Move a finished segment, the last of these, among the others in their folder.

        Args:
            present: mask of the rows (those of the new segment among them) that are of use.

        Returns:
            The new number of each row, -1 for one that was left out.
        """
        rows = np.arange(len(present))
        if len(self.parts) > MAX_SEGMENTS or (len(self.parts) > 1 and 2 * present.sum() < len(present)):
            new = self._merged((folder / f"new-{os.getpid()}"), present)
            rows = np.where(present, np.cumsum(present) - 1, -1)
            self._publish(new, folder, alone=True)
        elif new is not None:
            self._publish(new, folder, alone=len(self.parts) == 1)
        return rows

    def _merged(self, folder: Path, present: np.ndarray) -> SegmentWriter:
        writer = SegmentWriter(folder, self.layout)
        for begin, part in zip(self.firsts(), self.parts, strict=True):
            own = present[begin : begin + len(part["ids"])]
            columns = {name: part[name][own] for name in self.layout.columns}
            for name, (_, counts) in self.layout.ragged.items():
                columns[name] = part[name][np.repeat(own, part[counts])]
            writer.write(columns)
        writer.finish()
        return writer

    def _publish(self, new: SegmentWriter, folder: Path, *, alone: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        old = sorted(folder.glob("segment-*"))
        number = 1 + max((int(path.name.rpartition("-")[2]) for path in old), default=0)
        staged, target = folder / f"staged-{os.getpid()}", folder / f"segment-{number:06d}"
        shutil.rmtree(staged, ignore_errors=True)
        shutil.move(new.folder, staged)
        try:
            staged.rename(target)
        except OSError:  # another run was quicker
            shutil.rmtree(staged)
            return
        for path in old if alone else ():
            shutil.rmtree(path, ignore_errors=True)
        name = f"{target.name} {(target / _DESCRIPTION).read_text()}"
        self.names = [name] if alone else [*self.names, name]
