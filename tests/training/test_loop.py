"""Optimizers, schedules and the loop's smaller promises, on a model that must learn one batch by heart."""

import json

import pytest
import torch

from lm_core.downstream.classifier import PooledClassifier
from lm_core.errors import UserError
from lm_core.model.losses import IGNORE
from lm_core.training.averages import averaging_moments
from lm_core.training.config import ModelConfig, OptimizationConfig, PretrainConfig
from lm_core.training.course import MAX_ROLLBACKS, MAX_SKIPPED_IN_A_ROW
from lm_core.training.loop import Batch
from lm_core.training.schedule import learning_rate_fraction
from tests.training.tiny_runs import VANILLA, batch_at, config, fit, tiny_model

RATES = {"sgd": 0.3, "rmsprop": 3e-3, "adam": 1e-2, "adamw": 1e-2, "muon": 1e-2, "torch_muon": 1e-2}


@pytest.mark.parametrize("kind", ["decoder", "vanilla"])
@pytest.mark.parametrize("optimizer", list(RATES))
def test_every_optimizer_learns(tmp_path, optimizer, kind):
    model = tiny_model(**(VANILLA if kind == "vanilla" else {}))
    fit(tmp_path, model=model, optimizer=optimizer, learning_rate=RATES[optimizer])
    batch = batch_at(0)
    assert float(model.loss(batch.tokens, batch.targets).detach()) < 3.2  # log(40) = 3.69 at the beginning


def test_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path):
    whole, _, _ = fit(tmp_path, "whole", num_steps=3, optimizer="sgd")
    parts, _, _ = fit(tmp_path, "parts", num_steps=3, optimizer="sgd", micro_batch_tokens=32)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_micro_batch_without_targets_changes_nothing(tmp_path):
    """One window of a single document's last token, say, or rows that fill up a process's share."""

    def partly(step: int) -> Batch:
        batch = batch_at(step)
        targets = batch.targets.clone()
        targets[4:6] = IGNORE
        return Batch(batch.tokens, targets)

    def without(step: int) -> Batch:
        batch, rest = partly(step), [0, 1, 2, 3, 6, 7]
        return Batch(batch.tokens[rest], batch.targets[rest])

    whole, _, _ = fit(tmp_path, "whole", num_steps=3, batches=without, micro_batch_tokens=32)
    parts, statistics, _ = fit(tmp_path, "parts", num_steps=3, batches=partly, micro_batch_tokens=32)
    assert statistics["skipped_steps"] == 0
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_a_first_step_without_targets_is_not_what_later_losses_are_measured_by(tmp_path):
    def batches(step: int) -> Batch:
        batch = batch_at(step)
        return batch if step else Batch(batch.tokens, torch.full_like(batch.targets, IGNORE))

    _, statistics, _ = fit(tmp_path, batches=batches)
    assert 0 < statistics["train_loss"] < 3.7


@pytest.mark.parametrize("kind", ["text", "labels"])
def test_activation_checkpointing_recomputes_in_every_model_with_a_decoder_in_it(tmp_path, kind):
    runs = {}
    for recompute in (False, True):
        trunk, calls = tiny_model(), []
        model = trunk if kind == "text" else PooledClassifier(trunk, ["a", "b"])
        trunk.blocks()[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))

        def batches(step: int) -> Batch:
            return batch_at(step) if kind == "text" else labelled(step)

        changes = {"num_steps": 3, "activation_checkpointing": recompute}
        fit(tmp_path, str(recompute), model=model, batches=batches, **changes)
        runs[recompute] = len(calls), model
    assert runs[True][0] == 2 * runs[False][0] > 0
    for a, b in zip(runs[True][1].parameters(), runs[False][1].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def labelled(step: int) -> Batch:
    """Rows whose last token tells one of two labels."""
    tokens = batch_at(step).tokens
    targets = torch.full_like(tokens, IGNORE)
    targets[:, -1] = torch.arange(len(tokens)) % 2
    return Batch(tokens, targets)


def test_activation_checkpointing_is_refused_where_it_would_have_no_effect(tmp_path):
    with pytest.raises(UserError, match=r"activation_checkpointing needs model\.kind=decoder"):
        fit(tmp_path, model=tiny_model(**VANILLA), activation_checkpointing=True)
    settings = OptimizationConfig(activation_checkpointing=True)
    with pytest.raises(ValueError, match=r"activation_checkpointing needs model\.kind=decoder"):
        PretrainConfig(model=ModelConfig(**VANILLA), optimization=settings)


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


def test_the_mean_of_the_last_moments_is_what_a_run_leaves(tmp_path):
    seen = {}

    def watch(model):
        model.blocks()[0].register_forward_pre_hook(
            lambda *_: seen.__setitem__(len(seen), {n: t.clone() for n, t in model.state_dict().items()})
        )

    model, _, _ = fit(tmp_path, before=watch, average_checkpoints=4, average_fraction=0.5)
    last, _, _ = fit(tmp_path, "last")
    moments = averaging_moments(config(average_checkpoints=4, average_fraction=0.5), 40)
    assert moments == {25, 30, 35, 40}
    # What step 26 begins with is what step 25 has led to; the last moment has no step after it.
    for name, tensor in model.state_dict().items():
        parts = [seen[25][name], seen[30][name], seen[35][name], last.state_dict()[name]]
        torch.testing.assert_close(tensor, torch.stack(parts).mean(0), atol=1e-6, rtol=1e-5)


class Spoilt:
    """Batches at which, at some steps, weights are made infinite: what one wild update does."""

    def __init__(self, *steps: int) -> None:
        self.steps = set(steps)

    def watch(self, model) -> None:
        self.model = model

    def __call__(self, step: int) -> Batch:
        if step in self.steps:
            self.model.blocks()[0].mlp.up_proj.weight.data[0] = torch.inf
        return batch_at(step)


def test_spoilt_weights_are_replaced_by_those_of_the_last_anchor(tmp_path):
    spoilt = Spoilt(70)
    _, statistics, build = fit(tmp_path, num_steps=120, batches=spoilt, before=spoilt.watch)
    lines = [json.loads(line) for line in (build.folder / "journal.jsonl").read_text().splitlines()]
    assert [line["rolled_back_to_step"] for line in lines if "rolled_back_to_step" in line] == [50]
    assert statistics["rollbacks"] == 1
    assert statistics["skipped_steps"] == MAX_SKIPPED_IN_A_ROW
    assert statistics["num_steps"] == 120
    losses = {line["step"]: line["train_loss"] for line in lines if "train_loss" in line}
    assert losses[70 + MAX_SKIPPED_IN_A_ROW] is None
    assert losses[71 + MAX_SKIPPED_IN_A_ROW] == pytest.approx(losses[51], rel=0.2)  # where the anchor stood
    assert losses[120] < losses[51]


def test_going_back_has_an_end(tmp_path):
    spoilt = Spoilt(*range(60, 120))
    with pytest.raises(UserError, match=rf"going back {MAX_ROLLBACKS} times.*optimization\.learning_rate"):
        fit(tmp_path, num_steps=120, batches=spoilt, before=spoilt.watch)


def test_one_bad_batch_is_left_out(tmp_path):
    def hook(model):
        calls = []

        def once(_, inputs):
            calls.append(1)
            return (inputs[0] * torch.nan, *inputs[1:]) if len(calls) == 20 else None

        model.blocks()[0].register_forward_pre_hook(once)

    _, statistics, _ = fit(tmp_path, before=hook)
    assert (statistics["skipped_steps"], statistics["rollbacks"]) == (1, 0)
    assert statistics["train_loss"] < 3.5


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"learning_rate": 10.0, "num_steps": 15}, "training diverges"),
     ({"learning_rate": 10.0, "num_steps": 8}, "training diverges"),
     ({"learning_rate": 1e30, "num_steps": 3, "weight_decay": 1.0}, r"not finite at step 3 .*2 steps in a row"),
     ({"learning_rate": 3e38, "num_steps": 1, "weight_decay": 1.0}, "not finite after step 1")],
)  # fmt: skip
def test_a_run_of_few_steps_that_diverges_is_refused_too(tmp_path, changes, match):
    with pytest.raises(UserError, match=rf"{match}.*optimization\.learning_rate"):
        fit(tmp_path, optimizer="adamw", warmup_fraction=0.0, **changes)


def test_journal_has_a_line_for_every_step(tmp_path):
    _, statistics, build = fit(tmp_path, num_steps=5, evaluate=lambda model: {"val_loss": 1.0})
    lines = [json.loads(line) for line in (build.folder / "journal.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5, 5]
    assert {"forecast_seconds", "forecast_memory_bytes", "forecast_disk_bytes", "cost_assumptions"} <= lines[0].keys()
    live = {"train_loss", "learning_rate", "gradient_norm", "tokens", "tokens_per_second", "mfu", "seconds_left"}
    assert live | {"time", "energy_kwh", "cost_usd"} <= lines[1].keys()
    assert lines[5]["seconds_left"] == 0
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
     {"optimizer": "torch_muon", "muon_in_parts": False}, {"schedule": "constant", "final_fraction": 0.2},
     {"optimizer": "sgd", "beta1": 0.8}, {"optimizer": "rmsprop", "beta2": 0.99},
     {"schedule": "cosine", "decay_fraction": 0.5}, {"average_fraction": 0.5},
     {"ema_decay": 0.9, "average_checkpoints": 2}, {"micro_batch_tokens": 8192}],
)  # fmt: skip
def test_a_setting_without_effect_is_refused(changes):
    with pytest.raises(ValueError, match=rf"({list(changes)[-1]} has no effect|must not exceed)"):
        OptimizationConfig(**changes)


@pytest.mark.parametrize("name", ["learning_rate", "muon_learning_rate", "gradient_clip", "checkpoint_seconds"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_is_no_setting(name, value):
    with pytest.raises(ValueError, match=name):
        OptimizationConfig(**{name: value})


@pytest.mark.parametrize(
    "change", [{"qk_norm": False}, {"rope_base": 500.0}, {"activation": "silu"}, {"num_kv_heads": 1}, {"head_width": 8}]
)
def test_what_only_the_decoder_has_is_refused_for_the_textbook_model(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"{name}=.* needs kind=decoder"):
        ModelConfig(kind="vanilla", **change)
