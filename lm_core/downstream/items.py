"""Reading the examples of a downstream task."""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from lm_core.artifact import DownstreamData, ValidCorpus
from lm_core.corpus.ledger import kept_examples
from lm_core.errors import UserError
from lm_core.runtime import Runtime


def read_items(
    examples: DownstreamData, corpus: ValidCorpus | None, task: str, split: str, runtime: Runtime
) -> list[dict[str, Any]]:
    """Examples of a task and split in the order of item_id; with a corpus only those that passed its gate.

    Raises:
        UserError: when the examples are not those the corpus was validated with.
    """
    if corpus is None:
        wanted = (pc.field("task") == task) & (pc.field("split") == split)
        table = pq.read_table(examples.file("examples.parquet"), filters=wanted).sort_by("item_id")
    elif corpus.input_folder("examples") != examples.folder:
        raise UserError("the examples are not those the corpus was validated with; run `validate` with them first")
    else:
        table = kept_examples(corpus, runtime=runtime, task=task, splits=[split])
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows
