"""Scoring by generation: greedy answers in batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lm_core.downstream.encoding import answer_room, prompt_rows
from lm_core.model.generate import generate
from lm_core.model.language_model import LanguageModel
from lm_core.tokenizer import TextTokenizer

BATCH_ROWS = 64


def answers(
    model: LanguageModel,
    tokenizer: TextTokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    on_done: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """The likeliest answer to each prompt, token by token.

    Args:
        on_done: told the number of prompts answered so far.
    """
    rows = prompt_rows(tokenizer, prompts, model.context_length)
    longest = min(max_new_tokens, answer_room(model.context_length))
    stops = (tokenizer.turn_end, tokenizer.end_of_text)

    def write(part: Sequence[int]) -> list[list[int]]:
        return generate(model, [rows[i] for i in part], max_new_tokens=longest, stop_ids=stops)

    return written_in_batches(tokenizer, rows, range(len(rows)), write, on_done)


def written_in_batches(
    tokenizer: TextTokenizer,
    rows: Sequence[Sequence[int]],
    places: Iterable[int],
    write: Callable[[Sequence[int]], list[list[int]]],
    on_done: Callable[[int], None],
) -> list[str]:
    """The text of what is written after each row, rows of similar length together; empty for rows not asked for.

    Args:
        places: the rows to write after.
        write: places -> the ids that follow each of their rows, without an end mark.
    """
    result = [""] * len(rows)
    order = sorted(places, key=lambda i: (len(rows[i]), i))
    for start in range(0, len(order), BATCH_ROWS):
        part = order[start : start + BATCH_ROWS]
        for index, ids in zip(part, write(part), strict=True):
            result[index] = tokenizer.decode(ids).strip()
        on_done(start + len(part))
    return result


def continuations(
    model: LanguageModel, tokenizer: TextTokenizer, starts: Sequence[Sequence[int]], *, max_new_tokens: int
) -> list[str]:
    """How the model goes on with texts: sampled, because the likeliest continuation soon repeats itself."""
    room = max(1, min(max_new_tokens, model.context_length - max(map(len, starts), default=1)))
    made = generate(
        model, starts, max_new_tokens=room, stop_ids=(tokenizer.end_of_text,), temperature=0.8, top_k=50, seed=0
    )
    return [tokenizer.decode(ids).strip() for ids in made]
