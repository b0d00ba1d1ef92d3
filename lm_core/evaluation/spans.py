"""Answers that are spans of a given text: of all that a model could write, only what stands there.

Token by token the likeliest, of those with which some span goes on; so no answer is made up, and none is a fragment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lm_core.downstream.encoding import answer_room, prompt_rows
from lm_core.downstream.task import text_between
from lm_core.evaluation.generation import written_in_batches
from lm_core.evaluation.metrics import SPACELESS
from lm_core.model.continuation import continuation
from lm_core.model.language_model import LanguageModel
from lm_core.model.weights import load_model
from lm_core.tokenizer import TextTokenizer, load_tokenizer

MAX_PIECES = 14
# A word, a mark, or a character of a script that puts no space between words.
_PIECES = re.compile(rf"[{SPACELESS}]|[^\W{SPACELESS}]+|[^\w\s]")


def spans_of(text: str) -> Iterator[str]:
    """Every run of up to `MAX_PIECES` words and marks, beginning with a word."""
    pieces = [(found.start(), found.end()) for found in _PIECES.finditer(text)]
    for place, (start, _) in enumerate(pieces):
        if text[start].isalnum():
            for _, end in pieces[place : place + MAX_PIECES]:
                yield text[start:end]


def span_answers(
    model: LanguageModel,
    tokenizer: TextTokenizer,
    prompts: Sequence[str],
    texts: Sequence[str],
    *,
    max_new_tokens: int,
    on_done: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """The answer to each prompt out of its text; empty where the text has no word.

    Args:
        on_done: told the number of prompts answered so far.
    """
    rows = prompt_rows(tokenizer, prompts, model.context_length)
    longest = min(max_new_tokens, answer_room(model.context_length))

    def write(part: Sequence[int]) -> list[list[int]]:
        ways = [_ways(texts[i], tokenizer, longest) for i in part]
        return [ids[:-1] for ids in _likeliest(model, [rows[i] for i in part], ways, longest)]

    answerable = [i for i, text in enumerate(texts) if next(spans_of(text), None)]
    return written_in_batches(tokenizer, rows, answerable, write, on_done)


def answers_by_spans(folder: Path) -> bool:
    """Whether a checkpoint's folder holds a model that was tuned to answer by spans of its prompt."""
    return bool(_spans_between(folder))


def _spans_between(folder: Path) -> list[str]:
    said = folder / "training.json"
    config = json.loads(said.read_text())["config"] if said.exists() else {}
    return list(config.get("spans_between", ()))


class SpanAnswerer:
    """Answers as the fine-tune's scores were made.

    Args:
        folder: holds a fine-tune's files and tokenizer.json.
    """

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        self.model, self.tokenizer = load_model(folder, device=device), load_tokenizer(folder / "tokenizer.json")
        self.before, self.after = _spans_between(folder)

    def __call__(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """The answer to each prompt, which holds question and context as the task's template has them."""
        texts = [text_between(prompt, self.before, self.after) for prompt in prompts]
        return span_answers(self.model, self.tokenizer, prompts, texts, max_new_tokens=max_new_tokens)


def _ways(text: str, tokenizer: TextTokenizer, max_new_tokens: int) -> dict[int, Any]:
    """What may come first, and after each of it what next, to the end of the turn; no more tokens than allowed."""
    root: dict[int, Any] = {}
    found = tokenizer.encode_batch(list(dict.fromkeys(spans_of(text))))
    for ids in [ids for ids in found if len(ids) < max_new_tokens] or [min(found, key=len)[: max_new_tokens - 1]]:
        node = root
        for token in (*ids, tokenizer.turn_end):
            node = node.setdefault(token, {})
    return root


def _likeliest(
    model: LanguageModel, prompts: Sequence[Sequence[int]], ways: Sequence[dict[int, Any]], max_new_tokens: int
) -> list[list[int]]:
    nodes, made = list(ways), [list[int]() for _ in prompts]
    rows = list(range(len(prompts)))
    way = continuation(model, max(map(len, prompts)) + max_new_tokens)
    logits = way.start(prompts)
    while True:
        for place, row in enumerate(rows):
            allowed = list(nodes[row])
            token = allowed[int(logits[place, allowed].argmax())]
            made[row].append(token)
            nodes[row] = nodes[row][token]
        rows = [row for row in rows if nodes[row]]
        if not rows:
            return made
        logits = way.go_on(rows, [made[row][-1] for row in rows])
