"""Replay: text that the base has learnt from, mixed into fine-tuning so that it is not forgotten."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lm_core.artifact import Checkpoint
from lm_core.downstream.config import FinetuneConfig
from lm_core.downstream.encoding import Row
from lm_core.downstream.tuned import own_text
from lm_core.errors import UserError
from lm_core.model.losses import IGNORE
from lm_core.tokens import Windows, window_order


class Replay:
    """Windows of the base's training text beside the rows of a step.

    As many of their tokens carry loss as gives them their share of the step's targets: the loss is a mean over
    targets, and a window has hundreds where a labelled text has one.

    Args:
        num_labels: of a classifier, whose head takes the first targets: token ids stand behind them.

    Raises:
        UserError: when the base's text is not at hand.
    """

    def __init__(self, config: FinetuneConfig, base: Checkpoint, num_labels: int) -> None:
        self.share, self.seed, self.num_labels = config.replay_fraction, config.optimization.seed, num_labels
        folder = own_text(base)
        if folder is None:
            raise UserError("replay_fraction needs the text that the base was trained on, which is not in this store")
        self._windows = Windows(folder, "train")
        rows = config.replay_fraction * config.optimization.batch_tokens / self._windows.context_length
        self.rows_per_step = max(1, round(rows))

    def __call__(self, rows: Sequence[Row], step: int) -> list[Row]:
        """The rows of a step, and the replayed ones."""
        wanted = sum(t != IGNORE for row in rows for t in row.targets) * self.share / (1 - self.share)
        numbers = window_order(self.seed, step, self.rows_per_step, len(self._windows))
        windows = self._windows.read(numbers)
        generator = np.random.default_rng((self.seed, step, 1))
        text = windows[:, 1:] != self._windows.pad
        chosen = text & (generator.random(text.shape) < min(1.0, wanted / max(1, int(text.sum()))))
        targets = np.where(chosen, windows[:, 1:] + self.num_labels, IGNORE)
        replayed = [
            Row(window[:-1].tolist(), wanted_of.tolist())
            for window, wanted_of in zip(windows, targets, strict=True)
            if (wanted_of != IGNORE).any()
        ]
        return [*rows, *replayed]
