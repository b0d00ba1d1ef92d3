"""Scores of one downstream task: the fine-tuned model beside honest baselines, on held-out items."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from data_contracts.schemas import PREDICTIONS
from lm_core.artifact import Checkpoint, DownstreamData, ValidCorpus
from lm_core.downstream.classifier import PooledClassifier, load_finetuned
from lm_core.downstream.config import EvaluateTaskConfig
from lm_core.downstream.encoding import prompt_rows
from lm_core.downstream.finetune import read_items, rows_of
from lm_core.errors import UserError
from lm_core.evaluation import baselines, metrics
from lm_core.evaluation.generation import answers
from lm_core.evaluation.likelihood import label_probabilities, nats_by_row, target_bytes
from lm_core.evaluation.statistics import (
    Interval,
    Resampling,
    bootstrap_mean,
    bootstrap_ratio,
    calibration_error,
    paired_difference,
    wilson,
)
from lm_core.store import Build
from lm_core.tokenizer import TextTokenizer, load_tokenizer

MODEL, RANDOM = "model", "random_weights"
PRIMARY = {"summary": "rouge_l", "answer": "token_f1"}

Items = Sequence[Mapping[str, Any]]


@dataclass
class Outcome:
    """What one system answered.

    Attributes:
        predictions: one for each item.
        bits: of each item's target; empty for systems that have no likelihood.
        num_bytes: of each item's target, as the model's tokens count them.
        confidences: probability of the predicted label; empty without labels.
    """

    predictions: list[str]
    bits: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    num_bytes: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    confidences: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))


def evaluate_task(
    build: Build,
    config: EvaluateTaskConfig,
    *,
    finetuned: Checkpoint,
    from_random: Checkpoint,
    examples: DownstreamData,
    corpus: ValidCorpus,
) -> Mapping[str, Any]:
    """Write `scores.json` and `predictions.parquet` (item by item, every system); the scores are the statistics.

    Raises:
        UserError: when no test item is left.
    """
    torch.set_num_threads(build.runtime.num_threads)
    items = read_items(examples, corpus, config.task, "test", build.runtime)[: config.max_items]
    train = read_items(examples, corpus, config.task, "train", build.runtime)
    if not items or not train:
        raise UserError(f"the task {config.task} has no test items left; raise prepare.max_test_items or add documents")
    outcomes: dict[str, Outcome] = {}
    for place, (name, checkpoint) in enumerate(((MODEL, finetuned), (RANDOM, from_random))):
        progress = _Progress(build, place * len(items), 2 * len(items))
        outcomes[name] = _ask(checkpoint, items, config, build, progress)
    outcomes |= {name: Outcome(made) for name, made in _baselines(train, items).items()}
    scores = score_outcomes(config, items, outcomes)
    write_evaluation(build, config.task, items, outcomes, scores)
    return scores.summary


@dataclass(frozen=True)
class Scores:
    """Figures of a task, and the metric of every system on every item."""

    summary: dict[str, Any]
    by_item: dict[str, NDArray[np.float64]]


class _Progress:
    """Items done, of both models together."""

    def __init__(self, build: Build, before: int, total: int) -> None:
        self._build, self._before, self._total = build, before, total

    def __call__(self, done: int) -> None:
        self._build.progress(self._before + done, self._total, "items")


def _ask(
    checkpoint: Checkpoint, items: Items, config: EvaluateTaskConfig, build: Build, progress: Callable[[int], None]
) -> Outcome:
    """A fine-tuned model's answers to all items."""
    model = load_finetuned(checkpoint.folder, device=build.runtime.device)
    tokenizer = load_tokenizer(checkpoint.file("tokenizer.json"))
    if isinstance(model, PooledClassifier):
        return _classify(model, tokenizer, items)
    prompts = [item["prompt"] for item in items]
    predictions = answers(model, tokenizer, prompts, max_new_tokens=config.max_new_tokens, on_done=progress)
    rows = rows_of(items, model, tokenizer)
    bits = nats_by_row(model, rows, tokenizer.pad) / math.log(2)
    return Outcome(predictions, bits, np.array([target_bytes(tokenizer, row) for row in rows], np.float64))


def _classify(model: PooledClassifier, tokenizer: TextTokenizer, items: Items) -> Outcome:
    prompts = prompt_rows(tokenizer, [item["prompt"] for item in items], model.context_length)
    probabilities = label_probabilities(model, prompts, tokenizer.pad)
    best = probabilities.argmax(1)
    number = {label: index for index, label in enumerate(model.labels)}
    wanted = probabilities[np.arange(len(items)), [number[item["target"]] for item in items]]
    return Outcome(
        [model.labels[i] for i in best],
        -np.log2(np.maximum(wanted, 1e-12)),
        np.ones(len(items)),
        probabilities.max(1),
    )


def _baselines(train: Items, items: Items) -> dict[str, list[str]]:
    """Answers of the classical systems."""
    known, targets = [item["prompt"] for item in train], [item["target"] for item in train]
    prompts = [item["prompt"] for item in items]
    made = {"majority": baselines.majority(targets, len(items))}
    if items[0]["labels"]:
        made["tfidf_logistic_regression"] = baselines.tfidf_logistic_regression(known, targets, prompts)
    else:
        made["lead_sentence"] = baselines.lead_sentence(prompts)
        made["nearest_neighbour"] = baselines.nearest_neighbour(known, targets, prompts)
    return made


def score_outcomes(config: EvaluateTaskConfig, items: Items, outcomes: Mapping[str, Outcome]) -> Scores:
    """All figures of a task. Items made from one document are resampled together."""
    how = Resampling(config.num_resamples, config.confidence, config.seed)
    groups = [item["group"] or item["doc_id"] or item["item_id"] for item in items]
    labels = items[0]["labels"]
    metric = "accuracy" if labels else PRIMARY.get(config.task, "token_f1")
    by_item = {name: item_scores(metric, items, outcome.predictions) for name, outcome in outcomes.items()}
    own = by_item[MODEL]
    interval = (
        wilson(int(own.sum()), len(own), config.confidence)
        if labels and len(set(groups)) == len(groups)
        else bootstrap_mean(own, how, groups)
    )
    gains = {name: paired_difference(own, other, how, groups) for name, other in by_item.items() if name != MODEL}
    classical = max((name for name in gains if name != RANDOM), key=lambda name: by_item[name].mean())
    secondary = _label_figures(items, outcomes) if labels else _text_figures(items, outcomes, how, groups)
    summary = {
        "task": config.task,
        "metric": metric,
        **interval.as_dict(),
        "items": len(items),
        "baselines": {name: round(float(values.mean()), 5) for name, values in by_item.items() if name != MODEL},
        "gain_over_random_weights": gains[RANDOM].as_dict("mean"),
        "best_classical_baseline": classical,
        "gain_over_best_classical_baseline": gains[classical].as_dict("mean"),
        "target_bits": _target_bits(outcomes, how, groups, "item" if labels else "byte"),
        "secondary": secondary,
    }
    return Scores(summary, by_item)


def item_scores(metric: str, items: Items, predictions: Sequence[str]) -> NDArray[np.float64]:
    """The metric of each item."""
    if metric == "accuracy":
        return np.array([item["target"] == made for item, made in zip(items, predictions, strict=True)], np.float64)
    score = metrics.TEXT_METRICS[metric]
    pairs = zip(items, predictions, strict=True)
    return np.array([score(made, item["references"] or [item["target"]]) for item, made in pairs], np.float64)


def _target_bits(outcomes: Mapping[str, Outcome], how: Resampling, groups: Sequence[str], unit: str) -> dict[str, Any]:
    """Bits that both models need for the wanted answers, by byte of text or by item, and what pretraining saves."""
    own, random = outcomes[MODEL], outcomes[RANDOM]
    saved: Interval = bootstrap_ratio(random.bits - own.bits, own.num_bytes, how, groups)
    return {
        "per": unit,
        MODEL: round(float(own.bits.sum() / own.num_bytes.sum()), 5),
        RANDOM: round(float(random.bits.sum() / random.num_bytes.sum()), 5),
        "saved_by_pretraining": saved.as_dict("mean"),
    }


def _label_figures(items: Items, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    from sklearn.metrics import f1_score

    targets, own = [item["target"] for item in items], outcomes[MODEL]
    right = [made == target for made, target in zip(own.predictions, targets, strict=True)]
    return {
        "macro_f1": {
            name: round(float(f1_score(targets, outcome.predictions, average="macro", zero_division=0.0)), 5)
            for name, outcome in outcomes.items()
        },
        "calibration_error": round(calibration_error(own.confidences, right), 5),
    }


def _text_figures(
    items: Items, outcomes: Mapping[str, Outcome], how: Resampling, groups: Sequence[str]
) -> dict[str, Any]:
    """chrF, with what pretraining adds to it, and the share of answers that are copied from the prompt."""
    by_system = {name: item_scores("chrf", items, outcome.predictions) for name, outcome in outcomes.items()}
    copied = [
        bool(made) and made in item["prompt"] for item, made in zip(items, outcomes[MODEL].predictions, strict=True)
    ]
    return {
        "chrf": {name: round(float(values.mean()), 5) for name, values in by_system.items()},
        "chrf_gain_over_random_weights": paired_difference(by_system[MODEL], by_system[RANDOM], how, groups).as_dict(
            "mean"
        ),
        "copy_rate": round(float(np.mean(copied)), 5),
    }


def write_evaluation(build: Build, task: str, items: Items, outcomes: Mapping[str, Outcome], scores: Scores) -> None:
    """`scores.json`, and every answer of every system with its score."""
    rows = [
        {
            "item_id": item["item_id"],
            "task": task,
            "system": name,
            "prediction": outcome.predictions[place],
            "target": item["target"],
            "score": float(scores.by_item[name][place]),
        }
        for name, outcome in outcomes.items()
        for place, item in enumerate(items)
    ]
    pq.write_table(
        pa.Table.from_pylist(rows, schema=PREDICTIONS), build.folder / "predictions.parquet", compression="zstd"
    )
    (build.folder / "scores.json").write_text(json.dumps(scores.summary, indent=1, sort_keys=True, ensure_ascii=False))
