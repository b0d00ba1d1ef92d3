"""The stage `validate`: every document has one fate, and every rule catches the row made to break it."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_contracts.contract import BUILT_IN
from data_contracts.schemas import SPANS
from lm_core.artifact import Checkpoint, TokenDataset, ValidCorpus
from lm_core.corpus import ledger
from lm_core.corpus.ledger import fate_counts, kept_documents, kept_examples
from lm_core.corpus.ledger_config import ValidateConfig
from lm_core.corpus.story import explain
from lm_core.downstream.config import ReadTaskConfig
from lm_core.downstream.task import Task
from lm_core.errors import IntegrityError, UserError
from lm_core.exposure import TrainingOrder
from lm_core.runtime import Runtime
from lm_core.stages import READ_TASK, TOKENIZE, VALIDATE
from lm_core.store import Build, Store
from lm_core.tokens import window_order
from tasks.acceptance import accept, contract_report
from tasks.gates import check_tables, gated
from tasks.validation import RESULTS
from tests.corpus.tiny_ledger import IDS, TEXTS, decision, document, example, hex_id, tables, write

# VALIDATE.version -> digest of the fates; the contracts themselves count as an input of the stage.
GOLDEN = {3: "d58fc9d0ed72d25f"}


def build(workspace: Path, rows=None, config: ValidateConfig | None = None) -> tuple[ValidCorpus, object]:
    runtime, inputs = write(workspace, rows or tables())
    artifact, _ = Store(runtime).build(VALIDATE, config or ValidateConfig(), inputs)
    return artifact, runtime


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def test_every_document_has_the_fate_its_story_says(tmp_path):
    corpus, runtime = build(tmp_path)
    fates = {row["key"]: (row["fate"], row["stage"], row["split"]) for row in pq.read_table(corpus.file("fates.parquet")).to_pylist()}  # fmt: skip # noqa: E501
    assert fates == {
        "kept": ("kept", None, "train"),
        "copied": ("kept", None, "train"),
        "copy": ("near_duplicate", "deduplicate", None),
        "poor": ("quality", "clean", None),
        "leaked": ("contaminated", "decontaminate", None),
        "held_out": ("kept", None, "test"),
        "watched": ("kept", None, "validation"),
        "torn": ("quarantined", "collect", None),
    }
    counts = fate_counts(corpus, runtime=runtime)
    assert counts["collected"] == 8 == sum(counts["fates"].values())
    assert counts["by_source"]["pages"]["kept"] == counts["kept"] == 4
    assert {key: corpus.statistics[key] for key in counts} == counts


def test_kept_documents_come_in_the_order_of_their_id_and_of_the_splits_asked_for(tmp_path):
    corpus, runtime = build(tmp_path)
    rows = [r for b in kept_documents(corpus, splits=["train"], runtime=runtime, batch_rows=1) for r in b.to_pylist()]
    assert [row["doc_id"] for row in rows] == sorted([IDS["kept"], IDS["copied"]])
    # What cleaning found to be personal gives way to a placeholder.
    assert {row["text"] for row in rows} == {TEXTS["kept"].replace("kept", "[PHONE]", 1), TEXTS["copied"]}


def test_the_first_stage_that_drops_a_document_decides(tmp_path):
    rows = tables()
    rows["deduplicate"]["decisions"].append(decision("poor", "deduplicate", "exact_duplicate", "same", IDS["kept"]))
    corpus, _ = build(tmp_path, rows)
    poor = {r["key"]: r for r in pq.read_table(corpus.file("fates.parquet")).to_pylist()}["poor"]
    assert (poor["fate"], poor["stage"]) == ("quality", "clean")


def test_a_leaked_prompt_is_put_aside_and_never_trained_on(tmp_path):
    rows = tables()
    leak = example("kept", "train", "what is held out?")
    rows["prepare"]["examples"].append(leak)
    corpus, runtime = build(tmp_path, rows)
    aside = pq.read_table(corpus.file("quarantine.parquet")).to_pylist()
    assert [(row["row_key"], row["rule"]) for row in aside] == [(leak["item_id"], "no_train_prompt_in_evaluation")]
    assert json.loads(aside[0]["row"])["prompt"] == "what is held out?"
    left = kept_examples(corpus, runtime=runtime).to_pylist()
    assert len(left) == len(rows["prepare"]["examples"]) - 1
    assert leak["item_id"] not in {row["item_id"] for row in left}
    results = json.loads(corpus.file(RESULTS).read_text())["examples"]
    assert results["rows_in"] == results["rows_passed"] + results["rows_quarantined"]


def test_examples_of_dropped_documents_are_left_out(tmp_path):
    rows = tables()
    rows["prepare"]["examples"].append(example("leaked", "train", "of a contaminated document"))
    corpus, runtime = build(tmp_path, rows)
    assert IDS["leaked"] not in {row["doc_id"] for row in kept_examples(corpus, runtime=runtime).to_pylist()}


def test_a_document_put_aside_by_a_contract_has_the_fate_quarantined(tmp_path):
    rows = tables()
    extra = [document(f"page {n}", f"an ordinary page, number {n}") for n in range(40)]
    nul = document("nul", "a text with a \x00 in it")
    rows["collect"]["documents-00000"] += [*extra, nul]
    rows["deduplicate"]["splits"] += [
        {"doc_id": row["doc_id"], "cluster": row["doc_id"], "split": "train"} for row in [*extra, nul]
    ]
    corpus, _ = build(tmp_path, rows)
    fate = {row["key"]: row for row in pq.read_table(corpus.file("fates.parquet")).to_pylist()}["nul"]
    assert (fate["fate"], fate["stage"], fate["reason"], fate["split"]) == (
        "quarantined",
        "validate",
        "text_without_nul",
        None,
    )


def _cut(name, kind="repeated", start=0, length=5):
    def broken(rows):
        rows["deduplicate"]["cuts"] = [{"doc_id": IDS[name], "kind": kind, "start": start, "length": length}]

    return broken


def _without_split(rows):
    rows["deduplicate"]["splits"].pop(0)


def _forged_id(rows):
    rows["collect"]["documents-00000"][0]["doc_id"] = "0" * 32


def _same_place(rows):
    rows["collect"]["documents-00000"].append(document("kept", "another text under the same key"))


def _wrong_length(rows):
    rows["collect"]["documents-00000"][0]["num_bytes"] += 1


def _unknown_kind(rows):
    rows["collect"]["documents-00000"][0]["kind"] = "poem"


def _unknown_document(rows):
    rows["clean"]["decisions"].append({**decision("poor", "clean", "quality", "x"), "doc_id": "1" * 32})


def _dropped_into_kept(rows):
    rows["clean"]["decisions"].append(decision("kept", "clean", "kept", "x"))


def _no_keeper(rows):
    rows["deduplicate"]["decisions"][0]["keeper"] = None


def _unverified(rows):
    rows["deduplicate"]["decisions"][0]["figure"] = None


def _keeper_dropped(rows):
    rows["deduplicate"]["decisions"].append(
        decision("kept", "deduplicate", "near_duplicate", "jaccard", IDS["copy"], 0.9)
    )


def _straddling(rows):
    rows["deduplicate"]["splits"][0]["cluster"] = rows["deduplicate"]["splits"][-1]["cluster"]


def _unknown_split(rows):
    rows["deduplicate"]["splits"][0]["split"] = "dev"


def _two_fates(rows):
    rows["collect"]["rejected"][0]["doc_id"] = IDS["kept"]


def _wrong_split(rows):
    rows["prepare"]["examples"].append(example("kept", "test", "in the wrong split"))


def _no_such_label(rows):
    rows["prepare"]["examples"].append(example("kept", "train", "which?", "topic") | {"labels": ["a", "b"]})


def _same_item(rows):
    rows["prepare"]["examples"].append(dict(rows["prepare"]["examples"][0]))


@pytest.mark.parametrize(
    ("spoil", "table", "rule"),
    [
        (_without_split, "fates", "kept_has_split"),
        (_forged_id, "documents", "doc_id_of_content"),
        (_same_place, "documents", "place_unique"),
        (_wrong_length, "documents", "num_bytes_true"),
        (_unknown_kind, "documents", "kind_known"),
        (_unknown_document, "decisions", "document_known"),
        (_dropped_into_kept, "decisions", "fate_known"),
        (_no_keeper, "decisions", "duplicate_has_keeper"),
        (_unverified, "decisions", "near_duplicate_is_verified"),
        (_keeper_dropped, "decisions", "keeper_is_not_dropped_as_duplicate"),
        (_straddling, "splits", "cluster_in_one_split"),
        (_unknown_split, "splits", "split_known"),
        (_two_fates, "fates", "doc_id_unique"),
        (_wrong_split, "examples", "split_is_the_documents"),
        (_no_such_label, "examples", "target_in_labels"),
        (_same_item, "examples", "item_id_unique"),
        (_cut("copied", kind="email"), "cuts", "kind_known"),
        (_cut("copy"), "cuts", "document_survived"),
        (_cut("copied", start=100), "cuts", "place_within_text"),
        (_cut("copied", length=20), "cuts", "at_most_half_is_cut"),
    ],
)
def test_a_broken_promise_stops_the_run_in_one_line(tmp_path, spoil, table, rule):
    rows = tables()
    spoil(rows)
    with pytest.raises(IntegrityError, match=f"{table}.{rule}|more rules") as caught:
        build(tmp_path, rows)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "artifacts").glob("validate/*/manifest.json"))


def test_a_source_that_is_wiped_out_stops_the_run_and_shows_its_clusters(tmp_path):
    rows = tables()
    copies = [document(f"copy {n}", f"the same page again {n}", "stubs") for n in range(300)]
    rows["collect"]["documents-00000"] += copies
    rows["deduplicate"]["splits"].append({"doc_id": copies[0]["doc_id"], "cluster": copies[0]["doc_id"], "split": "train"})  # fmt: skip # noqa: E501
    rows["deduplicate"]["decisions"] += [
        {
            **decision("kept", "deduplicate", "near_duplicate", "jaccard", copies[0]["doc_id"], 0.9),
            "doc_id": c["doc_id"],
        }
        for c in copies[1:]
    ]
    with pytest.raises(IntegrityError, match="299 copies of stubs/copy 0"):
        build(tmp_path, rows)


@pytest.mark.parametrize(("num_documents", "words"), [(0, "corpus is empty"), (1, "single document")])
def test_a_corpus_without_documents_is_refused(tmp_path, num_documents, words):
    rows = tables()
    rows["collect"]["documents-00000"] = rows["collect"]["documents-00000"][:num_documents]
    with pytest.raises(UserError, match=words):
        build(tmp_path, rows)


def test_a_corpus_without_training_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="min_train_documents"):
        build(tmp_path, config=ValidateConfig(min_train_documents=3))


def test_a_corpus_without_held_out_text_is_refused(tmp_path):
    rows = tables()
    for row in rows["deduplicate"]["splits"] + rows["prepare"]["examples"]:
        row["split"] = "train"
    with pytest.raises(UserError, match="to measure on"):
        build(tmp_path, rows)


def test_an_edited_contract_runs_the_gate_again(tmp_path):
    own = tmp_path / "contracts"
    own.mkdir()
    (own / "documents.yaml").write_text(
        (BUILT_IN / "documents.yaml").read_text().replace("maximum: 64000000", "maximum: 8")
    )
    with pytest.raises(IntegrityError, match="text_not_endless"):
        build(tmp_path / "workspace", config=ValidateConfig(contracts_folder=str(own)))


@pytest.mark.parametrize("folder", ["missing", "own"])
def test_a_folder_that_holds_no_contracts_of_ours_is_refused(tmp_path, folder):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "weather.yaml").write_text("name: weather")
    with pytest.raises(UserError):
        build(tmp_path / "workspace", config=ValidateConfig(contracts_folder=str(tmp_path / folder)))


def test_threads_do_not_change_the_bytes(tmp_path):
    first, runtime = build(tmp_path / "one")
    _, inputs = write(tmp_path / "four", tables())
    four = type(runtime)(workspace=tmp_path / "four", num_threads=4)
    second, _ = Store(four).build(VALIDATE, ValidateConfig(), inputs)
    assert first.content_digest == second.content_digest


def test_golden_values(tmp_path):
    corpus, _ = build(tmp_path)
    found = digest(pq.read_table(corpus.file("fates.parquet")).to_pylist())
    assert GOLDEN.get(VALIDATE.version) == found, (
        f"the fates moved: raise VALIDATE's version in lm_core/stages.py and put {found!r} into GOLDEN under it"
    )


def test_a_story_tells_what_is_cut(tmp_path):
    rows = tables()
    _cut("copied", start=2, length=8)(rows)
    corpus, runtime = build(tmp_path, rows)
    (story,) = explain(corpus, runtime=runtime, doc_id=IDS["copied"])
    assert story["cuts"] == [{"kind": "repeated", "start": 2, "length": 8, "excerpt": "document"}]


def test_a_story_tells_where_a_document_came_from_and_what_became_of_it(tmp_path):
    corpus, runtime = build(tmp_path)
    (copy,) = explain(corpus, runtime=runtime, doc_id=IDS["copy"][:8])
    assert (copy["fate"], copy["kept_instead"]["key"], copy["figure"]) == ("near_duplicate", "copied", 0.9)
    (kept,) = explain(corpus, runtime=runtime, doc_id=IDS["copied"])
    assert kept["split"] == "train" and [c["key"] for c in kept["copies"]] == ["copy"]
    (found,) = explain(corpus, runtime=runtime, text="holds a test item")
    assert found["decisions"][0] == {
        "stage": "decontaminate",
        "fate": "contaminated",
        "reason": "summary",
        "keeper": hex_id("held_out"),
        "figure": 0.8,
    }
    (torn,) = explain(corpus, runtime=runtime, doc_id=hex_id("pages", "torn"))
    assert (torn["reason"], torn["detail"]) == ("not_utf8", "byte 7")
    json.dumps([copy, kept, found, torn])


@pytest.mark.parametrize("asked", [{"doc_id": "zz"}, {"doc_id": "0" * 32}, {"text": "nobody wrote this"}, {}])
def test_a_story_of_nothing_is_refused(tmp_path, asked):
    corpus, runtime = build(tmp_path)
    with pytest.raises(UserError):
        explain(corpus, runtime=runtime, **asked)


def tokenized(tmp_path, spans, corpus):
    """A token data set with these spans, as the stage would leave it, through the gate behind it."""
    folder = tmp_path / "artifacts" / "tokenize" / "f"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(spans, schema=SPANS), folder / "spans.parquet")
    check_tables(Build(folder, folder, Runtime(workspace=tmp_path, num_threads=1)), {"corpus": corpus})
    return TokenDataset(folder=folder, stage="tokenize", fingerprint="f", content_digest="t")


def spans_of(name):
    return [
        {"doc_id": IDS[name], "split": "train", "window": w, "offset": 0, "start": 8 * w, "num_tokens": 8}
        for w in (0, 1)
    ]


def test_a_story_ends_in_the_training_windows(tmp_path):
    corpus, runtime = build(tmp_path)
    tokens = tokenized(tmp_path, spans_of("kept"), corpus)
    (story,) = explain(corpus, runtime=runtime, doc_id=IDS["kept"], tokens=tokens)
    assert (story["training"][0]["windows"], story["training"][0]["tokens"]) == (2, 16)


def test_a_story_names_the_training_steps_and_sql_finds_the_same(tmp_path):
    corpus, runtime = build(tmp_path)
    spans = spans_of("kept")
    spans += [{**spans[0], "doc_id": IDS["copied"], "window": 2}]
    tokens = tokenized(tmp_path, spans, corpus)
    tokens.file("dataset.json").write_text(json.dumps({"splits": {"train": {"windows": 7}}}))
    folder = tmp_path / "artifacts" / "pretrain" / "f"
    folder.mkdir(parents=True)
    training = {"config": {"optimization": {"seed": 3}}, "num_steps": 9, "rows_per_step": 2}
    (folder / "training.json").write_text(json.dumps(training))
    order = TrainingOrder.of(Checkpoint(folder, "pretrain", "f", "c"), tokens)
    read = [window_order(3, step, 2, 7).tolist() for step in range(9)]
    truth = [step for step, windows in enumerate(read) for window in windows if window in (0, 1)]
    (story,) = explain(corpus, runtime=runtime, doc_id=IDS["kept"], tokens=tokens, order=order)
    assert story["steps"] == truth and len(truth) > 3
    assert order.write(tmp_path / "steps.parquet") == 18
    with duckdb.connect() as connection:
        found = connection.execute(
            f"""SELECT step FROM '{tmp_path}/steps.parquet' JOIN '{tokens.file("spans.parquet")}' USING ("window")
                WHERE doc_id = '{IDS["kept"]}' ORDER BY step"""
        ).fetchall()
    assert [step for (step,) in found] == truth


def test_the_sql_that_the_documentation_shows_runs_as_it_stands(tmp_path):
    rows = tables()
    rows["deduplicate"]["edges"] = [
        {"doc_id": IDS["copy"], "keeper": IDS["copied"], "jaccard": 0.9, "containment": 0.95, "reason": "jaccard"}
    ]
    corpus, _ = build(tmp_path, rows)
    tokens = tokenized(tmp_path, spans_of("kept"), corpus)
    tokens.file("dataset.json").write_text(json.dumps({"splits": {"train": {"windows": 2}}}))
    TrainingOrder(seed=0, rows_per_step=1, num_steps=4, num_windows=2).write(tmp_path / "steps.parquet")
    shown = re.findall(r"```sql\n(.*?)```", (Path(__file__).parents[2] / "README.md").read_text(), re.DOTALL)
    shown += [part for part in re.split(r"\n\n", ledger.__doc__) if part.lstrip().startswith("SELECT")]
    queries = [query.strip() for part in shown for query in part.split(";") if query.strip()]
    assert len(queries) >= 4
    with duckdb.connect() as connection:
        for query in queries:
            here = query.replace("'workspace/", f"'{tmp_path}/").replace(
                "'steps.parquet'", f"'{tmp_path}/steps.parquet'"
            )
            found = connection.execute(here.replace("'...'", f"'{IDS['kept']}'")).fetchall()
            assert found, query


def test_the_command_tells_the_story_in_order():
    from flows.commands.corpus import _told

    decided = {"stage": "deduplicate", "fate": "near_duplicate", "reason": "jaccard"}
    story = {
        "source": "pages", "key": "copy", "doc_id": "ab" * 16, "num_bytes": 1200, "title": "A Page",
        "licence": "CC0-1.0", "excerpt": "a  text\nof words", **decided, "split": None,
        "decisions": [{**decided, "figure": 0.91}],
        "kept_instead": {"source": "pages", "key": "copied", "doc_id": "cd" * 16, "fate": "kept"}, "copies": [],
        "redactions": [{"kind": "email", "places": 2}], "keeper": "cd" * 16,
        "cuts": [{"kind": "repeated", "start": 3, "length": 210, "excerpt": "a notice\nthat all have"}],
        "training": [{"tokens": 300, "windows": 2, "split": "train"}], "steps": [4, 9], "num_steps": 20,
    }  # fmt: skip
    text = "\n".join(_told(story))
    words = ["pages: copy", "A Page; CC0-1.0", "a text of words", "near duplicate by jaccard (0.91)", "pages: copied",
             "2 email", "repeated, 210 characters: a notice",
             "fate", "300 in 2 windows", "read 2 times in 20 steps: 4, 9"]  # fmt: skip
    places = [text.index(word) for word in words]
    assert places == sorted(places)


def test_spans_of_a_dropped_document_stop_the_run(tmp_path):
    corpus, _ = build(tmp_path)
    with pytest.raises(IntegrityError, match="document_kept"):
        tokenized(tmp_path, spans_of("leaked"), corpus)


def test_a_stage_beyond_the_corpus_goes_through_the_gate_and_keeps_its_identity(tmp_path):
    assert gated(VALIDATE) is VALIDATE
    assert (gated(TOKENIZE).name, gated(TOKENIZE).version) == (TOKENIZE.name, TOKENIZE.version)
    task = Task(name="tickets", kind="label", files={"all": "t.jsonl"}, prompt="{text}", target="{queue}",
                metric="accuracy", source="made up")  # fmt: skip
    config = ReadTaskConfig(task=task, data=str(tmp_path))
    rows = [{"text": f"ticket {n}", "queue": ("new", "old")[n % 2]} for n in range(80)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "[]\n")
    artifact, _ = Store(Runtime(workspace=tmp_path / "w", num_threads=1)).build(gated(READ_TASK), config, {})
    results = json.loads(artifact.file(RESULTS).read_text())
    assert {name: result["rows_in"] for name, result in results.items()} == {"bad_rows": 1, "examples": 80}
    assert all(rule["status"] == "passed" for result in results.values() for rule in result["rules"])


def test_a_run_is_measured_against_the_last_accepted_one(tmp_path):
    rows = tables()
    rows["collect"]["documents-00000"] += [document(f"page {n}", f"a page of words, number {n}") for n in range(200)]
    rows["clean"]["decisions"] += [
        {"doc_id": row["doc_id"], "stage": "clean", "fate": "quality", "reason": "short", "keeper": None, "figure": 1.0}
        for row in rows["collect"]["documents-00000"][-200:]
    ]
    first, runtime = build(tmp_path, rows)
    assert accept(first, runtime) == []
    for row in rows["collect"]["documents-00000"][-150:]:
        old, row["text"] = row["doc_id"], row["text"] * 9
        row["doc_id"], row["num_bytes"] = hex_id(row["source"], row["key"], row["text"]), len(row["text"])
        for decision_ in rows["clean"]["decisions"]:
            decision_["doc_id"] = row["doc_id"] if decision_["doc_id"] == old else decision_["doc_id"]
    shutil.rmtree(tmp_path / "artifacts" / "collect")
    for name in ("clean", "deduplicate", "prepare", "decontaminate"):
        shutil.rmtree(tmp_path / "artifacts" / name)
    runtime, inputs = write(tmp_path, rows)
    own = tmp_path / "own"
    own.mkdir()
    strict = (BUILT_IN / "documents.yaml").read_text() + "drift: {mustBeLessOrEqualTo: 25, severity: critical}\n"
    (own / "documents.yaml").write_text(strict)
    config = ValidateConfig(contracts_folder=str(own))
    second, _ = Store(runtime).build(VALIDATE, config, inputs)
    with pytest.raises(IntegrityError, match="documents: num_bytes, mean was") as caught:
        accept(second, runtime)
    assert "accept_drift" in str(caught.value)
    moved = accept(second, runtime, any_drift=True)
    assert {item.figure for item in moved if item.severity == "critical"} >= {"num_bytes, mean", "text, mean bytes"}
    assert accept(second, runtime) == []
    report = contract_report(second, moved)
    assert "num_bytes, mean" in report.markdown and "num_bytes, mean" in report.html
    assert contract_report(inputs["corpus"]) is None


def test_a_contract_that_the_gate_of_the_corpus_does_not_hold_cannot_be_replaced(tmp_path):
    (tmp_path / "spans.yaml").write_text((BUILT_IN / "spans.yaml").read_text())
    with pytest.raises(UserError, match="spans"):
        build(tmp_path / "workspace", config=ValidateConfig(contracts_folder=str(tmp_path)))
