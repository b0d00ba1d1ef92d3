"""The parts of a decoder's training step for a CPU.

They are the formulas of decoder.py and attention.py with the backward pass written out, pointwise work in one pass
over memory (kernels.py), and products that share an input as one.

Tests hold each against the plain formula; gradients agree within the rounding of the arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from lm_core.model import kernels
from lm_core.model.kernels import over_rows
from lm_core.model.row_threads import num_parts


def can_fuse(x: Tensor) -> bool:
    """Whether these parts serve x: in eager training on a CPU. Compilers and exporters want the plain formulas."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling() and suits(x)


def suits(x: Tensor) -> bool:
    """Whether the kernels can work on x at all."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _nothing(like: Tensor) -> Tensor:
    """What stands for an argument that is not there: no rows."""
    return like.new_empty((0, like.shape[-1]))


class _AddNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, branch: Tensor | None, weight: Tensor, epsilon: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        x = x.contiguous()
        total = x if branch is None else torch.empty_like(x)
        normed = torch.empty(x.shape, dtype=dtype)
        inverse = torch.empty(x.shape[:-1].numel())
        added = _nothing(normed) if branch is None else _rows(branch.contiguous())
        over_rows(
            kernels.add_norm_forward,
            len(inverse),
            _rows(x),
            added,
            weight,
            epsilon,
            _rows(total),
            _rows(normed),
            inverse,
        )
        ctx.save_for_backward(total, weight, inverse)
        ctx.branch_dtype = None if branch is None else branch.dtype
        return total, normed

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        total, weight, inverse = ctx.saved_tensors
        d_total, d_normed = gradients
        if d_normed is None:  # only the sum was used
            return d_total, None if ctx.branch_dtype is None else d_total.to(ctx.branch_dtype), None, None, None
        through = _nothing(total) if d_total is None else _rows(d_total.contiguous())
        d_x = torch.empty_like(total)
        d_branch = None if ctx.branch_dtype is None else torch.empty(total.shape, dtype=ctx.branch_dtype)
        added = _nothing(d_normed) if d_branch is None else _rows(d_branch)
        d_weight = torch.zeros(num_parts(len(inverse)), len(weight))
        over_rows(
            kernels.add_norm_backward, len(inverse), _rows(total), weight, inverse, through,
            _rows(d_normed.contiguous()), _rows(d_x), added, d_weight,
        )  # fmt: skip
        return d_x, d_branch, d_weight.sum(0), None, None


def add_norm(
    x: Tensor, branch: Tensor | None, weight: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x + branch in fp32 (B, T, D), and its RMS norm in `dtype`."""
    out: tuple[Tensor, Tensor] = _AddNorm.apply(x.float(), branch, weight, epsilon, dtype)
    return out


class _Project(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        matrix = torch.empty(sum(map(len, weights)), x.shape[-1], dtype=x.dtype)
        torch.cat(weights, out=matrix) if x.dtype == weights[0].dtype else _cast_into(matrix, weights)
        ctx.save_for_backward(x, matrix)
        ctx.lengths = [len(weight) for weight in weights]
        return torch.nn.functional.linear(x, matrix)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, matrix = ctx.saved_tensors
        d_out = _rows(gradients[0])
        d_x = (d_out @ matrix).view(x.shape) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return d_x, *[None for _ in ctx.lengths]
        d_matrix = d_out.T @ _rows(x)
        return d_x, *[part.float() for part in d_matrix.split(ctx.lengths)]


def _cast_into(matrix: Tensor, weights: tuple[Tensor, ...]) -> None:
    for part, weight in zip(matrix.split([len(weight) for weight in weights]), weights, strict=True):
        part.copy_(weight)


def project(x: Tensor, *weights: Tensor) -> Tensor:
    """x (..., D) times each of the fp32 matrices (D_i, D), side by side: (..., sum of D_i), in the dtype of x."""
    out: Tensor = _Project.apply(x, *weights)
    return out


class _Heads(Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, epsilon: float,
        cos: Tensor, sin: Tensor, num_q: int, num_k: int,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        batch, length, width = qkv.shape[0], qkv.shape[1], cos.shape[-1]
        q = qkv.new_empty(batch, num_q, length, width)
        k, v = (qkv.new_empty(batch, num_k, length, width) for _ in range(2))
        inverse = torch.empty(batch * length, num_q + num_k)
        none = torch.empty(0)
        over_rows(
            kernels.heads_forward, batch * length, _rows(qkv), none if q_weight is None else q_weight,
            none if k_weight is None else k_weight, epsilon, cos, sin, q, k, v, inverse,
        )  # fmt: skip
        weights = torch.empty(0, width) if q_weight is None or k_weight is None else torch.stack((q_weight, k_weight))
        ctx.save_for_backward(qkv, weights, inverse, cos, sin)
        return q, k, v

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        qkv, weights, inverse, cos, sin = ctx.saved_tensors
        d_q, d_k, d_v = (gradient.contiguous() for gradient in gradients)
        d_qkv = torch.empty_like(qkv)
        d_weights = torch.zeros(num_parts(len(inverse)), 2, cos.shape[-1])
        over_rows(
            kernels.heads_backward, len(inverse), _rows(qkv), weights, inverse, cos, sin, d_q, d_k, d_v, _rows(d_qkv),
            d_weights,
        )  # fmt: skip
        d_q_weight, d_k_weight = d_weights.sum(0) if len(weights) else (None, None)
        return d_qkv, d_q_weight, d_k_weight, None, None, None, None, None


def heads(
    qkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, epsilon: float, cos: Tensor, sin: Tensor,
    *, num_q: int, num_k: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Queries (B, H, T, K), keys and values (B, H_kv, T, K) of qkv (B, T, (H + 2 H_kv) K), normalised and rotated."""
    cos, sin = _rows(cos), _rows(sin)
    out: tuple[Tensor, Tensor, Tensor] = _Heads.apply(qkv, q_weight, k_weight, epsilon, cos, sin, num_q, num_k)
    return out


class _CausalAttention(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, first: Tensor) -> Tensor:
        shape, length = q.shape, q.shape[2]
        # Query heads of one key head stand below each other: every T rows begin anew at the first position.
        q, k, v = q.reshape(shape[0] * k.shape[1], -1, shape[3]), k.flatten(0, 1), v.flatten(0, 1)
        weights = q @ k.transpose(-1, -2)
        scale = shape[3] ** -0.5
        rows = weights.shape[:-1].numel()
        room = torch.empty(num_parts(rows), weights.shape[-1])
        over_rows(kernels.causal_softmax_forward, rows, _rows(weights), scale, length, first, room)
        ctx.save_for_backward(q, k, v, weights, first)
        ctx.shape = shape
        return (weights @ v).view(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        q, k, v, weights, first = ctx.saved_tensors
        batch, _, length, width = ctx.shape
        d_out = gradients[0].reshape(q.shape)
        d_scores = d_out @ v.transpose(-1, -2)
        rows = weights.shape[:-1].numel()
        over_rows(kernels.causal_softmax_backward, rows, _rows(weights), _rows(d_scores), width**-0.5, length, first)
        d_k, d_v = d_scores.transpose(-1, -2) @ q, weights.transpose(-1, -2) @ d_out
        keys = (batch, -1, length, width)
        return (d_scores @ k).view(ctx.shape), d_k.view(keys), d_v.view(keys), None


def causal_attention(q: Tensor, k: Tensor, v: Tensor, first: Tensor | None = None) -> Tensor:
    """Attention of every position to itself and those before it, from `first` (B, T) on.

    Shapes are those of `attention_by_formula`, S = T.
    """
    nothing = torch.empty((0, 0), dtype=torch.int64)
    out: Tensor = _CausalAttention.apply(q, k, v, nothing if first is None else first)
    return out


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        out = gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)
        over_rows(kernels.swiglu_forward, out.shape[:-1].numel(), _rows(gate_up), _rows(out))
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gate_up,) = ctx.saved_tensors
        d_out = _rows(gradients[0].contiguous())
        d_gate_up = torch.empty_like(gate_up)
        over_rows(kernels.swiglu_backward, len(d_out), _rows(gate_up), d_out, _rows(d_gate_up))
        return d_gate_up


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up (..., F) of the two side by side (..., 2 F)."""
    out: Tensor = _SwiGLU.apply(gate_up)
    return out
