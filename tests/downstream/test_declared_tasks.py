"""Declared tasks: what a declaration may say, what reading makes of good rows, and how bad ones are named."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_contracts.schemas import BAD_ROWS, EXAMPLES
from lm_core.downstream.config import ReadTaskConfig
from lm_core.downstream.passages import focus_on, histories, passages
from lm_core.downstream.read_task import read_task, source_digests
from lm_core.downstream.rows import renamed
from lm_core.downstream.task import Hub, Task, columns_of, fill, load_tasks
from lm_core.downstream.tasks.registry import declared_tasks, find_tasks
from lm_core.errors import IntegrityError, UserError
from lm_core.stages import READ_TASK
from tests.downstream.tiny_world import new_build

EXAMPLES_BY_VERSION = {1: "6ccb0f83836c836b", 2: "6ccb0f83836c836b"}
TICKETS = """
[[task]]
name = "tickets"
kind = "label"
files = { all = "tickets.jsonl" }
prompt = "{subject}: {text}"
target = "{queue}"
metric = "accuracy"
baselines = ["majority", "tfidf_logistic_regression"]
max_bad_share = 0.05
"""


def tickets(number: int) -> dict:
    queue = ("billing", "delivery", "returns")[number % 3]
    return {"subject": f"case {number}", "text": f"a question on {queue}", "queue": queue}


def write_jsonl(path: Path, rows: list) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "own.toml").write_text(TICKETS)
    write_jsonl(tmp_path / "tickets.jsonl", [tickets(number) for number in range(90)])
    return tmp_path


def read(folder: Path, task: Task, **fields):
    build = new_build(folder, f"read_{task.name}")
    statistics = read_task(build, ReadTaskConfig(task=task, data=str(folder), **fields))
    examples = pq.read_table(build.folder / "examples.parquet")
    bad = pq.read_table(build.folder / "bad_rows.parquet")
    assert examples.schema.equals(EXAMPLES) and bad.schema.equals(BAD_ROWS)
    return statistics, examples.to_pylist(), bad.to_pylist()


def changed(folder: Path, **fields) -> Task:
    return load_tasks(folder / "own.toml")["tickets"].model_copy(update=fields)


def test_a_toml_section_and_a_file_make_a_task(folder):
    task = find_tasks(["tickets"], folder / "own.toml")[0]
    statistics, rows, bad = read(folder, task)
    assert not bad and sum(statistics["tasks"]["tickets"].values()) == statistics["items"] == 90
    assert rows[0]["labels"] == ["billing", "delivery", "returns"]
    assert rows[0]["prompt"].startswith("case ") and rows[0]["target"] in rows[0]["prompt"]
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]
    assert digest == EXAMPLES_BY_VERSION[READ_TASK.version], (
        "values moved but the version of read_task did not: raise it in lm_core/stages.py, write the new digest here"
    )


def test_a_cap_keeps_a_sample_that_grows(folder):
    task = changed(folder)
    few = {row["item_id"] for row in read(folder, task, max_items=5)[1]}
    more = {row["item_id"] for row in read(folder, task, max_items=8)[1]}
    assert len(few) <= 15 and few < more


def test_bad_rows_are_named_and_beyond_the_bound_reading_fails(folder):
    rows = [tickets(number) for number in range(90)]
    rows[3], rows[7], rows[11] = "{broken", {**tickets(7), "queue": "gossip"}, {**tickets(11), "queue": None}
    write_jsonl(folder / "tickets.jsonl", rows)
    labels = ("billing", "delivery", "returns")
    statistics, _, bad = read(folder, changed(folder, labels=labels))
    assert {row["row"]: row["reason"] for row in bad} == {3: "not_readable", 7: "label_outside_the_set", 11: "empty"}
    assert sum(statistics["bad_rows"].values()) == 3
    with pytest.raises(IntegrityError, match=r"tickets: 3 of 90 rows .*tickets.jsonl row 3: not_readable"):
        read(folder, changed(folder, labels=labels, max_bad_share=0.01))


def test_leaks_leave_training_and_beyond_the_bound_reading_fails(folder):
    write_jsonl(folder / "train.jsonl", [tickets(number) for number in range(60)])
    write_jsonl(folder / "test.jsonl", [{**tickets(number), "subject": f"CASE  {number}"} for number in range(55, 95)])
    task = changed(folder, files={"train": "train.jsonl", "test": "test.jsonl"}, max_leak_share=0.2)
    _, rows, bad = read(folder, task)
    prompts = {
        split: {row["prompt"].casefold() for row in rows if row["split"] == split} for split in ("train", "test")
    }
    assert not {p.replace("  ", " ") for p in prompts["test"]} & prompts["train"]
    assert {row["reason"] for row in bad} == {"leaks"} and len(bad) == 5
    assert {(row["file"], row["row"]) for row in bad} == {("train.jsonl", number) for number in range(55, 60)}
    with pytest.raises(IntegrityError, match=r"held-out items stand in another split too.*case 5"):
        read(folder, task.model_copy(update={"max_leak_share": 0.01}))


def test_a_label_that_training_never_shows_is_a_bad_row(folder):
    write_jsonl(folder / "train.jsonl", [tickets(number) for number in range(60)])
    rows = [
        {**tickets(number), "queue": "gossip" if number == 70 else tickets(number)["queue"]} for number in range(60, 95)
    ]
    write_jsonl(folder / "test.jsonl", rows)
    task = changed(folder, files={"train": "train.jsonl", "test": "test.jsonl"})
    _, _, bad = read(folder, task)
    assert [(r["file"], r["row"], r["reason"]) for r in bad] == [("test.jsonl", 10, "label_outside_the_set")]
    with pytest.raises(IntegrityError, match=r"1 of 35 rows of test .*test.jsonl row 10: .*'gossip', which training"):
        read(folder, task.model_copy(update={"max_bad_share": 0.0}))


def test_a_span_must_stand_where_it_is_said_to(folder):
    row = {"context": "The mill stands by the river. It grinds grain.", "title": "mill"}
    rows = [
        {
            **row,
            "title": f"mill {i}",
            "question": f"Where is mill {i}?",
            "answers": ["the river"],
            "answer_starts": [19],
        }
        for i in range(40)
    ]
    rows[5]["answer_starts"] = [3]
    write_jsonl(folder / "spans.jsonl", rows)
    fields = {"rows": "span", "prompt": "{question}\n{context}", "target": "{answers}", "references": "answers"}
    task = Task(name="spans", kind="answer", files={"all": "spans.jsonl"}, metric="token_f1", group="{title}",
                max_bad_share=0.05, **fields)  # fmt: skip
    assert read(folder, task)[2][0]["detail"] == "'the river' should stand at 3, where ' mill sta' stands"
    with pytest.raises(IntegrityError, match="span_does_not_match"):
        read(folder, task.model_copy(update={"max_bad_share": 0.0}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "{body}"}, "name the column body, which tickets.jsonl lacks; it has queue, subject, text"),
        ({"prompt": "{text.__class__}"}, "only column names stand in braces"),
        ({"keep": {"queue": ("none",)}}, "the split train is empty"),
        ({"files": {"all": "nowhere.jsonl"}}, "misses nowhere.jsonl"),
        ({"files": {"all": "tickets.xml"}}, "must end in .parquet, .jsonl or .csv"),
    ],
)
def test_a_wrong_declaration_is_one_line(folder, fields, message):
    (folder / "tickets.xml").write_text("<a/>")
    task = changed(folder, **fields)
    with pytest.raises(UserError, match=message):
        source_digests(ReadTaskConfig(task=task, data=str(folder)), new_build(folder, "x").runtime)
        read(folder, task)


def test_a_wrong_toml_file_is_one_line(folder):
    (folder / "own.toml").write_text(TICKETS.replace('"label"', '"labels"'))
    with pytest.raises(UserError, match="task tickets: kind"):
        load_tasks(folder / "own.toml")
    (folder / "own.toml").write_text("x = 1")
    with pytest.raises(UserError, match="declares no task"):
        load_tasks(folder / "own.toml")
    with pytest.raises(UserError, match="there is no task poetry; the tasks are sentiment"):
        find_tasks(["poetry"])


def test_the_hub_goes_through_the_same_loader(folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="names no data set of the hub"):
        source_digests(ReadTaskConfig(task=changed(folder), data="hub"), new_build(folder, "x").runtime)
    task = changed(folder, hub=Hub(name="nobody/nothing", splits={"all": "train"}))
    with pytest.raises(UserError, match="nobody/nothing cannot be loaded"):
        read_task(new_build(folder, "hub"), ReadTaskConfig(task=task, data="hub"))


def test_a_data_set_of_the_hub_reads_like_files(folder):
    """The hub's loader reads a local folder of JSON lines as it reads a data set of that name."""
    data_set = folder / "data_set"
    data_set.mkdir()
    records = [
        {"subject": f"case {n}", "body": {"text": tickets(n)["text"]}, "queue": tickets(n)["queue"]} for n in range(90)
    ]
    write_jsonl(data_set / "train.jsonl", records)
    hub = Hub(name=str(data_set), splits={"all": "train"}, rename={"body.text": "text"})
    task = changed(folder, hub=hub, keep={"not_on_the_hub": ("x",)})
    build = new_build(folder, "read_hub")
    statistics = read_task(build, ReadTaskConfig(task=task, data="hub"))
    assert statistics["items"] == 90
    same = read(folder, changed(folder))[1]
    assert pq.read_table(build.folder / "examples.parquet").to_pylist() == same


def test_columns_of_the_hub_take_the_templates_names():
    hub = Hub(
        name="x",
        rename={"answers.text": "answers", "turns.said": "turns", "context": "context + title", "final|####": "number"},
        joined=("source",),
    )
    row = {
        "answers": {"text": ["a"], "start": [3]},
        "turns": [{"said": "hello"}, {"said": "yes"}],
        "context": "c",
        "final": "so 2 + 2 #### 4",
        "source": ["One.", "Two."],
        "kept": 1,
    }
    assert renamed(row, hub) == {
        "answers": ["a"], "turns": ["hello", "yes"], "context": "c", "title": "c", "number": "4",
        "source": "One. Two.", "kept": 1,
    }  # fmt: skip
    assert next(histories({"speakers": ["USER", "ASSISTANT"], "turns": ["hi", "ok"]}, 90))["history"] == "User: hi"


def test_a_dialogue_gives_an_item_for_each_answer(folder):
    row = {"speakers": ["user", "system", "user", "system"], "turns": ["hello", "yes?", "grain please", "at once"]}
    made = list(histories(row, 100))
    assert [(m["history"], m["reply"]) for m in made] == [
        ("User: hello", "yes?"),
        ("User: hello\nAgent: yes?\nUser: grain please", "at once"),
    ]
    assert list(histories(row, 20))[1]["history"] == "User: grain please"


def test_texts_are_cut_at_sentences():
    assert passages("One is here. Two is here. Three.", 26) == ["One is here. Two is here.", "Three."]
    assert all(len(part) <= 10 for part in passages("x" * 35, 10))
    text = "Rain falls. The mill grinds grain. Wind blows."
    assert focus_on(text, "What does the mill grind?", 30) == "The mill grinds grain."


def test_templates_take_the_first_of_a_list():
    assert fill("{a} and {b}", {"a": ["x", "y"], "b": 3}) == "x and 3"
    assert columns_of("{a} and {b}") == ["a", "b"]


def test_every_declared_task_is_whole():
    names = {"sentiment", "topic", "intent", "customer_service", "dialogue", "extractive_qa", "generative_qa"}
    names |= {"summarisation", "translation", "story", "instruction", "preference", "blimp", "piqa", "xcopa"}
    names |= {"winogender", "crows_pairs", "dialogue_zh", "extractive_qa_zh", "arithmetic_qa", "sentiment_goemotions"}
    tasks = declared_tasks()
    assert names <= set(tasks)
    for task in tasks.values():
        assert task.licence and task.source and task.metric
        assert task.hub or task.kind == "visual", f"{task.name} names no public data set"


def test_a_parquet_file_reads_like_jsonl(folder):
    pq.write_table(pa.Table.from_pylist([tickets(number) for number in range(90)]), folder / "tickets.parquet")
    same = read(folder, changed(folder, files={"all": "tickets.parquet"}))[1]
    assert same == read(folder, changed(folder))[1]
