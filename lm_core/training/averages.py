"""Copies of the weights that a run keeps beside those it trains: a moving average, a mean of moments, the best."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lm_core.training.config import OptimizationConfig

Weights = dict[str, Tensor]
EMA, MEAN, BEST = "ema", "mean", "best"


class WeightAverages:
    """Part of every checkpoint, so that a resumed run averages on.

    Attributes:
        kept: name of the copy -> weights.
        num_averaged: moments in the mean so far.
    """

    def __init__(self, config: OptimizationConfig, num_steps: int) -> None:
        self.config = config
        self.kept: dict[str, Weights] = {}
        self.num_averaged = 0
        self.moments = averaging_moments(config, num_steps)

    def take_up(self, groups: Mapping[str, Weights], num_averaged: int) -> None:
        """Continue from a checkpoint's groups of tensors; the best weights of this run stay if it has none."""
        best = self.kept.get(BEST)
        self.kept = {name: copy_of(groups[name]) for name in (EMA, MEAN, BEST) if name in groups}
        if best is not None:
            self.kept[BEST] = best
        self.num_averaged = num_averaged

    def after_step(self, model: nn.Module, step: int) -> None:
        """Take up the weights that `step` steps have led to."""
        if self.config.ema_decay:
            self._move(model.state_dict(), step)
        if step in self.moments:
            self.num_averaged += 1
            mean = self.kept.setdefault(MEAN, copy_of(model.state_dict()))
            for name, tensor in model.state_dict().items():
                mean[name].lerp_(tensor, 1 / self.num_averaged)

    def _move(self, weights: Mapping[str, Tensor], step: int) -> None:
        average = self.kept.setdefault(EMA, copy_of(weights))
        # A young average forgets faster, so that the initial weights leave it (Karras et al. 2023, appendix C.1).
        decay = min(self.config.ema_decay, step / (9 + step))
        for name, tensor in weights.items():
            average[name].lerp_(tensor, 1 - decay)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """The model with the average in place of its weights, for the time of an evaluation."""
        average = self._average()
        if average is None:
            yield
            return
        own = copy_of(model.state_dict())
        try:
            model.load_state_dict(average)
            yield
        finally:
            model.load_state_dict(own)

    def keep_best(self, model: nn.Module) -> None:
        """The weights of the evaluation just made are the best so far."""
        self.kept[BEST] = copy_of(self._average() or model.state_dict())

    def final(self) -> Weights | None:
        """What the run should leave: the best under early stopping, else the average; None for the last weights."""
        return self.kept.get(BEST) or self._average()

    def _average(self) -> Weights | None:
        return self.kept.get(EMA) or self.kept.get(MEAN)


def averaging_moments(config: OptimizationConfig, num_steps: int) -> set[int]:
    """Steps after which the weights enter the mean: evenly spread over the last share of the run, its end included."""
    span = max(1, round(config.average_fraction * num_steps))
    wanted = config.average_checkpoints
    return {num_steps - round(span * i / wanted) for i in range(wanted)}


def copy_of(state: Mapping[str, Tensor]) -> Weights:
    """The same tensors in memory of their own."""
    with torch.no_grad():
        return {name: tensor.detach().clone() for name, tensor in state.items()}
