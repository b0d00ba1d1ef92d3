"""Generation: batched, with a cache of keys and values, reproducible by seed.

Prompts of different lengths are padded on the left; a row's padding is invisible to it and takes no positions, so every
row is what it would be alone.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lm_core.errors import UserError
from lm_core.model.decoder import Cache, Decoder
from lm_core.model.language_model import LanguageModel


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


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    **sampling: Any,
) -> list[list[int]]:
    """Continue each prompt; returns the new ids of each row, without the stop id that ended it.

    Args:
        sampling: fields of `Sampling`.
    """
    rows: list[list[int]] = [[] for _ in prompts]
    running = [True] * len(prompts)
    room = [model.context_length - len(prompt) for prompt in prompts]
    stops = set(stop_ids)
    for step in _steps(model, prompts, max_new_tokens, Sampling(**sampling)):
        for row, token in enumerate(step):
            running[row] = running[row] and token not in stops and len(rows[row]) < room[row]
            if running[row]:
                rows[row].append(token)
        if not any(running):
            break
    return rows


def stream(
    model: LanguageModel,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    **sampling: Any,
) -> Iterator[int]:
    """New ids of one prompt, one by one; arguments as of `generate`."""
    for (token,) in _steps(model, [prompt], max_new_tokens, Sampling(**sampling)):
        if token in stop_ids:
            return
        yield token


def _steps(
    model: LanguageModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampling: Sampling
) -> Iterator[list[int]]:
    """The next token of every row, step by step, until the budget or the context of the shortest is used up.

    What rows get after their own context is full means nothing.

    Raises:
        UserError: for an empty prompt, or one that fills the whole context.
    """
    lengths = [len(prompt) for prompt in prompts]
    if not prompts or min(lengths) == 0:
        raise UserError("a prompt is empty; begin it with the tokenizer's end_of_text")
    if max(lengths) >= model.context_length:
        raise UserError(f"the prompt has {max(lengths)} tokens; the model's context holds {model.context_length}")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 1")
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(sampling.seed)
    budget = min(max_new_tokens, model.context_length - min(lengths))
    if isinstance(model, Decoder):
        source = _cached_logits(model, prompts, budget, device)
    else:
        source = _uncached_logits(model, prompts, device)
    seen = torch.zeros(len(prompts), model.vocab_size, dtype=torch.bool, device=device)
    for row, prompt in enumerate(prompts):
        seen[row, list(prompt)] = True
    logits = next(source)
    for done in range(1, budget + 1):
        tokens = choose(logits, sampling, generator, seen)
        seen.scatter_(1, tokens[:, None], True)
        yield tokens.tolist()
        if done < budget:
            logits = source.send(tokens)


@torch.inference_mode()
def _next_logits(model: Decoder, tokens: Tensor, cache: Cache) -> Tensor:
    return model.logits(model.hidden(tokens, cache)[:, -1])


def _cached_logits(
    model: Decoder, prompts: Sequence[Sequence[int]], budget: int, device: torch.device
) -> Generator[Tensor, Tensor, None]:
    """Logits (B, V) of the next position; each send gives the tokens (B,) that were chosen."""
    longest = max(map(len, prompts))
    start = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
    tokens = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    cache = model.new_cache(start, longest + budget)
    while True:
        tokens = (yield _next_logits(model, tokens, cache))[:, None]


def _uncached_logits(
    model: LanguageModel, prompts: Sequence[Sequence[int]], device: torch.device
) -> Generator[Tensor, Tensor, None]:
    """The same for architectures without a cache: the whole sequence again for each token, padded on the right."""
    rows = [list(prompt) for prompt in prompts]
    while True:
        longest = max(map(len, rows))
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
        last = torch.tensor([len(row) - 1 for row in rows], device=device)
        with torch.inference_mode():
            logits = model.logits(model.hidden(tokens)[torch.arange(len(rows), device=device), last])
        chosen = yield logits
        for row, token in zip(rows, chosen.tolist(), strict=True):
            if len(row) < model.context_length:
                row.append(token)


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator, seen: Tensor) -> Tensor:
    """Tokens (B,) drawn from logits (B, V); `seen` (B, V) marks the tokens of each row so far."""
    if sampling.repetition_penalty != 1:
        weaker = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = torch.where(seen, weaker, logits)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        smallest = logits.topk(sampling.top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = logits.softmax(-1).sort(-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p  # the token that crosses the bound stays
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    probabilities = logits.softmax(-1)
    if sampling.min_p is not None:
        floor = sampling.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < floor, 0)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
