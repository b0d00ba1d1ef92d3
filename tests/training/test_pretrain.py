"""Pretraining as the pipeline runs it, killed and resumed."""

import json
import signal

import pytest

from lm_core.errors import UserError
from lm_core.model.weights import load_model
from lm_core.training.config import PretrainConfig
from lm_core.training.pretrain import pretrain
from tests.training.corpus_files import new_build
from tests.training.interrupted import (
    CONFIG,
    LONGER,
    MODEL,
    MODES,
    OPTIMIZATION,
    TESTED_ALWAYS,
    both_ways,
    name_of,
    run_disturbed,
)
from tests.training.tiny_runs import VANILLA


@pytest.mark.parametrize("kind", ["decoder", "vanilla"])
def test_it_learns_and_writes_a_checkpoint(tokens, tokenizer, tmp_path, kind):
    model = MODEL if kind == "decoder" else MODEL.model_copy(update=VANILLA)
    config = CONFIG.model_copy(update={"model": model})
    build = new_build(tmp_path, "a")
    statistics = pretrain(build, config, tokens=tokens, tokenizer=tokenizer)
    lines = [json.loads(line) for line in (build.folder / "journal.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in evaluations] == [20, 40]
    assert evaluations[-1]["val_loss"] < 5.9  # log(400) = 5.99 is where an untrained model stands
    assert statistics["val_bits_per_byte"] == evaluations[-1]["val_bits_per_byte"]
    assert statistics["tokens"] == 256 * 40
    loaded = load_model(build.folder)
    assert loaded.num_parameters() == statistics["num_parameters"]
    assert loaded.config == model
    again = pretrain(new_build(tmp_path, "b"), config, tokens=tokens, tokenizer=tokenizer)
    assert again["weights_sha256"] == statistics["weights_sha256"]


def test_attention_within_documents_trains_another_model(tokens, tokenizer, tmp_path):
    within = CONFIG.model_copy(update={"attention_within_documents": True})
    runs = [
        pretrain(new_build(tmp_path, str(number)), config, tokens=tokens, tokenizer=tokenizer)
        for number, config in enumerate((CONFIG, within))
    ]
    assert runs[0]["weights_sha256"] != runs[1]["weights_sha256"]
    assert runs[1]["val_loss"] == pytest.approx(runs[0]["val_loss"], rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_run_ends_with_the_weights_of_an_undisturbed_one(tokens, tokenizer, tmp_path, how):
    config = LONGER.model_copy(
        update={
            "model": MODEL.model_copy(update={"dropout": 0.1}),
            "optimization": OPTIMIZATION.model_copy(update={"ema_decay": 0.9}),
        }
    )
    undisturbed = pretrain(new_build(tmp_path, "whole"), config, tokens=tokens, tokenizer=tokenizer)
    resumed = run_disturbed(tokens, tokenizer, tmp_path / "stopped", config, how)
    assert resumed["resumed_from_step"] > 0
    assert resumed["weights_sha256"] == undisturbed["weights_sha256"]
    assert resumed["val_bits_per_byte"] == undisturbed["val_bits_per_byte"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode", [pytest.param(m, marks=[] if m in TESTED_ALWAYS else pytest.mark.exhaustive, id=name_of(m)) for m in MODES]
)
def test_resume_is_exact_in_every_mode(tokens, tokenizer, tmp_path, mode):
    undisturbed, resumed = both_ways(tokens, tokenizer, tmp_path, mode)
    assert resumed["resumed_from_step"] > 0
    assert resumed["weights_sha256"] == undisturbed["weights_sha256"]


def with_optimization(**changes) -> PretrainConfig:
    return CONFIG.model_copy(update={"optimization": OPTIMIZATION.model_copy(update=changes)})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (with_optimization(learning_rate=1e38, gradient_clip=0.0), "learning_rate"),
        (with_optimization(optimizer="sgd", learning_rate=3000.0, schedule="constant"), "learning_rate"),
        (with_optimization(batch_tokens=16, micro_batch_tokens=16), "batch_tokens=16"),
    ],
)
def test_hopeless_settings_end_in_one_line_that_names_them(tokens, tokenizer, tmp_path, config, message):
    with pytest.raises(UserError, match=message) as error:
        pretrain(new_build(tmp_path, "a"), config, tokens=tokens, tokenizer=tokenizer)
    assert "\n" not in str(error.value)
