"""A model that must learn one batch by heart, through the training loop: milliseconds a step."""

from dataclasses import replace

import torch

from lm_core.model.build import build_model
from lm_core.store import silent
from lm_core.training.config import ModelConfig, OptimizationConfig
from lm_core.training.loop import Batch, train
from tests.training.corpus_files import new_build

VANILLA = {"kind": "vanilla", "activation": "gelu"}
MODEL = ModelConfig(num_layers=2, d_model=32, num_heads=2, num_kv_heads=2, d_ff=64, init="normal")


def batch_at(step: int) -> Batch:
    tokens = torch.randint(0, 40, (8, 17), generator=torch.Generator().manual_seed(0))
    return Batch(tokens[:, :-1], tokens[:, 1:])


def tiny_model(**changes):
    return build_model(MODEL.model_copy(update=changes), vocab_size=40, context_length=16, seed=0)


def config(**changes) -> OptimizationConfig:
    return OptimizationConfig(**{"batch_tokens": 128, "micro_batch_tokens": 128, **changes})


def fit(
    tmp_path,
    name="run",
    *,
    num_steps=40,
    evaluate=None,
    num_evaluations=1,
    batches=batch_at,
    before=None,
    progress=silent,
    model=None,
    **changes,
):
    """Train; returns model, statistics, build. `before` is called with the model; other changes are of the config."""
    model = model or tiny_model()
    if before:
        before(model)
    build = replace(new_build(tmp_path, name), progress=progress)
    statistics = train(
        model,
        lambda step: batches(step),
        config(**changes),
        num_steps=num_steps,
        build=build,
        evaluate=evaluate,
        num_evaluations=num_evaluations,
    )
    return model, statistics, build
