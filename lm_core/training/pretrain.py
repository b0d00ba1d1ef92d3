"""Pretraining: a fresh model on the windows of a token dataset."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from lm_core.artifact import TokenDataset, Tokenizer
from lm_core.config import identity_of
from lm_core.errors import UserError
from lm_core.model.attention import first_of_document
from lm_core.model.build import build_model
from lm_core.model.language_model import LanguageModel
from lm_core.model.losses import IGNORE
from lm_core.model.weights import save_model
from lm_core.store import Build, file_sha256
from lm_core.tokenizer import TextTokenizer, load_tokenizer
from lm_core.tokens import Windows, window_order
from lm_core.training import launch
from lm_core.training.config import PretrainConfig
from lm_core.training.distributed import World
from lm_core.training.loop import Batch, train

EVALUATION_TOKENS = 8192


def pretrain(build: Build, config: PretrainConfig, *, tokens: TokenDataset, tokenizer: Tokenizer) -> dict[str, Any]:
    """Train a model from random weights and write the checkpoint's files, in as many processes as the runtime says.

    Raises:
        UserError: when tokenizer and tokens do not match, or a step holds less than one window.
    """
    if launch.wanted(build.runtime):
        return launch.launch(f"{__name__}:pretrain", build, config, {"tokens": tokens, "tokenizer": tokenizer})
    text_tokenizer = load_tokenizer(tokenizer.file("tokenizer.json"))
    train_windows, validation = Windows(tokens, "train"), Windows(tokens, "validation")
    _check_tokenizer(tokens, tokenizer)
    _check(config, text_tokenizer, train_windows)
    rows = config.optimization.batch_tokens // train_windows.context_length
    num_steps = max(1, config.train_tokens // (rows * train_windows.context_length))
    model = build_model(
        config.model,
        vocab_size=train_windows.vocab_size,
        context_length=train_windows.context_length,
        seed=config.optimization.seed,
    )

    within = config.attention_within_documents

    def batch_at(step: int) -> Batch:
        numbers = window_order(config.optimization.seed, step, rows, len(train_windows))
        return read_batch(train_windows, numbers, within)

    statistics = train(
        model,
        batch_at,
        config.optimization,
        num_steps=num_steps,
        build=build,
        evaluate=bits_per_byte_on(validation, text_tokenizer, config.validation_tokens, within, World(build.runtime)),
        num_evaluations=min(config.num_evaluations, num_steps),
        evaluation_tokens=min(config.validation_tokens, len(validation) * validation.context_length),
    )
    statistics["weights_sha256"] = save_model(model, build.folder)
    shutil.copyfile(tokenizer.file("tokenizer.json"), build.folder / "tokenizer.json")
    training = {"config": identity_of(config), "num_steps": statistics["num_steps"], "rows_per_step": rows}
    (build.folder / "training.json").write_text(json.dumps(training, indent=1, sort_keys=True))
    return statistics


def read_batch(windows: Windows, numbers: Sequence[int] | np.ndarray, within_documents: bool) -> Batch:
    """Windows by number; with `within_documents`, attention stays within each document."""
    batch = windows_to_batch(windows.read(numbers), windows.pad)
    if not within_documents:
        return batch
    starts = torch.from_numpy(windows.starts(numbers))[:, :-1]
    return replace(batch, beside=first_of_document(starts))


def windows_to_batch(windows: np.ndarray, pad: int) -> Batch:
    """Inputs and targets (N, T) of windows (N, T + 1); nothing is learnt at padding."""
    whole = torch.from_numpy(windows)
    targets = whole[:, 1:].clone()
    targets[targets == pad] = IGNORE
    return Batch(whole[:, :-1].contiguous(), targets)


def bits_per_byte_on(
    windows: Windows,
    tokenizer: TextTokenizer,
    max_tokens: int,
    within_documents: bool = False,
    world: World | None = None,
) -> Callable[[nn.Module], dict[str, float]]:
    """An evaluation for `train`: mean loss over text tokens, and bits per byte of the text they stand for.

    Control tokens are left out of both: they are no text, and stand for no byte.

    Args:
        world: processes that share the windows, each of them with the whole model or its part.
    """
    num_bytes = torch.from_numpy(tokenizer.token_bytes)
    limit = min(len(windows), max(1, max_tokens // windows.context_length))
    rows = max(1, EVALUATION_TOKENS // windows.context_length) * (world.size if world else 1)

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, LanguageModel)
        device = next(model.parameters()).device
        nats, total_tokens, total_bytes = 0.0, 0.0, 0.0
        for start in range(0, limit, rows):
            batch = read_batch(windows, range(start, min(start + rows, limit)), within_documents)
            batch = batch.share(world) if world else batch
            bytes_of_targets = num_bytes[batch.targets.clamp_min(0)].masked_fill(batch.targets == IGNORE, 0)
            targets = batch.targets.masked_fill(bytes_of_targets == 0, IGNORE)
            beside = None if batch.beside is None else batch.beside.to(device)
            losses = model.token_losses(batch.tokens.to(device), targets.to(device), beside)
            nats += float(losses.sum(dtype=torch.float64))
            total_tokens += int((targets != IGNORE).sum())
            total_bytes += int(bytes_of_targets.sum())
        if world:
            nats, total_tokens, total_bytes = world.sum(nats, total_tokens, total_bytes)
        if not total_bytes:
            return {}
        return {"val_loss": nats / total_tokens, "val_bits_per_byte": nats / math.log(2) / total_bytes}

    return evaluate


def _check_tokenizer(tokens: TokenDataset, tokenizer: Tokenizer) -> None:
    """Equal sizes prove nothing: the ids of the shards must be those of this very tokenizer."""
    if "tokenizer" not in tokens.inputs:
        return
    made_with, given = tokens.input_folder("tokenizer") / "tokenizer.json", tokenizer.file("tokenizer.json")
    if made_with != given and made_with.exists() and file_sha256(made_with) != file_sha256(given):
        raise UserError(
            f"the token shards in {tokens.folder} were made with {made_with}, not with {given}; "
            "tokenize again with this tokenizer"
        )


def _check(config: PretrainConfig, tokenizer: TextTokenizer, windows: Windows) -> None:
    if tokenizer.vocab_size != windows.vocab_size or tokenizer.pad != windows.pad:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} entries, the token shards were made with {windows.vocab_size}; "
            "tokenize again with this tokenizer"
        )
    if config.optimization.batch_tokens < windows.context_length:
        raise UserError(
            f"optimization.batch_tokens={config.optimization.batch_tokens} is less than one window of "
            f"context_length={windows.context_length}"
        )
