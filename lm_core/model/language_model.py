"""What every language model of ours can do, whatever its architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lm_core.model.losses import IGNORE, cross_entropy_sum, token_cross_entropy
from lm_core.training.config import ModelConfig


class LanguageModel(nn.Module, ABC):
    """Predicts the next token. Subclasses give hidden states and the output embedding.

    Attributes:
        config: the architecture.
        vocab_size: V.
        context_length: longest input, T.
        compute_dtype: arithmetic of the matrix products; weights stay fp32.
    """

    def __init__(self, config: ModelConfig, *, vocab_size: int, context_length: int) -> None:
        super().__init__()
        self.config, self.vocab_size, self.context_length = config, vocab_size, context_length
        self.compute_dtype = torch.float32

    @abstractmethod
    def hidden(self, tokens: Tensor) -> Tensor:
        """Last hidden states (B, T, D) of tokens (B, T)."""

    def hidden_within(self, tokens: Tensor, first: Tensor) -> Tensor:
        """The same where each token sees its own document only, whose first position is `first`, int64 (B, T)."""
        raise TypeError(f"{type(self).__name__} knows no documents within {tokens.shape} tokens and {first.shape}")

    @property
    @abstractmethod
    def output_weight(self) -> Tensor:
        """Output embedding, (V, D)."""

    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The stack of layers: unit of compilation, of activation checkpointing, and of Muon's matrices."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) in fp32 of hidden states (..., D)."""
        return (hidden.to(self.compute_dtype) @ self.output_weight.to(self.compute_dtype).T).float()

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V). For training use `loss`, which never holds them."""
        return self.logits(self.hidden(tokens))

    def loss_sum(
        self, tokens: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, beside: Tensor | None = None
    ) -> Tensor:
        """Summed cross-entropy in nats over the targets (B, T) that are not IGNORE.

        Args:
            beside: `first` of `hidden_within`; None: documents do not matter. Other models may mean something else.
        """
        hidden = self._states(tokens, beside).flatten(0, 1)
        return cross_entropy_sum(
            hidden, self.output_weight, targets.flatten(), dtype=self.compute_dtype, label_smoothing=label_smoothing
        )

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats over the targets (B, T) that are not IGNORE."""
        return self.loss_sum(tokens, targets) / (targets != IGNORE).sum().clamp_min(1)

    @torch.no_grad()
    def token_losses(self, tokens: Tensor, targets: Tensor, beside: Tensor | None = None) -> Tensor:
        """Cross-entropy of each target, (B, T) fp32 in nats; 0 where it is IGNORE. `beside` as in `loss_sum`."""
        hidden = self._states(tokens, beside).flatten(0, 1)
        losses = token_cross_entropy(hidden, self.output_weight, targets.flatten(), dtype=self.compute_dtype)
        return losses.view(targets.shape)

    def _states(self, tokens: Tensor, first: Tensor | None) -> Tensor:
        return self.hidden(tokens) if first is None else self.hidden_within(tokens, first)

    def num_parameters(self) -> int:
        """Parameters, shared ones once."""
        return sum(parameter.numel() for parameter in self.parameters())
