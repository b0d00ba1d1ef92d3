"""Causal attention, three ways that agree: by its formula, as two batched matrix products, by PyTorch's kernel.

At the short contexts of small models, PyTorch's CPU kernel takes a third of a training step for a twentieth of its
operations. Two batched matrix products and a softmax, with the backward pass written out, take less than half. Beyond
about 512 tokens the (T, T) matrix no longer pays, and the kernel is used.
"""

from __future__ import annotations

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


def _causal_by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula for the causal mask, in the arithmetic of its inputs throughout."""
    length, groups = q.shape[-2], q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    hidden = torch.ones(length, length, dtype=torch.bool, device=q.device).triu_(1)
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of every position to itself and those before it; shapes as in `attention_by_formula`, S = T."""
    # An exported graph must hold for every length, so it may not choose by this one.
    if not torch.compiler.is_exporting() and q.device.type == "cpu" and q.shape[-2] <= EXPLICIT_MAX_LENGTH:
        return fused.causal_attention(q, k, v) if fused.can_fuse(q) else _causal_by_products(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def cached_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Attention of the newest positions to all cached ones; `visible` None: to every one. Not for training."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=q.shape[1] != k.shape[1])
