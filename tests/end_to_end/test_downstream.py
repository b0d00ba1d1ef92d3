"""Declared tasks from the command line: evaluate, a mixture, the ablation table; each leaves what it says."""

import json

import pytest

pytestmark = [pytest.mark.server, pytest.mark.slow]

TASKS = """
[[task]]
name = "own_topic"
kind = "label"
files = { all = "rows.jsonl" }
prompt = "Read the {noun} {number}"
target = "{package}"
metric = "accuracy"
guards = ["macro_f1", "calibration_error"]
baselines = ["majority", "tfidf_logistic_regression"]
max_train_items = 64

[[task]]
name = "own_reply"
kind = "answer"
files = { all = "rows.jsonl" }
prompt = "What of the {noun} {number}?"
target = "Read the {noun}."
metric = "chrf"
baselines = ["copy", "nearest_neighbour"]
max_new_tokens = 8
"""
GAIN = {"mean", "low", "high"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own_tasks")
    nouns = {"milling": "grain", "weather": "rain", "ledger": "invoice"}
    rows = [{"number": i, "package": p, "noun": n} for i in range(60) for p, n in nouns.items()]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.toml").write_text(TASKS)
    return folder


@pytest.fixture(scope="module")
def own(millrace, smoke_run, folder):
    def run(*arguments, **settings):
        files = ("--data", str(folder), "--tasks-file", str(folder / "own.toml"))
        done = millrace(*arguments, *files, "--json", **settings)
        assert done.code == 0, done.stderr[-3000:]
        assert len(done.stdout.strip().splitlines()) == 1
        return done.json

    return run


def test_evaluate_gives_the_scores_and_registers_each_fine_tune(own, millrace):
    card = own("evaluate", "millrace-smoke", "own_topic", "own_reply", MILLRACE_SIDE_BY_SIDE="2")
    for name, scores in card["downstream"].items():
        assert scores["low"] <= scores["score"] <= scores["high"] and scores["items"] > 5, name
        assert set(scores["gain_over_random_weights"]) == GAIN and "random_weights" in scores["baselines"]
    assert set(card["gains_adjusted_for_many_tasks"]) == {"own_topic", "own_reply"}
    assert card["registered"] == {"millrace-smoke-own_topic": "1", "millrace-smoke-own_reply": "1"}
    again = own("evaluate", "millrace-smoke", "own_topic", "own_reply")
    assert {stage["state"] for stage in again["stages"]} == {"Cached"}
    assert "millrace-smoke-own_topic" in millrace("models").stdout
    as_it_is = own("evaluate", "millrace-smoke-own_topic", "own_topic")
    assert as_it_is["downstream"]["own_topic"] == card["downstream"]["own_topic"] and not as_it_is["registered"]
    states = {stage["name"]: stage["state"] for stage in as_it_is["stages"]}
    assert {states[name] for name in states if name.startswith(("finetune", "evaluate"))} == {"Cached"}


@pytest.mark.exhaustive
def test_declared_tasks_fan_out_within_the_pipeline(millrace, smoke_run, folder):
    declared = {"data": str(folder), "tasks_file": str(folder / "own.toml"), "tasks": '["own_topic","own_reply"]'}
    settings = [part for name, value in declared.items() for part in ("--set", f"declared.{name}={value}")]
    planned = millrace("plan", "--preset", "smoke", *settings, "--json")
    assert "evaluate own_reply" in {stage["name"] for stage in planned.json["stages"]}
    done = millrace("run", "--preset", "smoke", *settings, "--json", MILLRACE_SIDE_BY_SIDE="2")
    assert done.code == 0, done.stderr[-3000:]
    card = done.json
    assert {"own_topic", "own_reply"} <= set(card["downstream"])
    states = {stage["name"]: stage["state"] for stage in card["stages"]}
    assert states["pretrain"] == "Cached" and states["evaluate own_topic"] == "Completed"
    listed = {model["model"]: model["aliases"] for model in millrace("models", "--json").json["models"]}
    assert "champion" in listed["millrace-smoke-own_topic"]


@pytest.mark.exhaustive
def test_all_takes_every_task_whose_data_are_there(own):
    card = own("evaluate", "millrace-smoke", "--all", "--smoke")
    assert set(card["downstream"]) == {"own_topic", "own_reply"} and not card["registered"]
    assert card["left_out"]["sentiment"].startswith("misses finetune/sentiment_sst2")


@pytest.mark.exhaustive
def test_several_tasks_make_one_model(own):
    card = own("finetune", "own_topic", "own_reply", "--base", "millrace-smoke", "--smoke")
    assert set(card["downstream"]) == {"own_topic", "own_reply"}
    assert sum("random weights" in stage["name"] for stage in card["stages"]) == 1


@pytest.mark.exhaustive
def test_the_ablation_table_has_every_variant(own):
    card = own("ablate", "own_topic", "--base", "millrace-smoke", "--smoke", "--set", "finetune.num_buckets=64")
    variants = card["ablation"]["own_topic"]["variants"]
    wanted = {"plain", "without_pretraining", "dropout", "l1", "l2", "label_smoothing", "tokens_swapped",
              "tokens_left_out", "ensemble", "averaged_members", "moving_average", "early_stopping", "frozen_trunk",
              "low_rank", "gradual_unfreezing", "replay", "max_pooling", "without_subwords"}  # fmt: skip
    assert set(variants) == wanted
    assert all(set(row["gain_over_plain"]) == GAIN for name, row in variants.items() if name != "plain")
