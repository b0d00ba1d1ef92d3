"""Multi-task mixture: one model that learns several tasks at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from lm_core.artifact import DownstreamData, ValidCorpus
from lm_core.downstream.config import FinetuneConfig
from lm_core.downstream.items import read_items
from lm_core.errors import UserError
from lm_core.runtime import Runtime


def tasks_of(config: FinetuneConfig) -> tuple[str, ...]:
    """The tasks that a fine-tune learns."""
    return config.mixture or (config.task,)


def training_items(
    examples: DownstreamData, corpus: ValidCorpus | None, config: FinetuneConfig, runtime: Runtime
) -> list[dict[str, Any]]:
    """Training items of the task, or of the mixture's tasks in shares that favour the smaller ones.

    Items are drawn so that a pass holds as many as there are in all, each task in proportion to its size to the power
    of 1 / mixture_temperature (Raffel et al. 2020): small tasks are repeated, of large ones a sample is taken.

    Raises:
        UserError: naming a task of the mixture without training examples.
    """
    found = {task: read_items(examples, corpus, task, "train", runtime) for task in tasks_of(config)}
    if not config.mixture:
        return found[config.task]
    for task, items in found.items():
        if not items:
            raise UserError(f"the task {task} of the mixture has no training examples")
    weights = {task: len(items) ** (1 / config.mixture_temperature) for task, items in found.items()}
    total, whole = sum(map(len, found.values())), sum(weights.values())
    generator = np.random.default_rng(config.optimization.seed)
    mixed: list[dict[str, Any]] = []
    for task, items in found.items():
        wanted = max(1, round(total * weights[task] / whole))
        order = np.concatenate([generator.permutation(len(items)) for _ in range(-(-wanted // len(items)))])
        mixed += [items[i] for i in order[:wanted]]
    return mixed
