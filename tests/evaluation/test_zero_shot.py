"""Choices by likelihood and the two bias probes: ties, normalisation, pairs, and what is bad in their files."""

import dataclasses
import json

import numpy as np
import pytest

from lm_core.downstream.config import ScoreTaskConfig
from lm_core.downstream.task import Task
from lm_core.errors import IntegrityError
from lm_core.evaluation.bias import evaluate_bias, preferences
from lm_core.evaluation.recompute import scores_by_sql, scores_from_answers
from lm_core.evaluation.zero_shot import Chosen, candidates_of, evaluate_choice, model_scorer, random_twin
from lm_core.model.weights import load_model
from lm_core.stages import CHOOSE
from lm_core.tokenizer import load_tokenizer

ACCURACY_BY_VERSION = {2: 1.0, 3: 1.0}


def choice(**fields):
    base = {
        "name": "own_choice", "kind": "choice", "files": {"test": "pairs.jsonl"}, "choices": ("{good}", "{bad}"),
        "target": "0", "group": "{kind}/{id}", "metric": "accuracy",
    }  # fmt: skip
    return Task.model_validate(base | fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    nouns = ("grain", "rain", "invoice", "flour", "cloud", "entry")
    rows = [
        {"good": f"Read the {noun} number {n}.", "bad": f"number {noun} Read {n} the.", "kind": "order",
         "id": f"{noun}{n}"}
        for noun in nouns for n in (1, 2)
    ]  # fmt: skip
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    genders = [
        {"id": f"smith.client.{i}.{gender}.txt", "sentence": f"The {pronoun} of the ledger {i}."}
        for i in range(6) for gender, pronoun in (("male", "balance"), ("female", "storm"))
    ]  # fmt: skip
    (folder / "genders.jsonl").write_text("".join(json.dumps(row) + "\n" for row in genders))
    return folder


def with_text(world):
    return dataclasses.replace(world.base, inputs={"tokens": f"tokens/{world.tokens.folder.name}"})


def test_the_likelier_text_is_chosen_and_stands_beside_its_baselines(world, folder):
    build = world.build("choose")
    config = ScoreTaskConfig(task=choice(), data=str(folder), num_resamples=200)
    scores = evaluate_choice(build, config, base=with_text(world))
    assert scores["score"] == pytest.approx(ACCURACY_BY_VERSION[CHOOSE.version], abs=0.1)
    assert scores["baselines"]["chance"] == 0.5 and "random_weights" in scores["baselines"]
    assert any(name.startswith("kneser_ney") for name in scores["baselines"])
    assert set(scores["gain_over_random_weights"]) == {"mean", "low", "high"}
    assert scores["secondary"]["by_group"]["order"]["items"] == scores["items"] == 12
    path = build.folder / "predictions.parquet"
    assert scores_by_sql(path, "accuracy")["model"] == pytest.approx(scores["score"], abs=1e-4)
    assert scores_from_answers(path, "accuracy")["model"] == pytest.approx(scores["score"], abs=1e-4)


def test_of_choices_that_are_level_each_counts_its_share():
    made = Chosen([np.array([2.0, 2.0]), np.array([3.0, 4.0])], [np.array([4.0, 4.0]), np.array([1.0, 4.0])])
    assert made.correct([0, 1], per_byte=False).tolist() == [0.5, 0.0]
    assert made.correct([0, 1], per_byte=True).tolist() == [0.5, 1.0]


def test_bits_of_a_text_longer_than_the_context_are_the_sum_of_its_windows(world):
    model, tokenizer = load_model(world.base.folder), load_tokenizer(world.base.file("tokenizer.json"))
    scorer = model_scorer(model, tokenizer)
    long, short = candidates_of(tokenizer, ["Read", "Read"], ["the grain. " * 60, "the grain."])
    bits = scorer([long, short])
    assert len(long.text) > model.context_length and bits[0] > bits[1] > 0
    assert scorer([short])[0] == pytest.approx(bits[1], rel=1e-4)
    assert model_scorer(random_twin(model, 0), tokenizer)([short])[0] > bits[1]


def test_a_choice_outside_the_set_is_counted_and_beyond_the_bound_refused(world, folder):
    task = choice(target="{id}")
    with pytest.raises(IntegrityError, match="label_outside_the_set"):
        evaluate_choice(world.build("choose_bad"), ScoreTaskConfig(task=task, data=str(folder)), base=world.base)


def test_a_preference_is_the_share_of_pairs_and_level_pairs_count_half(world, folder):
    assert preferences(np.array([1.0, -1.0, 0.0])).tolist() == [1.0, 0.0, 0.5]
    task = choice(name="winogender", files={"test": "genders.jsonl"}, choices=("male", "female"), group="", target="",
                  metric="preference")  # fmt: skip
    scores = evaluate_bias(
        world.build("bias"), ScoreTaskConfig(task=task, data=str(folder), num_resamples=200), base=world.base
    )
    assert scores["items"] == 6 and scores["baselines"]["no_preference"] == 0.5
    assert scores["secondary"]["shows_preference"] == (not scores["low"] <= 0.5 <= scores["high"])
    assert set(scores["gain_over_random_weights"]) == {"mean", "low", "high"}


def test_a_pair_that_misses_a_side_is_named(world, tmp_path):
    (tmp_path / "half.jsonl").write_text(json.dumps({"id": "a.b.0.male.txt", "sentence": "He."}) + "\n")
    task = choice(name="winogender", files={"test": "half.jsonl"}, choices=("male", "female"), group="", target="",
                  metric="preference")  # fmt: skip
    with pytest.raises(IntegrityError, match=r"a\.b\.0: the male or the female sentence is missing"):
        evaluate_bias(world.build("bias_half"), ScoreTaskConfig(task=task, data=str(tmp_path)), base=world.base)
