"""A linear classifier of subwords and their pairs, as a part of a neural one: what TF-IDF sees, learnt with it.

A small model does well to have it: which words a text holds decides most labels, and a trunk of a few million
parameters has seen few of them often. Single tokens, pairs and triples are hashed into buckets (the hashing trick,
Weinberger et al. 2009); a bucket counts as much as it is rare in the training texts (inverse document frequency).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lm_core.tokenizer import TextTokenizer

ORDERS = (1, 2, 3)
_MULTIPLIERS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
# Adam moves a weight by about its learning rate in a step, whatever the gradient: the factor lets the scores of a
# handful of buckets move far enough within a few hundred steps.
SCALE = 8.0
_SPARE = (1 << 31) - 1


def folded_ids(tokenizer: TextTokenizer) -> Tensor:
    """For each token the id of the first token that is the same but for case and spaces around it, (V,)."""
    first: dict[str, int] = {}
    ids = []
    for token in range(tokenizer.vocab_size):
        text = tokenizer.decode([token]).strip().casefold()
        ids.append(first.setdefault(text, token) if text else token)
    return torch.tensor(ids)


class BagOfSubwords(nn.Module):
    """Scores of labels from hashed n-grams of tokens; of every prefix, so that padding on the right changes nothing."""

    folded: Tensor
    rarity: Tensor

    def __init__(self, vocab_size: int, num_labels: int, num_buckets: int) -> None:
        super().__init__()
        self.num_buckets = num_buckets
        self.weight = nn.Parameter(torch.zeros(num_buckets, num_labels))
        # As floats, exact up to 2**24: averages of weights are taken over the whole state.
        self.register_buffer("folded", torch.arange(vocab_size, dtype=torch.float32))
        self.register_buffer("rarity", torch.ones(num_buckets))

    def buckets(self, tokens: Tensor) -> Tensor:
        """Buckets (B, T, orders) of the n-grams that end at each token; near the beginning the shorter ones again."""
        ids = self.folded[tokens].long() + 1
        hashed = torch.zeros_like(ids)
        found = []
        for order, multiplier in zip(ORDERS, _MULTIPLIERS, strict=True):
            shifted = torch.zeros_like(ids)
            shifted[:, order - 1 :] = ids[:, : ids.shape[1] - order + 1]
            hashed = ((hashed * 31 + shifted) * multiplier) & _SPARE
            found.append((hashed ^ (hashed >> 15)) % self.num_buckets)
        return torch.stack(found, -1)

    def fit(self, rows: Sequence[Sequence[int]], tokenizer: TextTokenizer) -> None:
        """Set the rarity of buckets from training texts."""
        self.folded.copy_(folded_ids(tokenizer))
        counts = torch.zeros(self.num_buckets)
        for row in rows:
            counts[self.buckets(torch.tensor([list(row)])).unique()] += 1
        self.rarity.copy_(1 + torch.log((1 + len(rows)) / (1 + counts)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores (B, T, labels) of the texts up to each token; the texts' vectors have about unit length."""
        buckets = self.buckets(tokens)
        rarity = self.rarity[buckets]
        scores = (self.weight[buckets] * rarity[..., None]).sum(2).cumsum(1)
        length = rarity.square().sum(2).cumsum(1).sqrt()
        return SCALE * scores / length[..., None]
