"""How fast training could be: operations per token, what this machine's matrix products reach, memory kept at hand."""

from __future__ import annotations

import ctypes
import resource
import sys
import time
from functools import lru_cache

import torch

from lm_core.model.language_model import LanguageModel

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h
KEPT_BYTES = 1 << 29
LARGEST_MMAP_THRESHOLD = 1 << 25  # glibc refuses more


def keep_freed_memory() -> None:
    """Let the allocator keep the memory of freed tensors instead of giving it back to the system.

    Otherwise each step has its activations paged in anew: some 20,000 page faults, 3 to 9 % of a step on two cores.
    Does nothing where the C library is not glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def flops_per_token(model: LanguageModel, length: int) -> float:
    """Operations of one training token, forward and backward: 6 per weight, 6 T H K per layer in attention.

    Attention is counted as causal: half of the (T, T) matrix (PaLM, arXiv:2204.02311, appendix B, halved).
    """
    in_products = sum(p.numel() for p in model.blocks().parameters() if p.ndim == 2) + model.output_weight.numel()
    config = model.config
    return 6.0 * (in_products + config.num_layers * config.num_heads * config.width_of_heads * length)


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
