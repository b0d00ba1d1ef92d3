"""Held-out items of declared tasks: which texts they are, and that no task is trained on an item of another's test."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lm_core.artifact import HeldOut
from lm_core.downstream.config import HoldOutConfig, ReadTaskConfig
from lm_core.downstream.hold_out import hold_out
from lm_core.downstream.read_task import read_task
from lm_core.downstream.registered import source_digests
from lm_core.downstream.tasks.registry import find_tasks
from lm_core.errors import UserError
from tests.downstream.tiny_world import new_build

TASKS = """
[[task]]
name = "river_questions"
kind = "answer"
files = { train = "rivers_train.jsonl", validation = "rivers_validation.jsonl", test = "rivers_test.jsonl" }
rows = "span"
prompt = "{question}\\n{context}"
focus = "context"
target = "{answers}"
group = "{title}"
metric = "token_f1"
max_prompt_chars = 200

[[task]]
name = "river_summaries"
kind = "answer"
files = { all = "summaries.jsonl" }
prompt = "{text}"
target = "{summary}"
metric = "rouge_l"
max_prompt_chars = 2000
"""


def question(river: str) -> dict:
    context = " ".join(f"The {river} has a bend {n} at a village called {river}ton{n}." for n in range(12))
    return {"question": f"What does the {river} have?", "context": context, "title": river, "answers": ["a bend 3"],
            "answer_starts": [context.index("a bend 3")]}  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "own.toml").write_text(TASKS)
    rivers = {"train": ("Oder", "Elbe", "Main"), "validation": ("Spree",), "test": ("Neckar", "Isar")}
    files = {f"rivers_{split}": [question(river) for river in names] for split, names in rivers.items()}
    lakes = [f"Lake {n}: " + " ".join(f"shore{n} word{n * word % 97}" for word in range(40)) for n in range(60)]
    files["summaries"] = [
        {"text": text, "summary": f"It is about water body number {n}."} for n, text in enumerate(lakes)
    ]
    # Every one of these holds the context of a test question, so whichever splits they fall into some are trained on.
    files["summaries"] += [
        {"text": f"Note {n}. {question('Isar')['context']}", "summary": f"A note about a river, with number {n}."}
        for n in range(12)
    ]
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def held(folder: Path, **fields) -> HeldOut:
    build = new_build(folder, "hold_out")
    hold_out(build, HoldOutConfig(data=str(folder), tasks_file=str(folder / "own.toml"), **fields))
    return HeldOut(build.folder, "hold_out", "f", "d")


def test_items_are_held_out_with_the_whole_texts_they_are_about(folder):
    rows = pq.read_table(held(folder).file("held_out.parquet")).to_pylist()
    assert {row["split"] for row in rows} == {"validation", "test"}
    texts = {(row["part"], row["text"]) for row in rows if row["task"] == "river_questions"}
    for river in ("Spree", "Neckar", "Isar"):
        assert ("context", question(river)["context"]) in texts
        assert any(part == "item" and text.startswith(f"What does the {river} have?") for part, text in texts)
    assert not any("Oder" in row["text"] for row in rows)


def test_training_items_that_hold_an_item_of_another_task_are_left_out_and_named(folder):
    held_out = held(folder)
    task = find_tasks(["river_summaries"], folder / "own.toml")[0]
    kept, bad = {}, {}
    for name, given in (("alone", None), ("checked", held_out)):
        build = new_build(folder, name)
        read_task(build, ReadTaskConfig(task=task, data=str(folder)), held_out=given)
        kept[name] = pq.read_table(build.folder / "examples.parquet").to_pylist()
        bad[name] = pq.read_table(build.folder / "bad_rows.parquet").to_pylist()
    assert any("Isar" in row["prompt"] for row in kept["alone"] if row["split"] == "train")
    assert not [row for row in kept["checked"] if row["split"] == "train" and "Isar" in row["prompt"]]
    assert [row for row in kept["checked"] if row["split"] != "train"] == [
        row for row in kept["alone"] if row["split"] != "train"
    ]
    found = [row for row in bad["checked"] if row["reason"] == "contaminated"]
    assert found and all(row["file"] == "summaries.jsonl" and row["row"] >= 60 for row in found)
    assert not [row for row in bad["alone"] if row["reason"] == "contaminated"]


def test_identity_is_that_of_declarations_and_files(folder):
    config = HoldOutConfig(data=str(folder), tasks_file=str(folder / "own.toml"))
    before = source_digests(config, None)
    assert set(before) == {"river_questions", "river_summaries"}
    with open(folder / "rivers_test.jsonl", "a") as stream:
        stream.write(json.dumps(question("Donau")) + "\n")
    after = source_digests(config, None)
    assert {name for name in before if before[name] != after[name]} == {"river_questions"}


def test_without_data_there_is_nothing_and_a_folder_that_is_not_there_is_refused(tmp_path):
    build = new_build(tmp_path, "hold_out")
    assert hold_out(build, HoldOutConfig())["items"] == 0
    assert pq.read_table(build.folder / "held_out.parquet").num_rows == 0
    with pytest.raises(UserError, match="there is no folder"):
        hold_out(build, HoldOutConfig(data=str(tmp_path / "nowhere")))


def test_what_lists_no_options_is_held_out_all_the_same(tmp_path):
    rows = [{"input": f"Sort the words: rain {n} mill", "target": f"mill {n} rain"} for n in range(3)]
    (tmp_path / "sorting.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.toml").write_text(
        '[[task]]\nname = "sorting"\nkind = "choice"\nrows = "options"\nfiles = { test = "sorting.jsonl" }\n'
        'prompt = "{input}"\ntarget = "{target}"\nmetric = "accuracy"\n'
    )
    texts = pq.read_table(held(tmp_path).file("held_out.parquet"))["text"].to_pylist()
    assert sorted(texts) == [f"Sort the words: rain {n} mill\nmill {n} rain" for n in range(3)]
