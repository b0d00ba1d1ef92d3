"""The course of a run: what the loop remembers besides tensors, and when a run is not worth going on with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from lm_core.errors import UserError
from lm_core.training.config import OptimizationConfig

MAX_SKIPPED_IN_A_ROW = 5
MAX_ROLLBACKS = 3
DIVERGING_STEPS = 20
SMOOTHING = 0.95


@dataclass
class Figures:
    """The loop's memory besides tensors; part of every checkpoint."""

    tokens: int = 0
    seconds: float = 0.0
    first_loss: float | None = None
    smoothed_loss: float = 0.0
    steps_above_first: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    rollbacks: int = 0
    evaluated_at: int = 0
    best_val_loss: float = math.inf
    evaluations_without_gain: int = 0
    num_averaged: int = 0
    worlds: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of_checkpoint(cls, content: Mapping[str, Any], work: Path) -> Figures:
        """Figures as a checkpoint in `work` holds them; those that an older release did not know begin anew.

        Raises:
            UserError: there are some that this release does not know.
        """
        unknown = sorted(content.keys() - cls.__dataclass_fields__.keys())
        if unknown:
            raise UserError(
                f"state.json of a checkpoint in {work} holds figures.{unknown[0]}, which this release does not know; "
                f"go on with the release that wrote it, or remove {work} to start over"
            )
        return cls(**content)

    def after_step(self, loss: float) -> None:
        """Take in the loss of a step that was not left out."""
        self.skipped_in_a_row = 0
        if self.first_loss is None and not loss:  # a step without targets is nothing to compare later ones with
            return
        if self.first_loss is None:
            self.first_loss = self.smoothed_loss = loss
        self.smoothed_loss = SMOOTHING * self.smoothed_loss + (1 - SMOOTHING) * loss
        worse = self.smoothed_loss > self.first_loss * 1.1 + 0.25
        self.steps_above_first = self.steps_above_first + 1 if worse else 0


class Course:
    """What a run is ended for, in words that name the settings to change.

    Args:
        config: of the run.
        num_steps: of the whole run.
    """

    def __init__(self, config: OptimizationConfig, num_steps: int) -> None:
        self.config = config
        # What is not worth going on with after so many steps in a row is not worth keeping after fewer, in short runs.
        few = max(1, num_steps // 4)
        self.diverged_after, self.spoilt_after = min(DIVERGING_STEPS, few), min(MAX_SKIPPED_IN_A_ROW, few)

    def check_step(self, figures: Figures, step: int) -> None:
        """Refuse to go on with a run that is worse than at its beginning, step after step."""
        if figures.steps_above_first >= DIVERGING_STEPS:
            raise self._diverges(figures, step)

    def check_outcome(self, figures: Figures, model: nn.Module, step: int, *, best_kept: bool) -> None:
        """A run too short for the watch over its steps must not leave what a longer one would have been ended for.

        Args:
            best_kept: the model has the weights of its best evaluation, not of its last step.

        Raises:
            UserError: the run ends worse than it began, on steps that were left out, or weights are not finite.
        """
        if figures.steps_above_first >= self.diverged_after and not best_kept:
            raise self._diverges(figures, step)
        if figures.skipped_in_a_row >= self.spoilt_after:
            raise self.is_not_finite(figures, step, "the last one")
        if not all(parameter.isfinite().all() for parameter in model.parameters()):
            raise UserError(f"the weights are not finite after step {step}; lower {self._rates()}")

    def is_not_finite(self, figures: Figures, step: int, what: str) -> UserError:
        """The error of a run whose last steps were all left out."""
        gone_back = f" and after going back {figures.rollbacks} times" if figures.rollbacks else ""
        return UserError(
            f"the loss or its gradient is not finite at step {step} ({what}), {figures.skipped_in_a_row} steps in a "
            f"row{gone_back}; lower {self._rates()}"
        )

    def _diverges(self, figures: Figures, step: int) -> UserError:
        return UserError(
            f"training diverges: smoothed loss {figures.smoothed_loss:.3f} at step {step}, "
            f"{figures.first_loss:.3f} at the beginning; lower {self._rates()}"
        )

    def _rates(self) -> str:
        rates = {"learning_rate": self.config.learning_rate}
        if self.config.uses_muon:
            rates["muon_learning_rate"] = self.config.muon_learning_rate
        return " and ".join(f"optimization.{name} (now {rate:g})" for name, rate in rates.items())
