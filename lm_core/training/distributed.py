"""The processes that train one model together; one process is the case in which nothing has to be said.

Every process makes the whole batch of a step (it is a pure function of the step) and works on its share of the rows.
Losses are divided by the targets of the whole batch and summed, so the gradient is that of one process, to rounding.

    ddp    every process holds all weights; gradients are summed while the backward pass goes on
    fsdp   weights, gradients and optimizer state are cut into as many parts as there are processes (FSDP2)

Only the first process writes. What it writes is whole tensors, so that any other number of processes may go on.
FSDP2 and its tensors take half a second to load: only the processes that use them do.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lm_core.model.language_model import LanguageModel
from lm_core.runtime import Runtime
from lm_core.training.checkpoint import ALONE


class _LossSum(nn.Module):
    """`loss_sum` as a forward pass: what DistributedDataParallel watches."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor, beside: Tensor | None, label_smoothing: float) -> Tensor:
        return self.model.loss_sum(tokens, targets, label_smoothing=label_smoothing, beside=beside)


class World:
    """This process and those beside it; joined when `torch.distributed` was initialised, else alone.

    Attributes:
        size: processes.
        rank: number of this one.
        first: whether this is the one that writes.
        name: the world in words, as checkpoints and statistics say it.
    """

    def __init__(self, runtime: Runtime) -> None:
        joined = dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size() if joined else 1
        self.rank = dist.get_rank() if joined else 0
        self.first = self.rank == 0
        self.strategy = runtime.strategy
        self.name = ALONE if self.size == 1 else f"{self.size} processes, {self.strategy}"
        self._parallel: DistributedDataParallel | None = None

    # ---------------------------------------------------------------- data and gradients

    def share(self, rows: Tensor, filler: int) -> Tensor:
        """This process's rows of a batch; filled up with rows of `filler` where they cannot be shared evenly."""
        if self.size == 1:
            return rows
        missing = -len(rows) % self.size
        whole = torch.cat((rows, rows.new_full((missing, *rows.shape[1:]), filler)))
        return whole.chunk(self.size)[self.rank]

    def spread(self, model: LanguageModel) -> LanguageModel:
        """The model to train here: the given one, or with fsdp a copy of which this process holds its part."""
        if self.size == 1:
            return model
        if self.strategy == "ddp":
            self._parallel = DistributedDataParallel(_LossSum(model), broadcast_buffers=False)
            return model
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        part = copy.deepcopy(model)
        mesh = init_device_mesh(next(model.parameters()).device.type, (self.size,))
        for block in part.blocks():
            fully_shard(block, mesh=mesh)
        fully_shard(part, mesh=mesh)
        for method in ("loss_sum", "token_losses"):
            register_fsdp_forward_method(part, method)
        return part

    def backward(
        self,
        model: LanguageModel,
        tokens: Tensor,
        targets: Tensor,
        beside: Tensor | None,
        divisor: int,
        label_smoothing: float,
        last: bool,
    ) -> Tensor:
        """Add the gradient of the summed loss / divisor; returns that share of the loss.

        Args:
            divisor: targets of the whole batch, of all processes and micro-batches.
            last: whether this is the step's last micro-batch, with which the gradients of all processes are summed.
        """
        if self._parallel is not None:
            self._parallel.require_backward_grad_sync = last
            loss = self._parallel(tokens, targets, beside, label_smoothing)
        else:
            if self.size > 1:
                sharded: Any = model  # fully_shard has given it methods
                sharded.set_requires_gradient_sync(last)
            loss = model.loss_sum(tokens, targets, label_smoothing=label_smoothing, beside=beside)
        loss = loss / divisor
        (loss * self.size if self.size > 1 else loss).backward()  # both strategies take the mean over processes
        return loss.detach()

    # ---------------------------------------------------------------- agreement

    def sum(self, *figures: float) -> list[float]:
        """Each figure, summed over the processes: the same list in all of them."""
        if self.size == 1:
            return list(figures)
        total = torch.tensor(figures, dtype=torch.float64, device=self._device())
        dist.all_reduce(total)
        return total.tolist()

    def from_first(self, figures: Mapping[str, float]) -> dict[str, float]:
        """The first process's figures, in all of them."""
        if self.size == 1:
            return dict(figures)
        values = torch.tensor(list(figures.values()), dtype=torch.float64, device=self._device())
        dist.broadcast(values, 0)
        return dict(zip(figures, values.tolist(), strict=True))

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.size > 1:
            dist.barrier()

    def _device(self) -> torch.device:
        return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")

    # ---------------------------------------------------------------- tensors in parts

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of which each process holds a part, put together; all processes must ask."""
        return {name: whole_tensor(tensor) for name, tensor in tensors.items()}

    def part(self, tensor: Tensor, of: Tensor) -> Tensor:
        """A whole tensor as this process holds it, if `of`, its parameter, is held in parts."""
        tensor = tensor.to(of.device)
        return part_like(tensor, of) if self.size > 1 and self.strategy == "fsdp" else tensor


def part_like(tensor: Tensor, of: Tensor) -> Tensor:
    """This process's part of a whole tensor, where `of`, of the same shape, is held in parts; else the tensor."""
    if not hasattr(of, "full_tensor") or tensor.shape != of.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(of, DTensor)
    return distribute_tensor(tensor, of.device_mesh, of.placements, src_data_rank=None)


def whole_tensor(tensor: Tensor) -> Tensor:
    """The tensor itself, or put together where each process holds a part of it."""
    gather = getattr(tensor, "full_tensor", None)
    whole: Tensor = tensor if gather is None else gather()
    return whole
