"""Text in, text out: a checkpoint's folder as something that completes, answers and scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lm_core.model.generate import generate, stream
from lm_core.model.language_model import LanguageModel
from lm_core.model.packed import PackedDecoder, pack
from lm_core.model.weights import load_model
from lm_core.tokenizer import TextTokenizer, load_tokenizer

REPLACEMENT = "\ufffd"


class Speaker:
    """A model with its tokenizer.

    Args:
        folder: holds model.safetensors, config.json and tokenizer.json.
        device: "cpu", "cuda" or "auto".

    Raises:
        UserError: when a file is missing, or tokenizer and model do not fit each other.
    """

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        self.model = load_model(folder, device=device)
        self.tokenizer = load_tokenizer(folder / "tokenizer.json")

    def complete(self, text: str, *, max_new_tokens: int, **sampling: Any) -> Iterator[str]:
        """Pieces of text that continue a text. `sampling`: `stop` (strings that end it), and fields of `Sampling`."""
        return self._pieces(self._opening(text, max_new_tokens), max_new_tokens, sampling)

    def complete_all(self, texts: Sequence[str], *, max_new_tokens: int, **sampling: Any) -> list[str]:
        """Continuations of several texts, made together; arguments as of `complete`."""
        stop = sampling.pop("stop", ())
        prompts = [self._opening(text, max_new_tokens) for text in texts]
        made = generate(self._packed, prompts, max_new_tokens=max_new_tokens, stop_ids=self._stop_ids, **sampling)
        return ["".join(until(iter([self.tokenizer.decode(ids)]), stop)) for ids in made]

    def answer(self, question: str, *, max_new_tokens: int, **sampling: Any) -> Iterator[str]:
        """Pieces of the model's turn after the user's."""
        return self.converse([("user", question)], max_new_tokens=max_new_tokens, **sampling)

    def converse(self, messages: Sequence[tuple[str, str]], *, max_new_tokens: int, **sampling: Any) -> Iterator[str]:
        """Pieces of the model's turn after all turns so far, given as (role, text).

        The oldest turns are forgotten when the context is too short for them and a quarter of it for the answer; a last
        turn that is too long by itself loses its beginning.
        """
        room = self._room(max_new_tokens)
        kept = list(messages)
        ids = self.tokenizer.conversation_ids(kept)
        while len(ids) > room and len(kept) > 1:
            kept = kept[1:] if kept[1][0] != "assistant" else kept[2:] or kept[1:]
            ids = self.tokenizer.conversation_ids(kept)
        if len(ids) > room:
            ids = ids[:2] + ids[len(ids) - room + 2 :]
        return self._pieces(ids, max_new_tokens, sampling)

    @torch.inference_mode()
    def score(self, text: str) -> dict[str, Any]:
        """{"ids": ids of the text, "logprobs": log-probability (nats) of each id after the first}.

        Texts longer than the context are scored in windows that overlap by half, so that every token but those at the
        very beginning sees at least half a context.
        """
        ids = self.tokenizer.encode(text)
        return {"ids": ids, "logprobs": self._log_probabilities(ids)}

    def _log_probabilities(self, ids: Sequence[int]) -> list[float]:
        length, scored = self.model.context_length, 1
        result: list[float] = []
        device = next(self.model.parameters()).device
        while scored < len(ids):
            begin = 0 if scored == 1 else scored - length // 2
            window = torch.tensor([ids[begin : begin + length + 1]], device=device)
            losses = self.model.token_losses(window[:, :-1], window[:, 1:])[0]
            result += (-losses[scored - 1 - begin :]).tolist()
            scored = len(result) + 1
        return result

    def _pieces(self, ids: list[int], max_new_tokens: int, sampling: dict[str, Any]) -> Iterator[str]:
        stop = sampling.pop("stop", ())
        new_ids = stream(self._packed, ids, max_new_tokens=max_new_tokens, stop_ids=self._stop_ids, **sampling)
        return until(text_pieces(self.tokenizer, new_ids), stop)

    def _room(self, max_new_tokens: int) -> int:
        """Tokens that a prompt may have: a quarter of the context stays free, if the answer may be so long."""
        return self.model.context_length - max(1, min(max_new_tokens, self.model.context_length // 4))

    def _opening(self, text: str, max_new_tokens: int) -> list[int]:
        """The text as a prompt; of one that is too long the end."""
        return [self.tokenizer.end_of_text, *self.tokenizer.encode(text)][-self._room(max_new_tokens) :]

    @cached_property
    def _packed(self) -> LanguageModel | PackedDecoder:
        """The model in the form that generates fastest."""
        return pack(self.model) or self.model

    @property
    def _stop_ids(self) -> tuple[int, int]:
        return self.tokenizer.end_of_text, self.tokenizer.turn_end


def text_pieces(tokenizer: TextTokenizer, ids: Iterator[int]) -> Iterator[str]:
    """Text of a stream of ids, held back while it ends within a character."""
    waiting: list[int] = []
    for token in ids:
        waiting.append(token)
        text = tokenizer.decode(waiting)
        if not text.endswith(REPLACEMENT):
            yield text
            waiting = []
    if waiting:
        yield tokenizer.decode(waiting)


def until(pieces: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    """Pieces of text up to the first of the stop strings, which may be spread over several pieces."""
    held = max((len(string) for string in stop), default=1) - 1
    waiting = ""
    for piece in pieces:
        waiting += piece
        found = [place for place in map(waiting.find, stop) if place >= 0]
        if found:
            waiting = waiting[: min(found)]
            break
        if len(waiting) > held:
            ready, waiting = waiting[: len(waiting) - held], waiting[len(waiting) - held :]
            yield ready
    if waiting:
        yield waiting
