"""What a fine-tune forgets of the base's own text: always measured, and kept within a bound where one is set."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch

from lm_core.artifact import Checkpoint
from lm_core.downstream.tuned import own_text
from lm_core.model.language_model import LanguageModel
from lm_core.model.weights import load_model
from lm_core.tokenizer import TextTokenizer, load_tokenizer
from lm_core.tokens import Windows
from lm_core.training.pretrain import bits_per_byte_on

# Shares of the base that are tried, smallest first, until what was forgotten is within the bound.
SHARES_OF_THE_BASE = (0.25, 0.5, 0.75, 1.0)


class Guarded(Protocol):
    """The configuration of a stage that tunes."""

    @property
    def guard_tokens(self) -> int: ...
    @property
    def max_forgetting(self) -> float: ...


@lru_cache(maxsize=4)
def _own_bits(base: Path, text: Path, num_tokens: int, dtype: torch.dtype, device: torch.device) -> float:
    """Bits per byte of the base on its own text: measured once for all fine-tunes of a process."""
    model = load_model(base, device=device)
    model.compute_dtype = dtype
    tokenizer = load_tokenizer(base / "tokenizer.json")
    return bits_per_byte_on(Windows(text, "validation"), tokenizer, num_tokens)(model).get("val_bits_per_byte", 0.0)


def _mixer(trunk: LanguageModel, base: Checkpoint) -> Callable[[float], None]:
    """Gives the trunk its own weights with a share of the base's in them."""
    before = load_model(base.folder).state_dict()
    after = {name: tensor.detach().clone() for name, tensor in trunk.state_dict().items()}

    def mix(share: float) -> None:
        trunk.load_state_dict({n: tensor.lerp(before[n].to(tensor.device), share) for n, tensor in after.items()})

    return mix


def guard_against_forgetting(
    trunk: LanguageModel, base: Checkpoint, tokenizer: TextTokenizer, config: Guarded
) -> dict[str, float]:
    """Bits per byte of the base's own validation text before and after; mixes the base back in beyond the bound.

    Mixing is linear interpolation of weights (Wortsman et al. 2022).

    Args:
        trunk: the tuned language model, without a head or what sees for it: those are its own and stay.
        base: what it was tuned from.

    Returns:
        before, after, share_of_base; empty when the base's text is not at hand.
    """
    folder = own_text(base)
    if folder is None or not config.guard_tokens:
        return {}
    measure = bits_per_byte_on(Windows(folder, "validation"), tokenizer, config.guard_tokens)
    own = _own_bits(base.folder, folder, config.guard_tokens, trunk.compute_dtype, next(trunk.parameters()).device)
    share, now = 0.0, measure(trunk).get("val_bits_per_byte", 0.0)
    if config.max_forgetting and now - own > config.max_forgetting:
        mix = _mixer(trunk, base)
        for share in SHARES_OF_THE_BASE:
            mix(share)
            now = measure(trunk).get("val_bits_per_byte", 0.0)
            if now - own <= config.max_forgetting:
                break
    return {"before": round(own, 5), "after": round(now, 5), "share_of_base": share}
