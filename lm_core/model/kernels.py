"""What stands between the matrix products of a training step on a CPU, each in one pass over memory.

PyTorch's products run at the processor's peak; its pointwise operations, one pass over memory each, took half as long
again. Every kernel works on rows lo .. hi of its arrays, so that threads may share them (`over_rows`), and holds for
fp32 and for bf16, which arrives as its 16 bits. Sums are fp32; NaN and infinity pass through, for the loop to see.
"""

# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.core.compiler import Compiler
from numba.extending import intrinsic, overload
from torch import Tensor
from torch.nn import Parameter

from lm_core.model.row_threads import share_rows


class _Disjoint(Compiler):
    """Of functions no two of whose arrays overlap, if one of them is written to.

    Otherwise the compiled code compares their addresses, coarsely, and runs through those that lie side by side in a
    second loop with other roundings: now and then a step of training gave other last bits in one process than in the
    next. Numba has no option for it, though its compiler knows of it.
    """

    def define_pipelines(self) -> Any:
        self.state.flags.noalias = True
        return super().define_pipelines()


# Sums may be reordered, so that they run in vectors; nothing may be assumed of NaN and infinity.
_MATH = {"reassoc", "contract", "arcp", "nsz"}
SETTINGS: dict[str, Any] = {
    "nogil": True, "fastmath": _MATH, "cache": True, "error_model": "numpy", "pipeline_class": _Disjoint,
}  # fmt: skip
_INLINE: dict[str, Any] = {"inline": "always", "fastmath": _MATH}
_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_LOG2_E, _LN_2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)
_SIGN_LESS = np.int32(0x7FFFFFFF)
_VECTORS = 64  # numbers in the vectors of one turn of a loop; what is left over goes one by one, far slower


# ---------------------------------------------------------------- numbers


def _cast_to_float(_typing, bits):
    def code(context, builder, _signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), code


def _cast_to_bits(_typing, x):
    def code(context, builder, _signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), code


float_of_bits: Any = intrinsic(_cast_to_float)
bits_of_float: Any = intrinsic(_cast_to_bits)


def _wide(x):
    """A stored number, bf16 bits or fp32, as fp32."""
    raise NotImplementedError("runs compiled only")


@overload(_wide, inline="always")
def _wide_compiled(x):
    if x == types.uint16:
        return lambda x: float_of_bits(np.uint32(np.uint32(x) << np.uint32(16)))
    return lambda x: np.float32(x)


def _stored(x, array):
    """fp32 as a number of `array`: itself, or bf16 bits, rounded to nearest even."""
    raise NotImplementedError("runs compiled only")


@overload(_stored, inline="always")
def _stored_compiled(x, array):
    if array.dtype != types.uint16:
        return lambda x, array: np.float32(x)

    def rounded(x, array):
        bits = bits_of_float(np.float32(x))
        half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return np.uint16(np.uint32(bits + half) >> np.uint32(16))

    return rounded


@njit(**_INLINE)
def exponential(x):
    """e^x to 2e-7 relative, x clamped to what fp32 holds: 2^n times a Taylor polynomial on [-ln 2 / 2, ln 2 / 2]."""
    t = max(min(x * _LOG2_E, np.float32(126)), np.float32(-126))
    n = np.int32(t + np.float32(126.5)) - np.int32(126)
    f = (t - np.float32(n)) * _LN_2
    p = np.float32(1 / 720) * f + np.float32(1 / 120)
    p = p * f + np.float32(1 / 24)
    p = p * f + np.float32(1 / 6)
    p = p * f + _HALF
    p = p * f + _ONE
    p = p * f + _ONE
    return p * float_of_bits(np.uint32(np.uint32(n + np.int32(127)) << np.uint32(23)))


@njit(**_INLINE)
def largest(row, end):
    """Maximum of row[:end]. As integers of the same order, which, unlike floats, vectors may compare in any order."""
    best = np.int32(-0x7FFFFFFF)
    for j in range(end):
        bits = np.int32(bits_of_float(_wide(row[j])))
        best = max(best, np.int32(bits ^ ((bits >> np.int32(31)) & _SIGN_LESS)))
    return float_of_bits(np.uint32(np.int32(best ^ ((best >> np.int32(31)) & _SIGN_LESS))))


# ---------------------------------------------------------------- normalisation


@njit(**SETTINGS)
def add_norm_forward(part, lo, hi, x, branch, weight, epsilon, total, normed, inverse):
    """total = x + branch, normed = total * inverse * weight, inverse = 1 / rms(total).

    Args:
        x, total: fp32 (N, D); the same array where branch has no rows: nothing is added.
        branch, normed: (N, D) as stored.
        weight, inverse: fp32 (D,) and (N,).
    """
    width = x.shape[1]
    for i in range(lo, hi):
        squares = np.float32(0)
        if len(branch):
            for j in range(width):
                value = x[i, j] + _wide(branch[i, j])
                total[i, j] = value
                squares += value * value
        else:
            for j in range(width):
                squares += x[i, j] * x[i, j]
        scale = _ONE / np.sqrt(squares / np.float32(width) + np.float32(epsilon))
        inverse[i] = scale
        for j in range(width):
            normed[i, j] = _stored(weight[j] * (total[i, j] * scale), normed)


@njit(**SETTINGS)
def add_norm_backward(part, lo, hi, total, weight, inverse, d_total, d_normed, d_x, d_branch, d_weight):
    """Gradients of `add_norm_forward`.

    Args:
        d_total: fp32 (N, D), or no rows: nothing came back through the sum.
        d_branch: (N, D) as stored, or no rows: not wanted.
        d_weight: fp32 (parts, D), zeros; each part sums its own rows.
    """
    width = total.shape[1]
    for i in range(lo, hi):
        scale = inverse[i]
        dot = np.float32(0)
        for j in range(width):
            dot += _wide(d_normed[i, j]) * weight[j] * total[i, j]
        back = dot * scale * scale / np.float32(width)
        for j in range(width):
            d_out = _wide(d_normed[i, j])
            d_weight[part, j] += d_out * total[i, j] * scale
            d_x[i, j] = scale * (d_out * weight[j] - total[i, j] * back)
        if len(d_total):
            for j in range(width):
                d_x[i, j] += d_total[i, j]
        if len(d_branch):
            for j in range(width):
                d_branch[i, j] = _stored(d_x[i, j], d_branch)


# ---------------------------------------------------------------- heads


@njit(**SETTINGS)
def heads_forward(part, lo, hi, qkv, q_weight, k_weight, epsilon, cos, sin, q, k, v, inverse):
    """Split qkv into heads; normalise queries and keys, and rotate them by their positions.

    Args:
        qkv: (B * T, (H + 2 H_kv) K) as stored.
        q_weight, k_weight: fp32 (K,), or empty: no normalisation.
        cos, sin: (T, K), or one row for each of qkv, as stored; the second half repeats the first.
        q, k, v: (B, H or H_kv, T, K), filled.
        inverse: fp32 (B * T, H + H_kv), filled with 1 / rms.
    """
    num_q, length, width = q.shape[1], q.shape[2], q.shape[3]
    num_k, half = k.shape[1], q.shape[3] // 2
    for i in range(lo, hi):
        b, t, angle = i // length, i % length, i % len(cos)
        for h in range(num_q + num_k):
            x = qkv[i, h * width : (h + 1) * width]
            out = q[b, h, t] if h < num_q else k[b, h - num_q, t]
            weight = q_weight if h < num_q else k_weight
            scale = _ONE
            if len(weight):
                squares = np.float32(0)
                for j in range(width):
                    squares += _wide(x[j]) * _wide(x[j])
                scale = _ONE / np.sqrt(squares / np.float32(width) + np.float32(epsilon))
                inverse[i, h] = scale
            for j in range(half):
                first, second = _wide(x[j]) * scale, _wide(x[half + j]) * scale
                if len(weight):
                    first, second = first * weight[j], second * weight[half + j]
                c, s = _wide(cos[angle, j]), _wide(sin[angle, j])
                out[j] = _stored(first * c - second * s, q)
                out[half + j] = _stored(second * c + first * s, q)
        for h in range(num_k):
            start = (num_q + num_k + h) * width
            for j in range(width):
                v[b, h, t, j] = qkv[i, start + j]


@njit(**SETTINGS)
def heads_backward(part, lo, hi, qkv, weights, inverse, cos, sin, d_q, d_k, d_v, d_qkv, d_weights):
    """Gradients of `heads_forward`.

    Args:
        weights: fp32 (2, K), of queries and keys, or no rows.
        d_weights: fp32 (parts, 2, K), zeros; each part sums its own rows.
    """
    num_q, length, width = d_q.shape[1], d_q.shape[2], d_q.shape[3]
    num_k, half = d_k.shape[1], d_q.shape[3] // 2
    d_rotated = np.empty(width, np.float32)
    for i in range(lo, hi):
        b, t = i // length, i % length
        for h in range(num_q + num_k):
            start = h * width
            d_out = d_q[b, h, t] if h < num_q else d_k[b, h - num_q, t]
            for j in range(half):
                first, second = _wide(d_out[j]), _wide(d_out[half + j])
                c, s = _wide(cos[t, j]), _wide(sin[t, j])
                d_rotated[j] = first * c + second * s
                d_rotated[half + j] = second * c - first * s
            if len(weights):
                which, scale = 0 if h < num_q else 1, inverse[i, h]
                dot = np.float32(0)
                for j in range(width):
                    product = d_rotated[j] * _wide(qkv[i, start + j])
                    d_weights[part, which, j] += product * scale
                    dot += product * weights[which, j]
                back = dot * scale * scale / np.float32(width)
                for j in range(width):
                    d_x = scale * (d_rotated[j] * weights[which, j] - _wide(qkv[i, start + j]) * back)
                    d_qkv[i, start + j] = _stored(d_x, d_qkv)
            else:
                for j in range(width):
                    d_qkv[i, start + j] = _stored(d_rotated[j], d_qkv)
        for h in range(num_k):
            start = (num_q + num_k + h) * width
            for j in range(width):
                d_qkv[i, start + j] = d_v[b, h, t, j]


# ---------------------------------------------------------------- attention weights


@njit(**SETTINGS)
def causal_softmax_forward(part, lo, hi, scores, scale, length, first, room):
    """scores (N, S) become softmax(scores * scale) of the keys up to each row's own position, 0 elsewhere, in place.

    Row i stands at position i % length.

    Args:
        first: int64 (B, T), the first key that each position may see, B equal shares of the rows; or no rows: all.
        room: fp32 (parts, S).
    """
    rows = len(scores) // max(1, len(first))
    powers = room[part]
    factor = np.float32(scale)
    for i in range(lo, hi):
        begin = first[i // rows, i % length] if len(first) else 0
        scores[i, :begin] = 0
        row, end = scores[i, begin:], i % length + 1 - begin
        highest = largest(row, end)
        total = np.float32(0)
        whole = min(len(row), (end + _VECTORS - 1) // _VECTORS * _VECTORS)
        for j in range(whole):
            power = exponential((_wide(row[j]) - highest) * factor)
            power = power if j < end else _ZERO
            powers[j] = power
            total += power
        share = _ONE / total + (highest - highest)  # a row with NaN or infinity becomes NaN
        for j in range(whole):
            row[j] = _stored(powers[j] * share, scores)
        for j in range(whole, len(row)):
            row[j] = 0


@njit(**SETTINGS)
def causal_softmax_backward(part, lo, hi, weights, d_weights, scale, length, first):
    """d_weights (N, S) become the gradients of the unscaled scores, in place; arguments as of the forward pass."""
    rows = len(weights) // max(1, len(first))
    factor = np.float32(scale)
    for i in range(lo, hi):
        begin = first[i // rows, i % length] if len(first) else 0
        d_weights[i, :begin] = 0
        row, d_row, end = weights[i, begin:], d_weights[i, begin:], i % length + 1 - begin
        whole = min(len(row), (end + _VECTORS - 1) // _VECTORS * _VECTORS)  # weights beyond the end are zero
        dot = np.float32(0)
        for j in range(whole):
            dot += _wide(row[j]) * _wide(d_row[j])
        for j in range(whole):
            d_row[j] = _stored(_wide(row[j]) * (_wide(d_row[j]) - dot) * factor, d_weights)
        for j in range(whole, len(row)):
            d_row[j] = 0


# ---------------------------------------------------------------- feed-forward, loss


@njit(**SETTINGS)
def swiglu_forward(part, lo, hi, gate_up, out):
    """out (N, F) = silu(gate) * up, gate_up (N, 2 F) holding them side by side."""
    width = out.shape[1]
    for i in range(lo, hi):
        for j in range(width):
            gate, up = _wide(gate_up[i, j]), _wide(gate_up[i, width + j])
            out[i, j] = _stored(gate * up / (_ONE + exponential(-gate)), out)


@njit(**SETTINGS)
def swiglu_backward(part, lo, hi, gate_up, d_out, d_gate_up):
    """Gradient of `swiglu_forward`, (N, 2 F)."""
    width = d_out.shape[1]
    for i in range(lo, hi):
        for j in range(width):
            gate, up, d = _wide(gate_up[i, j]), _wide(gate_up[i, width + j]), _wide(d_out[i, j])
            sigmoid = _ONE / (_ONE + exponential(-gate))
            d_gate_up[i, j] = _stored(d * up * sigmoid * (_ONE + gate * (_ONE - sigmoid)), d_gate_up)
            d_gate_up[i, width + j] = _stored(d * gate * sigmoid, d_gate_up)


@njit(**SETTINGS)
def cross_entropy(part, lo, hi, logits, targets, smoothing, losses):
    """logits (N, V) become the gradients of the summed loss, in place; losses (N,) in fp32."""
    width = logits.shape[1]
    powers = np.empty(width, np.float32)
    spread = np.float32(smoothing / width)
    for i in range(lo, hi):
        row = logits[i]
        highest = largest(row, width)
        total, mean = np.float32(0), np.float32(0)
        for j in range(width):
            value = _wide(row[j])
            power = exponential(value - highest)
            powers[j] = power
            total += power
            mean += value
        log_total = np.float32(np.log(total)) + highest
        wanted = np.float32(1 - smoothing) * _wide(row[targets[i]])
        losses[i] = log_total - wanted - spread * mean
        share = _ONE / total + (highest - highest)
        for j in range(width):
            row[j] = _stored(powers[j] * share - spread, logits)
        at = powers[targets[i]] * share - spread - np.float32(1 - smoothing)
        row[targets[i]] = _stored(at, logits)


@njit(**SETTINGS)
def add_rows(part, lo, hi, total, more):
    """total (N, D) += more, as stored, in one pass: PyTorch would widen it to fp32 first."""
    for i in range(lo, hi):
        for j in range(total.shape[1]):
            total[i, j] += _wide(more[i, j])


# ---------------------------------------------------------------- calling


def array(tensor: Tensor) -> np.ndarray:
    """The tensor's own memory as a kernel takes it; bf16 as uint16."""
    # FSDP gives a parameter's memory back after use, which NumPy's hold on it would forbid.
    tensor = tensor.detach().clone() if isinstance(tensor, Parameter) else tensor.detach()
    bits: np.ndarray = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return bits


def over_rows(kernel: Callable[..., None], rows: int, *arguments: Any) -> None:
    """Run a kernel over all rows, a part in each thread."""
    arrays = [array(a) if isinstance(a, Tensor) else a for a in arguments]
    share_rows(lambda part, begin, end: kernel(part, begin, end, *arrays), rows)
