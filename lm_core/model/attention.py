"""Causal attention, ways that agree: by its formula, as two batched matrix products, by PyTorch's kernels.

At the short contexts of small models, PyTorch's CPU kernel takes a third of a training step for a twentieth of its
operations. Two batched matrix products and a softmax, with the backward pass written out, take less than half. Beyond
about 512 tokens the (T, T) matrix no longer pays, and the kernel is used.

Windows are packed with several documents. Where attention stays within them, `first` says at which position the
document of each token begins; compiled for a GPU, FlexAttention then leaves out the blocks in which nothing is seen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812, the field's name for it

from lm_core.model import fused

EXPLICIT_MAX_LENGTH = 512


def attention_by_formula(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K)) v, the definition (Vaswani et al. 2017, eq. 1).

    Args:
        q: (B, H, T, K).
        k: (B, H_kv, S, K), H_kv a divisor of H: each serves H / H_kv query heads.
        v: (B, H_kv, S, K).
        visible: bool, broadcastable to (B, H, T, S); which keys a query may see.
    """
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    weights = scores.float().masked_fill(~visible, -torch.inf).softmax(-1).to(q.dtype)
    return weights @ v


def first_of_document(starts: Tensor) -> Tensor:
    """Position at which the document of each token begins, int64 (B, T), of where documents start, bool (B, T)."""
    return torch.where(starts, torch.arange(starts.shape[1], device=starts.device), 0).cummax(1).values


def visible_within(first: Tensor) -> Tensor:
    """Which keys a query sees, bool (B, 1, T, T): of its own document, up to itself."""
    position = torch.arange(first.shape[1], device=first.device)
    return ((position <= position[:, None]) & (position >= first[:, :, None]))[:, None]


def blocks_within(first: Tensor) -> Any:
    """The same for FlexAttention: which blocks of keys are seen at all, and which of them in part."""
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= first[b, query])

    batch, length = first.shape
    return create_block_mask(seen, batch, None, length, length, device=str(first.device))


def attention_by_blocks(q: Tensor, k: Tensor, v: Tensor, blocks: Any) -> Tensor:
    """FlexAttention; it is fast only compiled."""
    from torch.nn.attention.flex_attention import flex_attention

    out = flex_attention(q, k, v, block_mask=blocks, enable_gqa=q.shape[1] != k.shape[1])
    assert isinstance(out, Tensor)
    return out


def _causal_by_products(q: Tensor, k: Tensor, v: Tensor, first: Tensor | None) -> Tensor:
    """The formula for the causal mask, in the arithmetic of its inputs throughout."""
    length, groups = q.shape[-2], q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if first is None:
        hidden = torch.ones(length, length, dtype=torch.bool, device=q.device).triu_(1)
    else:
        hidden = ~visible_within(first)
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v


def causal_attention(q: Tensor, k: Tensor, v: Tensor, first: Tensor | None = None, blocks: Any = None) -> Tensor:
    """Attention of every position to itself and those before it; shapes as in `attention_by_formula`, S = T.

    Args:
        first: of `first_of_document`; None: documents do not matter.
        blocks: the same as of `blocks_within`, for compiled code.
    """
    if blocks is not None and torch.compiler.is_compiling():
        return attention_by_blocks(q, k, v, blocks)
    # An exported graph must hold for every length, so it may not choose by this one.
    if not torch.compiler.is_exporting() and q.device.type == "cpu" and q.shape[-2] <= EXPLICIT_MAX_LENGTH:
        return fused.causal_attention(q, k, v, first) if fused.can_fuse(q) else _causal_by_products(q, k, v, first)
    mask = None if first is None else visible_within(first)
    gqa = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=gqa)


def cached_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Attention of the newest positions to all cached ones; `visible` None: to every one. Not for training."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=q.shape[1] != k.shape[1])
