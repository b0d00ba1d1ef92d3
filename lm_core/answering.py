"""What a checkpoint that does not write says at once: a label, an answer about a picture, a span of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from lm_core.downstream.labeller import Labeller, has_labels
from lm_core.evaluation.spans import SpanAnswerer, answers_by_spans
from lm_core.vision.answerer import PictureAnswerer, has_eyes


class Answer(NamedTuple):
    """A label has a probability, too."""

    text: str
    probability: float | None = None


Answerer = Callable[[Sequence[str], Sequence[bytes], int], list[Answer]]


def answerer_of(folder: Path, *, device: str) -> Answerer | None:
    """Answers prompts, each with a picture's bytes where the model sees, in so many tokens at most where it counts.

    Args:
        folder: holds the files of a fine-tune and tokenizer.json.
        device: of labels and spans; a model that sees answers on the CPU.

    Returns:
        None for a model that writes.
    """
    if has_eyes(folder):
        seer = PictureAnswerer(folder)
        return lambda prompts, pictures, _: [Answer(text) for text in seer(pictures, prompts)]
    if has_labels(folder):
        labeller = Labeller(folder, device=device)
        return lambda prompts, *_: [Answer(*named) for named in labeller(prompts)]
    if answers_by_spans(folder):
        finder = SpanAnswerer(folder, device=device)
        return lambda prompts, _, max_new_tokens: [Answer(text) for text in finder(prompts, max_new_tokens)]
    return None
