"""What a base would have read of its own tests, on real data: what is known to be there is found, and little else."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lm_core.corpus.config import DecontaminateConfig
from lm_core.corpus.decontaminate import index_of
from lm_core.downstream.config import HoldOutConfig
from lm_core.downstream.hold_out import hold_out
from lm_core.downstream.tasks.registry import declared_tasks
from tests.corpus.builds import new_build

pytestmark = pytest.mark.slow
ORDINARY = ("books_standardebooks", "docs_cpp", "docs_guides", "docs_powershell", "docs_proposals", "news_rust",
            "reference_learnxinyminutes")  # fmt: skip


@pytest.fixture(scope="module")
def found(data_bundle, tmp_path_factory):
    """Documents and items of the pretraining sources that share one: {source: (documents, hits, table of items)}."""
    build = new_build(tmp_path_factory.mktemp("held_out"), "hold_out")
    hold_out(build, HoldOutConfig(data=str(data_bundle)))
    items = pq.read_table(build.folder / "held_out.parquet")
    config = DecontaminateConfig()
    index = index_of(items, config)
    sources = {}
    for path in sorted((data_bundle / "pretrain").glob("*.parquet")):
        documents = pq.read_table(path, columns=["path", "text"])
        rows, hits, _ = index.held(documents["text"].cast(pa.large_string()).combine_chunks(), config.min_containment)
        sources[path.stem] = documents, rows, items.take(pa.array(hits))
    return items, sources


def flagged(found, source: str) -> set[str]:
    documents, rows, _ = found[1][source]
    return set(documents["path"].take(pa.array(np.unique(rows))).to_pylist())


def held_out_ids(folder: Path, keep) -> set[str]:
    rows = [row for split in ("validation", "test") for row in pq.read_table(folder / f"{split}.parquet").to_pylist()]
    return {row["id"] for row in rows if keep(row)}


def test_contexts_of_questions_are_found_in_the_encyclopedia(found):
    documents, rows, _ = found[1]["encyclopedia_wiki"]
    texts, flagged_rows = ["".join(text.split()) for text in documents["text"].to_pylist()], set(rows.tolist())
    items = found[0].to_pylist()
    contexts = {"".join(row["text"].split()) for row in items if row["part"] == "context" and "qa" in row["task"]}
    holding = {place: text for place, text in enumerate(texts) if any(context in text for context in contexts)}
    assert len(holding) > 800
    assert set(holding) <= flagged_rows
    assert len(flagged_rows - set(holding)) <= 0.01 * len(texts)


def test_articles_of_the_topic_task_are_found_in_the_news(data_bundle, found):
    paths = set(found[1]["news_government"][0]["path"].to_pylist())
    known = held_out_ids(data_bundle / "finetune" / "topic_digitalgov", lambda row: True) & paths
    assert len(known) > 200
    assert known <= flagged(found, "news_government")


def test_pages_of_the_instruction_task_are_found_in_the_reference(data_bundle, found):
    keep = declared_tasks()["instruction"].keep
    ids = held_out_ids(data_bundle / "finetune" / "instruction_tldr", lambda row: row["lang"] in keep["lang"])
    known = {name.partition("#")[0] for name in ids} & set(found[1]["reference_tldr"][0]["path"].to_pylist())
    missed = known - flagged(found, "reference_tldr")
    assert len(known) > 1000
    assert len(missed) < 0.03 * len(known), sorted(missed)[:10]
    others = flagged(found, "reference_tldr") - known
    assert len(others) < 0.01 * len(found[1]["reference_tldr"][0]), sorted(others)[:10]


def test_ordinary_documents_are_left(found):
    for source in ORDINARY:
        documents, rows, hits = found[1][source]
        assert len(set(rows.tolist())) <= 0.002 * len(documents), (source, hits.slice(0, 3).to_pylist())
