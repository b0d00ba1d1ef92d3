"""The stage hold_out: every held-out item of the declared tasks whose data are there, as texts to search for.

A score means something only when the model has not read the item. What is read here meets the documents to pretrain on
(stage decontaminate) and the training items of all declared tasks (stage read_task). An item is its prompt with its
answer; the long texts it is about (a context, an article) stand beside it uncut, because to have read them is enough.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.schemas import HELD_OUT_TEXTS, SPLITS
from lm_core.downstream.config import HoldOutConfig
from lm_core.downstream.prepare import item_id_of
from lm_core.downstream.read_task import Place, TaskReader
from lm_core.downstream.registered import registered_tasks
from lm_core.downstream.rows import Row, read_split
from lm_core.downstream.task import Task, as_text, columns_of, fill
from lm_core.store import Build

HELD_OUT = tuple(split for split in SPLITS if split != "train")


def hold_out(build: Build, config: HoldOutConfig) -> Mapping[str, Any]:
    """Write `held_out.parquet` (schemas.HELD_OUT_TEXTS), in the order of task, item and part; equal texts stand once.

    Returns:
        Items and texts of each task.
    """
    tables = [HELD_OUT_TEXTS.empty_table()]
    tasks = registered_tasks(config)
    for done, (_, task) in enumerate(sorted(tasks.items())):
        build.progress(done, len(tasks), "tasks")
        texts: dict[str, dict[str, Any]] = {}
        for text in sorted(_texts(task, str(config.data)), key=lambda row: (row["item_id"], row["part"])):
            texts.setdefault(text["text"], text)
        tables.append(pa.Table.from_pylist(list(texts.values()), HELD_OUT_TEXTS))
    held_out = pa.concat_tables(tables)
    pq.write_table(held_out, build.folder / "held_out.parquet", compression="zstd")
    texts_of = Counter(held_out["task"].to_pylist())
    return {"items": len(held_out["item_id"].unique()), "texts": held_out.num_rows, "tasks": dict(texts_of)}


def _texts(task: Task, data: str) -> Iterator[dict[str, Any]]:
    """All texts of the held-out items of a task."""
    for item_id, split, wholes, row in _items(task, data):
        parts = [("item", whole) for whole in wholes]
        if task.rows in ("plain", "span"):
            parts += [(column, text) for column in _columns(task, row) for text in _strings(row.get(column))]
        for part, text in parts:
            if text.strip():
                yield {"item_id": item_id, "task": task.name, "split": split, "part": part, "text": text.strip()}


def _items(task: Task, data: str) -> Iterator[tuple[str, str, list[str], Row]]:
    """Held-out items: identity, split, prompt with answer (with each choice, where there are choices), and the row."""
    reader = TaskReader(task, data)
    for name in reader.splits:
        for file, number, row in read_split(task, name, data):
            if isinstance(row, str):
                continue
            if task.kind == "choice" and not task.target:
                texts = [fill(choice, row) for choice in task.choices if columns_of(choice)] or _all_texts(task, row)
                yield item_id_of(task.name, fill(task.group, row), "\0".join(texts)), "test", texts, row
                continue
            if task.rows == "options":  # also those that list none, and are asked of nobody
                text = f"{fill(task.prompt, row)}\n{fill(task.target, row)}"
                yield item_id_of(task.name, fill(task.group, row), text), "test", [text], row
                continue
            for item in reader.items(Place(name, file, number), row):
                if item["split"] in HELD_OUT:
                    yield item["item_id"], item["split"], _wholes(task, item), row
    reader.check_columns()


def _wholes(task: Task, item: Mapping[str, Any]) -> list[str]:
    """Prompt and answer. A label is no text; a model that has read a wrong choice knows the item just as well."""
    answers = {"label": [""], "choice": item["labels"] or []}.get(task.kind, [item["target"]])
    return [f"{item['prompt']}\n{answer}" for answer in answers]


def _columns(task: Task, row: Row) -> list[str]:
    """The columns that the templates name; where none is named all of them."""
    templates = (task.prompt, task.target, *task.choices)
    named = [name for template in templates for name in columns_of(template)] + [task.references]
    return [name for name in dict.fromkeys(named) if name in row] or list(row)


def _all_texts(task: Task, row: Row) -> list[str]:
    return [text for column in _columns(task, row) for text in _strings(row.get(column))]


def _strings(value: Any) -> list[str]:
    return [as_text(part) for part in value] if isinstance(value, list | tuple) else [as_text(value)]
