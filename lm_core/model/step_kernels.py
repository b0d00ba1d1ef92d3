"""One step of generation on a CPU as one compiled function: all layers, for tokens of any sequences at any positions.

A step of a small model is a few hundred small operations; calling them one by one costs more than computing them, and
products of so few rows run at a tenth of the processor's peak in general libraries. Here all products, those of
attention included, are the same few machine instructions: a vector of weights is read once and multiplied with every
row at hand.

For that, matrices lie in panels: (P, depth, LANES), the weights of LANES outputs side by side for each input. Every sum
runs over the inputs in their order, however many rows are computed together: a token's logits are the same bits in any
batch, in any part of a prompt and on any number of threads. Everything is fp32.
"""

# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from lm_core.model.kernels import SETTINGS, exponential, largest

# What the processor adds up at once, and how many such sums it can hold in registers.
LANES, _SUMS = (16, 16) if "avx512f" in binding.get_host_cpu_features() else (8, 8)
_ONE = np.float32(1)
Floats = NDArray[np.float32]


class Weights(NamedTuple):
    """A decoder's weights, matrices in panels, those of all L layers in one array.

    Attributes:
        embedding: (V, D), as the model holds it.
        attention_norm, feed_forward_norm: (L, D).
        final_norm: (D,).
        q_norm, k_norm: (L, K); (L, 0) without normalisation.
        qkv, out: panels of the matrices to (H + 2 H_kv) K and from H K.
        gate_up, down: to 2 F and from F.
        vocabulary: to V.
        cos, sin: of the rotary angles, (T, K / 2).
        epsilon: added to the mean of squares in every normalisation.
    """

    embedding: Floats
    attention_norm: Floats
    feed_forward_norm: Floats
    final_norm: Floats
    q_norm: Floats
    k_norm: Floats
    qkv: Floats
    out: Floats
    gate_up: Floats
    down: Floats
    vocabulary: Floats
    cos: Floats
    sin: Floats
    epsilon: np.float32


# ---------------------------------------------------------------- products


def _product(rows, panels):
    """Rows times panels, all their sums in registers; arguments are addresses and steps in bytes."""

    def code(context, builder, _signature, arguments):
        weights, weights_step, x, x_step, out, out_step, depth = arguments
        size, number, vector = ir.IntType(64), ir.FloatType(), ir.VectorType(ir.FloatType(), LANES)
        undefined, mask = ir.Constant(vector, ir.Undefined), ir.VectorType(ir.IntType(32), LANES)

        def at(address, step, times, kind):
            place = builder.add(address, builder.mul(step, ir.Constant(size, times)))
            return place if kind is None else builder.inttoptr(place, kind.as_pointer())

        def read(address, k, step, kind):
            value = builder.load(at(builder.add(address, builder.mul(k, ir.Constant(size, step))), k, 0, kind))
            value.align = 4
            return value

        before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
        of_rows = [at(x, x_step, row, None) for row in range(rows)]
        of_panels = [at(weights, weights_step, panel, None) for panel in range(panels)]
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(size)
        k.add_incoming(ir.Constant(size, 0), before)
        sums = [[builder.phi(vector) for _ in range(panels)] for _ in range(rows)]
        read_weights = [read(address, k, 4 * LANES, vector) for address in of_panels]
        for row, address in enumerate(of_rows):
            value = builder.insert_element(undefined, read(address, k, 4, number), ir.Constant(ir.IntType(32), 0))
            same = builder.shuffle_vector(value, undefined, ir.Constant(mask, [0] * LANES))
            for panel, total in enumerate(sums[row]):
                total.add_incoming(ir.Constant(vector, [0.0] * LANES), before)
                product = builder.fmul(read_weights[panel], same, flags=("contract",))
                sums[row][panel] = builder.fadd(total, product, flags=("contract",))
                total.add_incoming(sums[row][panel], loop)
        following = builder.add(k, ir.Constant(size, 1))
        k.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
        builder.position_at_end(after)
        for row in range(rows):
            for panel in range(panels):
                place = at(at(out, out_step, row, None), ir.Constant(size, 4 * LANES), panel, vector)
                builder.store(sums[row][panel], place).align = 4
        return context.get_dummy_value()

    return lambda _typing, weights, weights_step, x, x_step, out, out_step, depth: (types.void(*[types.intp] * 7), code)


# Rows at a time, and so many panels with them as registers allow.
_GROUP, _PANEL_BYTES = 4, 4 * LANES
_WIDE_4, _WIDE_8 = min(_GROUP, _SUMS // 4), min(_GROUP, _SUMS // 8)
_product_1_by_1, _product_1_by_4 = intrinsic(_product(1, 1)), intrinsic(_product(1, _GROUP))
_product_4_by_1, _product_4_by_many = intrinsic(_product(4, 1)), intrinsic(_product(4, _WIDE_4))
_product_8_by_1, _product_8_by_many = intrinsic(_product(8, 1)), intrinsic(_product(8, _WIDE_8))


@njit(**SETTINGS)
def _multiply_at(weights, step, count, depth, x, x_step, out, out_step, rows):
    """Rows of x times panels, by their addresses and the bytes from one to the next."""
    panel = 0
    while panel < count:
        whole = panel + _GROUP <= count
        row = 0
        while row < rows:
            panels, source = weights + panel * step, x + row * x_step
            target = out + row * out_step + panel * _PANEL_BYTES
            height = 8 if rows - row >= 8 else 4 if rows - row >= 4 else 1
            if height == 1:
                if whole:
                    _product_1_by_4(panels, step, source, x_step, target, out_step, depth)
                else:
                    _product_1_by_1(panels, step, source, x_step, target, out_step, depth)
            elif height == 4:
                if whole:
                    for part in range(0, _GROUP, _WIDE_4):
                        at = target + part * _PANEL_BYTES
                        _product_4_by_many(panels + part * step, step, source, x_step, at, out_step, depth)
                else:
                    _product_4_by_1(panels, step, source, x_step, target, out_step, depth)
            elif whole:
                for part in range(0, _GROUP, _WIDE_8):
                    at = target + part * _PANEL_BYTES
                    _product_8_by_many(panels + part * step, step, source, x_step, at, out_step, depth)
            else:
                _product_8_by_1(panels, step, source, x_step, target, out_step, depth)
            row += height
        panel += _GROUP if whole else 1


@njit(**SETTINGS)
def _multiply(panels, x, out, rows):
    """out (N, P * LANES) = x (N, depth) times panels (P, depth, LANES), of the first rows."""
    count, depth = panels.shape[0], panels.shape[1]
    _multiply_at(
        panels.ctypes.data, depth * _PANEL_BYTES, count, depth, x.ctypes.data, x.shape[1] * 4, out.ctypes.data,
        out.shape[1] * 4, rows,
    )  # fmt: skip


# ---------------------------------------------------------------- between the products


@njit(**SETTINGS)
def _add_norm(x, branch, weight, epsilon, normed, rows):
    """x += branch; normed = x / sqrt(mean(x^2) + epsilon) * weight."""
    width = len(weight)
    for i in range(rows):
        squares = np.float32(0)
        for j in range(width):
            value = x[i, j] + branch[i, j]
            x[i, j] = value
            squares += value * value
        scale = _ONE / np.sqrt(squares / np.float32(width) + epsilon)
        for j in range(width):
            normed[i, j] = weight[j] * (x[i, j] * scale)


@njit(**SETTINGS)
def _head(x, row, start, norms, layer, epsilon, cos, sin, position, out):
    """The head that begins at x[row, start], normalised if there are norms (L, K), and rotated: out (K,)."""
    half = cos.shape[1]
    scale = _ONE
    if norms.shape[1]:
        squares = np.float32(0)
        for j in range(2 * half):
            squares += x[row, start + j] * x[row, start + j]
        scale = _ONE / np.sqrt(squares / np.float32(2 * half) + epsilon)
    for j in range(half):
        first, second = x[row, start + j] * scale, x[row, start + half + j] * scale
        if norms.shape[1]:
            first, second = first * norms[layer, j], second * norms[layer, half + j]
        out[j] = first * cos[position, j] - second * sin[position, j]
        out[half + j] = second * cos[position, j] + first * sin[position, j]


@njit(**SETTINGS)
def _remember(weights, layer, qkv, slots, positions, keys, values, turned):
    """Turn the queries in qkv (N, (H + 2 H_kv) K) in place; put keys and values into the cache."""
    width, num_kv = 2 * weights.cos.shape[1], keys.shape[2]
    num_q = weights.out.shape[2] // width
    epsilon, cos, sin = weights.epsilon, weights.cos, weights.sin
    for i in range(len(slots)):
        slot, position = slots[i], positions[i]
        for h in range(num_q):
            _head(qkv, i, h * width, weights.q_norm, layer, epsilon, cos, sin, position, turned)
            for j in range(width):
                qkv[i, h * width + j] = turned[j]
        for h in range(num_kv):
            start = (num_q + h) * width
            _head(qkv, i, start, weights.k_norm, layer, epsilon, cos, sin, position, turned)
            start += num_kv * width
            for j in range(width):
                keys[layer, slot, h, position // LANES, j, position % LANES] = turned[j]
                values[layer, slot, h, j // LANES, position, j % LANES] = qkv[i, start + j]


@njit(**SETTINGS)
def _softmax(scores, end, scale):
    """scores[:end] become softmax(scores * scale)."""
    highest, total = largest(scores, end), np.float32(0)
    for t in range(end):
        power = exponential((scores[t] - highest) * scale)
        scores[t] = power
        total += power
    share = _ONE / total
    for t in range(end):
        scores[t] *= share


@njit(**SETTINGS)
def _attend(queries, row, keys, values, end, scores, sums, mixed):
    """mixed[row] = the values of positions before `end`, weighted by their keys' likeness to queries[row].

    Args:
        keys: (H_kv, T / LANES, K, LANES), positions side by side.
        values: (H_kv, K / LANES, T, LANES).
        scores, sums: room for the queries of one key head, (H / H_kv, T) and (H / H_kv, K) rounded up.
    """
    num_kv, width = keys.shape[0], keys.shape[2]
    groups = mixed.shape[1] // width // num_kv
    scale = _ONE / np.sqrt(np.float32(width))
    for kv in range(num_kv):
        query = queries.ctypes.data + 4 * (row * queries.shape[1] + kv * groups * width)
        _multiply_at(
            keys[kv].ctypes.data, width * _PANEL_BYTES, (end + LANES - 1) // LANES, width, query, width * 4,
            scores.ctypes.data, scores.shape[1] * 4, groups,
        )  # fmt: skip
        for g in range(groups):
            _softmax(scores[g], end, scale)
        _multiply_at(
            values[kv].ctypes.data, values.shape[2] * _PANEL_BYTES, values.shape[1], end, scores.ctypes.data,
            scores.shape[1] * 4, sums.ctypes.data, sums.shape[1] * 4, groups,
        )  # fmt: skip
        for g in range(groups):
            for j in range(width):
                mixed[row, (kv * groups + g) * width + j] = sums[g, j]


@njit(**SETTINGS)
def _swiglu(gate_up, gated, rows):
    """gated (N, F) = silu(gate) * up, of the two side by side."""
    width = gated.shape[1]
    for i in range(rows):
        for j in range(width):
            gate = gate_up[i, j]
            gated[i, j] = gate * gate_up[i, width + j] / (_ONE + exponential(-gate))


# ---------------------------------------------------------------- the step


class Workspace(NamedTuple):
    """What a step writes on the way, for N tokens at most; rows are as wide as the panels that fill them.

    Attributes:
        stream, normed: (N, D), branch: D rounded up.
        qkv: queries, keys and values; mixed: (N, H K).
        turned: (K,), one head; gate_up: 2 F; gated: (N, F).
        scores, sums: for the queries of one key head, T and K wide.
        last: (N, D), of the tokens whose logits are wanted.
    """

    stream: Floats
    branch: Floats
    normed: Floats
    qkv: Floats
    mixed: Floats
    turned: Floats
    gate_up: Floats
    gated: Floats
    scores: Floats
    sums: Floats
    last: Floats


def workspace(weights: Weights, num_tokens: int, keys: Floats, values: Floats) -> Workspace:
    """Room for steps of so many tokens at once, with such a cache."""
    d_model, d_heads, d_ff = weights.embedding.shape[1], weights.out.shape[2], weights.down.shape[2]
    groups = d_heads // keys.shape[4] // keys.shape[2]
    rows = {
        "stream": d_model, "branch": weights.down.shape[1] * LANES, "normed": d_model,
        "qkv": weights.qkv.shape[1] * LANES, "mixed": d_heads, "gate_up": weights.gate_up.shape[1] * LANES,
        "gated": d_ff, "last": d_model,
    }  # fmt: skip
    sized = {name: np.zeros((num_tokens, width), np.float32) for name, width in rows.items()}
    scores = np.zeros((groups, keys.shape[3] * LANES), np.float32)
    turned = np.zeros(2 * weights.cos.shape[1], np.float32)
    return Workspace(
        **sized, turned=turned, scores=scores, sums=np.zeros((groups, values.shape[3] * LANES), np.float32)
    )


@njit(**SETTINGS)
def advance(weights, room, tokens, slots, positions, keys, values, wanted, logits):
    """Feed tokens (N,) into the cache, each at its position of its slot, and give logits after some of them.

    The tokens of a slot stand in the order of their positions, and all earlier ones are in the cache or before them.

    Args:
        weights: `Weights`.
        room: `Workspace`.
        keys: (L, slots, H_kv, T / LANES, K, LANES), values: (L, slots, H_kv, K / LANES, T, LANES), extended.
        wanted: which of the tokens' logits are wanted.
        logits: (len(wanted), V rounded up), filled.
    """
    rows, x, branch, normed = len(tokens), room.stream, room.branch, room.normed
    for i in range(rows):
        for j in range(x.shape[1]):
            x[i, j], branch[i, j] = weights.embedding[tokens[i], j], 0
    for layer in range(len(weights.qkv)):
        _add_norm(x, branch, weights.attention_norm[layer], weights.epsilon, normed, rows)
        _multiply(weights.qkv[layer], normed, room.qkv, rows)
        _remember(weights, layer, room.qkv, slots, positions, keys, values, room.turned)
        for i in range(rows):
            own_keys, own_values = keys[layer, slots[i]], values[layer, slots[i]]
            _attend(room.qkv, i, own_keys, own_values, positions[i] + 1, room.scores, room.sums, room.mixed)
        _multiply(weights.out[layer], room.mixed, branch, rows)
        _add_norm(x, branch, weights.feed_forward_norm[layer], weights.epsilon, normed, rows)
        _multiply(weights.gate_up[layer], normed, room.gate_up, rows)
        _swiglu(room.gate_up, room.gated, rows)
        _multiply(weights.down[layer], room.gated, branch, rows)
    if len(wanted):
        _add_norm(x, branch, weights.final_norm, weights.epsilon, normed, rows)
        for i in range(len(wanted)):
            for j in range(normed.shape[1]):
                room.last[i, j] = normed[wanted[i], j]
        _multiply(weights.vocabulary, room.last, logits, len(wanted))
