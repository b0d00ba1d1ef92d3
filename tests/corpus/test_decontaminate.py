"""Decontamination: a training document that holds a test example goes, a form that many documents share stays."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lm_core.corpus.config import DecontaminateConfig
from lm_core.corpus.decontaminate import decontaminate, split_overlaps
from lm_core.store import Build
from tests.corpus.tiny_ledger import document, example, tables, write

SECRET = "the answer to the riddle of the seven locked doors is a key made of frozen river water"
FORM = "welcome to another issue of our weekly letter with all that has happened in the village"


def dropped(tmp_path, texts: dict[str, str], config: DecontaminateConfig) -> tuple[set[str], dict]:
    rows = tables()
    pages = [document(key, text) for key, text in texts.items()]
    rows["collect"]["documents-00000"] += pages
    rows["clean"]["decisions"], rows["deduplicate"]["decisions"] = [], []
    rows["deduplicate"]["splits"] += [
        {"doc_id": page["doc_id"], "cluster": page["doc_id"], "split": "train"} for page in pages
    ]
    rows["prepare"]["examples"] += [example("held_out", "test", SECRET), example("held_out", "test", FORM)]
    del rows["decontaminate"]
    runtime, inputs = write(tmp_path, rows)
    folder = tmp_path / "out"
    folder.mkdir()
    build = Build(folder=folder, work=tmp_path, runtime=runtime, progress=lambda done, total, unit, **figures: None)
    statistics = decontaminate(build, config, **inputs)
    keys = {page["doc_id"]: page["key"] for page in pages}
    return {keys[row["doc_id"]] for row in pq.read_table(folder / "decisions.parquet").to_pylist()}, statistics


def test_a_leak_goes_and_a_form_stays(tmp_path):
    texts = {"leak": f"Before. {SECRET}. After."}
    texts |= {f"letter {number}": f"{FORM}. This is letter number {number}." for number in range(5)}
    found, statistics = dropped(tmp_path, texts, DecontaminateConfig(max_documents_per_item=4))
    assert found == {"leak"}
    assert statistics["items_ignored_as_forms"] == 1


def test_up_to_the_bound_every_document_that_holds_an_example_goes(tmp_path):
    texts = {f"letter {number}": f"{FORM}. This is letter number {number}." for number in range(5)}
    found, _ = dropped(tmp_path, texts, DecontaminateConfig(max_documents_per_item=5))
    assert found == set(texts)


def test_overlaps_between_splits_are_found():
    story = " ".join(f"word{n}" for n in range(40))
    items = [
        ("a", "train", "Thank you!"), ("b", "test", "thank you"), ("c", "train", story + " more"),
        ("d", "validation", story), ("e", "validation", story + " end"), ("f", "train", "Thank them"),
        ("g", "train", "Thank you!"), ("h", "test", "?!"), ("i", "train", "?!"),
    ]  # fmt: skip
    table = pa.Table.from_pylist([dict(zip(("item_id", "split", "text"), item, strict=True)) for item in items])
    found = split_overlaps(table).to_pylist()
    assert [(row["item_id"], row["held_out_id"]) for row in found] == [("a", "b"), ("c", "d"), ("c", "e"), ("g", "b")]
    assert [row["jaccard"] == 1 for row in found] == [True, False, False, True]


@pytest.mark.parametrize(("name", "column", "shared"), [("sst2", "text", 2), ("goemotions", "text", 32)])
def test_known_overlaps_of_official_splits_are_found(data_bundle, name, column, shared):
    folder = data_bundle / "finetune" / f"sentiment_{name}"
    splits = {split: pq.read_table(folder / f"{split}.parquet")[column].to_pylist() for split in ("train", "test")}
    items = [
        {"item_id": f"{split}-{n}", "split": split, "text": text}
        for split, texts in splits.items()
        for n, text in enumerate(texts)
    ]
    text = {item["item_id"]: item["text"] for item in items}
    found = split_overlaps(pa.Table.from_pylist(items)).to_pylist()
    assert len({text[row["item_id"]] for row in found if text[row["item_id"]] == text[row["held_out_id"]]}) == shared
