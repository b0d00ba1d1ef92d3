"""Cross-entropy over a large vocabulary without ever holding all logits.

Logits of one batch are (B*T, V): at a vocabulary of 64k far more than the model itself. They are made chunk by chunk,
and with them, in the forward pass, the gradients that the backward pass will only scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from lm_core.model.fused import suits
from lm_core.model.kernels import add_rows, cross_entropy, over_rows

IGNORE = -100
# More rows spare passes over the gradient of the matrix, fewer stay in the cache, of which a GPU has none to speak of.
CHUNK_LOGITS, CHUNK_LOGITS_GPU, MIN_CHUNK_ROWS = 1 << 21, 1 << 27, 256


def _chunk_rows(vocab_size: int, device: torch.device) -> int:
    logits = CHUNK_LOGITS if device.type == "cpu" else CHUNK_LOGITS_GPU
    return max(MIN_CHUNK_ROWS, logits // vocab_size)


class _ChunkedCrossEntropy(Function):
    """Sum over the targets of -log p(target), smoothed; gradients are made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, smooth: float) -> Tensor:
        rows, matrix = hidden.to(dtype), weight.to(dtype)
        total = hidden.new_zeros((), dtype=torch.float32)
        d_hidden = torch.empty_like(rows)
        d_matrix = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        gradient = _gradient_in_one_pass if suits(rows) else _gradient
        buffer = rows.new_empty(min(len(rows), _chunk_rows(len(weight), weight.device)), len(weight))
        for start in range(0, len(rows), max(1, len(buffer))):  # no rows: a loss of 0, whose gradient is 0
            part = slice(start, start + len(buffer))
            logits = torch.mm(rows[part], matrix.T, out=buffer[: len(rows) - start])
            losses, d_logits = gradient(logits, targets[part], smooth)
            total += losses
            torch.mm(d_logits, matrix, out=d_hidden[part])
            _add(d_matrix, d_logits.T @ rows[part])
        ctx.save_for_backward(d_hidden, d_matrix)
        ctx.dtypes = hidden.dtype, weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (d_total,) = gradients
        d_hidden, d_matrix = ctx.saved_tensors
        return d_hidden.to(ctx.dtypes[0]) * d_total, d_matrix.to(ctx.dtypes[1]) * d_total, None, None, None


def _add(total: Tensor, more: Tensor) -> None:
    if suits(more):
        over_rows(add_rows, len(total), total, more)
    else:
        total += more


def _gradient(logits: Tensor, targets: Tensor, smooth: float) -> tuple[Tensor, Tensor]:
    """Summed loss of a chunk, and its gradient by the logits (N, V)."""
    log_p = torch.log_softmax(logits.float(), 1)
    wanted = targets[:, None]
    loss = (smooth - 1) * log_p.gather(1, wanted).sum()
    if smooth:
        loss -= smooth * log_p.mean(1).sum()
    d_logits = log_p.exp_().sub_(smooth / logits.shape[1]) if smooth else log_p.exp_()
    d_logits.scatter_add_(1, wanted, d_logits.new_full(wanted.shape, smooth - 1))
    return loss, d_logits.to(logits.dtype)


def _gradient_in_one_pass(logits: Tensor, targets: Tensor, smooth: float) -> tuple[Tensor, Tensor]:
    """The same on a CPU; the gradient takes the place of the logits."""
    losses = torch.empty(len(logits))
    over_rows(cross_entropy, len(logits), logits, targets.contiguous(), smooth, losses)
    return losses.sum(), logits


def cross_entropy_sum(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, dtype: torch.dtype, label_smoothing: float = 0.0
) -> Tensor:
    """Summed cross-entropy of the next token, differentiable by `hidden` and `weight`.

    Args:
        hidden: (N, D), the last hidden state.
        weight: (V, D), the output embedding.
        targets: (N,), IGNORE where nothing is to be predicted.
        dtype: arithmetic of the matrix products.
    """
    counted = targets != IGNORE
    if not counted.all():  # fine-tuning learns at few positions: only those are projected to the vocabulary
        hidden, targets = hidden[counted], targets[counted]
    if torch.is_grad_enabled():
        loss: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, targets, dtype, label_smoothing)
        return loss
    return token_cross_entropy(hidden, weight, targets, dtype=dtype).sum()


@torch.no_grad()
def token_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Cross-entropy of every target, (N,) fp32, in nats; 0 where the target is IGNORE. Not differentiable."""
    rows, matrix = hidden.to(dtype), weight.to(dtype)
    losses = [rows.new_empty(0, dtype=torch.float32)]  # there may be no rows
    step = _chunk_rows(len(weight), weight.device)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        log_p = torch.log_softmax((rows[part] @ matrix.T).float(), 1)
        losses.append(-log_p.gather(1, targets[part, None].clamp_min(0))[:, 0])
    return torch.cat(losses).masked_fill(targets == IGNORE, 0)
