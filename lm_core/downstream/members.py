"""Fine-tunes of several seeds as one model: their logits averaged, or their weights (Wortsman et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lm_core.downstream.classifier import Ensemble, PooledClassifier
from lm_core.downstream.config import FinetuneConfig
from lm_core.errors import UserError
from lm_core.model.language_model import LanguageModel
from lm_core.store import Build


def member_build(build: Build, place: int) -> Build:
    """Where a member is trained: the first in the artifact itself, the others beside their checkpoints."""
    if not place:
        return build
    folder = build.work / f"member-{place}"
    folder.mkdir(parents=True, exist_ok=True)
    return replace(build, folder=folder, work=folder)


@torch.no_grad()
def combined(models: Sequence[LanguageModel], config: FinetuneConfig) -> LanguageModel:
    """One model of the members.

    Raises:
        UserError: logits of models that write texts are to be averaged.
    """
    first = models[0]
    if len(models) == 1:
        return first
    if config.combine == "logits":
        classifiers = [model for model in models if isinstance(model, PooledClassifier)]
        if len(classifiers) < len(models):
            raise UserError(f"combine=logits needs a task with labels; {config.task} has none, take combine=weights")
        return Ensemble(classifiers)
    states = [model.state_dict() for model in models]
    averaged = {
        name: torch.stack([state[name] for state in states]).mean(0) if tensor.is_floating_point() else tensor
        for name, tensor in states[0].items()
    }
    first.load_state_dict(averaged)
    return first
