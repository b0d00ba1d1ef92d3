"""Scores of items under several systems: the summary every task gives, and the answers item by item."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_contracts.schemas import PREDICTIONS
from lm_core.evaluation.statistics import (
    Interval,
    Resampling,
    bootstrap_mean,
    paired_difference,
    paired_p_value,
    smallest_detectable_difference,
    wilson,
)
from lm_core.store import Build

MODEL, RANDOM = "model", "random_weights"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """What every system answered to the same items.

    Attributes:
        item_ids: one for each item.
        targets: what was wanted.
        predictions: system -> answers.
        scores: system -> the metric of each answer.
        groups: what items share (a picture, say), for clustered intervals; None: nothing.
    """

    item_ids: Sequence[str]
    targets: Sequence[str]
    predictions: Mapping[str, Sequence[str]]
    scores: Mapping[str, Floats]
    groups: Sequence[str] | None = None


def interval_of(scores: Floats, how: Resampling, groups: Sequence[str] | None = None) -> Interval:
    """Wilson's interval where scores are right or wrong and items independent, else the bootstrap's."""
    if groups is None and np.isin(scores, (0, 1)).all():
        return wilson(int(scores.sum()), len(scores), how.confidence)
    return bootstrap_mean(scores, how, groups)


def summary_of(task: str, metric: str, scored: Scored, how: Resampling) -> dict[str, Any]:
    """Score, interval, baselines, and the paired gain over each of them."""
    own = scored.scores[MODEL]
    others = {name: scores for name, scores in scored.scores.items() if name != MODEL}
    gains = {
        name: paired_difference(own, scores, how, scored.groups).as_dict("mean") for name, scores in others.items()
    }
    return {
        "task": task,
        "metric": metric,
        **interval_of(own, how, scored.groups).as_dict(),
        "items": len(own),
        "baselines": {name: round(float(scores.mean()), 5) for name, scores in others.items()},
        "gain_over_random_weights": gains[RANDOM],
        "p_value_over_random_weights": round(paired_p_value(own, others[RANDOM], how, scored.groups), 5),
        "smallest_detectable_difference": round(
            smallest_detectable_difference(own - others[RANDOM], confidence=how.confidence), 5
        ),
        "gain_over_baselines": {name: gain for name, gain in gains.items() if name != RANDOM},
    }


def by_group(scores: Floats, names: Sequence[str], confidence: float = 0.95) -> dict[str, dict[str, Any]]:
    """Score and number of items of each group; Wilson's interval where scores are right or wrong."""
    result: dict[str, dict[str, Any]] = {}
    for name in sorted(set(names)):
        part = scores[[other == name for other in names]]
        result[name] = {"score": round(float(part.mean()), 5), "items": len(part)}
        if np.isin(part, (0, 1)).all():
            result[name] = wilson(int(part.sum()), len(part), confidence).as_dict() | {"items": len(part)}
    return result


def write_scored(build: Build, task: str, scored: Scored, summary: Mapping[str, Any]) -> None:
    """`scores.json`, and `predictions.parquet` (schemas.PREDICTIONS): every answer of every system with its score."""
    rows = [
        {
            "item_id": scored.item_ids[place],
            "task": task,
            "system": system,
            "prediction": scored.predictions[system][place],
            "target": scored.targets[place],
            "score": float(scores[place]),
        }
        for system, scores in scored.scores.items()
        for place in range(len(scores))
    ]
    table = pa.Table.from_pylist(rows, schema=PREDICTIONS)
    pq.write_table(table, build.folder / "predictions.parquet", compression="zstd")
    (build.folder / "scores.json").write_text(json.dumps(summary, indent=1, sort_keys=True, ensure_ascii=False))
