"""The modern decoder, in the exact layout of Qwen3 (arXiv:2505.09388), to be read in one sitting.

tokens -> embedding -> [ x + attention(norm(x)); x + feed_forward(norm(x)) ] * num_layers -> norm -> logits

Names of modules and the order of arithmetic are those of Hugging Face's implementation, so that export is a matter of
writing the weights down, and logits agree to the bit in fp32. Shapes: B batch, T time, D width, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, the field's name for it
from torch.utils.checkpoint import checkpoint

from lm_core.model import fused
from lm_core.model.attention import blocks_within, cached_attention, causal_attention
from lm_core.model.language_model import LanguageModel
from lm_core.training.config import ModelConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}


@dataclass
class Cache:
    """Keys and values of the positions seen so far, for generation.

    Attributes:
        keys: per layer (B, H_kv, T_max, K).
        values: as keys.
        start: (B,) first real position of each row; rows are padded on the left to equal length.
        padded: whether any row has padding; without, no mask is needed.
        rotary: cosines and sines of all positions, each (T_max, K).
        length: positions filled.
    """

    keys: list[Tensor]
    values: list[Tensor]
    start: Tensor
    padded: bool
    rotary: tuple[Tensor, Tensor]
    length: int = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, H_kv, T, K) of one layer; returns all of its positions so far."""
        end = self.length + k.shape[2]
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some rows only, in this order."""
        chosen = list(rows)
        self.keys, self.values = [keys[chosen] for keys in self.keys], [values[chosen] for values in self.values]
        self.start = self.start[chosen]


@dataclass
class Positions:
    """What attention must know of where the tokens stand.

    Attributes:
        cos: rotary cosines, broadcastable to (B, 1, T, K).
        sin: rotary sines, likewise.
        visible: bool (B, 1, T, S), which cached keys a query may see; None: all up to its own position.
        cache: None outside generation.
        first: int64 (B, T), where the document of each token begins, if attention stays within it.
        blocks: the same as FlexAttention wants it, on a GPU.
        fusible: whether the parts of fused.py may do the work; else the arithmetic is Hugging Face's, to the bit.
    """

    cos: Tensor
    sin: Tensor
    visible: Tensor | None = None
    cache: Cache | None = None
    first: Tensor | None = None
    blocks: Any = None
    fusible: bool = False

    @property
    def fused(self) -> bool:
        """Whether they do: compilers and exporters want the plain formulas."""
        return self.fusible and not torch.compiler.is_compiling()


class Linear(nn.Linear):
    """A matrix product without bias, in the dtype of its input: weights are fp32 masters, cast on the way."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight (Zhang & Sennrich 2019), computed in fp32, given in the dtype wanted."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.epsilon).to(dtype)

    def after(
        self, x: Tensor, branch: Tensor | None, dtype: torch.dtype, positions: Positions
    ) -> tuple[Tensor, Tensor]:
        """The stream x with what a branch adds to it, and its norm."""
        if positions.fused:
            return fused.add_norm(x, branch, self.weight, self.epsilon, dtype)
        x = x if branch is None else x + branch
        return x, self(x, dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021) of (B, H, T, K): pairs are (i, i + K/2)."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class Attention(nn.Module):
    """Causal self-attention with rotary positions, grouped queries and normalised queries and keys."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.epsilon = layer, config.norm_epsilon
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_width = config.width_of_heads
        d_q, d_kv = config.num_heads * self.head_width, config.num_kv_heads * self.head_width
        self.q_proj = Linear(config.d_model, d_q)
        self.k_proj = Linear(config.d_model, d_kv)
        self.v_proj = Linear(config.d_model, d_kv)
        self.o_proj = Linear(d_q, config.d_model)
        if config.qk_norm:
            self.q_norm: RMSNorm | None = RMSNorm(self.head_width, config.norm_epsilon)
            self.k_norm: RMSNorm | None = RMSNorm(self.head_width, config.norm_epsilon)
        else:
            self.q_norm, self.k_norm = None, None

    def forward(self, x: Tensor, positions: Positions) -> Tensor:
        q, k, v = self._fused_heads(x, positions) if positions.fused else self._heads(x, positions)
        if positions.cache is not None:
            k, v = positions.cache.extend(self.layer, k, v)
        if positions.visible is None and k.shape[2] == q.shape[2]:
            out = causal_attention(q, k, v, positions.first, positions.blocks)
        else:
            out = cached_attention(q, k, v, positions.visible)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor, positions: Positions) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, K), keys and values (B, H_kv, T, K)."""
        heads = (*x.shape[:2], -1, self.head_width)
        q, k, v = self.q_proj(x).view(heads), self.k_proj(x).view(heads), self.v_proj(x).view(heads)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q, x.dtype), self.k_norm(k, x.dtype)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return rotate(q, positions.cos, positions.sin), rotate(k, positions.cos, positions.sin), v

    def _fused_heads(self, x: Tensor, positions: Positions) -> tuple[Tensor, Tensor, Tensor]:
        qkv = fused.project(x, self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)
        q_weight = None if self.q_norm is None else self.q_norm.weight
        k_weight = None if self.k_norm is None else self.k_norm.weight
        return fused.heads(
            qkv, q_weight, k_weight, self.epsilon, positions.cos, positions.sin,
            num_q=self.num_heads, num_k=self.num_kv_heads,
        )  # fmt: skip


class FeedForward(nn.Module):
    """Gated feed-forward layer, SwiGLU with activation silu (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.d_model, config.d_ff)
        self.up_proj = Linear(config.d_model, config.d_ff)
        self.down_proj = Linear(config.d_ff, config.d_model)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor, positions: Positions) -> Tensor:
        if not positions.fused or self.activation is not F.silu:
            return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return self.down_proj(fused.swiglu(fused.project(x, self.gate_proj.weight, self.up_proj.weight)))


class Block(nn.Module):
    """One layer: attention and feed-forward, each on the normalised stream and added back to it.

    What the feed-forward adds is left to the next norm, which reads the stream anyway.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.d_model, config.norm_epsilon)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.d_model, config.norm_epsilon)
        self.mlp = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, branch: Tensor | None, positions: Positions, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Stream (B, T, D) fp32 and what is still to be added to it, after this layer."""
        x, normed = self.input_layernorm.after(x, branch, dtype, positions)
        branch = self.dropout(self.self_attn(normed, positions))
        x, normed = self.post_attention_layernorm.after(x, branch, dtype, positions)
        return x, self.dropout(self.mlp(normed, positions))


class Decoder(LanguageModel):
    """The whole model. The residual stream is fp32; matrix products run in `compute_dtype`."""

    def __init__(self, config: ModelConfig, *, vocab_size: int, context_length: int) -> None:
        super().__init__(config, vocab_size=vocab_size, context_length=context_length)
        self.embed_tokens = nn.Embedding(vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.d_model, config.norm_epsilon)
        self.lm_head = None if config.tie_embeddings else Linear(config.d_model, vocab_size)
        self.activation_checkpointing = False

    @property
    def output_weight(self) -> Tensor:
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def blocks(self) -> nn.ModuleList:
        return self.layers

    def hidden(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Last hidden states (B, T, D); with a cache, of tokens that follow those already in it."""
        return self.hidden_of(self.embed_tokens(tokens), cache)

    def hidden_within(self, tokens: Tensor, first: Tensor) -> Tensor:
        # Positions need not begin anew with each document: rotary ones are relative.
        return self.hidden_of(self.embed_tokens(tokens), first=first)

    def hidden_of(
        self,
        x: Tensor,
        cache: Cache | None = None,
        *,
        first: Tensor | None = None,
        after_block: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The same of what stands in the place of embedded tokens, x (B, T, D): parts of a picture, say.

        Args:
            first: where the document of each token begins, int64 (B, T); None: documents do not matter.
            after_block: (layer, stream) -> stream, what another source adds to the stream (B, T, D) after each block.
        """
        positions = self._positions(x, cache, first)
        branch: Tensor | None = None
        for layer, block in enumerate(self.layers):
            if self.activation_checkpointing and self.training:
                x, branch = checkpoint(block, x, branch, positions, self.compute_dtype, use_reentrant=False)
            else:
                x, branch = block(x, branch, positions, self.compute_dtype)
            if after_block is not None:
                x, branch = after_block(layer, x + branch), None
        if cache is not None:
            cache.length += x.shape[1]
        return self.norm.after(x, branch, self.compute_dtype, positions)[1]

    def new_cache(self, start: Tensor, max_length: int) -> Cache:
        """An empty cache for rows whose real tokens begin at `start` (B,). On a CPU, packed.py is much faster."""
        config = self.config
        shape = (len(start), config.num_kv_heads, max_length, config.width_of_heads)

        def empty() -> list[Tensor]:
            return [torch.zeros(shape, dtype=self.compute_dtype, device=start.device) for _ in self.layers]

        index = torch.arange(max_length, device=start.device)
        return Cache(empty(), empty(), start, bool(start.any()), self.rotary(index))

    def rotary(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (..., K) of the angles base^(-2i/K) times the position (...)."""
        head_width = self.config.width_of_heads
        steps = torch.arange(0, head_width, 2, dtype=torch.float32, device=position.device)
        angles = position[..., None].float() * (1.0 / self.config.rope_base ** (steps / head_width))
        angles = torch.cat((angles, angles), -1)
        return angles.cos().to(self.compute_dtype), angles.sin().to(self.compute_dtype)

    def _positions(self, x: Tensor, cache: Cache | None, first: Tensor | None) -> Positions:
        """Where the T columns of x (B, T, D) stand, those in the cache being before them."""
        length = x.shape[1]
        if cache is None:
            blocks = blocks_within(first) if first is not None and x.device.type == "cuda" else None
            rotary = self.rotary(torch.arange(length, device=x.device))
            return Positions(*rotary, first=first, blocks=blocks, fusible=fused.can_fuse(x))
        cos, sin = cache.rotary
        end = cache.length + length
        if not cache.padded and (length == 1 or cache.length == 0):
            return Positions(cos[cache.length : end], sin[cache.length : end], None, cache)
        index = torch.arange(cache.length, end, device=x.device)
        keys = torch.arange(end, device=x.device)
        visible = (keys <= index[:, None]) & (keys >= cache.start[:, None, None])
        visible = (visible | (keys == index[:, None]))[:, None]  # padding sees itself: no row may be empty
        own = (index - cache.start[:, None]).clamp_min(0)
        return Positions(cos[own][:, None], sin[own][:, None], visible, cache)
