"""The textbook Transformer as a decoder: nn.TransformerEncoder, a causal mask, sinusoidal positions.

The reference that the modern decoder is measured against, at the same data and budget.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lm_core.model.language_model import LanguageModel
from lm_core.training.config import ModelConfig


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """sin and cos of t / 10000^(2i/D) in turns, (T, D) (Vaswani et al. 2017, section 3.5)."""
    position = torch.arange(length)[:, None]
    frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    table = torch.zeros(length, width)
    table[:, 0::2] = torch.sin(position * frequency)
    table[:, 1::2] = torch.cos(position * frequency)[:, : width // 2]
    return table


class VanillaTransformer(LanguageModel):
    """Pre-norm nn.TransformerEncoder with LayerNorm, biases and dropout."""

    def __init__(self, config: ModelConfig, *, vocab_size: int, context_length: int) -> None:
        super().__init__(config, vocab_size=vocab_size, context_length=context_length)
        self.embed_tokens = nn.Embedding(vocab_size, config.d_model)
        self.register_buffer("positions", sinusoidal_positions(context_length, config.d_model), persistent=False)
        self.positions: Tensor
        layer = nn.TransformerEncoderLayer(
            config.d_model,
            config.num_heads,
            config.d_ff,
            dropout=config.dropout,
            activation=config.activation,
            layer_norm_eps=config.norm_epsilon,
            batch_first=True,
            norm_first=True,
        )
        final_norm = nn.LayerNorm(config.d_model, eps=config.norm_epsilon)
        self.encoder = nn.TransformerEncoder(layer, config.num_layers, final_norm, enable_nested_tensor=False)
        self.lm_head = None if config.tie_embeddings else nn.Linear(config.d_model, vocab_size, bias=False)

    @property
    def output_weight(self) -> Tensor:
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def blocks(self) -> nn.ModuleList:
        return self.encoder.layers

    def hidden(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        x = self.embed_tokens(tokens) * math.sqrt(self.config.d_model) + self.positions[:length]
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.compute_dtype == torch.bfloat16):
            return self.encoder(x, mask=mask, is_causal=True).float()
