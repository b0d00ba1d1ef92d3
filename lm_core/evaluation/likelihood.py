"""Scoring by likelihood: the loss of given targets, in batches of similar length."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from lm_core.artifact import Artifact
from lm_core.downstream.classifier import PooledClassifier
from lm_core.downstream.encoding import Row, group_by_length, pad_rows
from lm_core.model.language_model import LanguageModel
from lm_core.model.losses import IGNORE
from lm_core.tokenizer import TextTokenizer
from lm_core.training.loop import DTYPES

SCORING_TOKENS = 8192


@contextmanager
def as_trained(model: LanguageModel, checkpoint: Artifact) -> Iterator[None]:
    """The model computes in the precision that the checkpoint was trained in: in bf16 twice as fast as in fp32.

    A checkpoint from elsewhere says none, and stays fp32. So does generation, whose compiled step knows no other.
    """
    said = checkpoint.file("training.json")
    settings = json.loads(said.read_text())["config"]["optimization"] if said.exists() else {"precision": "fp32"}
    parts = [part for part in model.modules() if isinstance(part, LanguageModel)]
    before = [part.compute_dtype for part in parts]
    for part in parts:
        part.compute_dtype = DTYPES[settings["precision"]]
    try:
        yield
    finally:
        for part, dtype in zip(parts, before, strict=True):
            part.compute_dtype = dtype


def nats_by_row(
    model: LanguageModel, rows: Sequence[Row], pad: int, on_done: Callable[[int], None] = lambda _: None
) -> NDArray[np.float64]:
    """Summed cross-entropy of each row's targets, in nats.

    Args:
        on_done: told the number of rows scored so far.
    """
    device = next(model.parameters()).device
    nats = np.zeros(len(rows))
    done = 0
    for group in group_by_length([len(row.tokens) for row in rows], SCORING_TOKENS):
        batch = pad_rows([rows[i] for i in group], pad)
        losses = model.token_losses(batch.tokens.to(device), batch.targets.to(device))
        nats[group] = losses.sum(1, dtype=torch.float64).cpu().numpy()
        done += len(group)
        on_done(done)
    return nats


def label_probabilities(model: PooledClassifier, prompts: Sequence[list[int]], pad: int) -> NDArray[np.float64]:
    """Probability of each label for each prompt, (prompts, labels)."""
    device = next(model.parameters()).device
    result = np.zeros((len(prompts), len(model.labels)))
    rows = [Row(prompt, [IGNORE] * len(prompt)) for prompt in prompts]
    for group in group_by_length([len(prompt) for prompt in prompts], SCORING_TOKENS):
        tokens = pad_rows([rows[i] for i in group], pad).tokens.to(device)
        lengths = torch.tensor([len(prompts[i]) for i in group], device=device)
        result[group] = model.probabilities(tokens, lengths).cpu().numpy()
    return result


def target_bytes(tokenizer: TextTokenizer, row: Row) -> int:
    """UTF-8 bytes that a row's targets stand for."""
    return int(sum(tokenizer.token_bytes[target] for target in row.targets if target != IGNORE))


def document_rows(ids: Sequence[int], opening: int, context_length: int) -> list[Row]:
    """A text as windows in which every token is predicted exactly once; the first by the opening mark."""
    whole = [opening, *ids]
    starts = range(0, len(ids), context_length)
    return [
        Row(whole[s : s + context_length][: len(whole) - 1 - s], whole[s + 1 : s + 1 + context_length]) for s in starts
    ]
