"""Rows of a task's files: Parquet, JSONL or CSV from a data folder, or a data set of the hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm_core.downstream.task import Task
from lm_core.errors import UserError
from lm_core.store import file_sha256

HUB = "hub"
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


def read_split(task: Task, split: str, data: str) -> Iterator[tuple[str, int, Row | str]]:
    """Rows of a split as (file, row number, row); in place of a row that cannot be read, the reason."""
    if data == HUB:
        yield from _read_hub(task, split)
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
    with open(path, encoding="utf-8", errors="replace") as stream:
        for line in stream:
            try:
                row = json.loads(line)
            except ValueError as error:
                yield f"not JSON: {error}"
            else:
                yield row if isinstance(row, dict) else "not an object"


def _read_csv(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8", newline="") as stream:
        yield from csv.DictReader(stream)


def _read_hub(task: Task, split: str) -> Iterator[tuple[str, int, Row]]:
    from datasets import load_dataset

    assert task.hub is not None
    try:
        rows = load_dataset(task.hub.name, task.hub.subset, split=task.hub.splits[split])
    except Exception as error:  # datasets raises many kinds when the hub is out of reach
        raise UserError(f"the data set {task.hub.name} cannot be loaded: {str(error).splitlines()[0]}") from None
    for number, row in enumerate(rows):
        yield task.hub.name, number, {task.hub.rename.get(name, name): value for name, value in row.items()}
