"""Examples as token rows: a prompt, then the target that alone carries loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lm_core.model.losses import IGNORE
from lm_core.tokenizer import TextTokenizer
from lm_core.training.loop import Batch

# A quarter of the context is for the answer; few distinct row lengths keep memory and kernels steady.
ANSWER_SHARE = 4
LENGTH_STEP = 16


@dataclass(frozen=True)
class Row:
    """Inputs and targets of one example, equally long; targets are IGNORE except where something is to be learnt."""

    tokens: list[int]
    targets: list[int]


def answer_room(context_length: int) -> int:
    """Tokens that an answer may have, its end mark included."""
    return max(2, context_length // ANSWER_SHARE)


def prompt_rows(tokenizer: TextTokenizer, prompts: Sequence[str], context_length: int) -> list[list[int]]:
    """Prompts that leave room for an answer.

    A prompt that is too long loses its middle: instructions and questions stand at its ends.
    """
    room = context_length - answer_room(context_length)
    frame = tokenizer.prompt_ids("")
    opening, closing = frame[:2], frame[2:]
    rows = []
    for ids in tokenizer.encode_batch(prompts):
        free = max(0, room - len(frame))
        if len(ids) > free:
            head = free // 2
            ids = ids[:head] + ids[len(ids) - (free - head) :]
        rows.append([*opening, *ids, *closing])
    return rows


def answer_rows(
    tokenizer: TextTokenizer, prompts: Sequence[str], targets: Sequence[str], context_length: int
) -> list[Row]:
    """Rows to learn or score an answer given its prompt; the answer ends with the turn's end."""
    rows = []
    room = answer_room(context_length)
    for prompt, target in zip(
        prompt_rows(tokenizer, prompts, context_length), tokenizer.encode_batch(targets), strict=True
    ):
        answer = [*target, tokenizer.turn_end][:room]
        whole = prompt + answer
        rows.append(Row(whole[:-1], [IGNORE] * (len(prompt) - 1) + answer))
    return rows


def label_rows(
    tokenizer: TextTokenizer, prompts: Sequence[str], labels: Sequence[int], context_length: int
) -> list[Row]:
    """Rows of a classifier: the label's number is the target at the last token."""
    prompt_ids = prompt_rows(tokenizer, prompts, context_length)
    return [Row(ids, [IGNORE] * (len(ids) - 1) + [label]) for ids, label in zip(prompt_ids, labels, strict=True)]


def text_rows(tokenizer: TextTokenizer, texts: Sequence[str], context_length: int) -> list[Row]:
    """Rows of texts without a prompt, each cut to one context: every token is a target, the first after the mark."""
    rows = []
    for ids in tokenizer.encode_batch(texts):
        part = ids[:context_length]
        rows.append(Row([tokenizer.end_of_text, *part[:-1]], part))
    return rows


def pad_rows(rows: Sequence[Row], pad: int) -> Batch:
    """Rows as one batch (B, T), padded on the right, where padding changes nothing before it."""
    longest = max(len(row.tokens) for row in rows)
    length = -(-longest // LENGTH_STEP) * LENGTH_STEP
    tokens = torch.full((len(rows), length), pad, dtype=torch.int64)
    targets = torch.full((len(rows), length), IGNORE, dtype=torch.int64)
    for place, row in enumerate(rows):
        tokens[place, : len(row.tokens)] = torch.tensor(row.tokens)
        targets[place, : len(row.targets)] = torch.tensor(row.targets)
    return Batch(tokens, targets)


def group_by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices in groups of similar length whose padded rows fill at most `batch_tokens` (or one row)."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups:
            padded = -(-lengths[groups[-1][0]] // LENGTH_STEP) * LENGTH_STEP
            if padded * (len(groups[-1]) + 1) <= batch_tokens:
                groups[-1].append(index)
                continue
        groups.append([index])
    return groups


def epoch_of_batches(lengths: Sequence[int], batch_tokens: int, *, seed: int, epoch: int) -> list[list[int]]:
    """One pass over all examples as batches of indices; a pure function of its arguments.

    Examples are shuffled, sorted by length within pools of about sixteen batches, and the batches shuffled again.
    """
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(lengths)).tolist()
    mean = max(1.0, sum(lengths) / max(1, len(lengths)))
    pool = max(1, int(16 * batch_tokens / mean))
    batches: list[list[int]] = []
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        batches += [[part[i] for i in group] for group in group_by_length([lengths[i] for i in part], batch_tokens)]
    return [batches[i] for i in generator.permutation(len(batches))]
