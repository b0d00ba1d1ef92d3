"""Optimizers, torch.optim's and Muon, behind one small class: step, learning rate, state as flat tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lm_core.model.language_model import LanguageModel
from lm_core.training.config import OptimizationConfig
from lm_core.training.muon import WHOLE, Muon, cuts_of

MUON_FIRST_MOMENTUM = 0.85
MUON_MOMENTUM_WARMUP_STEPS = 300


class OptimizerSet:
    """One or two torch optimizers that move all parameters of a model, at one schedule.

    Args:
        rate_of: name of a parameter -> its learning rate as a share of the configured one.
    """

    def __init__(
        self, model: LanguageModel, config: OptimizationConfig, rate_of: Callable[[str], float] | None = None
    ) -> None:
        self.config = config
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        self.optimizers = _optimizers(model, config)
        if rate_of is not None:
            for optimizer in self.optimizers:
                optimizer.param_groups[:] = [
                    {**group, "params": [parameter], "lr": group["lr"] * rate_of(self.names[parameter])}
                    for group in optimizer.param_groups
                    for parameter in group["params"]
                ]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["peak"] = group["lr"]

    def step(self, fraction: float, step: int) -> None:
        """Move the parameters by their gradients, at a share of the peak learning rates."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * fraction
                if isinstance(optimizer, Muon | torch.optim.Muon):
                    share = min(1.0, step / MUON_MOMENTUM_WARMUP_STEPS)
                    first = min(MUON_FIRST_MOMENTUM, self.config.momentum)
                    group["momentum"] = first + share * (self.config.momentum - first)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Everything the optimizers remember, as "<parameter>|<name>" -> tensor."""
        return {
            f"{self.names[parameter]}|{name}": torch.as_tensor(value)
            for optimizer in self.optimizers
            for parameter, state in optimizer.state.items()
            for name, value in state.items()
            if value is not None
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up the memory that `state` gave."""
        owner = {self.names[p]: (optimizer, p) for optimizer in self.optimizers for p in _parameters(optimizer)}
        for key, tensor in tensors.items():
            name, _, entry = key.partition("|")
            optimizer, parameter = owner[name]
            keep_on_cpu = entry == "step" and not _is_fused(optimizer)
            optimizer.state[parameter][entry] = tensor.clone() if keep_on_cpu else tensor.to(parameter.device).clone()


def _parameters(optimizer: torch.optim.Optimizer) -> Iterable[nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _is_fused(optimizer: torch.optim.Optimizer) -> bool:
    return any(group.get("fused") for group in optimizer.param_groups)


def _optimizers(model: LanguageModel, config: OptimizationConfig) -> list[torch.optim.Optimizer]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.uses_muon:
        in_blocks = {id(p) for p in model.blocks().parameters() if p.ndim == 2}
        matrices = [p for p in parameters if id(p) in in_blocks]
        rest = [p for p in parameters if id(p) not in in_blocks]
        muon = [_muon(model, matrices, config)] if matrices else []
        return muon + ([_adam(torch.optim.AdamW, rest, config)] if rest else [])
    groups = _decay_groups(parameters, config)
    if config.optimizer == "sgd":
        return [torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)]
    if config.optimizer == "rmsprop":
        return [torch.optim.RMSprop(groups, lr=config.learning_rate, momentum=config.momentum)]
    return [_adam(torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam, parameters, config)]


def _muon(model: LanguageModel, matrices: list[nn.Parameter], config: OptimizationConfig) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {"momentum": config.momentum, "weight_decay": config.weight_decay}
    if config.optimizer == "torch_muon":
        return torch.optim.Muon(matrices, lr=config.muon_learning_rate, **settings)
    cuts = cuts_of(model) if config.muon_in_parts else {}
    return Muon(matrices, lambda parameter: cuts.get(parameter, WHOLE), lr=config.muon_learning_rate, **settings)


def _adam(kind: type[torch.optim.Optimizer], parameters: list[nn.Parameter], config: OptimizationConfig) -> Any:
    betas = (config.beta1, config.beta2)
    return kind(_decay_groups(parameters, config), lr=config.learning_rate, betas=betas, fused=True)  # type: ignore[call-arg]


def _decay_groups(parameters: list[nn.Parameter], config: OptimizationConfig) -> list[dict[str, Any]]:
    """Weight decay for matrices only: norms and biases are scales, not capacity."""
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    groups = [(matrices, config.weight_decay), (vectors, 0.0)]
    return [{"params": members, "weight_decay": decay} for members, decay in groups if members]
