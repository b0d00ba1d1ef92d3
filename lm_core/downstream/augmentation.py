"""Augmentation of labelled texts: tokens left out, or replaced by neighbours in the base's embedding.

Back-off choices: translation there and back needs two translation models, synonyms need a lexicon; where there is
neither, near neighbours in the embedding of the pretrained base stand for synonyms; and where there is no pretrained
embedding, tokens are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lm_core.downstream.config import FinetuneConfig
from lm_core.downstream.encoding import Row
from lm_core.model.language_model import LanguageModel
from lm_core.model.losses import IGNORE

NEIGHBOURS = 5
_CHUNK = 1024


@torch.no_grad()
def neighbours_of(trunk: LanguageModel) -> NDArray[np.int64]:
    """The nearest other tokens of each token by the cosine of their embeddings, (V, NEIGHBOURS)."""
    vectors = torch.nn.functional.normalize(trunk.output_weight.float(), dim=1)
    found = []
    for start in range(0, len(vectors), _CHUNK):
        likeness = vectors[start : start + _CHUNK] @ vectors.T
        likeness[torch.arange(len(likeness)), torch.arange(start, start + len(likeness))] = -2
        found.append(likeness.topk(NEIGHBOURS).indices)
    return torch.cat(found).numpy()


class Augmentation:
    """Rows of a classifier, changed anew at each step: a function of seed and step.

    Args:
        trunk: the base, whose embedding knows neighbours.
    """

    def __init__(self, config: FinetuneConfig, trunk: LanguageModel) -> None:
        self.seed = config.optimization.seed
        known = config.token_swap > 0 and not config.from_random
        self.left_out = config.token_dropout if known else max(config.token_dropout, config.token_swap)
        self.swapped = config.token_swap if known else 0.0
        self._neighbours = neighbours_of(trunk) if known else None

    def __call__(self, rows: Sequence[Row], step: int) -> Sequence[Row]:
        """The rows of a step; those of other than labels as they are."""
        if not (self.left_out or self.swapped) or any(t != IGNORE for row in rows for t in row.targets[:-1]):
            return rows
        generator = np.random.default_rng((self.seed, step))
        return [self._changed(row, generator) for row in rows]

    def _changed(self, row: Row, generator: np.random.Generator) -> Row:
        """The first and the last token stay: a mark, and the one that carries the label."""
        tokens = np.array(row.tokens)
        inner = np.ones(len(tokens), bool)
        inner[[0, -1]] = False
        if self._neighbours is not None:
            moved = inner & (generator.random(len(tokens)) < self.swapped)
            picks = generator.integers(0, NEIGHBOURS, len(tokens))
            tokens = np.where(moved, self._neighbours[tokens, picks], tokens)
        kept = np.flatnonzero(~inner | (generator.random(len(tokens)) >= self.left_out))
        return Row([int(tokens[i]) for i in kept], [row.targets[i] for i in kept])
