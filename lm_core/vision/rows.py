"""Rows about pictures, and which of them a step takes.

A row of tokens begins with the number of its picture. Rows about one picture stand side by side in a batch, so that
the picture is encoded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from lm_core.artifact import DownstreamData
from lm_core.downstream.encoding import Row
from lm_core.downstream.items import read_items
from lm_core.errors import UserError
from lm_core.model.language_model import LanguageModel
from lm_core.model.losses import IGNORE
from lm_core.runtime import Runtime
from lm_core.tokenizer import TextTokenizer
from lm_core.training.loop import Batch
from lm_core.vision.config import PictureBatches
from lm_core.vision.pictures import Pictures, Pixels, load_pictures

BLANK = 127
VALIDATION_ROWS = 256
SHIFT_PIXELS, BRIGHTNESS = 4, 0.15

Items = Sequence[Mapping[str, Any]]


class VisualData:
    """A task's items by split, with their pictures."""

    def __init__(self, examples: DownstreamData, task: str, runtime: Runtime) -> None:
        self.pictures: Pictures = load_pictures(examples.folder)
        self.items: dict[str, Items] = {
            split: read_items(examples, None, task, split, runtime) for split in ("train", "validation", "test")
        }
        if not self.items["train"] or not self.items["test"]:
            raise UserError(f"the task {task} has no items left; look at its files")

    @property
    def labels(self) -> list[str]:
        """The closed set of answers; empty where answers are free."""
        return list(self.items["train"][0]["labels"] or [])

    def numbers(self, items: Items) -> list[int]:
        """The place of each item's picture in the bank."""
        return [self.pictures.number[item["group"]] for item in items]


def rows_about(
    items: Items, numbers: Sequence[int], tokenizer: TextTokenizer, context_length: int, labels: Sequence[str]
) -> list[Row]:
    """Items as rows that begin with the number of their picture; with labels the target is a label's number.

    Args:
        numbers: the picture of each item; the controls give others than its own.
    """
    prompts = tokenizer.encode_batch([item["prompt"] for item in items])
    place = {label: index for index, label in enumerate(labels)}
    if labels:
        answers = [[place[item["target"]]] for item in items]
    else:
        answers = [[*ids, tokenizer.turn_end] for ids in tokenizer.encode_batch([item["target"] for item in items])]
    room = context_length - 2
    rows = []
    for number, prompt, answer in zip(numbers, prompts, answers, strict=True):
        fed, wanted = answer[: room // 2], len(answer[: room // 2])
        opening = [number, *prompt[: room - wanted], tokenizer.assistant]
        rows.append(Row([*opening, *fed[:-1]], [IGNORE] * (len(opening) - 1) + fed))
    return rows


def opening_rows(prompts: Sequence[str], numbers: Sequence[int], tokenizer: TextTokenizer, room: int) -> list[Row]:
    """Rows that ask and hold no answer: the number of the picture, the prompt, the mark before the answer."""
    made = [[number, *prompt[: max(0, room - 2)], tokenizer.assistant]
            for number, prompt in zip(numbers, tokenizer.encode_batch(prompts), strict=True)]  # fmt: skip
    return [Row(tokens, [IGNORE] * len(tokens)) for tokens in made]


def batch_of(rows: Sequence[Row], pad: int) -> Batch:
    """Rows as one batch (B, T), padded on the right to the longest."""
    longest = max(len(row.tokens) for row in rows)
    tokens = torch.tensor([row.tokens + [pad] * (longest - len(row.tokens)) for row in rows])
    targets = torch.tensor([row.targets + [IGNORE] * (longest - len(row.targets)) for row in rows])
    return Batch(tokens, targets)


def plan_steps(
    rows: Sequence[Row], numbers: Sequence[int], config: PictureBatches, batch_tokens: int, seed: int
) -> list[list[int]]:
    """Indices of each step's rows for the whole run; a pure function of its arguments.

    Each pass shuffles the pictures, and draws for each of them at most `texts_per_picture` of its rows.

    Args:
        numbers: the picture that each row is about.
    """
    by_picture: dict[int, list[int]] = {}
    for index, number in enumerate(numbers):
        by_picture.setdefault(number, []).append(index)
    pictures = list(by_picture.values())
    longest = max(len(row.tokens) for row in rows)
    size = max(1, batch_tokens // longest)
    steps: list[list[int]] = []
    num_steps = config.max_steps
    for epoch in range(math.ceil(config.num_epochs)):
        generator = np.random.default_rng((seed, epoch))
        drawn: list[int] = []
        for place in generator.permutation(len(pictures)):
            texts = pictures[place]
            drawn += [texts[i] for i in generator.permutation(len(texts))[: config.texts_per_picture]]
        parts = [drawn[start : start + size] for start in range(0, len(drawn), size)]
        steps += parts
        if epoch == 0:
            num_steps = min(num_steps, max(1, round(config.num_epochs * len(parts))))
        if len(steps) >= num_steps:
            break
    return steps[:num_steps]


def validation_loss(rows: Sequence[Row], pad: int) -> Callable[[nn.Module], dict[str, float]] | None:
    """An evaluation for `train`: mean loss of the targets of held-out rows; None without rows."""
    if not rows:
        return None

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, LanguageModel)
        device = next(model.parameters()).device
        nats, targets = 0.0, 0
        for start in range(0, len(rows), VALIDATION_ROWS):
            batch = batch_of(rows[start : start + VALIDATION_ROWS], pad)
            losses = model.token_losses(batch.tokens.to(device), batch.targets.to(device))
            nats += float(losses.sum(dtype=torch.float64))
            targets += int((batch.targets != IGNORE).sum())
        return {"val_loss": nats / max(1, targets)}

    return evaluate


def blank_like(pixels: Pixels) -> Pixels:
    """As many pictures that show nothing."""
    return np.full_like(pixels[:1], BLANK)


def augmented(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    """Pictures (N, 3, S, S) shifted by a few pixels, mirrored or not, brightened or darkened."""
    made = np.empty_like(pixels)
    for place, picture in enumerate(pixels):
        down, right = generator.integers(-SHIFT_PIXELS, SHIFT_PIXELS + 1, 2)
        wide = np.pad(picture, ((0, 0), (SHIFT_PIXELS, SHIFT_PIXELS), (SHIFT_PIXELS, SHIFT_PIXELS)), mode="edge")
        top, left = SHIFT_PIXELS + down, SHIFT_PIXELS + right
        size = picture.shape[1]
        cut = wide[:, top : top + size, left : left + size].astype(np.float32)
        cut = cut[:, :, ::-1] if generator.random() < 0.5 else cut
        made[place] = np.clip(cut * (1 + generator.uniform(-BRIGHTNESS, BRIGHTNESS)), 0, 255)
    return made
