"""Making a model from its configuration: the class, and the initial weights as a function of the seed."""

from __future__ import annotations

import math

import torch
from torch import nn

from lm_core.model.decoder import Decoder
from lm_core.model.language_model import LanguageModel
from lm_core.model.vanilla import VanillaTransformer
from lm_core.training.config import ModelConfig

OUTPUT_PROJECTIONS = ("o_proj.weight", "down_proj.weight", "out_proj.weight", "linear2.weight")


def empty_model(config: ModelConfig, *, vocab_size: int, context_length: int) -> LanguageModel:
    """The architecture, its weights not yet meant for anything."""
    kind = Decoder if config.kind == "decoder" else VanillaTransformer
    return kind(config, vocab_size=vocab_size, context_length=context_length)


def build_model(config: ModelConfig, *, vocab_size: int, context_length: int, seed: int) -> LanguageModel:
    """A model with fresh weights, the same for the same seed whatever else has drawn random numbers."""
    model = empty_model(config, vocab_size=vocab_size, context_length=context_length)
    initialise(model, config, seed)
    return model


@torch.no_grad()
def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill matrices by `config.init`; norms stay at one, biases become zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            if name.endswith("bias"):
                parameter.zero_()
            continue
        if config.init == "uniform":  # the width that gives the same standard deviation
            width = math.sqrt(3) * config.init_std
            parameter.uniform_(-width, width, generator=generator)
        else:
            parameter.normal_(0, config.init_std, generator=generator)
        if name.endswith(OUTPUT_PROJECTIONS):
            if config.init == "scaled":
                parameter.div_(math.sqrt(2 * config.num_layers))
            elif config.init == "zero_output":
                parameter.zero_()
