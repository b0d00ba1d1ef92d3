"""A fine-tuned classifier's folder as something that names the labels of texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lm_core.downstream.classifier import LABELS, PooledClassifier, load_finetuned
from lm_core.downstream.encoding import prompt_rows
from lm_core.errors import UserError
from lm_core.evaluation.likelihood import label_probabilities
from lm_core.tokenizer import load_tokenizer


def has_labels(folder: Path) -> bool:
    """Whether a checkpoint's folder holds a classifier."""
    return (folder / LABELS).exists()


class Labeller:
    """Names labels as the fine-tune's scores were made.

    Args:
        folder: holds the files of `save_finetuned` and tokenizer.json.

    Raises:
        UserError: the folder holds a model that writes.
    """

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        model = load_finetuned(folder, device=device)
        if not isinstance(model, PooledClassifier):
            raise UserError(f"{folder} holds no classifier but a model that writes")
        self.model, self.tokenizer = model, load_tokenizer(folder / "tokenizer.json")

    def __call__(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """The likeliest label of each text and its probability."""
        rows = prompt_rows(self.tokenizer, texts, self.model.context_length)
        probabilities = label_probabilities(self.model, rows, self.tokenizer.pad)
        best = zip(probabilities.argmax(1), probabilities.max(1), strict=True)
        return [(self.model.labels[place], float(sure)) for place, sure in best]
