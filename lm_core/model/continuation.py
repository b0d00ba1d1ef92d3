"""Sequences that grow token by token, and the logits of what comes next: three ways that agree.

On a CPU by the compiled step, elsewhere by the decoder with its cache, and for architectures without a cache by the
whole sequence again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lm_core.model.decoder import Decoder
from lm_core.model.language_model import LanguageModel
from lm_core.model.packed import PackedDecoder, PackedSequences, pack


class Continuation(ABC):
    """Some sequences of one model."""

    @abstractmethod
    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits (B, V) after each prompt."""

    @abstractmethod
    def go_on(self, rows: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Logits (len(rows), V) after one more token of some prompts; the others are left for good.

        The tensor may be overwritten by the next call.
        """


def continuation(model: LanguageModel | PackedDecoder, max_length: int) -> Continuation:
    """The fastest way for a model.

    Args:
        max_length: tokens that the longest sequence may come to have.
    """
    if isinstance(model, PackedDecoder):
        return _Packed(model, max_length)
    if packed := pack(model):
        return _Packed(packed, max_length)
    return _Cached(model, max_length) if isinstance(model, Decoder) else _Whole(model)


class _Packed(Continuation):
    def __init__(self, model: PackedDecoder, max_length: int) -> None:
        self.model, self.max_length = model, max_length

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        self.sequences = PackedSequences(self.model, len(prompts), self.max_length)
        return self.sequences.extend(np.arange(len(prompts)), prompts)

    def go_on(self, rows: Sequence[int], tokens: Sequence[int]) -> Tensor:
        return self.sequences.extend(np.array(rows), [(token,) for token in tokens])


class _Cached(Continuation):
    """Prompts are padded on the left; a row's padding is invisible to it and takes no positions."""

    def __init__(self, model: Decoder, max_length: int) -> None:
        self.model, self.max_length = model, max_length
        self.device = next(model.parameters()).device

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        longest = max(map(len, prompts))
        start = torch.tensor([longest - len(prompt) for prompt in prompts], device=self.device)
        self.cache = self.model.new_cache(start, self.max_length + int(start.max()))
        self.rows = list(range(len(prompts)))
        return self._logits([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])

    def go_on(self, rows: Sequence[int], tokens: Sequence[int]) -> Tensor:
        if len(rows) <= len(self.rows) // 2:
            self.cache.keep([self.rows.index(row) for row in rows])
            self.rows = list(rows)
        new = dict(zip(rows, tokens, strict=True))
        logits = self._logits([[new.get(row, 0)] for row in self.rows])
        return logits if len(rows) == len(self.rows) else logits[[self.rows.index(row) for row in rows]]

    @torch.inference_mode()
    def _logits(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        hidden = self.model.hidden(torch.tensor(tokens, device=self.device), self.cache)
        return self.model.logits(hidden[:, -1])


class _Whole(Continuation):
    """Padded on the right: what comes later is nothing to a position."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.device = model, next(model.parameters()).device

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        self.texts = [list(prompt) for prompt in prompts]
        return self._logits(range(len(prompts)))

    def go_on(self, rows: Sequence[int], tokens: Sequence[int]) -> Tensor:
        for row, token in zip(rows, tokens, strict=True):
            self.texts[row].append(token)
        return self._logits(rows)

    @torch.inference_mode()
    def _logits(self, rows: Sequence[int]) -> Tensor:
        lengths = [len(self.texts[row]) for row in rows]
        padded = [self.texts[row] + [0] * (max(lengths) - len(self.texts[row])) for row in rows]
        hidden = self.model.hidden(torch.tensor(padded, device=self.device))
        return self.model.logits(hidden[torch.arange(len(lengths)), torch.tensor(lengths) - 1])
