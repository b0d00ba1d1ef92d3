"""Learning rate as a share of its peak, a pure function of the step."""

from __future__ import annotations

import math

from lm_core.training.config import OptimizationConfig


def learning_rate_fraction(config: OptimizationConfig, step: int, num_steps: int) -> float:
    """Share of the peak learning rate at a step: rises linearly, then follows `config.schedule` to `final_fraction`.

    Args:
        step: 0 .. num_steps - 1.
    """
    warmup_steps = round(config.warmup_fraction * num_steps)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if config.schedule == "constant":
        return 1.0
    decay_steps = num_steps - warmup_steps
    if config.schedule == "warmup_stable_decay":
        decay_steps = min(decay_steps, max(1, round(config.decay_fraction * num_steps)))
    progress = max(0.0, (step - (num_steps - decay_steps)) / decay_steps)
    remaining = (1 + math.cos(math.pi * progress)) / 2 if config.schedule == "cosine" else 1 - progress
    return config.final_fraction + (1 - config.final_fraction) * remaining
