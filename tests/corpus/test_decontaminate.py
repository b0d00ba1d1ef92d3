"""Decontamination: a training document that holds a test example goes, a form that many documents share stays."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_contracts.schemas import HELD_OUT_TEXTS
from lm_core.artifact import HeldOut
from lm_core.corpus.config import DecontaminateConfig
from lm_core.corpus.decontaminate import decontaminate
from lm_core.corpus.split_overlaps import num_near_overlaps, split_overlaps
from lm_core.store import Build
from tests.corpus.tiny_ledger import document, example, tables, write

SECRET = "the answer to the riddle of the seven locked doors is a key made of frozen river water"
FORM = "welcome to another issue of our weekly letter with all that has happened in the village"


def held_out(folder: Path, *items: dict) -> HeldOut:
    folder.mkdir()
    rows = [{"task": "quiz", "split": "test", "part": "item"} | item for item in items]
    pq.write_table(pa.Table.from_pylist(rows, HELD_OUT_TEXTS), folder / "held_out.parquet")
    return HeldOut(folder, "hold_out", "f", "d")


def dropped(tmp_path, texts: dict[str, str], config: DecontaminateConfig, *items: dict) -> tuple[set[str], dict]:
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
    inputs["held_out"] = held_out(tmp_path / "held_out", *items)
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


def test_an_item_of_a_declared_task_is_no_form_however_many_have_read_it(tmp_path):
    texts = {f"page {number}": f"Page {number} says: {QUOTE} It is number {number}." for number in range(5)}
    item = {"item_id": "0" * 32, "text": QUOTE}
    found, statistics = dropped(tmp_path, texts, DecontaminateConfig(max_documents_per_item=4), item)
    assert found == set(texts)
    assert statistics["items_ignored_as_forms"] == 0


PASSAGE = " ".join(f"sentence{n} of an article about rivers" for n in range(20))
SHORT = "a text that is too short to be evidence by itself, for anybody may have written it"
CHINESE = "这是一个关于中国历史的问题，答案在这段话里面。"
QUOTE = "It’s what we’d call a river that doesn’t end—or one that hasn’t begun, as they’ve said since it’s been found."
PAIR = "List all open files of a process by its number.\nlsof -p number of the process"


@pytest.mark.parametrize(
    ("item", "text", "goes"),
    [
        ({"part": "context", "text": PASSAGE}, f"A page. {PASSAGE} And more.", True),
        ({"part": "context", "text": PASSAGE}, f"Half of it: {PASSAGE[: len(PASSAGE) // 3]}", False),
        ({"part": "context", "text": SHORT}, f"A page: {SHORT}.", False),
        ({"text": PAIR}, f"# lsof\n\n- {PAIR}", True),
        ({"text": f"Give the command: {PAIR}"}, f"# lsof\n\n- {PAIR}", True),
        ({"text": "one short item"}, "here is one short item", False),
        ({"text": CHINESE}, f"前文。{CHINESE}后文。", True),
        ({"text": QUOTE}, QUOTE.replace("’", "&#8217;").replace("—", "&mdash;"), True),
    ],
    ids=["passage", "a third of it", "short text", "pair", "pair after other words", "too short", "Chinese",
         "references"],
)  # fmt: skip
def test_what_gives_an_item_away(tmp_path, item, text, goes):
    found, _ = dropped(tmp_path, {"page": text}, DecontaminateConfig(), {"item_id": "0" * 32} | item)
    assert found == ({"page"} if goes else set())
    hits = pq.read_table(tmp_path / "out" / "hits.parquet").to_pylist()
    assert [(hit["item_id"], hit["task"]) for hit in hits if hit["task"] == "quiz"] == [("0" * 32, "quiz")] * goes


def test_what_all_items_begin_with_is_their_task_and_not_they(tmp_path):
    tools = [f"tool{n}" for n in range(30)]
    items = [
        {
            "item_id": f"{n:032x}",
            "text": f"Give the shell command, with {tool}: do what {tool} does best\n{tool} -x",
        }
        for n, tool in enumerate(tools)
    ]
    texts = {tool: f"# {tool}\n\n- Do what {tool} does best:\n\n`{tool} -x`" for tool in tools[:5]}
    texts["manual"] = "Give the shell command, with the name of the tool first and then what it should do."
    found, _ = dropped(tmp_path, texts, DecontaminateConfig(), *items)
    assert found == set(tools[:5])


def test_overlaps_between_splits_are_found():
    story = " ".join(f"word{n}" for n in range(40))
    items = [
        ("a", "train", "Thank you!"), ("b", "test", "thank you"), ("c", "train", story + " more"),
        ("d", "validation", story), ("e", "validation", story + " end"), ("f", "train", "Thank them"),
        ("g", "train", "Thank you!"), ("h", "test", "?!"), ("i", "train", "?!"),
    ]  # fmt: skip
    table = pa.Table.from_pylist([dict(zip(("item_id", "split", "text"), item, strict=True)) for item in items])
    found = split_overlaps(table).to_pylist()
    assert [(row["item_id"], row["held_out_id"]) for row in found] == [("a", "b"), ("c", "d"), ("g", "b")]
    assert [row["jaccard"] == 1 for row in found] == [True, False, True]


def test_what_a_task_says_around_its_texts_is_no_overlap():
    asked = "What does the writer of this comment think of it, good or bad? {0} Answer in one word:"
    texts = {
        "train": ["a fine film", "the worst hour of my life by far"],
        "test": ["a poor film", "the worst hour of my life by"],
    }
    items = {split: [(f"{split}-{text}", asked.format(text)) for text in own] for split, own in texts.items()}
    assert num_near_overlaps(items) == {"train": 1}


def texts_of(row: dict) -> str:
    turns = row.get("turns")
    return "\n".join(turns) if turns else row.get("text") or row["document"]


@pytest.mark.parametrize(
    ("folder", "shared"),
    [
        ("sentiment_sst2", 2),
        ("sentiment_goemotions", 32),
        ("summarization_scitldr", 2),
        ("customer_service_taskmaster4", 4),
    ],
)
def test_known_overlaps_of_official_splits_are_found(data_bundle, folder, shared):
    files = {split: data_bundle / "finetune" / folder / f"{split}.parquet" for split in ("train", "test")}
    items = [
        {"item_id": f"{split}-{number}", "split": split, "text": texts_of(row)}
        for split, path in files.items()
        for number, row in enumerate(pq.read_table(path).to_pylist())
    ]
    text = {item["item_id"]: item["text"] for item in items}
    found = split_overlaps(pa.Table.from_pylist(items)).to_pylist()
    assert len({text[row["item_id"]] for row in found if text[row["item_id"]] == text[row["held_out_id"]]}) == shared
