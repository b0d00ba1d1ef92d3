"""Other people's decoders as systems that take training steps, from checkouts on the command line.

Each in bf16 with PyTorch's fused AdamW: what `transformers`' Trainer, litgpt's and nanochat's training loops do around
the model costs a CPU nothing worth counting, and compiling their optimizers would only add to a short run.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lm_core.model.losses import IGNORE

Shape = tuple[int, int, int, int]


class Peer:
    """One step: loss under bf16 autocast, backward, clipping at one, fused AdamW."""

    def __init__(self, model: nn.Module, loss: Callable[[Any, Any], torch.Tensor], *, autocast: bool = True) -> None:
        self.model, self.loss, self.autocast = model.train(), loss, autocast
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(self, step: int, tokens: torch.Tensor, targets: torch.Tensor) -> None:
        del step
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = self.loss(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def llama(shape: Shape, vocab_size: int, length: int) -> Peer:
    """`transformers`' Llama of our own shape, the loss inside the model, as the Trainer runs it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, width, heads, d_ff = shape
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=width, intermediate_size=d_ff, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=length, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)

    def loss(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return model(input_ids=tokens, labels=tokens, shift_labels=targets).loss

    return Peer(model, loss)


def litgpt(folder: Path, shape: Shape, vocab_size: int, length: int) -> Peer:
    """litgpt's GPT in the layout of Llama, of our own shape."""
    sys.path.insert(0, str(folder))
    from litgpt.config import Config
    from litgpt.model import GPT

    layers, width, heads, d_ff = shape
    model = GPT(
        Config(
            block_size=length, padded_vocab_size=vocab_size, vocab_size=vocab_size, n_layer=layers, n_head=heads,
            n_embd=width, intermediate_size=d_ff, rotary_percentage=1.0, parallel_residual=False, bias=False,
            norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP",
        )
    )  # fmt: skip
    model.lm_head.weight = model.transformer.wte.weight

    def loss(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)

    return Peer(model, loss)


def nanochat(folder: Path, shape: Shape, vocab_size: int, length: int) -> Peer:
    """nanochat's GPT: its own feed-forward of four widths, value embeddings and untied head, so somewhat larger."""
    os.environ["NANOCHAT_DTYPE"] = "bfloat16"
    sys.path.insert(0, str(folder))
    with contextlib.redirect_stdout(io.StringIO()):
        from nanochat.gpt import GPT, GPTConfig

        layers, width, heads, _ = shape
        model = GPT(
            GPTConfig(
                sequence_len=length, vocab_size=vocab_size, n_layer=layers, n_head=heads, n_kv_head=heads, n_embd=width,
                window_pattern="L",
            )
        )  # fmt: skip
        model.init_weights()
    return Peer(
        model, lambda tokens, targets: model(tokens, targets.masked_fill(targets == IGNORE, -1)), autocast=False
    )
