"""Choosing the next token by its logits: by formula for any device, and compiled for a CPU."""

# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from torch import Tensor

from lm_core.errors import UserError
from lm_core.model.kernels import SETTINGS, bits_of_float, exponential, float_of_bits, largest

_COLDEST = 1e-6  # a temperature below is as good as this, and fp32 can divide by it


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the likeliest token; logits are divided by it otherwise.
        top_k: sample among the k likeliest tokens only.
        top_p: sample among the likeliest tokens that together hold this probability (Holtzman et al. 2019).
        min_p: leave out tokens less likely than this share of the likeliest (Nguyen et al. 2024).
        repetition_penalty: tokens of the row so far lose by this factor (Keskar et al. 2019); 1 is off.
        seed: of the random draws.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no sampling can mean.

        Raises:
            UserError: naming the field.
        """
        bounds = {
            "temperature": self.temperature >= 0,
            "top_k": self.top_k is None or self.top_k >= 1,
            "top_p": self.top_p is None or 0 < self.top_p <= 1,
            "min_p": self.min_p is None or 0 <= self.min_p <= 1,
            "repetition_penalty": 0 < self.repetition_penalty < math.inf,
            "seed": 0 <= self.seed < 2**63,
        }
        for name, holds in bounds.items():
            if not holds:
                raise UserError(f"{name}={getattr(self, name)} is out of bounds: temperature >= 0, top_k >= 1, "
                                "0 < top_p <= 1, 0 <= min_p <= 1, repetition_penalty > 0, seed >= 0")  # fmt: skip


def choose(logits: Tensor, sampling: Sampling, uniform: Tensor, seen: Tensor | None) -> Tensor:
    """Tokens (B,) drawn from logits (B, V).

    Args:
        uniform: (B,) in [0, 1), what each row's draw depends on; of no meaning at temperature 0.
        seen: bool (B, V), the tokens of each row so far; needed for a repetition penalty only.
    """
    if logits.device.type != "cpu":
        return choose_by_formula(logits, sampling, uniform, seen)
    chosen = torch.empty(len(logits), dtype=torch.int64)
    marks = np.empty((0, 0), np.bool_) if seen is None or sampling.repetition_penalty == 1 else seen.numpy()
    _choose(
        logits.contiguous().numpy(), marks,
        uniform.numpy(), chosen.numpy(), sampling.repetition_penalty, sampling.temperature, sampling.top_k or 0,
        1.0 if sampling.top_p is None else sampling.top_p, sampling.min_p or 0.0,
    )  # fmt: skip
    return chosen


def choose_by_formula(logits: Tensor, sampling: Sampling, uniform: Tensor, seen: Tensor | None) -> Tensor:
    """The definition of `choose`."""
    if sampling.repetition_penalty != 1 and seen is not None:
        weaker = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = torch.where(seen, weaker, logits)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = (logits - logits.amax(-1, keepdim=True)) / max(sampling.temperature, _COLDEST)
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        smallest = logits.topk(sampling.top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p  # the token that crosses the bound stays
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    probabilities = logits.softmax(-1)
    if sampling.min_p is not None:
        floor = sampling.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < floor, 0)
    below = probabilities.double().cumsum(-1)
    return (below <= uniform.double()[:, None] * below[:, -1:]).sum(-1)


# ---------------------------------------------------------------- compiled


@njit(**SETTINGS)
def _choose(logits, seen, uniform, chosen, penalty, temperature, top_k, top_p, min_p):
    """Fill `chosen` (B,); arguments as of `choose`, 0 and 1 switching the bounds off. Nothing is ever sorted."""
    weights = np.empty(logits.shape[1], np.float32)
    for i in range(len(logits)):
        for j in range(len(weights)):
            weights[j] = logits[i, j]
        if len(seen):
            _penalise(weights, seen[i], np.float32(penalty))
        if temperature == 0:
            chosen[i] = _first_largest(weights)
            continue
        _soften(weights, np.float32(1 / max(temperature, _COLDEST)))
        if 0 < top_k < len(weights):
            _drop_below(weights, _lowest_kept(weights, top_k, np.float32(0)))
        if top_p < 1:
            _keep_share(weights, np.float32(top_p))
        if min_p > 0:
            _drop_below(weights, np.float32(min_p))  # the likeliest token weighs 1
        chosen[i] = _draw(weights, uniform[i])


@njit(**SETTINGS)
def _penalise(logits, seen, penalty):
    for j in range(len(logits)):
        if seen[j]:
            logits[j] = logits[j] / penalty if logits[j] > 0 else logits[j] * penalty


@njit(**SETTINGS)
def _first_largest(logits):
    highest = largest(logits, len(logits))
    for j in range(len(logits)):
        if logits[j] == highest:
            return j
    return 0


@njit(**SETTINGS)
def _soften(logits, heat):
    """Logits become e^(logit * heat), in proportion to the largest's."""
    highest = largest(logits, len(logits))
    for j in range(len(logits)):
        logits[j] = exponential((logits[j] - highest) * heat)


@njit(**SETTINGS)
def _drop_below(weights, bound):
    for j in range(len(weights)):
        if weights[j] < bound:
            weights[j] = 0


@njit(**SETTINGS)
def _lowest_kept(weights, count, mass):
    """The largest bound that `count` weights at least reach, holding `mass` together; by halving.

    The bits of floats that are not negative are in the floats' own order, so 30 halvings find it exactly.
    """
    low, high = np.uint32(0), np.uint32(bits_of_float(np.float32(1)) + np.uint32(1))
    while high - low > 1:
        middle = np.uint32((np.uint32(low) + np.uint32(high)) >> np.uint32(1))
        bound = float_of_bits(middle)
        reached, held = np.float32(0), np.float32(0)
        for j in range(len(weights)):
            weight = weights[j]
            there = np.float32(weight >= bound)  # without a branch, so that it runs in vectors
            reached += there
            held += there * weight
        if reached >= count and held >= mass:
            low = middle
        else:
            high = middle
    return float_of_bits(np.uint32(low))


@njit(**SETTINGS)
def _keep_share(weights, share):
    """Only the heaviest that together hold the share of all stay; of several that are equally light, the first."""
    total = np.float32(0)
    for j in range(len(weights)):
        total += weights[j]
    bound = _lowest_kept(weights, 1, share * total)
    held = np.float32(0)
    for j in range(len(weights)):
        if weights[j] > bound:
            held += weights[j]
    for j in range(len(weights)):
        if weights[j] == bound and held < share * total:
            held += bound
        elif weights[j] <= bound:
            weights[j] = 0


@njit(nogil=True, cache=True)
def _draw(weights, uniform):
    """The first index at which the running sum exceeds this share of the whole, summed in this order."""
    total = 0.0
    for j in range(len(weights)):
        total += weights[j]
    target, below = uniform * total, 0.0
    for j in range(len(weights)):
        below += weights[j]
        if below > target:
            return j
    return len(weights) - 1
