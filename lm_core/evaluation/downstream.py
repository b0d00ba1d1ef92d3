"""Scores of one downstream task: the fine-tuned model beside honest baselines, on held-out items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lm_core.artifact import Checkpoint, DownstreamData, ValidCorpus
from lm_core.downstream.config import EvaluateTaskConfig
from lm_core.downstream.items import read_items
from lm_core.downstream.task import literals_around
from lm_core.errors import UserError
from lm_core.evaluation import metrics
from lm_core.evaluation.beside import intervals_beside
from lm_core.evaluation.guards import Answered, corpus_score, guard_figures
from lm_core.evaluation.outcome import Data, Items, Outcome, Scheme, ask, ask_baseline
from lm_core.evaluation.scored import MODEL, RANDOM, Comparison, shared, write_predictions
from lm_core.evaluation.statistics import Interval, Ratio, Resampling
from lm_core.store import Build

CORPUS_METRICS = {"chrf_corpus": "chrf", "bleu": "bleu"}
_WRITTEN = (("chrf", "copy_rate"), ("majority", "lead_sentence", "nearest_neighbour"), 48)
_EMBEDDED = {
    "summary": Scheme("rouge_l", *_WRITTEN, text_between=("\n\n", "")),
    "answer": Scheme("token_f1", *_WRITTEN, text_between=(": ", "\n\n")),
    "topic": Scheme("accuracy", ("macro_f1", "calibration_error"), ("majority", "tfidf_logistic_regression"), 48),
}


def scheme_of(config: EvaluateTaskConfig) -> Scheme:
    """How the task is scored: as declared, or as the tasks made from the corpus are."""
    task = config.declared
    if task is None:
        known = _EMBEDDED.get(config.task, _EMBEDDED["answer"])
        return replace(known, max_new_tokens=config.max_new_tokens)
    return Scheme(
        task.metric,
        task.guards,
        task.baselines,
        min(task.max_new_tokens, config.max_new_tokens),
        task.language,
        task.loss_on,
        task.out_of_scope.label if task.out_of_scope else None,
        literals_around(task.prompt, task.focus),
        task.rows == "span",
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
    """All figures of a task. Items made from one document, or that share a text, vary together."""
    how = Resampling(config.num_resamples, config.confidence, config.seed)
    groups = groups_of(data.test)
    scored = {name: outcome for name, outcome in outcomes.items() if scheme.can_score(outcome)}
    by_item = {name: item_scores(scheme.metric, data.test, outcome) for name, outcome in scored.items()}
    compared = comparison(scheme, by_item, scored, how, groups)
    gains = {name: compared.gain(name) for name in by_item if name != MODEL}
    classical = [name for name in gains if name != RANDOM]
    sign = -1 if scheme.less_is_better else 1
    best = max(classical, key=lambda name: sign * compared.estimate(name)) if classical else None
    summary = {
        "task": config.task,
        "metric": scheme.metric,
        "better": "lower" if scheme.less_is_better else "higher",
        **compared.score(MODEL).as_dict(),
        "items": len(data.test),
        "groups": len(set(groups)) if groups else len(data.test),
        "baselines": {name: round(compared.estimate(name), 5) for name in by_item if name != MODEL},
        "gain_over_random_weights": gains[RANDOM].as_dict("mean"),
        "p_value_over_random_weights": round(compared.p_value(RANDOM), 5),
        "best_classical_baseline": best,
        "gain_over_best_classical_baseline": gains[best].as_dict("mean") if best else None,
        "smallest_detectable_difference": compared.detectable(RANDOM),
        "target_bits": _target_bits(outcomes, how, groups, "item" if scheme.metric == "accuracy" else "byte"),
        "secondary": {name: guard_figures(data, outcome, scheme) for name, outcome in outcomes.items()},
        "secondary_intervals": intervals_beside(data.test, outcomes[MODEL], scheme, how, groups),
        "signatures": {
            guard: corpus_score(CORPUS_METRICS[guard], Answered(data, outcomes[MODEL], scheme))[1]
            for guard in scheme.guards
            if guard in CORPUS_METRICS
        },
    }
    return Scores(summary, by_item)


def groups_of(items: Items) -> Sequence[str] | None:
    """What each item shares with others: its group, or the document it was made from; None where nobody shares."""
    return shared([item["group"] or item.get("doc_id") or item["item_id"] for item in items])


def comparison(
    scheme: Scheme,
    by_item: Mapping[str, NDArray[np.float64]],
    outcomes: Mapping[str, Outcome],
    how: Resampling,
    groups: Sequence[str] | None,
) -> Comparison:
    """The systems by the task's metric: a mean over items, or bits over bytes."""
    if not scheme.less_is_better:
        return Comparison.of_means(by_item, how, groups)
    bits = {name: outcome.bits for name, outcome in outcomes.items()}
    num_bytes = {name: outcome.num_bytes for name, outcome in outcomes.items()}
    return Comparison(bits, num_bytes, how, groups, less_is_better=True)


def item_scores(metric: str, items: Items, outcome: Outcome) -> NDArray[np.float64]:
    """The metric of each item."""
    if metric == "bits_per_byte":
        return outcome.bits / np.maximum(1.0, outcome.num_bytes)
    pairs = list(zip(items, outcome.predictions, strict=True))
    if metric == "accuracy":
        return np.array([item["target"] == made for item, made in pairs], np.float64)
    score = metrics.TEXT_METRICS[metric]
    return np.array([score(made, item["references"] or [item["target"]]) for item, made in pairs], np.float64)


def _target_bits(
    outcomes: Mapping[str, Outcome], how: Resampling, groups: Sequence[str] | None, unit: str
) -> dict[str, Any]:
    """Bits that both models need for the wanted answers, by byte of text or by item, and what pretraining saves."""
    own, random = outcomes[MODEL], outcomes[RANDOM]
    saved: Interval = Ratio(random.bits - own.bits, own.num_bytes, groups).interval(how)
    return {
        "per": unit,
        MODEL: round(float(own.bits.sum() / own.num_bytes.sum()), 5),
        RANDOM: round(float(random.bits.sum() / random.num_bytes.sum()), 5),
        "saved_by_pretraining": saved.as_dict("mean"),
    }


def write_evaluation(build: Build, task: str, items: Items, outcomes: Mapping[str, Outcome], scores: Scores) -> None:
    """`scores.json`, and every answer of every system with its score."""
    groups = groups_of(items)
    rows = [
        {
            "item_id": item["item_id"],
            "task": task,
            "system": name,
            "prediction": outcome.predictions[place],
            "target": item["target"],
            "score": float(scores.by_item[name][place]) if name in scores.by_item else None,
            "bits": float(outcome.bits[place]) if len(outcome.bits) else None,
            "num_bytes": int(outcome.num_bytes[place]) if len(outcome.num_bytes) else None,
            "confidence": float(outcome.confidences[place]) if len(outcome.confidences) else None,
            "references": item["references"],
            "group": groups[place] if groups else None,
            "prompt": item["prompt"] or None,
        }
        for name, outcome in outcomes.items()
        for place, item in enumerate(items)
    ]
    write_predictions(build, rows, scores.summary)
