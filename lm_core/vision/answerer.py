"""A fine-tuned visual model's folder as something that answers about pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lm_core.errors import UserError
from lm_core.tokenizer import load_tokenizer
from lm_core.vision.asking import captions, label_probabilities
from lm_core.vision.checkpoint import SEEING, load_visual, visual_decoder_of
from lm_core.vision.pictures import BadPicture, decode
from lm_core.vision.rows import opening_rows


def has_eyes(folder: Path) -> bool:
    """Whether a checkpoint's folder holds a visual model."""
    return (folder / SEEING).exists()


class PictureAnswerer:
    """Answers as the fine-tune's scores were made.

    Args:
        folder: holds the files of `save_visual` and tokenizer.json.
    """

    def __init__(self, folder: Path) -> None:
        self.model, self.tokenizer = load_visual(folder), load_tokenizer(folder / "tokenizer.json")

    def __call__(self, pictures: Sequence[bytes], prompts: Sequence[str], *, max_new_tokens: int = 24) -> list[str]:
        """The likeliest label for each picture and prompt; of a model without labels the likeliest text.

        Args:
            pictures: files of a known format (PNG, JPEG, GIF, WEBP, BMP, TIFF).

        Raises:
            UserError: naming the first picture that does not decode; not a picture for each prompt.
        """
        if len(pictures) != len(prompts):
            raise UserError(f"each prompt needs its picture: there are {len(prompts)} and {len(pictures)}")
        eyes = visual_decoder_of(self.model)
        eyes.look_at(np.stack([self._decoded(place, content) for place, content in enumerate(pictures)]))
        rows = opening_rows(prompts, range(len(pictures)), self.tokenizer, eyes.context_length - max_new_tokens)
        labels = getattr(self.model, "labels", None)
        if not labels:
            return captions(self.model, self.tokenizer, [row.tokens for row in rows], max_new_tokens)
        best = label_probabilities(self.model, rows, self.tokenizer.pad).argmax(1)
        return [str(labels[place]) for place in best]

    def _decoded(self, place: int, content: bytes) -> np.ndarray:
        try:
            return decode(content, visual_decoder_of(self.model).vision.picture_size)
        except BadPicture as problem:
            raise UserError(f"picture {place + 1} cannot be read: {problem}") from None
