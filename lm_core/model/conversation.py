"""A model that completes texts and answers questions, piece by piece: what `generate` and `chat` speak through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lm_core.model.generate import stream
from lm_core.model.weights import load_model
from lm_core.tokenizer import load_tokenizer


class Speaker:
    """Model and tokenizer of one checkpoint folder, on the CPU or the GPU as the machine has it."""

    def __init__(self, folder: Path, device: str = "auto") -> None:
        self.model = load_model(folder, device=device)
        self.model.eval()
        self.tokenizer = load_tokenizer(folder / "tokenizer.json")
        self.stops = (self.tokenizer.end_of_text, self.tokenizer.turn_end)

    def complete(self, text: str, **sampling: Any) -> Iterator[str]:
        """Go on from a text; arguments as of `generate.stream`."""
        return self._speak([self.tokenizer.end_of_text, *self.tokenizer.encode(text)], sampling)

    def answer(self, question: str, **sampling: Any) -> Iterator[str]:
        """Answer a question in the turn format that fine-tuning uses."""
        return self._speak(self.tokenizer.prompt_ids(question), sampling)

    def _speak(self, prompt: list[int], sampling: dict[str, Any]) -> Iterator[str]:
        room = self.model.context_length - 1
        ids = stream(self.model, prompt[-room:], stop_ids=self.stops, **sampling)
        return _pieces(ids, self.tokenizer.decode)


def _pieces(ids: Iterable[int], decode: Any) -> Iterator[str]:
    """Text as it becomes certain: a character of several bytes waits until its last token is there."""
    seen: list[int] = []
    shown = ""
    for token in ids:
        seen.append(token)
        text = decode(seen)
        if not text.endswith("\ufffd") and text.startswith(shown):
            yield text[len(shown) :]
            shown = text
    text = decode(seen)
    if text.startswith(shown) and text != shown:
        yield text[len(shown) :]
