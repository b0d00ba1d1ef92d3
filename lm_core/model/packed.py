"""A decoder prepared for generation on a CPU: its weights in the order in which a step reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lm_core.model.decoder import Block, Decoder
from lm_core.model.language_model import LanguageModel
from lm_core.model.step_kernels import LANES, Floats, Weights, advance, workspace

MAX_BYTES = 4 << 30  # the weights are there twice
TOKENS_AT_ONCE = 64  # of prompts: what a layer computes of them stays in the processor's cache
MIN_TOKENS = 16  # for a thread: fewer take as long in two, since each reads all weights

Integers = NDArray[np.int64]


def pack(model: LanguageModel) -> PackedDecoder | None:
    """The model for `generate` on a CPU; None when it is not one that the compiled step computes."""
    return PackedDecoder(model) if isinstance(model, Decoder) and _suits(model) else None


def _suits(model: Decoder) -> bool:
    weights = list(model.parameters())
    return (
        all(isinstance(block, Block) for block in model.layers)
        and model.config.activation == "silu"
        and model.compute_dtype == torch.float32
        and all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
        and 4 * sum(weight.numel() for weight in weights) <= MAX_BYTES
    )


class PackedDecoder:
    """A copy of a decoder's weights; what happens to the model later does not reach it."""

    @torch.no_grad()
    def __init__(self, model: Decoder) -> None:
        self.config, self.vocab_size, self.context_length = model.config, model.vocab_size, model.context_length
        blocks = [block for block in model.layers if isinstance(block, Block)]
        attentions, feed_forwards = [block.self_attn for block in blocks], [block.mlp for block in blocks]
        none = torch.empty(0)
        half = model.config.width_of_heads // 2
        cos, sin = (angles[:, :half] for angles in model.rotary(torch.arange(model.context_length)))
        self.weights = Weights(
            embedding=_array(model.embed_tokens.weight),
            attention_norm=_stack(block.input_layernorm.weight for block in blocks),
            feed_forward_norm=_stack(block.post_attention_layernorm.weight for block in blocks),
            final_norm=_array(model.norm.weight),
            q_norm=_stack(none if a.q_norm is None else a.q_norm.weight for a in attentions),
            k_norm=_stack(none if a.k_norm is None else a.k_norm.weight for a in attentions),
            qkv=np.stack([_panels(a.q_proj.weight, a.k_proj.weight, a.v_proj.weight) for a in attentions]),
            out=np.stack([_panels(a.o_proj.weight) for a in attentions]),
            gate_up=np.stack([_panels(f.gate_proj.weight, f.up_proj.weight) for f in feed_forwards]),
            down=np.stack([_panels(f.down_proj.weight) for f in feed_forwards]),
            vocabulary=_panels(model.output_weight),
            cos=_array(cos),
            sin=_array(sin),
            epsilon=np.float32(model.config.norm_epsilon),
        )


def _array(tensor: Tensor) -> Floats:
    return np.array(tensor.detach().numpy(), order="C")


def _stack(tensors: Iterable[Tensor]) -> Floats:
    return _array(torch.stack(list(tensors)))


def _panels(*matrices: Tensor) -> Floats:
    """Matrices (N, depth) below each other as (sum of N / LANES rounded up, depth, LANES)."""
    matrix = torch.cat(matrices)
    num_out, depth = matrix.shape
    padded = matrix.new_zeros(-(-num_out // LANES) * LANES, depth)
    padded[:num_out] = matrix
    panels: Floats = padded.view(-1, LANES, depth).transpose(1, 2).contiguous().numpy()
    return panels


class PackedSequences:
    """Sequences that grow token by token, of any lengths, each in a slot of one cache.

    Args:
        max_length: tokens that a sequence may come to have.
    """

    def __init__(self, packed: PackedDecoder, num_sequences: int, max_length: int) -> None:
        self.packed, config, weights = packed, packed.config, packed.weights
        width, panels = config.width_of_heads, -(-max_length // LANES)
        heads = (config.num_layers, num_sequences, config.num_kv_heads)
        self.keys = np.zeros((*heads, panels, width, LANES), np.float32)
        self.values = np.zeros((*heads, -(-width // LANES), max_length, LANES), np.float32)
        self.lengths = np.zeros(num_sequences, np.int64)
        self._logits = np.zeros((num_sequences, len(weights.vocabulary) * LANES), np.float32)
        parts = min(torch.get_num_threads(), num_sequences)
        self._rooms = [workspace(weights, TOKENS_AT_ONCE, self.keys, self.values) for _ in range(parts)]
        self._helpers = ThreadPoolExecutor(parts - 1, thread_name_prefix="generation") if parts > 1 else None

    def extend(self, slots: Integers, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Append tokens to the sequences in some slots; returns the logits that follow, (len(slots), V).

        They are overwritten by the next call.
        """
        parts = max(1, min(len(self._rooms), len(slots), sum(map(len, tokens)) // MIN_TOKENS))
        bounds = [len(slots) * part // parts for part in range(parts + 1)]
        others = [
            self._helpers.submit(self._extend, part, slots, tokens, bounds[part], bounds[part + 1])
            for part in range(1, parts)
            if self._helpers is not None
        ]
        self._extend(0, slots, tokens, 0, bounds[1])
        for other in others:
            other.result()
        return torch.from_numpy(self._logits)[: len(slots), : self.packed.vocab_size]

    def _extend(self, part: int, slots: Integers, tokens: Sequence[Sequence[int]], begin: int, end: int) -> None:
        """The same of those numbered begin .. end: all their tokens in one row, some of it at a time."""
        lengths = [len(row) for row in tokens[begin:end]]
        of_tokens = np.repeat(slots[begin:end], lengths)
        flat = np.fromiter(chain.from_iterable(tokens[begin:end]), np.int64, len(of_tokens))
        ends = np.cumsum(lengths)
        positions = np.arange(len(flat)) + np.repeat(self.lengths[slots[begin:end]] - ends + lengths, lengths)
        if positions.max(initial=0) >= self.values.shape[4]:  # compiled code does not check what it writes to
            raise IndexError(f"a sequence would have more than {self.values.shape[4]} tokens")
        done = begin
        for first in range(0, len(flat), TOKENS_AT_ONCE):
            now = slice(first, first + TOKENS_AT_ONCE)
            wanted = ends[(ends > first) & (ends <= first + TOKENS_AT_ONCE)] - first - 1
            advance(
                self.packed.weights, self._rooms[part], flat[now], of_tokens[now], positions[now], self.keys,
                self.values, wanted, self._logits[done:],
            )  # fmt: skip
            done += len(wanted)
        self.lengths[slots[begin:end]] += lengths
