"""A declared task from its file to its scores, on the tiny world's base."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lm_core.artifact import Checkpoint, DownstreamData
from lm_core.downstream.config import EvaluateTaskConfig, FinetuneConfig, ReadTaskConfig
from lm_core.downstream.finetune import finetune
from lm_core.downstream.read_task import read_task
from lm_core.downstream.task import OutOfScope, Task
from lm_core.errors import UserError
from lm_core.evaluation import baselines
from lm_core.evaluation.downstream import evaluate_task
from lm_core.evaluation.guards import guard_figures
from lm_core.evaluation.outcome import Data, Outcome, Scheme
from lm_core.evaluation.recompute import scores_by_sql, scores_from_answers
from lm_core.training.config import OptimizationConfig
from tests.evaluation.recounted import counted_again, figures_of_answers

OPTIMIZATION = OptimizationConfig(batch_tokens=1024, micro_batch_tokens=1024, warmup_fraction=0.1)
NOUNS = {"milling": "grain", "weather": "rain", "ledger": "invoice"}


def declared(kind: str) -> Task:
    fields = {
        "label": {"target": "{package}", "metric": "accuracy", "guards": ("macro_f1", "out_of_scope_recall"),
                  "baselines": ("majority", "tfidf_logistic_regression", "tfidf_with_threshold"),
                  "out_of_scope": OutOfScope(files=dict.fromkeys(("train", "validation", "test"), "other.jsonl"),
                                             prompt="{text}", share=0.2), "max_leak_share": 1.0},
        "answer": {"target": "Read the {noun}.", "metric": "chrf", "language": "en-fr",
                   "guards": ("chrf_corpus", "bleu", "bits_per_byte", "copy_rate"),
                   "baselines": ("copy", "nearest_neighbour", "dictionary")},
        "text": {"prompt": "", "target": "The {noun} of the {package} is taken as it stands, number {number}.",
                 "metric": "bits_per_byte", "guards": ("distinct_2", "repetition", "memorised_spans"),
                 "baselines": ("kneser_ney_5_gram",), "loss_on": "everything"},
    }[kind]  # fmt: skip
    base = {
        "name": f"own_{kind}",
        "kind": kind,
        "files": {"all": "rows.jsonl"},
        "prompt": "Read number {number} {noun}",
    }
    return Task.model_validate(base | fields | {"max_new_tokens": 12})


def write_data(folder):
    rows = [{"number": i, "package": p, "noun": n} for i in range(40) for p, n in NOUNS.items()]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "other.jsonl").write_text("".join(json.dumps({"text": f"a poem on {i} roses"}) + "\n" for i in range(90)))


@pytest.fixture(scope="module")
def scored(world, tmp_path_factory):
    """(kind) -> folder and scores of a declared task, made once."""
    folder = tmp_path_factory.mktemp("own_tasks")
    write_data(folder)
    made = {}

    def score(kind):
        if kind in made:
            return made[kind]
        task = declared(kind)
        read = world.build(f"read_{kind}")
        examples = DownstreamData(
            read.folder, "read_task", "x", "e", read_task(read, ReadTaskConfig(task=task, data=str(folder)))
        )
        models = []
        for from_random in (False, True):
            build = world.build(f"tune_{kind}_{from_random}")
            config = FinetuneConfig(
                task=task.name, from_random=from_random, loss_on=task.loss_on, num_epochs=3, optimization=OPTIMIZATION
            )
            finetune(build, config, base=world.base, examples=examples)
            models.append(Checkpoint(build.folder, "finetune", "x", kind))
        build = world.build(f"score_{kind}")
        config = EvaluateTaskConfig(task=task.name, declared=task, max_new_tokens=12, num_resamples=200)
        scores = evaluate_task(build, config, finetuned=models[0], from_random=models[1], examples=examples)
        made[kind] = pq.read_table(build.folder / "predictions.parquet").to_pylist(), scores
        return made[kind]

    return score


@pytest.mark.parametrize("kind", ["label", "answer", "text"])
def test_every_score_can_be_recomputed(world, scored, kind):
    _, scores = scored(kind)
    path = world.root / "artifacts" / f"score_{kind}" / "x" / "predictions.parquet"
    reported = {"model": scores["score"], **scores["baselines"]}
    assert scores_by_sql(path, scores["metric"]) == pytest.approx(reported, abs=1e-4)
    if kind == "text":
        with pytest.raises(UserError, match="take scores_by_sql"):
            scores_from_answers(path, scores["metric"])
    else:
        assert scores_from_answers(path, scores["metric"]) == pytest.approx(reported, abs=1e-4)


@pytest.mark.parametrize("kind", ["label", "answer", "text"])
def test_every_figure_can_be_counted_again_from_the_answers(world, scored, kind):
    scored(kind)
    folder = world.root / "artifacts" / f"score_{kind}" / "x"
    config = EvaluateTaskConfig(task=f"own_{kind}", declared=declared(kind), max_new_tokens=12, num_resamples=200)
    rows = pq.read_table(world.root / "artifacts" / f"read_{kind}" / "x" / "examples.parquet").to_pylist()
    train = [row for row in rows if row["split"] == "train"]
    reported = figures_of_answers(folder)
    assert counted_again(folder, config, train) == reported
    assert reported["gain_over_random_weights"].keys() == {"mean", "low", "high"} and reported["secondary"]["model"]


def test_a_changed_answer_changes_the_figures(world, scored, tmp_path):
    scored("label")
    folder = world.root / "artifacts" / "score_label" / "x"
    config = EvaluateTaskConfig(task="own_label", declared=declared("label"), max_new_tokens=12, num_resamples=200)
    table = pq.read_table(folder / "predictions.parquet")
    rows = table.to_pylist()
    changed = next(row for row in rows if row["system"] == "model" and row["prediction"] == row["target"])
    changed["prediction"] = "no such label"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), tmp_path / "predictions.parquet")
    again, reported = counted_again(tmp_path, config), figures_of_answers(folder)
    for figure in ("score", "low", "gain_over_random_weights", "secondary_intervals"):
        assert again[figure] != reported[figure], figure


def test_named_figures_have_intervals(scored):
    scores = scored("label")[1]
    assert set(scores["secondary_intervals"]) == {"macro_f1", "out_of_scope_recall"}
    for name, interval in scores["secondary_intervals"].items():
        assert interval["score"] == scores["secondary"]["model"][name]
        assert interval["low"] <= interval["score"] <= interval["high"]


def test_out_of_scope_is_an_answer(scored):
    rows, scores = scored("label")
    own = [r for r in rows if r["system"] == "model"]
    outside = [r["prediction"] == "out_of_scope" for r in own if r["target"] == "out_of_scope"]
    assert outside and scores["secondary"]["model"]["out_of_scope_recall"] == pytest.approx(np.mean(outside), abs=1e-4)
    assert "tfidf_with_threshold" in scores["baselines"]


def test_of_bits_less_is_better(scored):
    rows, scores = scored("text")
    own = [r for r in rows if r["system"] == "model"]
    assert sum(r["bits"] for r in own) / sum(r["num_bytes"] for r in own) == pytest.approx(scores["score"], abs=1e-4)
    gain = scores["gain_over_random_weights"]
    assert scores["better"] == "lower" and gain["low"] > 0
    assert scores["baselines"]["random_weights"] - scores["score"] == pytest.approx(gain["mean"], abs=1e-3)
    assert scores["best_classical_baseline"].startswith("kneser_ney_")


def test_a_corpus_score_carries_its_signature(scored):
    scores = scored("answer")[1]
    assert all("version:" in signature for signature in scores["signatures"].values()) and scores["signatures"]


def test_figures_beside_the_score():
    test = [
        {"prompt": "User: a\nAgent: Ok.\nUser: b", "target": "At 5 pm in London.", "references": None},
        {"prompt": "Use ``x`` at 5 pm", "target": "yes 7", "references": None},
    ]
    outcome = Outcome(["Ok.", "at 5 pm"])
    guards = ("repeats_itself", "copy_rate", "placeholder_fidelity", "faithful_numbers_and_names", "slot_f1")
    figures = guard_figures(Data([], [], test), outcome, Scheme("chrf", guards, (), 8))
    assert figures == {
        "repeats_itself": 0.5,
        "copy_rate": 1.0,
        "placeholder_fidelity": 0.5,
        "faithful_numbers_and_names": 1.0,
        "slot_f1": 0.0,
    }


def test_baselines_of_text():
    assert baselines.copy(["User: one\nAgent: two\nUser: three"]) == ["three"]
    assert baselines.best_overlap_sentence(["Where is the mill?\nRain fell. The mill is by the river."]) == [
        "The mill is by the river."
    ]
    train = [("red apple", "food"), ("green apple", "food"), ("blue sky", "air"), ("grey sky", "air")]
    held_out = [("red apple", "food"), ("blue sky", "air"), ("old stone", "none"), ("iron door", "none")]
    assert baselines.tfidf_with_threshold(train, held_out, ["apple", "sky", "wood"], "none") == ["food", "air", "none"]
