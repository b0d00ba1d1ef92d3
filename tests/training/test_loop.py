"""Optimizers, schedules and the loop's smaller promises, on a model that must learn one batch by heart."""

import json

import pytest
import torch

from lm_core.model.build import build_model
from lm_core.training.config import ModelConfig, OptimizationConfig
from lm_core.training.loop import Batch, train
from lm_core.training.schedule import learning_rate_fraction
from tests.training.corpus_files import new_build

MODEL = ModelConfig(num_layers=2, d_model=32, num_heads=2, num_kv_heads=2, d_ff=64, init="normal")
RATES = {"sgd": 0.3, "rmsprop": 3e-3, "adam": 1e-2, "adamw": 1e-2, "muon": 1e-2}


def batch_at(step: int) -> Batch:
    tokens = torch.randint(0, 40, (8, 17), generator=torch.Generator().manual_seed(0))
    return Batch(tokens[:, :-1], tokens[:, 1:])


def config(**changes) -> OptimizationConfig:
    return OptimizationConfig(**{"batch_tokens": 128, "micro_batch_tokens": 128, **changes})


def fit(tmp_path, name="run", *, num_steps=40, evaluate=None, num_evaluations=1, **changes):
    model = build_model(MODEL, vocab_size=40, context_length=16, seed=0)
    build = new_build(tmp_path, name)
    settings = config(**changes)
    statistics = train(
        model, batch_at, settings, num_steps=num_steps, build=build, evaluate=evaluate, num_evaluations=num_evaluations
    )
    return model, statistics, build


@pytest.mark.parametrize("optimizer", list(RATES))
def test_every_optimizer_learns(tmp_path, optimizer):
    model, _, _ = fit(tmp_path, optimizer=optimizer, learning_rate=RATES[optimizer])
    batch = batch_at(0)
    assert float(model.loss(batch.tokens, batch.targets).detach()) < 3.2  # log(40) = 3.69 at the beginning


def test_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path):
    whole, _, _ = fit(tmp_path, "whole", num_steps=3, optimizer="sgd")
    parts, _, _ = fit(tmp_path, "parts", num_steps=3, optimizer="sgd", micro_batch_tokens=32)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_penalties_shrink_the_weights(tmp_path):
    norms = {}
    for name, changes in {"none": {}, "l1": {"l1": 1e-2}, "l2": {"weight_decay": 1.0}}.items():
        model, _, _ = fit(tmp_path, name, optimizer="adamw", learning_rate=1e-2, **changes)
        norms[name] = float(sum(p.detach().abs().sum() for p in model.parameters()))
    assert norms["l1"] < norms["none"]
    assert norms["l2"] < norms["none"]


def test_early_stopping_keeps_the_best_weights(tmp_path):
    losses = iter([3.0, 2.0, 2.5, 2.6, 1.0])
    seen = []

    def evaluate(model):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"val_loss": next(losses)}

    model, statistics, _ = fit(tmp_path, evaluate=evaluate, num_evaluations=5, patience=2)
    assert statistics["num_steps"] == 32
    assert all(torch.equal(seen[1][name], tensor) for name, tensor in model.state_dict().items())


def test_journal_has_a_line_for_every_step(tmp_path):
    _, statistics, build = fit(tmp_path, num_steps=5, evaluate=lambda model: {"val_loss": 1.0})
    lines = [json.loads(line) for line in (build.folder / "journal.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 5]
    assert {"time", "train_loss", "learning_rate", "gradient_norm", "tokens_per_second"} <= lines[0].keys()
    assert statistics["val_loss"] == lines[-1]["val_loss"] == 1.0
    assert statistics["mfu"] > 0


@pytest.mark.parametrize(
    ("schedule", "middle", "last"),
    [("constant", 1.0, 1.0), ("linear", 0.5, 0.1), ("cosine", 0.5, 0.1), ("warmup_stable_decay", 1.0, 0.1)],
)
def test_schedules(schedule, middle, last):
    settings = config(schedule=schedule, warmup_fraction=0.0, final_fraction=0.0)
    assert learning_rate_fraction(settings, 500, 1000) == pytest.approx(middle, abs=0.01)
    assert learning_rate_fraction(settings, 999, 1000) <= last
    warm = config(schedule=schedule, warmup_fraction=0.1)
    assert learning_rate_fraction(warm, 0, 1000) == pytest.approx(1 / 101)
    assert learning_rate_fraction(warm, 99, 1000) == pytest.approx(100 / 101)


@pytest.mark.parametrize(
    "changes",
    [{"optimizer": "adamw", "muon_learning_rate": 0.1}, {"optimizer": "adamw", "momentum": 0.5},
     {"schedule": "cosine", "decay_fraction": 0.5}, {"micro_batch_tokens": 8192}],
)  # fmt: skip
def test_a_setting_without_effect_is_refused(changes):
    with pytest.raises(ValueError, match=r"has no effect|must not exceed"):
        OptimizationConfig(**changes)
