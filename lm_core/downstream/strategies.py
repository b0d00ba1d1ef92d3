"""What of a base model a fine-tune may move."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lm_core.downstream.classifier import PooledClassifier
from lm_core.downstream.config import FinetuneConfig
from lm_core.errors import UserError
from lm_core.model.language_model import LanguageModel


class LowRank(nn.Module):
    """W + B A: the base's weight stays, only the product of two thin matrices learns (Hu et al. 2021)."""

    def __init__(self, d_out: int, d_in: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, d_in, generator=generator) / rank**0.5)
        self.up = nn.Parameter(torch.zeros(d_out, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def apply_strategy(model: LanguageModel, config: FinetuneConfig) -> None:
    """Freeze and extend the model as the strategy says, before training.

    Raises:
        UserError: strategy head for a task without labels, which has no head of its own.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = config.dropout
    if config.strategy in ("full", "gradual"):
        return
    classifier = isinstance(model, PooledClassifier)
    if config.strategy == "head" and not classifier:
        raise UserError(f"strategy=head needs a task with labels; {config.task} has none, take lora or full")
    for parameter in (model.trunk if isinstance(model, PooledClassifier) else model).parameters():
        parameter.requires_grad_(False)
    if config.strategy == "lora":
        generator = torch.Generator().manual_seed(config.optimization.seed)
        for module in list(model.blocks().modules()):
            if isinstance(module, nn.Linear):
                update = LowRank(module.out_features, module.in_features, config.lora_rank, generator)
                parametrize.register_parametrization(module, "weight", update)


class Gradual:
    """Gradual unfreezing with discriminative learning rates (Howard and Ruder 2018), of the blocks from the top down.

    What stands above the blocks learns from the first step; embeddings count as the lowest block.
    """

    def __init__(self, model: LanguageModel, config: FinetuneConfig, num_steps: int) -> None:
        self.config, self.num_steps = config, num_steps
        self.num_blocks = len(model.blocks())
        blocks = {id(p): depth for depth, block in enumerate(model.blocks(), 1) for p in block.parameters()}
        trunk = model.trunk if isinstance(model, PooledClassifier) else model
        embedding = next(p for p in trunk.parameters() if p.ndim == 2)
        self.depths: dict[str, int] = {}
        for name, parameter in model.named_parameters():
            lowest = 0 if parameter is embedding else self.num_blocks + 1
            self.depths[name] = blocks.get(id(parameter), lowest)
        self.parameters = dict(model.named_parameters())

    def rate_of(self, name: str) -> float:
        """Share of the learning rate."""
        return float(self.config.layer_decay ** (self.num_blocks + 1 - self.depths[name]))

    def before_step(self, step: int) -> None:
        """Freeze what is not yet to learn: block k from the top joins after k equal parts of the unfreezing time."""
        time = self.config.unfreezing_fraction * self.num_steps
        lowest = self.num_blocks + 1 if time > step else 0
        if time > step:
            lowest -= int((self.num_blocks + 1) * step / time)
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(self.depths[name] >= lowest)


def merge(model: LanguageModel) -> None:
    """Put low-rank updates into the weights themselves, so that the checkpoint is one of the plain architecture."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
