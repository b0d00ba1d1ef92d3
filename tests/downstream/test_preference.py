"""Preference: rules that anyone can check, pairs made by them, and a model that learns from pairs."""

import dataclasses

import pytest
import torch

from lm_core.artifact import Checkpoint
from lm_core.downstream.config import EvaluatePreferenceConfig, FinetuneConfig, PreferConfig
from lm_core.downstream.encoding import pad_rows
from lm_core.downstream.finetune import finetune
from lm_core.downstream.preference import PreferenceModel, pair_rows, plan_pairs, prefer
from lm_core.downstream.preference_rules import broken_rules, pair_of, pairs_of
from lm_core.errors import UserError
from lm_core.evaluation.preference import evaluate_preference, rule_shares, win_scores
from lm_core.model.weights import load_model
from lm_core.stages import EVALUATE_PREFERENCE, PREFER
from lm_core.tokenizer import load_tokenizer
from lm_core.training.config import OptimizationConfig
from tests.evaluation.recounted import counted_again, figures_of_answers

HOW = "values moved but the version of {} did not: raise it in lm_core/stages.py and write the new values here"
LOSS_BY_VERSION = {2: 0.313, 3: 0.313}
BITS_BY_VERSION = dict.fromkeys((2, 3, 4), (1.974, 2.258))
PROMPT = "User: a table for two\nAgent: At 7 pm?\nUser: yes please"


@pytest.mark.parametrize(
    ("answer", "broken"),
    [
        ("Your table is booked at 7 pm.", []),
        ("Your table is booked at 8 pm.", ["made_up"]),
        ("Your table is in Paris.", ["made_up"]),
        ("Your table is booked", ["cut_off"]),
        ("yes please", ["echo", "cut_off"]),
        ("It is booked for you. It is booked for you.", ["repeats"]),
        (" ...", ["empty", "cut_off"]),
    ],
)
def test_rules(answer, broken):
    assert broken_rules(PROMPT, answer) == broken


def test_the_worse_answer_of_a_pair_breaks_its_rule_and_the_better_none():
    items = [{"item_id": f"{i}", "prompt": PROMPT, "target": "Your table is booked at 7 pm."} for i in range(40)]
    pairs = pairs_of(items)
    assert len(pairs) == 40 and {pair.rule for pair in pairs} == {"repeats", "echo", "cut_off", "made_up"}
    for pair in pairs:
        assert not broken_rules(pair.prompt, pair.better) and pair.rule in broken_rules(pair.prompt, pair.worse)
    assert pairs == pairs_of(items)
    assert pair_of(items[0] | {"target": "no mark"}) is None


def test_a_win_is_fewer_broken_rules_and_a_tie_is_half():
    prompts = [PROMPT] * 3
    assert win_scores(prompts, ["Fine.", "Fine", "Fine."], ["Fine", "Fine.", "Good."]).tolist() == [1, 0, 0.5]
    assert rule_shares(prompts, ["Fine", "", "Good."])["cut_off"] == pytest.approx(2 / 3, abs=1e-4)


def tuned(world, name, **fields):
    build = world.build(f"preference_{name}")
    optimization = OptimizationConfig(batch_tokens=1024, micro_batch_tokens=1024)
    config = FinetuneConfig(task="answer", max_steps=4, optimization=optimization, **fields)
    finetune(build, config, base=world.base, examples=world.examples, corpus=world.valid)
    return Checkpoint(build.folder, "finetune", "x", name)


@pytest.fixture(scope="module")
def world_of_pairs(world):
    """The tiny world's answers as items of a task without a corpus: its examples, read by themselves."""
    return world, tuned(world, "reference"), tuned(world, "random", from_random=True)


def config(**fields):
    optimization = OptimizationConfig(optimizer="adamw", learning_rate=1e-3, batch_tokens=1024, micro_batch_tokens=1024)
    return PreferConfig(task="answer", optimization=optimization, **fields)


def test_pairs_are_learnt_and_the_answers_scored(world_of_pairs):
    world, reference, from_random = world_of_pairs
    build = world.build("prefer_answer")
    made = prefer(build, config(max_steps=20, beta=0.5), base=reference, examples=world.examples)
    assert made["pair_accuracy"] > 0.8 and made["pairs"] > 10
    assert made["train_loss"] == pytest.approx(LOSS_BY_VERSION[PREFER.version], abs=0.1), HOW.format("prefer")
    assert load_model(build.folder).num_parameters() == load_model(reference.folder).num_parameters()
    finetuned = Checkpoint(build.folder, "prefer", "x", "p", made)
    scoring = EvaluatePreferenceConfig(task="answer", max_items=12, max_new_tokens=12, best_of=2, num_resamples=200)
    scored = world.build("score_preference")
    scores = evaluate_preference(
        scored, scoring, finetuned=finetuned, reference=reference, from_random=from_random, examples=world.examples
    )
    assert counted_again(scored.folder, scoring) == figures_of_answers(scored.folder)
    assert scores["metric"] == "win_rate" and scores["baselines"]["reference"] == 0.5
    assert scores["baselines"]["best_of_2"] >= 0 and set(scores["gain_over_random_weights"]) == {"mean", "low", "high"}
    drift = scores["secondary"]["drift_from_reference"]
    values = (drift["bits_per_byte_before"], drift["bits_per_byte_after"])
    wanted = BITS_BY_VERSION[EVALUATE_PREFERENCE.version]
    assert values == pytest.approx(wanted, abs=0.1), HOW.format("evaluate_preference")
    assert drift["bits_per_byte_after"] != drift["bits_per_byte_before"] and drift["bits_per_answer"] > 0


def test_before_the_first_step_no_answer_has_gained(world_of_pairs):
    _, reference, _ = world_of_pairs
    tokenizer = load_tokenizer(reference.file("tokenizer.json"))
    model = PreferenceModel(load_model(reference.folder), load_model(reference.folder), 0.3)
    pairs = pairs_of([{"item_id": "1", "prompt": PROMPT, "target": "It is booked at 7 pm."}])
    (rows,) = plan_pairs(pair_rows(pairs, tokenizer, 128), config(max_steps=1))
    batch = pad_rows(rows, tokenizer.pad)
    assert torch.allclose(model.margins(batch.tokens, batch.targets), torch.zeros(1), atol=1e-4)
    num_targets = int((batch.targets >= 0).sum())
    assert float(model.loss_sum(batch.tokens, batch.targets).detach()) / num_targets == pytest.approx(0.6931, abs=1e-3)


def test_items_that_break_rules_themselves_give_no_pair(world_of_pairs):
    world, reference, _ = world_of_pairs
    with pytest.raises(UserError, match="gives no pairs"):
        topics = config().model_copy(update={"task": "topic"})
        prefer(world.build("prefer_topic"), topics, base=reference, examples=world.examples)


def test_what_both_steps_have_forgotten_is_measured_and_bounded(world_of_pairs):
    world, reference, from_random = world_of_pairs
    first = {"before": 0.5, "after": 0.9, "share_of_base": 0.0}
    of_text = dataclasses.replace(
        reference, inputs={"tokens": f"tokens/{world.tokens.folder.name}"}, statistics={"forgetting": first}
    )
    found = {}
    for bound in (0.0, 0.001):
        build = world.build(f"prefer_forgetting_{bound}")
        made = prefer(
            build, config(max_steps=20, beta=0.5, max_forgetting=bound), base=of_text, examples=world.examples
        )
        found[bound] = Checkpoint(build.folder, "prefer", "x", "p", made)
    free, bounded = (found[bound].statistics["forgetting"] for bound in (0.0, 0.001))
    assert free["before"] == bounded["before"] > 0 and free["share_of_base"] == 0
    assert free["after"] - free["before"] > 0.001 >= bounded["after"] - bounded["before"]
    scoring = EvaluatePreferenceConfig(task="answer", max_items=4, max_new_tokens=4, best_of=2, num_resamples=200)
    scores = evaluate_preference(
        world.build("score_forgetting"), scoring, finetuned=found[0.0], reference=of_text, from_random=from_random,
        examples=world.examples,
    )  # fmt: skip
    assert scores["forgetting"] == free | {"before": first["before"]}  # of the base, not of the reference
