"""Fine-tuning: supervised training on the examples of one downstream task, through the one training loop."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import nn

from lm_core.artifact import Checkpoint, DownstreamData, ValidCorpus
from lm_core.config import identity_of
from lm_core.corpus.ledger import kept_examples
from lm_core.downstream.classifier import PooledClassifier, save_finetuned
from lm_core.downstream.config import FinetuneConfig
from lm_core.downstream.encoding import (
    Row,
    answer_rows,
    epoch_of_batches,
    group_by_length,
    label_rows,
    pad_rows,
    text_rows,
)
from lm_core.downstream.strategies import apply_strategy, guard_against_forgetting, merge
from lm_core.errors import UserError
from lm_core.model.build import build_model
from lm_core.model.language_model import LanguageModel
from lm_core.model.losses import IGNORE
from lm_core.model.weights import load_model
from lm_core.runtime import Runtime
from lm_core.store import Build
from lm_core.tokenizer import TextTokenizer, load_tokenizer
from lm_core.training.loop import Batch, train

VALIDATION_TOKENS = 8192


def finetune(
    build: Build,
    config: FinetuneConfig,
    *,
    base: Checkpoint,
    examples: DownstreamData,
    corpus: ValidCorpus | None = None,
) -> Mapping[str, Any]:
    """Train the base, or the same architecture from random weights, on one task; write a checkpoint.

    Args:
        corpus: the gate's verdict on examples made from documents; none for a declared task, whose data come from
            outside the corpus.

    Raises:
        UserError: when the task has no training examples left, or a label is outside its set.
    """
    items = read_items(examples, corpus, config.task, "train", build.runtime)
    if not items:
        known = ", ".join(sorted(examples.statistics.get("tasks", {}))) or "none"
        raise UserError(f"the task {config.task} has no training examples; tasks with examples: {known}")
    tokenizer = load_tokenizer(base.file("tokenizer.json"))
    model = starting_model(base, config, items)
    trunk = model.trunk if isinstance(model, PooledClassifier) else model
    before = {name: tensor.detach().clone() for name, tensor in trunk.state_dict().items()}
    apply_strategy(model, config)
    rows = rows_of(items, model, tokenizer, config.loss_on)
    batches = plan_batches([len(row.tokens) for row in rows], config)
    validation = read_items(examples, corpus, config.task, "validation", build.runtime)
    statistics = train(
        model,
        lambda step: pad_rows(_augmented([rows[i] for i in batches[step]], config, step), tokenizer.pad),
        config.optimization,
        num_steps=len(batches),
        build=build,
        evaluate=_validation_loss(rows_of(validation, model, tokenizer, config.loss_on), tokenizer.pad),
        num_evaluations=config.num_evaluations,
    )
    merge(model)
    statistics["forgetting"] = guard_against_forgetting(model, before, base, tokenizer, config)
    statistics["weights_sha256"] = save_finetuned(model, build.folder)
    shutil.copyfile(base.file("tokenizer.json"), build.folder / "tokenizer.json")
    training = {"config": identity_of(config), "num_steps": statistics["num_steps"], "items": len(items)}
    (build.folder / "training.json").write_text(json.dumps(training, indent=1, sort_keys=True))
    return {"task": config.task, "from_random": config.from_random, "train_items": len(items), **statistics}


def read_items(
    examples: DownstreamData, corpus: ValidCorpus | None, task: str, split: str, runtime: Runtime
) -> list[dict[str, Any]]:
    """Examples of a task and split in the order of item_id; with a corpus only those that passed its gate.

    Raises:
        UserError: when the examples are not those the corpus was validated with.
    """
    if corpus is None:
        wanted = (pc.field("task") == task) & (pc.field("split") == split)
        table = pq.read_table(examples.file("examples.parquet"), filters=wanted).sort_by("item_id")
    elif corpus.input_folder("examples") != examples.folder:
        raise UserError("the examples are not those the corpus was validated with; run `validate` with them first")
    else:
        table = kept_examples(corpus, runtime=runtime, task=task, splits=[split])
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def starting_model(base: Checkpoint, config: FinetuneConfig, items: Sequence[Mapping[str, Any]]) -> LanguageModel:
    """The base's weights or fresh ones, with a head where the task has a closed set of labels."""
    model = load_model(base.folder)
    if config.from_random:
        model = build_model(
            model.config,
            vocab_size=model.vocab_size,
            context_length=model.context_length,
            seed=config.optimization.seed,
        )
    labels = items[0]["labels"]
    return PooledClassifier(model, labels) if labels else model


def rows_of(
    items: Sequence[Mapping[str, Any]], model: LanguageModel, tokenizer: TextTokenizer, loss_on: str = "target"
) -> list[Row]:
    """Items as token rows, for a classifier or a model that writes its answer or goes on with a text.

    Raises:
        UserError: naming the first item whose label is outside the set.
    """
    if loss_on == "everything":
        return text_rows(tokenizer, [item["target"] for item in items], model.context_length)
    prompts = [item["prompt"] for item in items]
    if not isinstance(model, PooledClassifier):
        return answer_rows(tokenizer, prompts, [item["target"] for item in items], model.context_length)
    number = {label: index for index, label in enumerate(model.labels)}
    for item in items:
        if item["target"] not in number:
            raise UserError(f"item {item['item_id']}: the label {item['target']!r} is outside the task's set of labels")
    return label_rows(tokenizer, prompts, [number[item["target"]] for item in items], model.context_length)


def plan_batches(lengths: Sequence[int], config: FinetuneConfig) -> list[list[int]]:
    """Indices of each step's examples, for the whole run."""
    size, seed = config.optimization.batch_tokens, config.optimization.seed
    batches: list[list[int]] = []
    num_steps = config.max_steps
    for epoch in range(math.ceil(config.num_epochs)):
        batches += epoch_of_batches(lengths, size, seed=seed, epoch=epoch)
        if epoch == 0:
            num_steps = min(num_steps, max(1, round(config.num_epochs * len(batches))))
        if len(batches) >= num_steps:
            break
    return batches[:num_steps]


def _augmented(rows: Sequence[Row], config: FinetuneConfig, step: int) -> Sequence[Row]:
    """Rows of a classifier with some tokens left out, a function of seed and step; the last one carries the label."""
    if not config.token_dropout or any(target != IGNORE for row in rows for target in row.targets[:-1]):
        return rows
    generator = np.random.default_rng((config.optimization.seed, step))
    made = []
    for row in rows:
        kept = generator.random(len(row.tokens)) >= config.token_dropout
        kept[[0, -1]] = True
        chosen = np.flatnonzero(kept)
        made.append(Row([row.tokens[i] for i in chosen], [row.targets[i] for i in chosen]))
    return made


def _validation_loss(rows: Sequence[Row], pad: int) -> Callable[[nn.Module], dict[str, float]] | None:
    """An evaluation for `train`: mean loss of the targets of validation items; None without items."""
    if not rows:
        return None
    groups = group_by_length([len(row.tokens) for row in rows], VALIDATION_TOKENS)

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, LanguageModel)
        device = next(model.parameters()).device
        nats, targets = 0.0, 0
        for group in groups:
            batch: Batch = pad_rows([rows[i] for i in group], pad)
            losses = model.token_losses(batch.tokens.to(device), batch.targets.to(device))
            nats += float(losses.sum(dtype=torch.float64))
            targets += int((batch.targets != IGNORE).sum())
        return {"val_loss": nats / max(1, targets)}

    return evaluate
