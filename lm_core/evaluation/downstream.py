"""Scores of one downstream task: the fine-tuned model beside honest baselines, on held-out items."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from data_contracts.schemas import PREDICTIONS
from lm_core.artifact import Checkpoint, DownstreamData, ValidCorpus
from lm_core.downstream.config import EvaluateTaskConfig
from lm_core.downstream.items import read_items
from lm_core.errors import UserError
from lm_core.evaluation import metrics
from lm_core.evaluation.guards import Answered, corpus_score, guard_figures
from lm_core.evaluation.outcome import Data, Items, Outcome, Scheme, ask, ask_baseline
from lm_core.evaluation.statistics import (
    Interval,
    Resampling,
    bootstrap_mean,
    bootstrap_ratio,
    mcnemar,
    paired_difference,
    paired_p_value,
    smallest_detectable_difference,
    wilson,
)
from lm_core.store import Build

MODEL, RANDOM = "model", "random_weights"
CORPUS_METRICS = {"chrf_corpus": "chrf", "bleu": "bleu"}
_EMBEDDED = {
    "summary": Scheme("rouge_l", ("chrf", "copy_rate"), ("majority", "lead_sentence", "nearest_neighbour"), 48),
    "answer": Scheme("token_f1", ("chrf", "copy_rate"), ("majority", "lead_sentence", "nearest_neighbour"), 48),
    "topic": Scheme("accuracy", ("macro_f1", "calibration_error"), ("majority", "tfidf_logistic_regression"), 48),
}


def scheme_of(config: EvaluateTaskConfig) -> Scheme:
    """How the task is scored: as declared, or as the tasks made from the corpus are."""
    task = config.declared
    if task is None:
        known = _EMBEDDED.get(config.task, _EMBEDDED["answer"])
        return Scheme(known.metric, known.guards, known.baselines, config.max_new_tokens)
    return Scheme(
        task.metric,
        task.guards,
        task.baselines,
        min(task.max_new_tokens, config.max_new_tokens),
        task.language,
        task.loss_on,
        task.out_of_scope.label if task.out_of_scope else None,
    )


def evaluate_task(
    build: Build,
    config: EvaluateTaskConfig,
    *,
    finetuned: Checkpoint,
    from_random: Checkpoint,
    examples: DownstreamData,
    corpus: ValidCorpus | None = None,
) -> Mapping[str, Any]:
    """Write `scores.json` and `predictions.parquet` (item by item, every system); the scores are the statistics.

    Args:
        corpus: the gate's verdict on examples made from documents; none for a declared task.

    Raises:
        UserError: when no test item is left.
    """
    torch.set_num_threads(build.runtime.num_threads)
    train, validation, test = (
        read_items(examples, corpus, config.task, split, build.runtime) for split in ("train", "validation", "test")
    )
    data = Data(train, validation, test[: config.max_items])
    if not data.test or not data.train:
        raise UserError(f"the task {config.task} has no test items left; raise prepare.max_test_items or add documents")
    scheme = scheme_of(config)
    outcomes: dict[str, Outcome] = {}
    for place, (name, checkpoint) in enumerate(((MODEL, finetuned), (RANDOM, from_random))):
        progress = _Progress(build, place * len(data.test), 2 * len(data.test))
        outcomes[name] = ask(checkpoint, data.test, scheme, build.runtime, progress)
    for name in scheme.baselines:
        shown, outcome = ask_baseline(name, data, scheme, finetuned)
        outcomes[shown] = outcome
    scores = score_outcomes(config, scheme, data, outcomes)
    if forgetting := finetuned.statistics.get("forgetting"):
        scores.summary["forgetting"] = dict(forgetting)
    write_evaluation(build, config.task, data.test, outcomes, scores)
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


def score_outcomes(config: EvaluateTaskConfig, scheme: Scheme, data: Data, outcomes: Mapping[str, Outcome]) -> Scores:
    """All figures of a task. Items made from one document, or that share a text, are resampled together."""
    how = Resampling(config.num_resamples, config.confidence, config.seed)
    groups = [item["group"] or item["doc_id"] or item["item_id"] for item in data.test]
    by_item = {name: item_scores(scheme.metric, data.test, outcome) for name, outcome in outcomes.items()}
    compared = _Comparison(scheme, by_item, outcomes, how, groups)
    gains = {name: compared.gain(name) for name in by_item if name != MODEL}
    classical = [name for name in gains if name != RANDOM]
    best = max(classical, key=compared.goodness) if classical else None
    summary = {
        "task": config.task,
        "metric": scheme.metric,
        "better": "lower" if scheme.less_is_better else "higher",
        **compared.score(MODEL).as_dict(),
        "items": len(data.test),
        "groups": len(set(groups)),
        "baselines": {name: round(compared.score(name).estimate, 5) for name in by_item if name != MODEL},
        "gain_over_random_weights": gains[RANDOM].as_dict("mean"),
        "p_value_over_random_weights": compared.p_value(RANDOM),
        "best_classical_baseline": best,
        "gain_over_best_classical_baseline": gains[best].as_dict("mean") if best else None,
        "smallest_detectable_difference": _detectable(by_item, config.confidence),
        "target_bits": _target_bits(outcomes, how, groups, "item" if scheme.metric == "accuracy" else "byte"),
        "secondary": {name: guard_figures(data, outcome, scheme) for name, outcome in outcomes.items()},
        "signatures": {
            guard: corpus_score(CORPUS_METRICS[guard], Answered(data, outcomes[MODEL], scheme))[1]
            for guard in scheme.guards
            if guard in CORPUS_METRICS
        },
    }
    return Scores(summary, by_item)


@dataclass(frozen=True)
class _Comparison:
    """Scores and paired gains of all systems on the same items and the same resamples."""

    scheme: Scheme
    by_item: Mapping[str, NDArray[np.float64]]
    outcomes: Mapping[str, Outcome]
    how: Resampling
    groups: Sequence[str]

    def score(self, name: str) -> Interval:
        """A system's score: a mean over items, or bits over bytes."""
        own, outcome = self.by_item[name], self.outcomes[name]
        if self.scheme.less_is_better:
            return bootstrap_ratio(outcome.bits, outcome.num_bytes, self.how, self.groups)
        if self.scheme.metric == "accuracy" and len(set(self.groups)) == len(self.groups):
            return wilson(int(own.sum()), len(own), self.how.confidence)
        return bootstrap_mean(own, self.how, self.groups)

    def gain(self, name: str) -> Interval:
        """What the model is better by, above zero where it is better; paired over items."""
        if self.scheme.less_is_better:
            saved = self.outcomes[name].bits - self.outcomes[MODEL].bits
            return bootstrap_ratio(saved, self.outcomes[MODEL].num_bytes, self.how, self.groups)
        return paired_difference(self.by_item[MODEL], self.by_item[name], self.how, self.groups)

    def p_value(self, name: str) -> float:
        """Two-sided, of no gain: McNemar's exact test where items are right or wrong by themselves, else paired."""
        if self.scheme.less_is_better:
            own, other = (self.outcomes[n].bits / self.outcomes[n].num_bytes for n in (MODEL, name))
            return round(paired_p_value(own, other, self.how, self.groups), 5)
        own, other = self.by_item[MODEL], self.by_item[name]
        if self.scheme.metric == "accuracy" and len(set(self.groups)) == len(self.groups):
            return round(mcnemar([bool(v) for v in own], [bool(v) for v in other]), 5)
        return round(paired_p_value(own, other, self.how, self.groups), 5)

    def goodness(self, name: str) -> float:
        """Higher is better, whatever the metric."""
        estimate = self.score(name).estimate
        return -estimate if self.scheme.less_is_better else estimate


def item_scores(metric: str, items: Items, outcome: Outcome) -> NDArray[np.float64]:
    """The metric of each item."""
    if metric == "bits_per_byte":
        return outcome.bits / np.maximum(1.0, outcome.num_bytes)
    pairs = list(zip(items, outcome.predictions, strict=True))
    if metric == "accuracy":
        return np.array([item["target"] == made for item, made in pairs], np.float64)
    score = metrics.TEXT_METRICS[metric]
    return np.array([score(made, item["references"] or [item["target"]]) for item, made in pairs], np.float64)


def _detectable(by_item: Mapping[str, NDArray[np.float64]], confidence: float) -> float:
    """The mean paired difference to random weights that so many items would find four times in five."""
    return round(smallest_detectable_difference(by_item[MODEL] - by_item[RANDOM], confidence=confidence), 5)


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
            "bits": float(outcome.bits[place]) if len(outcome.bits) else None,
            "num_bytes": int(outcome.num_bytes[place]) if len(outcome.num_bytes) else None,
            "confidence": float(outcome.confidences[place]) if len(outcome.confidences) else None,
            "references": item["references"],
            "group": item["group"],
        }
        for name, outcome in outcomes.items()
        for place, item in enumerate(items)
    ]
    pq.write_table(
        pa.Table.from_pylist(rows, schema=PREDICTIONS), build.folder / "predictions.parquet", compression="zstd"
    )
    (build.folder / "scores.json").write_text(json.dumps(scores.summary, indent=1, sort_keys=True, ensure_ascii=False))
