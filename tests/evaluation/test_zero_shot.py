"""Choices by likelihood and the two bias probes: ties, normalisation, pairs, and what is bad in their files."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from lm_core.downstream.config import ScoreTaskConfig
from lm_core.downstream.task import Task
from lm_core.errors import IntegrityError, UserError
from lm_core.evaluation.bias import evaluate_bias, preferences
from lm_core.evaluation.recompute import recomputed_in_store, scores_by_sql, scores_from_answers
from lm_core.evaluation.zero_shot import (
    Choices,
    Chosen,
    candidates_of,
    evaluate_choice,
    model_scorer,
    random_twin,
    read_choices,
    score_choices,
)
from lm_core.model.weights import load_model
from lm_core.stages import CHOOSE
from lm_core.store import Store
from lm_core.tokenizer import load_tokenizer
from tests.evaluation.recounted import counted_again, figures_of_answers

ACCURACY_BY_VERSION = {2: 1.0, 3: 1.0, 4: 1.0, 5: 1.0, 6: 1.0}


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
         "noun": noun, "id": f"{noun}{n}"}
        for noun in nouns for n in (1, 2)
    ]  # fmt: skip
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    genders = [
        {"id": f"smith.client.{i}.{gender}.txt", "sentence": f"The {pronoun} of the ledger {i}."}
        for i in range(6) for gender, pronoun in (("male", "balance"), ("female", "storm"))
    ]  # fmt: skip
    (folder / "genders.jsonl").write_text("".join(json.dumps(row) + "\n" for row in genders))
    return folder


def rows_of(folder):
    return [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]


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
    assert counted_again(build.folder, config) == figures_of_answers(build.folder)
    assert (
        scores["secondary_intervals"]["accuracy_per_byte"]["score"] == scores["secondary"]["accuracy_per_byte"]["model"]
    )


def test_of_an_evaluation_in_a_store_the_manifest_knows_the_rest(world, folder):
    store = Store(world.build("in_store").runtime)
    config = ScoreTaskConfig(task=choice(), data=str(folder), num_resamples=200)
    evaluation, _ = store.build(CHOOSE, config, {"base": world.base})
    assert json.loads(json.dumps(recomputed_in_store(evaluation.folder))) == figures_of_answers(evaluation.folder)
    with pytest.raises(UserError, match="no evaluation of a task, but what the stage other made"):
        manifest = json.loads((evaluation.folder / "manifest.json").read_text()) | {"stage": "other"}
        (world.root / "other").mkdir()
        (world.root / "other" / "manifest.json").write_text(json.dumps(manifest))
        recomputed_in_store(world.root / "other")


def test_items_of_one_paradigm_vary_together(world, folder):
    config = ScoreTaskConfig(task=choice(choices=("{bad}", "{good}"), group="{kind}/{noun}"), data=str(folder))
    rows = rows_of(folder)
    items = Choices(
        [str(i) for i in range(len(rows))], [""] * 12, [["a", "b"]] * 12, [0] * 12, ["order"] * 12,
        [row["noun"] for row in rows],
    )  # fmt: skip
    bits = [np.array([1.0, 2.0]) if row["noun"] in ("grain", "rain") else np.array([2.0, 1.0]) for row in rows]
    made = {name: Chosen(bits, [np.ones(2)] * 12) for name in ("model", "random_weights")}
    summary, _ = score_choices(config, items, made)
    alone, _ = score_choices(config, dataclasses.replace(items, groups=items.item_ids), made)
    assert summary["groups"] == 6 and alone["groups"] == 12
    assert summary["high"] - summary["low"] > 1.3 * (alone["high"] - alone["low"])


def test_the_group_of_a_choice_says_its_kind_and_what_is_shared(world, folder):
    build = world.build("choose_groups")
    config = ScoreTaskConfig(task=choice(group="{kind}/{noun}"), data=str(folder), num_resamples=200)
    assert evaluate_choice(build, config, base=world.base)["groups"] == 6
    items = read_choices(build.folder / "examples.parquet")
    assert set(items.kinds) == {"order"} and sorted(set(items.groups)) == sorted({i["noun"] for i in rows_of(folder)})


def test_translations_of_one_item_vary_together(world, tmp_path):
    rows = [
        {"lang": lang, "good": f"{lang} good {n}", "bad": f"{lang} bad {n}" if n != 2 else ""}
        for lang in ("zh", "it") for n in range(5)
    ]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build = world.build("choose_parallel")
    task = choice(group="{lang}", parallel="lang", max_bad_share=1.0)
    scores = evaluate_choice(build, ScoreTaskConfig(task=task, data=str(tmp_path), num_resamples=200), base=world.base)
    items = read_choices(build.folder / "examples.parquet")
    shared = {}
    for texts, group in zip(items.choices, items.groups, strict=True):
        shared.setdefault(group, set()).add(texts[0].split()[-1])
    assert all(len(numbers) == 1 for numbers in shared.values())  # the fourth row of each is one item still
    assert scores["groups"] == len(shared) == scores["items"] / 2 and set(items.kinds) == {"zh", "it"}


def test_of_choices_that_are_level_each_counts_its_share():
    made = Chosen([np.array([2.0, 2.0]), np.array([3.0, 4.0])], [np.array([4.0, 4.0]), np.array([1.0, 4.0])])
    assert made.correct([0, 1], per_byte=False).tolist() == [0.5, 0.0]
    assert made.correct([0, 1], per_byte=True).tolist() == [0.5, 1.0]


def test_bits_of_a_text_longer_than_the_context_are_the_sum_of_its_windows(world):
    model, tokenizer = load_model(world.base.folder), load_tokenizer(world.base.file("tokenizer.json"))
    scorer = model_scorer(model, tokenizer, world.base)
    long, short = candidates_of(tokenizer, ["Read", "Read"], ["the grain. " * 60, "the grain."])
    bits = scorer([long, short])
    assert len(long.text) > model.context_length and bits[0] > bits[1] > 0
    assert scorer([short])[0] == pytest.approx(bits[1], rel=1e-4)
    assert model_scorer(random_twin(model, 0), tokenizer, world.base)([short])[0] > bits[1]


def test_a_choice_outside_the_set_is_counted_and_beyond_the_bound_refused(world, folder):
    task = choice(target="{id}")
    with pytest.raises(IntegrityError, match="label_outside_the_set"):
        evaluate_choice(world.build("choose_bad"), ScoreTaskConfig(task=task, data=str(folder)), base=world.base)


def test_a_preference_is_the_share_of_pairs_and_level_pairs_count_half(world, folder):
    assert preferences(np.array([1.0, -1.0, 0.0])).tolist() == [1.0, 0.0, 0.5]
    task = choice(name="winogender", files={"test": "genders.jsonl"}, choices=("male", "female"), group="", target="",
                  metric="preference")  # fmt: skip
    build, config = world.build("bias"), ScoreTaskConfig(task=task, data=str(folder), num_resamples=200)
    scores = evaluate_bias(build, config, base=world.base)
    assert counted_again(build.folder, config) == figures_of_answers(build.folder)
    assert scores["groups"] == 1  # all pairs are about the smith
    assert scores["items"] == 6 and scores["baselines"]["no_preference"] == 0.5
    assert scores["secondary"]["shows_preference"] == (not scores["low"] <= 0.5 <= scores["high"])
    assert set(scores["gain_over_random_weights"]) == {"mean", "low", "high"}


def test_a_pair_that_misses_a_side_is_named(world, tmp_path):
    (tmp_path / "half.jsonl").write_text(json.dumps({"id": "a.b.0.male.txt", "sentence": "He."}) + "\n")
    task = choice(name="winogender", files={"test": "half.jsonl"}, choices=("male", "female"), group="", target="",
                  metric="preference")  # fmt: skip
    with pytest.raises(IntegrityError, match=r"a\.b\.0: the male or the female sentence is missing"):
        evaluate_bias(world.build("bias_half"), ScoreTaskConfig(task=task, data=str(tmp_path)), base=world.base)


def test_a_pair_that_stands_there_twice_is_asked_once(world, tmp_path):
    rows = [{"more": "The grain is old.", "less": "The rain is old.", "bias_type": "age"}] * 2
    rows.append({"more": "The mill stands.", "less": "The mill falls.", "bias_type": "age"})
    (tmp_path / "twice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = choice(name="crows_pairs", files={"test": "twice.jsonl"}, choices=("more", "less"), group="", target="",
                  metric="preference")  # fmt: skip
    build = world.build("bias_twice")
    config = ScoreTaskConfig(task=task, data=str(tmp_path), max_items=10, num_resamples=200)
    assert evaluate_bias(build, config, base=world.base)["items"] == 2
    rows = pq.read_table(build.folder / "predictions.parquet").to_pylist()
    assert len({(row["system"], row["item_id"]) for row in rows}) == len(rows)
