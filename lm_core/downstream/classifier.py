"""A classifier on top of a language model's trunk, and fine-tuned checkpoints on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lm_core.errors import IntegrityError
from lm_core.model.language_model import LanguageModel
from lm_core.model.weights import load_model, save_model

HEAD, LABELS = "head.safetensors", "labels.json"


class PooledClassifier(LanguageModel):
    """A language model whose vocabulary is a set of labels.

    State t is the mean of the trunk's states up to t, so the row's last real token sees its whole text, and padding
    to the right changes nothing. With the head as the output embedding, loss and training loop stay those of any
    language model.
    """

    def __init__(self, trunk: LanguageModel, labels: Sequence[str]) -> None:
        super().__init__(trunk.config, vocab_size=len(labels), context_length=trunk.context_length)
        self.labels = tuple(labels)
        self.trunk = trunk
        self.head = nn.Parameter(torch.zeros(len(labels), trunk.config.d_model))

    def hidden(self, tokens: Tensor) -> Tensor:
        """Running means (B, T, D) of the trunk's states."""
        self.trunk.compute_dtype = self.compute_dtype
        states = self.trunk.hidden(tokens).float()
        count = torch.arange(1, states.shape[1] + 1, device=states.device)
        return states.cumsum(1) / count[:, None]

    @property
    def output_weight(self) -> Tensor:
        return self.head

    def blocks(self) -> nn.ModuleList:
        return self.trunk.blocks()

    @torch.no_grad()
    def probabilities(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Probability of each label, (B, labels), for rows of the given lengths (B,)."""
        states = self.hidden(tokens)[torch.arange(len(tokens), device=tokens.device), lengths - 1]
        return self.logits(states).softmax(-1)


def save_finetuned(model: LanguageModel, folder: Path) -> str:
    """Write the trunk as any checkpoint, a classifier's head beside it; returns the SHA-256 of the trunk's file."""
    if not isinstance(model, PooledClassifier):
        return save_model(model, folder)
    save_file({"weight": model.head.detach().cpu().contiguous()}, folder / HEAD)
    (folder / LABELS).write_text(json.dumps(model.labels, ensure_ascii=False))
    return save_model(model.trunk, folder)


def load_finetuned(folder: Path, *, device: str | torch.device = "cpu") -> LanguageModel:
    """The model that `save_finetuned` wrote: a `PooledClassifier` where there is a head.

    Raises:
        IntegrityError: when the head cannot be read or does not fit.
    """
    trunk = load_model(folder, device=device)
    if not (folder / HEAD).exists():
        return trunk
    try:
        model = PooledClassifier(trunk, json.loads((folder / LABELS).read_text()))
        model.head.data.copy_(load_file(folder / HEAD)["weight"])
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise IntegrityError(f"{folder / HEAD} cannot be read ({error}); fine-tune again") from None
    return model.to(next(trunk.parameters()).device).eval()
