"""Declared tasks: what a declaration may say, what reading makes of good rows, and how bad ones are named."""

import hashlib
import json
import re
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_contracts.schemas import BAD_ROWS, EXAMPLES
from lm_core.downstream.combinations import BIAS_PROBES, SCORING
from lm_core.downstream.config import ReadTaskConfig
from lm_core.downstream.passages import focus_on, histories, passages
from lm_core.downstream.read_task import read_task, source_digests
from lm_core.downstream.rows import renamed
from lm_core.downstream.task import Baseline, Guard, Hub, Kind, Metric, OutOfScope, Task, columns_of, fill, load_tasks
from lm_core.downstream.tasks.registry import declared_tasks, find_tasks
from lm_core.errors import IntegrityError, UserError
from lm_core.evaluation.guards import GUARDS
from lm_core.evaluation.metrics import TEXT_METRICS
from lm_core.stages import PROBE_BIAS, READ_TASK, WHOLE_TASKS
from tests.downstream.tiny_world import new_build

EXAMPLES_BY_VERSION = dict.fromkeys((1, 2, 3, 4), "6ccb0f83836c836b")
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


GOOD_TURNS = {"speakers": ["user", "system"], "turns": ["grain please", "at once"], "id": "d"}
GOOD_SPAN = {"q": "Where?", "context": "The mill stands by the river.", "answers": ["the river"], "answer_starts": [19]}
GOOD_CHOICE = {"q": "What falls?", "a": "rain", "b": "stones", "right": 0}
DIALOGUE = {"kind": "answer", "rows": "dialogue", "prompt": "{history}", "target": "{reply}", "metric": "chrf"}
SPAN = {"kind": "answer", "rows": "span", "prompt": "{q} {context}", "target": "{answers}", "metric": "token_f1",
        "references": "answers"}  # fmt: skip
CHOSEN = {"kind": "choice", "prompt": "{q}", "choices": ("{a}", "{b}"), "target": "{right}", "metric": "accuracy"}
PASSAGES = {"kind": "text", "rows": "passages", "target": "{text}", "metric": "bits_per_byte",
            "loss_on": "everything", "group": "{id}"}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "good", "change", "reason"),
    [
        (SPAN, GOOD_SPAN, {"context": None}, "wrong_type"),
        (SPAN, GOOD_SPAN, {"answer_starts": ["19"]}, "wrong_type"),
        (SPAN, GOOD_SPAN, {"answer_starts": [None]}, "wrong_type"),
        (SPAN, GOOD_SPAN, {"answer_starts": [True]}, "wrong_type"),
        (SPAN, GOOD_SPAN, {"answer_starts": 19}, "wrong_type"),
        (SPAN, GOOD_SPAN, {"answers": "the river"}, "wrong_type"),
        (SPAN, GOOD_SPAN, {"answer_starts": []}, "span_does_not_match"),
        (SPAN, GOOD_SPAN, {"answers": ["the river", "a mill"]}, "span_does_not_match"),
        (SPAN, GOOD_SPAN, {"answers": ["."], "answer_starts": [-1]}, "span_does_not_match"),
        (SPAN, GOOD_SPAN, {"answers": [], "answer_starts": []}, "empty"),
        (SPAN, GOOD_SPAN, {"answers": ...}, "missing_column"),
        (DIALOGUE, GOOD_TURNS, {"speakers": ...}, "missing_column"),
        (DIALOGUE, GOOD_TURNS, {"speakers": None}, "wrong_type"),
        (DIALOGUE, GOOD_TURNS, {"speakers": ["user"]}, "turns_without_speaker"),
        (DIALOGUE, GOOD_TURNS, {"turns": ["grain please", None]}, "wrong_type"),
        (DIALOGUE, GOOD_TURNS, {"turns": "grain please"}, "wrong_type"),
        (DIALOGUE, GOOD_TURNS, {"turns": [], "speakers": []}, "empty"),
        (DIALOGUE, GOOD_TURNS, {"turns": ["grain please", " "]}, "empty"),
        (DIALOGUE | {"group": "{id}"}, GOOD_TURNS, {"id": None}, "empty"),
        (DIALOGUE | {"references": "all"}, GOOD_TURNS | {"all": ["x"]}, {"all": ...}, "missing_column"),
        (DIALOGUE | {"keep": {"id": ("d",)}}, GOOD_TURNS, {"id": ...}, "missing_column"),
        (CHOSEN, GOOD_CHOICE, {"right": "²"}, "label_outside_the_set"),
        (CHOSEN, GOOD_CHOICE, {"right": 2}, "label_outside_the_set"),
        (CHOSEN, GOOD_CHOICE, {"right": "9" * 5000}, "label_outside_the_set"),
        (CHOSEN, GOOD_CHOICE, {"b": ""}, "empty"),
        (CHOSEN, GOOD_CHOICE, {"q": {"text": "What?"}}, "wrong_type"),
        (PASSAGES, {"text": "Rain falls.", "id": "a"}, {"text": None}, "empty"),
        (PASSAGES, {"text": "Rain falls.", "id": "a"}, {"text": ["Rain", ["falls"]]}, "wrong_type"),
    ],
)
def test_a_bad_row_is_counted_and_named_wherever_it_stands(tmp_path, fields, good, change, reason):
    """The bad row comes last, where no look at the first row sees it."""
    key = {"span": "context", "dialogue": "turns", "passages": "text"}.get(fields.get("rows", ""), "q")
    many = [good | {key: numbered(good[key], number)} for number in range(60)]
    bad_row = {name: value for name, value in (good | change).items() if value is not ...}
    write_jsonl(tmp_path / "train.jsonl", [*many[:40], bad_row])
    write_jsonl(tmp_path / "test.jsonl", many[40:])
    files = {"test": "train.jsonl"} if fields["kind"] == "choice" else {s: f"{s}.jsonl" for s in ("train", "test")}
    task = Task.model_validate({"name": "own", "files": files, "max_bad_share": 0.05, **fields})
    _, items, bad = read(tmp_path, task)
    assert items and [(row["file"], row["row"], row["reason"]) for row in bad] == [("train.jsonl", 40, reason)]
    with pytest.raises(IntegrityError, match=f"1 of 41 rows of .* are bad.*train.jsonl row 40: {reason}"):
        read(tmp_path, task.model_copy(update={"max_bad_share": 0.0}))


def numbered(value, number: int):
    return [f"{number} {part}" for part in value] if isinstance(value, list) else f"{value} {number}"


def test_a_turn_that_is_bad_does_not_take_the_others_with_it(tmp_path):
    row = {"speakers": ["user", "system"] * 2, "turns": ["grain", " ", "flour please", "at once"]}
    rows = [{**row, "turns": [f"{turn}{n}" if turn.strip() else turn for turn in row["turns"]]} for n in range(30)]
    write_jsonl(tmp_path / "train.jsonl", rows[:20])
    write_jsonl(tmp_path / "test.jsonl", rows[20:])
    files = {"train": "train.jsonl", "test": "test.jsonl"}
    task = Task.model_validate({"name": "own", "files": files, "max_bad_share": 1.0, **DIALOGUE})
    _, items, bad = read(tmp_path, task)
    assert sum(item["target"].startswith("at once") for item in items) == 30 and len(bad) == 30


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        (b'{"subject": "caf\xe9", "text": "x", "queue": "billing"}', "not UTF-8"),
        (b'{"subject": "\\ud83d", "text": "x", "queue": "billing"}', "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b'"a text"', "not an object"),
    ],
)
def test_a_line_that_is_no_row_is_named_and_the_others_are_read(folder, line, detail):
    lines = (folder / "tickets.jsonl").read_bytes().splitlines()
    (folder / "tickets.jsonl").write_bytes(
        b"\xef\xbb\xbf" + b"\n".join([*lines[:50], line, b"", *lines[50:]]) + b"\n\n"
    )
    statistics, _, bad = read(folder, changed(folder))
    assert statistics["items"] == 90 and [(row["row"], row["reason"]) for row in bad] == [(50, "not_readable")]
    assert bad[0]["detail"].startswith(detail)


def test_a_csv_row_that_is_not_as_wide_as_its_header_or_no_utf8_is_named(folder):
    lines = [f"{t['subject']},{t['text']},{t['queue']}".encode() for t in map(tickets, range(90))]
    lines[7], lines[9], lines[11] = lines[7] + b",more", b"case,x", b"caf\xe9,x,billing"
    (folder / "tickets.csv").write_bytes(b"\n".join([b"subject,text,queue", *lines]))
    statistics, _, bad = read(folder, changed(folder, files={"all": "tickets.csv"}))
    assert [(row["row"], row["detail"].split(":")[0]) for row in bad] == [
        (7, "more cells than the header has"),
        (9, "fewer cells than the header has"),
        (11, "not UTF-8"),
    ]
    assert statistics["items"] == 87


def test_texts_that_belong_to_no_label_are_looked_at_too(folder):
    others = [{"text": f"a poem on {n} roses"} for n in range(40)]
    write_jsonl(folder / "other.jsonl", [*others, {"text": None}, {"verse": "x"}, "{broken"])
    outside = OutOfScope(files={"train": "other.jsonl", "test": "other.jsonl"}, prompt="{text}", share=0.2)
    task = changed(folder, out_of_scope=outside, max_leak_share=1.0, max_bad_share=0.1)
    _, _, bad = read(folder, task)
    named = [(row["file"], row["row"], row["reason"]) for row in bad if row["split"] == "test"]
    assert named == [
        ("other.jsonl", 40, "empty"),
        ("other.jsonl", 41, "missing_column"),
        ("other.jsonl", 42, "not_readable"),
    ]
    with pytest.raises(IntegrityError, match=r"3 of 43 rows of train are bad.*other.jsonl row 40: empty"):
        read(folder, task.model_copy(update={"max_bad_share": 0.05}))
    write_jsonl(folder / "other.jsonl", [{"text": ""}])
    with pytest.raises(UserError, match="out_of_scope has no text for train"):
        read(folder, task)


def test_an_empty_validation_split_is_an_error(folder):
    for name in ("train", "test"):
        write_jsonl(folder / f"{name}.jsonl", [tickets(n) for n in range(60) if (n > 40) == (name == "test")])
    write_jsonl(folder / "validation.jsonl", [])
    with pytest.raises(UserError, match="the split validation is empty"):
        read(folder, changed(folder, files={s: f"{s}.jsonl" for s in ("train", "validation", "test")}))


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
    (folder / "own.toml").write_text("x = 1")
    with pytest.raises(UserError, match="declares no task"):
        load_tasks(folder / "own.toml")
    with pytest.raises(UserError, match="there is no task poetry; the tasks are sentiment"):
        find_tasks(["poetry"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "label"', 'kind = "labels"', "kind: there is no 'labels'; did you mean 'label'?"),
        ("prompt =", "promt =", "unknown key promt; did you mean prompt?"),
        ("max_bad_share", "recipe.dropuot = 0.1\nmax_bad_share", "unknown key recipe.dropuot; did you mean dropout?"),
        ("max_bad_share", 'guards = ["macro_f"]\nmax_bad_share', "there is no 'macro_f'; did you mean 'macro_f1'?"),
        ("tfidf_logistic_regression", "tfidf_logistic", "did you mean 'tfidf_logistic_regression'?"),
        ('prompt = "{subject}', 'prompt = "{subject:d}', "only column names stand in braces"),
    ],
)
def test_a_misspelt_name_is_told_the_nearest(folder, old, new, message):
    (folder / "own.toml").write_text(TICKETS.replace(old, new, 1))
    with pytest.raises(UserError, match="task tickets: ") as raised:
        load_tasks(folder / "own.toml")
    assert message in str(raised.value) and "\n" not in str(raised.value)


LABEL = {"kind": "label", "metric": "accuracy"}
ANSWER = {"kind": "answer", "metric": "chrf"}
TEXT = {"kind": "text", "metric": "bits_per_byte", "prompt": "", "loss_on": "everything"}
CHOICE = {"kind": "choice", "metric": "accuracy", "choices": ("{a}", "{b}")}
VISUAL = {"kind": "visual", "metric": "accuracy", "labels": ("a", "b"), "picture": "png"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (LABEL | {"metric": "chrf"}, "metric chrf does not go with kind label; accuracy does"),
        (ANSWER | {"metric": "win_rate"}, "metric win_rate does not go with kind answer"),
        (ANSWER | {"baselines": ("chance",)}, "baseline chance does not go with kind answer"),
        (ANSWER | {"baselines": ("kneser_ney_5_gram",)}, "it goes with metric bits_per_byte"),
        (ANSWER | {"guards": ("macro_f1",)}, "guard macro_f1 does not go with kind answer"),
        (LABEL | {"baselines": ("tfidf_with_threshold",)}, "tfidf_with_threshold needs out_of_scope"),
        (LABEL | {"guards": ("out_of_scope_recall",)}, "out_of_scope_recall needs out_of_scope"),
        (LABEL | {"prompt": "{q.__class__}"}, "only column names stand in braces"),
        (LABEL | {"prompt": ""}, "kind label needs a prompt"),
        (ANSWER | {"target": ""}, "kind answer needs a target"),
        (ANSWER | {"focus": "context"}, "the prompt does not name the column context"),
        (ANSWER | {"labels": ("a", "b")}, "labels has no effect for kind answer"),
        (LABEL | {"references": "all"}, "references has no effect for kind label"),
        (ANSWER | {"recipe": {"num_buckets": 64}}, "recipe.num_buckets has no effect for kind answer"),
        (LABEL | {"recipe": {"trunk_learns": "residual"}}, "no effect without recipe.num_buckets"),
        (ANSWER | {"loss_on": "everything"}, "goes with kind text"),
        (TEXT | {"loss_on": "target"}, 'say loss_on = "everything"'),
        (TEXT | {"baselines": ("majority",)}, "baseline majority does not go with kind text; kneser_ney_5_gram does"),
        (TEXT | {"rows": "passages", "target": "{a}: {b}"}, "target must be that column in braces"),
        (TEXT | {"rows": "passages", "target": "the same"}, "target must be that column in braces"),
        (CHOICE | {"guards": ("chrf",)}, "guard chrf does not go with kind choice"),
        (CHOICE | {"metric": "preference"}, "metric preference is computed for winogender or crows_pairs alone"),
        (CHOICE | {"target": ""}, "kind choice needs a target"),
        (VISUAL | {"metric": "chrf"}, "labels and metric accuracy, or neither and metric chrf"),
        (VISUAL | {"baselines": ("nearest_neighbour",)}, "goes with metric chrf"),
        (VISUAL | {"picture": ""}, "needs picture"),
        (VISUAL | {"recipe": {"dropout": 0.1}}, "recipe has no effect for kind visual"),
    ],
)
def test_what_cannot_be_scored_is_refused_when_it_is_declared(fields, message):
    base = {"name": "own", "files": {"all": "rows.jsonl"}, "prompt": "{q}", "target": "{a}"}
    with pytest.raises(ValueError, match=re.escape(message)):
        Task.model_validate(base | fields)


def test_every_name_of_a_declaration_is_computed_somewhere():
    metrics = {name for scoring in SCORING.values() for name in scoring.metrics}
    baselines = {name for scoring in SCORING.values() for name in scoring.baselines}
    guards = {name for scoring in SCORING.values() for name in scoring.guards}
    assert (metrics, baselines, guards) == (set(get_args(Metric)), set(get_args(Baseline)), set(get_args(Guard)))
    assert guards == set(GUARDS) | set(TEXT_METRICS)
    assert set(SCORING) == set(get_args(Kind))
    assert set(BIAS_PROBES) == {name for name, stage in WHOLE_TASKS.items() if stage is PROBE_BIAS}


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


def test_the_options_of_a_prompt_are_the_choices(tmp_path):
    listed = "Which is wet?\nOptions:\n(A) rain\n(B) flour\n(C) a ledger"
    rows = [
        {"input": listed, "target": "(A)"},
        {"input": "Does it rain?\nOptions:\n- Yes\n- No ", "target": "No"},
        {"input": listed, "target": "(D)"},
        {"input": "Count the drops.", "target": "7"},
    ]
    write_jsonl(tmp_path / "asked.jsonl", rows)
    fields = {"name": "asked", "kind": "choice", "rows": "options", "files": {"test": "asked.jsonl"}}
    task = Task.model_validate(
        fields | {"prompt": "{input}\nAnswer:", "target": "{target}", "metric": "accuracy", "max_bad_share": 0.5}
    )
    figures, items, bad = read(tmp_path, task)
    assert sorted((item["target"], item["labels"]) for item in items) == [
        ("(A)", ["(A)", "(B)", "(C)"]),
        ("No", ["Yes", "No"]),
    ]
    assert [(row["row"], row["reason"]) for row in bad] == [(2, "label_outside_the_set")]
    assert figures["set_aside"] == {"lists no options": 1}
    with pytest.raises(ValueError, match="takes its choices from the prompt"):
        Task.model_validate(task.model_dump() | {"choices": ("a", "b")})


def test_every_declared_task_is_whole():
    names = {"sentiment", "topic", "intent", "customer_service", "dialogue", "extractive_qa", "generative_qa"}
    names |= {"summarisation", "translation", "story", "instruction", "preference", "blimp", "piqa", "xcopa", "bbh"}
    names |= {"winogender", "crows_pairs", "dialogue_zh", "extractive_qa_zh", "arithmetic_qa", "sentiment_goemotions"}
    tasks = declared_tasks()
    assert names <= set(tasks)
    for task in tasks.values():
        assert task.licence and task.source and task.metric
        assert task.hub, f"{task.name} names no public data set"


def test_a_parquet_file_reads_like_jsonl(folder):
    pq.write_table(pa.Table.from_pylist([tickets(number) for number in range(90)]), folder / "tickets.parquet")
    same = read(folder, changed(folder, files={"all": "tickets.parquet"}))[1]
    assert same == read(folder, changed(folder))[1]


def test_skimming_reads_the_beginning_of_a_file_and_then_one_row_in_16(folder):
    write_jsonl(folder / "tickets.jsonl", [tickets(number) for number in range(512)])
    statistics, rows, _ = read(folder, changed(folder), skim=True)
    numbers = {int(row["prompt"].split()[1].rstrip(":")) for row in rows}
    assert numbers == {*range(256), *range(256, 512, 16)}
    assert sum(statistics["items_before_the_cap"].values()) == 272
