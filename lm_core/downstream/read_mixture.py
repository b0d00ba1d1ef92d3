"""The stage read_mixture: several declared tasks as one set of examples, for one model that learns them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lm_core.artifact import HeldOut
from lm_core.downstream.config import ReadMixtureConfig, ReadTaskConfig
from lm_core.downstream.read_task import read_task
from lm_core.downstream.rows import file_digests
from lm_core.errors import UserError
from lm_core.runtime import Runtime
from lm_core.store import Build

MIXABLE = ("label", "answer")
FILES = ("examples.parquet", "bad_rows.parquet")


def source_digests(config: ReadMixtureConfig, runtime: Runtime) -> dict[str, str]:
    """Identity of the files that the tasks read."""
    return {name: digest for task in config.tasks for name, digest in file_digests(task, config.data).items()}


def read_mixture(build: Build, config: ReadMixtureConfig, *, held_out: HeldOut | None = None) -> Mapping[str, Any]:
    """Read every task as the stage read_task does, and put their rows one after the other.

    Raises:
        UserError: a task whose answer is no text.
        UserError, IntegrityError: as `read_task`.
    """
    for task in config.tasks:
        if task.kind not in MIXABLE or task.loss_on != "target":
            raise UserError(f"the task {task.name} cannot be mixed: one model learns tasks of the kinds {MIXABLE}")
    tables: dict[str, list[pa.Table]] = {name: [] for name in FILES}
    counts: dict[str, Any] = {}
    bad: Counter[str] = Counter()
    for task in config.tasks:
        part = build.work / task.name
        part.mkdir(parents=True, exist_ok=True)
        made = read_task(
            replace(build, folder=part),
            ReadTaskConfig(task=task, data=config.data, max_items=config.max_items, skim=config.skim),
            held_out=held_out,
        )
        counts |= made["tasks"]
        bad.update(made["bad_rows"])
        for name in FILES:
            tables[name].append(pq.read_table(part / name))
    for name, found in tables.items():
        pq.write_table(pa.concat_tables(found), build.folder / name, compression="zstd")
    items = sum(len(table) for table in tables["examples.parquet"])
    return {"tasks": counts, "items": items, "bad_rows": dict(sorted(bad.items()))}
