"""Generation: batched, reproducible by seed, token by token for whoever reads along.

Every row is what it would be alone, whatever the lengths of the others; a row that has ended costs nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lm_core.errors import UserError
from lm_core.model.continuation import continuation
from lm_core.model.language_model import LanguageModel
from lm_core.model.packed import PackedDecoder
from lm_core.model.sampling import Sampling, choose


def generate(
    model: LanguageModel | PackedDecoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    **sampling: Any,
) -> list[list[int]]:
    """Continue each prompt; returns the new ids of each row, without the stop id that ended it.

    Args:
        model: packed already, it need not be for each call anew (`packed.pack`).
        sampling: fields of `Sampling`.
    """
    rows: list[list[int]] = [[] for _ in prompts]
    for made in _steps(model, prompts, max_new_tokens, stop_ids, Sampling(**sampling)):
        for row, token in made:
            rows[row].append(token)
    return rows


def stream(
    model: LanguageModel | PackedDecoder,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    **sampling: Any,
) -> Iterator[int]:
    """New ids of one prompt, one by one; arguments as of `generate`."""
    for made in _steps(model, [prompt], max_new_tokens, stop_ids, Sampling(**sampling)):
        yield from (token for _, token in made)


def _steps(
    model: LanguageModel | PackedDecoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Sequence[int],
    sampling: Sampling,
) -> Iterator[list[tuple[int, int]]]:
    """The next token of every row that has not ended, as (row, token), step by step.

    A row ends at a stop id, after `max_new_tokens`, or when its context is full.

    Raises:
        UserError: for an empty prompt, one that fills the whole context, or one that holds no token of the model's.
    """
    _check(prompts, max_new_tokens, model)
    lengths = [len(prompt) for prompt in prompts]
    ends = [min(max_new_tokens, model.context_length - length) for length in lengths]
    generator = torch.Generator().manual_seed(sampling.seed)
    rows, stops, seen = list(range(len(prompts))), set(stop_ids), None
    way = continuation(model, max(length + end for length, end in zip(lengths, ends, strict=True)))
    logits = way.start(prompts)
    if sampling.repetition_penalty != 1:
        seen = torch.zeros(len(prompts), model.vocab_size, dtype=torch.bool, device=logits.device)
        for row, prompt in enumerate(prompts):
            seen[row, list(prompt)] = True
    for step in range(1, max(ends) + 1):
        # One number for every row that there ever was: what a row draws does not depend on when others end.
        uniform = torch.rand(len(prompts), dtype=torch.float64, generator=generator)[rows].to(logits.device)
        tokens = choose(logits, sampling, uniform, seen if seen is None else seen[rows])
        if seen is not None:
            seen[rows, tokens] = True
        made = [(row, token) for row, token in zip(rows, tokens.tolist(), strict=True) if token not in stops]
        yield made
        going_on = [(row, token) for row, token in made if step < ends[row]]
        if not going_on:
            return
        rows = [row for row, _ in going_on]
        logits = way.go_on(rows, [token for _, token in going_on])


def _check(prompts: Sequence[Sequence[int]], max_new_tokens: int, model: LanguageModel | PackedDecoder) -> None:
    if not prompts or not all(map(len, prompts)):
        raise UserError("a prompt is empty; begin it with the tokenizer's end_of_text")
    longest = max(map(len, prompts))
    if longest >= model.context_length:
        raise UserError(f"the prompt has {longest} tokens; the model's context holds {model.context_length}")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 1")
    wrong = next((token for prompt in prompts for token in prompt if not 0 <= token < model.vocab_size), None)
    if wrong is not None:
        raise UserError(f"the prompt holds the id {wrong}; the model's vocabulary has {model.vocab_size} entries")
