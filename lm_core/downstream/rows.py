"""Rows of a task's files: Parquet, JSONL or CSV from a data folder, or a data set of the hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm_core.downstream.task import Hub, Task, as_text
from lm_core.errors import UserError
from lm_core.store import file_sha256

HUB = "hub"
EVERY_SUBSET = "*"
Row = dict[str, Any]


def parts_of(files: str) -> list[str]:
    """The files of one split."""
    return [part.strip() for part in files.split(" + ")]


def files_of(task: Task) -> list[str]:
    """Every file the task reads, relative to the data folder."""
    entries = list(task.files.values()) + (list(task.out_of_scope.files.values()) if task.out_of_scope else [])
    return list(dict.fromkeys(part for entry in entries for part in parts_of(entry)))


def missing_files(task: Task, data: str) -> list[str]:
    """The files of the task that the data folder lacks."""
    return [] if data == HUB else [name for name in files_of(task) if not (Path(data) / name).is_file()]


def file_digests(task: Task, data: str) -> dict[str, str]:
    """What the task reads, file -> SHA-256.

    Raises:
        UserError: a file is missing, or the task names no data set of the hub.
    """
    if data == HUB:
        if task.hub is None:
            raise UserError(f"the task {task.name} names no data set of the hub; give a folder with --data")
        return {f"hub {task.hub.name}": str(task.hub.subset)}
    missing = missing_files(task, data)
    if missing:
        where = f"; on the hub the data are named {task.hub.name}" if task.hub else ""
        raise UserError(f"the task {task.name} misses {missing[0]} in {data}{where}")
    return {name: file_sha256(Path(data) / name) for name in files_of(task)}


def splits_of(task: Task, data: str) -> list[str]:
    """The splits there are files of, or that the hub has."""
    return list(task.hub.splits) if data == HUB and task.hub else list(task.files)


def read_split(task: Task, split: str, data: str) -> Iterator[tuple[str, int, Row | str]]:
    """Rows of a split as (file, row number, row); in place of a row that cannot be read, the reason."""
    if data == HUB:
        assert task.hub is not None
        yield from read_hub(task.hub, split)
        return
    for name in parts_of(task.files[split]):
        for number, row in enumerate(read_file(Path(data) / name)):
            yield name, number, row


def read_file(path: Path) -> Iterator[Row | str]:
    """Rows of a file by its ending.

    Raises:
        UserError: another ending, or a file that cannot be read.
    """
    readers = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".csv": _read_csv}
    if path.suffix not in readers:
        raise UserError(f"{path} must end in .parquet, .jsonl or .csv")
    try:
        yield from readers[path.suffix](path)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(path).iter_batches(4096):
        yield from batch.to_pylist()


def _read_jsonl(path: Path) -> Iterator[Row | str]:
    with open(path, "rb") as stream:
        for line in stream:
            if line.strip():
                yield _json_row(line)


def _json_row(line: bytes) -> Row | str:
    try:
        row = json.loads(line.decode("utf-8-sig"))
        if b"\\ud" in line.lower():  # an escape can name half a character, which is no text
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeError as error:
        return f"not UTF-8: {error}"
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return row if isinstance(row, dict) else "not an object"


def _read_csv(path: Path) -> Iterator[Row | str]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        for row in csv.DictReader(stream):
            yield _csv_row(row)


def _csv_row(row: dict[Any, Any]) -> Row | str:
    if None in row:
        return f"more cells than the header has: {row[None][0]!r} is beyond"
    if None in row.values():
        return f"fewer cells than the header has: {next(name for name in row if row[name] is None)} is missing"
    for name, cell in row.items():
        if any("\udc80" <= character <= "\udcff" for character in cell):
            return f"not UTF-8: the cell {name}"
    return row


def read_hub(hub: Hub, split: str) -> Iterator[tuple[str, int, Row]]:
    """Rows of a split of a data set of the hub, its columns renamed, its class numbers as names, pictures as bytes.

    Where the data set has no column `subset`, that is the name of its configuration. A row that `keep` does not want
    is passed over.

    Raises:
        UserError: the data set is out of reach, or has no such split.
    """
    from datasets import get_dataset_config_names, load_dataset

    try:
        subsets = get_dataset_config_names(hub.name) if hub.subset == EVERY_SUBSET else [hub.subset]
        parts = [load_dataset(hub.name, subset, split=hub.splits[split]) for subset in subsets]
    except Exception as error:  # datasets raises many kinds when the hub is out of reach
        raise UserError(f"the data set {hub.name} cannot be loaded: {str(error).splitlines()[0]}") from None
    for subset, rows in zip(subsets, parts, strict=True):
        names = {column: _class_names(kind) for column, kind in rows.features.items() if _class_names(kind)}
        rows = _undecoded(rows)
        for number, row in enumerate(rows):
            named = {"subset": subset} | {column: _named(value, names.get(column)) for column, value in row.items()}
            made = renamed(named, hub)
            if all(as_text(made.get(column)) in values for column, values in hub.keep.items()):
                yield hub.name, number, made


def _undecoded(rows: Any) -> Any:
    """The rows with pictures as they are stored: we decode them ourselves, within bounds."""
    from datasets import Image

    for column, kind in rows.features.items():
        if isinstance(kind, Image):
            rows = rows.cast_column(column, Image(decode=False))
    return rows


def _class_names(kind: Any) -> list[str] | None:
    """Names of the classes of a column, or of the entries of a list."""
    found = getattr(kind, "names", None) or getattr(getattr(kind, "feature", None), "names", None)
    return list(found) if found else None


def _named(value: Any, names: list[str] | None) -> Any:
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [_named(part, names) for part in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def renamed(row: Row, hub: Hub) -> Row:
    """A row under the names of the templates, as `Hub.rename` says."""
    taken = {path.split(".")[0].split("|")[0] for path in hub.rename}
    found = {column: value for column, value in row.items() if column not in taken}
    for path, names in hub.rename.items():
        place, _, mark = path.partition("|")
        value: Any = row
        for part in place.split("."):
            value = _within(value, part)
        if mark and isinstance(value, str):
            value = value.rpartition(mark)[2].strip()
        found |= dict.fromkeys(parts_of(names), value)
    for column in hub.joined:
        if isinstance(found.get(column), list):
            found[column] = " ".join(map(str, found[column]))
    return found


def _within(value: Any, part: str) -> Any:
    """A field of a record, or of every record of a list."""
    if isinstance(value, list):
        return [_within(entry, part) for entry in value]
    return value.get(part) if isinstance(value, dict) else None
