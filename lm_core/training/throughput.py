"""How fast training could be: operations per token, and what this machine's matrix products reach."""

from __future__ import annotations

import resource
import time
from functools import lru_cache

import torch

from lm_core.model.language_model import LanguageModel


def flops_per_token(model: LanguageModel, length: int) -> float:
    """Operations of one training token, forward and backward: 6 per weight in a product, 6 T D per layer in attention.

    Attention is counted as causal: half of the (T, T) matrix (PaLM, arXiv:2204.02311, appendix B, halved).
    """
    in_products = sum(p.numel() for p in model.blocks().parameters() if p.ndim == 2) + model.output_weight.numel()
    return 6.0 * in_products + 6.0 * model.config.num_layers * model.config.d_model * length


@lru_cache(maxsize=4)
def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product here, the best of a few; takes about a fifth of a second."""
    size = 1024 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(8):
        started = time.perf_counter()
        a @ b
        if device != "cpu":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
