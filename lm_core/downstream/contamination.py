"""Training items of downstream tasks that hold a held-out item, of their own task or of any other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lm_core.artifact import HeldOut
from lm_core.corpus.config import DecontaminateConfig
from lm_core.corpus.decontaminate import index_of
from lm_core.corpus.item_index import ItemIndex, open_index
from lm_core.runtime import Runtime

RULES = DecontaminateConfig()


def held_by(items: Sequence[Mapping[str, Any]], held_out: HeldOut, runtime: Runtime) -> dict[int, str]:
    """For each item that gives a held-out one away, by its place: "task item_id" of the one it holds most of.

    Items with the same prompt and answer as a held-out one are no matter of this: `read_task` finds them as leaks.
    """
    texts = pa.array([f"{item['prompt']}\n{item['target']}" for item in items], pa.large_string())
    places, found, shares = _index(held_out, runtime).held(texts, RULES.min_containment)
    names = pq.read_table(held_out.file("held_out.parquet"), columns=["task", "item_id"])
    order = np.lexsort((found, -shares, places))
    first = order[np.unique(places[order], return_index=True)[1]]
    of_first = names.take(pa.array(found[first])).to_pylist()
    return {int(places[at]): f"{name['task']} {name['item_id']}" for at, name in zip(first, of_first, strict=True)}


def _index(held_out: HeldOut, runtime: Runtime) -> ItemIndex:
    """The index of all held-out texts: made once for all tasks, since it takes longer than reading a task."""
    folder = runtime.workspace / "cache" / "held-out" / held_out.content_digest[:32]
    if not folder.exists():
        made = index_of(pq.read_table(held_out.file("held_out.parquet")), RULES)
        new: Path = made.save(folder.with_name(f"{folder.name}.new-{os.getpid()}"))
        try:
            new.rename(folder)
        except OSError:
            return made  # another process was first
    return open_index(folder)
