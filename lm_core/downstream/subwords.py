"""A linear classifier of subwords and their pairs, as the second voice of a neural one.

A small model does well to have it: which words a text holds decides most labels, and a trunk of a few million
parameters has seen few of them often. Single tokens and pairs are hashed into buckets (the hashing trick, Weinberger
et al. 2009). A bucket counts as much as it is rare (inverse document frequency), times how unevenly the labels use it
(the log-count ratio of Wang and Manning 2012); logistic regression, solved to its optimum, does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from lm_core.tokenizer import TextTokenizer

ORDERS = (1, 2)
INVERSE_REGULARISATION = 10.0  # of unit vectors times ratios of a few units; as of the TF-IDF baseline
SMOOTHING = 0.3
MAX_ITERATIONS = 100
FOLDS = 4
_UNKNOWN = -1e4
_MULTIPLIERS = (0x9E3779B1, 0x85EBCA77)
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
    weight: Tensor
    bias: Tensor

    def __init__(self, vocab_size: int, num_labels: int, num_buckets: int) -> None:
        super().__init__()
        self.num_buckets = num_buckets
        # All as floats (ids are exact up to 2**24): averages of weights are taken over the whole state.
        self.register_buffer("folded", torch.arange(vocab_size, dtype=torch.float32))
        self.register_buffer("rarity", torch.ones(num_buckets))
        self.register_buffer("weight", torch.zeros(num_buckets, num_labels))
        self.register_buffer("bias", torch.zeros(num_labels))

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

    def fit(self, rows: Sequence[Sequence[int]], labels: Sequence[int], tokenizer: TextTokenizer) -> None:
        """Learn from training texts and the numbers of their labels."""
        from sklearn.linear_model import LogisticRegression

        self.folded.copy_(folded_ids(tokenizer))
        counts = self._counts(rows)
        rarity = 1 + np.log((1 + len(rows)) / (1 + (counts > 0).sum(0)))
        self.rarity.copy_(torch.as_tensor(np.asarray(rarity).ravel()))
        weights = self.rarity.numpy().astype(np.float64)
        texts = sparse.diags(1 / np.sqrt(counts @ weights**2)) @ counts @ sparse.diags(weights)
        present, wanted = np.unique(labels, return_inverse=True)
        if len(present) < 2:
            return
        share = _unevenness(texts, wanted)
        # Only buckets that texts fall into have a weight.
        used = np.flatnonzero(share)
        solver = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=MAX_ITERATIONS)
        solver.fit((texts @ sparse.diags(share))[:, used], wanted)
        rows_of_label, bias = solver.coef_, solver.intercept_
        if len(present) == 2:
            rows_of_label, bias = np.concatenate((-rows_of_label, rows_of_label)) / 2, np.array((-bias[0], bias[0])) / 2
        weight = np.zeros((self.num_buckets, len(self.bias)), np.float32)
        weight[np.ix_(used, present)] = (rows_of_label * share[used]).T
        self.weight.copy_(torch.from_numpy(weight))
        # A label without examples is not answered.
        self.bias.fill_(_UNKNOWN)
        self.bias[torch.from_numpy(present)] = torch.as_tensor(bias, dtype=torch.float32)

    def _counts(self, rows: Sequence[Sequence[int]]) -> sparse.csr_matrix:
        """How often each row falls into each bucket, (rows, buckets)."""
        found = [self.buckets(torch.tensor([list(row)])).flatten().numpy() for row in rows]
        ends = np.cumsum([0, *map(len, found)])
        counts = sparse.csr_matrix(
            (np.ones(ends[-1]), np.concatenate(found), ends), shape=(len(rows), self.num_buckets), dtype=np.float64
        )
        counts.sum_duplicates()
        return counts

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores (B, T, labels) of the texts up to each token."""
        buckets = self.buckets(tokens)
        rarity = self.rarity[buckets]
        scores = (self.weight[buckets] * rarity[..., None]).sum(2).cumsum(1)
        length = rarity.square().sum(2).cumsum(1).sqrt()
        return scores / length[..., None] + self.bias


@torch.no_grad()
def out_of_fold(
    bag: BagOfSubwords,
    rows: Sequence[Sequence[int]],
    labels: Sequence[int],
    tokenizer: TextTokenizer,
    seed: int,
) -> Tensor:
    """What bags like this one say to training texts that they have not seen, (rows, labels)."""
    wanted = np.asarray(labels)
    # Each label's texts go round the folds, so that no fold takes all of a rare one.
    order = np.random.default_rng(seed).permutation(len(rows))
    order = order[np.argsort(wanted[order], kind="stable")]
    fold_of = np.empty(len(rows), np.int64)
    fold_of[order] = np.arange(len(rows)) % FOLDS
    scores = torch.zeros(len(rows), len(bag.bias))
    for fold in range(FOLDS):
        seen, unseen = np.flatnonzero(fold_of != fold).tolist(), np.flatnonzero(fold_of == fold).tolist()
        other = BagOfSubwords(len(bag.folded), len(bag.bias), bag.num_buckets)
        other.fit([rows[i] for i in seen], [labels[i] for i in seen], tokenizer)
        for i in unseen:
            scores[i] = other(torch.tensor([list(rows[i])]))[0, -1]
    known = torch.where(scores > _UNKNOWN / 2, scores, torch.inf)
    return torch.maximum(scores, known.min(1, keepdim=True).values)


def _unevenness(texts: sparse.csr_matrix, labels: np.ndarray) -> np.ndarray:
    """How unevenly labels use each bucket, (buckets,): the size of the largest log-count ratio of one to the others."""
    num_labels = labels.max() + 1
    members = sparse.csr_matrix((np.ones(len(labels)), (labels, np.arange(len(labels)))), (num_labels, len(labels)))
    of_label = (members @ texts).toarray()
    used = of_label.sum(0) > 0
    own = of_label[:, used] + SMOOTHING
    others = of_label[:, used].sum(0) - of_label[:, used] + SMOOTHING
    ratio = np.log(own / own.sum(1, keepdims=True)) - np.log(others / others.sum(1, keepdims=True))
    largest = np.zeros(texts.shape[1])
    largest[used] = np.abs(ratio).max(0)
    return largest
