"""What the stages of this room decide, pinned by version: values may not move while the version stands.

When a test fails because you meant to change the values: raise the stage's `version` in lm_core/stages.py and put the
new values here, under the new version.
"""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_contracts.schemas import EXAMPLES, HELD_OUT_TEXTS
from lm_core.artifact import Decisions, DownstreamData, HeldOut
from lm_core.corpus.clean import clean
from lm_core.corpus.config import CleanConfig, DecontaminateConfig, DeduplicateConfig
from lm_core.corpus.decontaminate import decontaminate
from lm_core.corpus.deduplicate import deduplicate
from lm_core.stages import CLEAN, DECONTAMINATE, DEDUPLICATE
from tests.corpus.builds import corpus_of, digest, new_build, rows, sample_documents
from tests.corpus.tiny_ledger import document

HOW = "values moved but the version of {} did not: raise it in lm_core/stages.py and write the new values here"
CLEAN_BY_VERSION = {3: "5e01cda1d44e71ff"}
DEDUPLICATE_BY_VERSION = {3: "ff93794a9a9515b0"}
DECONTAMINATE_BY_VERSION = {3: "c4bdc3148b7e2e7d"}


def held_out_examples(splits, documents):
    """For each held-out document an example that is its text; a training document quotes the first of them."""
    text = {d["doc_id"]: d["text"] for d in documents}
    columns = dict.fromkeys(EXAMPLES.names)
    return [
        columns
        | {"item_id": f"{number:032x}", "task": "answer", "split": row["split"], "doc_id": row["doc_id"]}
        | {"prompt": text[row["doc_id"]], "target": "word1"}
        for number, row in enumerate(splits)
        if row["split"] != "train"
    ]


def turned_around(article):
    """Words of an article in turned order: a text of its own."""
    return " ".join(article["text"].split()[::-1])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("golden")
    documents = sample_documents()
    # Sixty-nine words of another article each: enough to be contaminated, too few to be a copy.
    documents += [
        document(f"quoting-{n}", " ".join([f"own{n}x{i}" for i in range(90)] + documents[n]["text"].split()[:69]))
        for n in range(60)
    ]
    book = [f"book{n * n % 997}" for n in range(900)]
    documents += [document("book", " ".join(book)), document("chapter", " ".join(book[300:600]))]
    notice = " ".join(f"notice{n}" for n in range(30))
    documents += [document(f"page-{n}", f"page {n} {turned_around(documents[n])}\n{notice}") for n in range(4)]
    corpus = corpus_of(root, documents)
    folders = {name: new_build(root, name) for name in ("clean", "deduplicate", "prepare", "decontaminate")}
    clean(folders["clean"], CleanConfig(), corpus=corpus)
    cleaning = Decisions(folders["clean"].folder, "clean", "f", "d")
    config = DeduplicateConfig(validation_fraction=0.2, test_fraction=0.2)
    deduplicate(folders["deduplicate"], config, corpus=corpus, cleaning=cleaning)
    duplicates = Decisions(folders["deduplicate"].folder, "deduplicate", "f", "d")
    items = held_out_examples(rows(duplicates.folder, "splits.parquet"), documents)
    pq.write_table(pa.Table.from_pylist(items, EXAMPLES), folders["prepare"].folder / "examples.parquet")
    examples = DownstreamData(folders["prepare"].folder, "prepare", "f", "d")
    pq.write_table(HELD_OUT_TEXTS.empty_table(), folders["prepare"].folder / "held_out.parquet")
    held_out = HeldOut(folders["prepare"].folder, "hold_out", "f", "d")
    decontaminate(folders["decontaminate"], DecontaminateConfig(), corpus=corpus, cleaning=cleaning,
                  duplicates=duplicates, examples=examples, held_out=held_out)  # fmt: skip
    return {name: build.folder for name, build in folders.items()}


def test_the_sample_meets_every_fate(built):
    assert {row["reason"] for row in rows(built["clean"])} == {"too_few_words", "symbols", "broken_characters"}
    assert {row["reason"] for row in rows(built["deduplicate"])} == {"same_text", "jaccard", "containment"}
    assert {row["kind"] for row in rows(built["deduplicate"], "cuts.parquet")} == {"repeated"}
    assert {row["fate"] for row in rows(built["decontaminate"])} == {"contaminated"}


def test_clean(built):
    found = digest(built["clean"], "decisions.parquet", "redactions.parquet")
    assert found == CLEAN_BY_VERSION[CLEAN.version], HOW.format("clean")


def test_deduplicate(built):
    found = digest(built["deduplicate"], "decisions.parquet", "edges.parquet", "splits.parquet", "cuts.parquet")
    assert found == DEDUPLICATE_BY_VERSION[DEDUPLICATE.version], HOW.format("deduplicate")


def test_decontaminate(built):
    found = digest(built["decontaminate"], "decisions.parquet")
    assert found == DECONTAMINATE_BY_VERSION[DECONTAMINATE.version], HOW.format("decontaminate")
