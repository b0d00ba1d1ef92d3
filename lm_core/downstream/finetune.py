"""Fine-tuning: supervised training on the examples of one downstream task, through the one training loop."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lm_core.artifact import Checkpoint, DownstreamData, ValidCorpus
from lm_core.config import identity_of
from lm_core.downstream.augmentation import Augmentation
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
from lm_core.downstream.forgetting import guard_against_forgetting
from lm_core.downstream.items import read_items
from lm_core.downstream.members import combined, member_build
from lm_core.downstream.mixture import tasks_of, training_items
from lm_core.downstream.replay import Replay
from lm_core.downstream.strategies import Gradual, apply_strategy, merge
from lm_core.downstream.subwords import out_of_fold
from lm_core.errors import UserError
from lm_core.model.build import build_model
from lm_core.model.language_model import LanguageModel
from lm_core.model.losses import IGNORE
from lm_core.model.weights import load_model
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
    items = training_items(examples, corpus, config, build.runtime)
    if not items:
        known = ", ".join(sorted(examples.statistics.get("tasks", {}))) or "none"
        raise UserError(f"the task {config.task} has no training examples; tasks with examples: {known}")
    data = Lesson(
        items,
        [item for task in tasks_of(config) for item in read_items(examples, corpus, task, "validation", build.runtime)],
        load_tokenizer(base.file("tokenizer.json")),
    )
    models: list[LanguageModel] = []
    statistics: dict[str, Any] = {}
    for place in range(config.members):
        model, figures = _train_member(member_build(build, place), config, place, base, data)
        models.append(model)
        statistics = statistics or figures
    model = combined(models, config)
    # A classifier's head is its own and stays; of an ensemble the first member is measured.
    trunk = model.trunk if isinstance(model, PooledClassifier) else model
    statistics["forgetting"] = (
        {} if config.from_random else guard_against_forgetting(trunk, base, data.tokenizer, config)
    )
    statistics["weights_sha256"] = save_finetuned(model, build.folder)
    shutil.copyfile(base.file("tokenizer.json"), build.folder / "tokenizer.json")
    training = {"config": identity_of(config), "num_steps": statistics["num_steps"], "items": len(items)}
    (build.folder / "training.json").write_text(json.dumps(training, indent=1, sort_keys=True))
    return {"task": config.task, "from_random": config.from_random, "train_items": len(items), **statistics}


@dataclass(frozen=True)
class Lesson:
    """What a fine-tune learns from."""

    train: Sequence[Mapping[str, Any]]
    validation: Sequence[Mapping[str, Any]]
    tokenizer: TextTokenizer


def _train_member(
    build: Build, config: FinetuneConfig, place: int, base: Checkpoint, lesson: Lesson
) -> tuple[LanguageModel, dict[str, Any]]:
    """One fine-tune; members differ by their seed, which orders the examples too."""
    if place:
        optimization = config.optimization.model_copy(update={"seed": config.optimization.seed + place})
        config = config.model_copy(update={"optimization": optimization})
    tokenizer = lesson.tokenizer
    model = starting_model(base, config, lesson.train)
    rows = rows_of(lesson.train, model, tokenizer, config.loss_on)
    second_voice = _fit_bag(model, rows, tokenizer, config)
    apply_strategy(model, config)
    batches = plan_batches([len(row.tokens) for row in rows], config)
    gradual = Gradual(model, config, len(batches)) if config.strategy == "gradual" else None
    statistics = train(
        model,
        _batches(rows, batches, model, config, base, tokenizer.pad, second_voice),
        config.optimization,
        num_steps=len(batches),
        build=build,
        evaluate=_validation_loss(rows_of(lesson.validation, model, tokenizer, config.loss_on), tokenizer.pad),
        num_evaluations=config.num_evaluations,
        before_step=gradual.before_step if gradual else lambda step: None,
        rate_of=gradual.rate_of if gradual else None,
    )
    merge(model)
    return model, statistics


def _fit_bag(
    model: LanguageModel, rows: Sequence[Row], tokenizer: TextTokenizer, config: FinetuneConfig
) -> Tensor | None:
    """Fit a classifier's bag of subwords; returns what the trunk hears of it beside each row, (rows, labels)."""
    if not isinstance(model, PooledClassifier) or model.bag is None:
        return None
    texts, labels = [row.tokens for row in rows], [row.targets[-1] for row in rows]
    model.bag.fit(texts, labels, tokenizer)
    if config.trunk_learns == "labels":
        return None
    return out_of_fold(model.bag, texts, labels, tokenizer, config.optimization.seed)


def _batches(
    rows: Sequence[Row],
    batches: Sequence[Sequence[int]],
    model: LanguageModel,
    config: FinetuneConfig,
    base: Checkpoint,
    pad: int,
    second_voice: Tensor | None = None,
) -> Callable[[int], Batch]:
    """The batch of each step: its rows, changed by augmentation, beside replayed text."""
    classifier = isinstance(model, PooledClassifier)
    augment = Augmentation(config, model.trunk if isinstance(model, PooledClassifier) else model)
    replay = Replay(config, base, model.vocab_size if classifier else 0) if config.replay_fraction else None

    def batch_at(step: int) -> Batch:
        chosen = augment([rows[i] for i in batches[step]], step)
        batch = pad_rows(replay(chosen, step) if replay else chosen, pad)
        if second_voice is None:
            return batch
        beside = second_voice.new_zeros(len(batch.tokens), second_voice.shape[1])
        beside[: len(chosen)] = second_voice[batches[step]]
        return replace(batch, beside=beside)

    return batch_at


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
    if not labels or config.mixture:
        return model
    return PooledClassifier(
        model, labels, pooling=config.pooling, num_buckets=config.num_buckets, learns=config.trunk_learns
    )


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
