"""What visual models answer: label probabilities, captions, how likely a caption is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lm_core.downstream.encoding import Row
from lm_core.model.language_model import LanguageModel
from lm_core.model.losses import IGNORE
from lm_core.tokenizer import TextTokenizer
from lm_core.vision.rows import batch_of

BATCH_ROWS = 512

Floats = NDArray[np.float64]


def other_pictures(numbers: Sequence[int], seed: int) -> list[int]:
    """For each item a picture that is not its own: the pictures of the items change places, all of one alike.

    With a single picture there is no other; it keeps its own.
    """
    own = sorted(set(numbers))
    turned = np.random.default_rng(seed).permutation(own)
    # A cycle through all pictures leaves none at its place.
    following = dict(zip(turned.tolist(), np.roll(turned, 1).tolist(), strict=True))
    return [following[number] for number in numbers]


@torch.no_grad()
def label_probabilities(model: LanguageModel, rows: Sequence[Row], pad: int) -> Floats:
    """Probability of each label at the last token of each row, (rows, labels).

    Equal rows are asked once, and rows about one picture together.
    """
    different = sorted({tuple(row.tokens) for row in rows})
    made = np.zeros((len(different), model.vocab_size))
    for start in range(0, len(different), BATCH_ROWS):
        part = different[start : start + BATCH_ROWS]
        batch = batch_of([Row(list(tokens), [IGNORE] * len(tokens)) for tokens in part], pad)
        last = torch.tensor([len(tokens) - 1 for tokens in part])
        states = model.hidden(batch.tokens)[torch.arange(len(part)), last]
        made[start : start + len(part)] = model.logits(states).softmax(-1).double().numpy()
    place = {tokens: index for index, tokens in enumerate(different)}
    result: Floats = made[[place[tuple(row.tokens)] for row in rows]]
    return result


@torch.no_grad()
def captions(model: LanguageModel, tokenizer: TextTokenizer, openings: Sequence[list[int]], limit: int) -> list[str]:
    """The likeliest next token, again and again, of rows of equal beginnings; until the turn ends."""
    answers: list[list[int]] = [[] for _ in openings]
    open_rows = list(range(len(openings)))
    for _ in range(limit):
        for start in range(0, len(open_rows), BATCH_ROWS):
            part = open_rows[start : start + BATCH_ROWS]
            rows = [[*openings[i], *answers[i]] for i in part]
            batch = batch_of([Row(tokens, [IGNORE] * len(tokens)) for tokens in rows], tokenizer.pad)
            last = torch.tensor([len(tokens) - 1 for tokens in rows])
            states = model.hidden(batch.tokens)[torch.arange(len(rows)), last]
            for i, token in zip(part, model.logits(states).argmax(-1).tolist(), strict=True):
                answers[i].append(token)
        open_rows = [i for i in open_rows if answers[i][-1] not in (tokenizer.turn_end, tokenizer.end_of_text)]
        if not open_rows:
            break
    return [tokenizer.decode(answer).strip() for answer in answers]


@torch.no_grad()
def log_likelihoods(model: LanguageModel, rows: Sequence[Row], pad: int) -> Floats:
    """Log-probability in nats of each row's targets, (rows,)."""
    parts = []
    for start in range(0, len(rows), BATCH_ROWS):
        batch = batch_of(rows[start : start + BATCH_ROWS], pad)
        losses: Tensor = model.token_losses(batch.tokens, batch.targets)
        parts.append(-losses.sum(1).double().numpy())
    return np.concatenate(parts)
