"""Scores of items under several systems: the summary every task gives, and the answers item by item."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_contracts.schemas import PREDICTIONS
from lm_core.evaluation.statistics import Interval, Ratio, Resampling, mcnemar, wilson
from lm_core.store import Build

MODEL, RANDOM = "model", "random_weights"
PREFERENCE = "preference"
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
        columns: name -> what else is kept of each item (schemas.PREDICTIONS).
        columns_of: system -> the same of each of its answers.
    """

    item_ids: Sequence[str]
    targets: Sequence[str]
    predictions: Mapping[str, Sequence[str]]
    scores: Mapping[str, Floats]
    groups: Sequence[str] | None = None
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    columns_of: Mapping[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)


def shared(groups: Sequence[str]) -> Sequence[str] | None:
    """The groups, or None where no two items share one."""
    return groups if len(set(groups)) < len(groups) else None


@dataclass(frozen=True)
class Comparison:
    """Scores and paired gains of systems on the same items: sum(above) / sum(below), a mean where below is one.

    Attributes:
        above: system -> numerators by item: its metric, or its bits.
        below: system -> denominators: ones, or bytes.
        groups: what items share; None: nothing.
    """

    above: Mapping[str, Floats]
    below: Mapping[str, Floats]
    how: Resampling
    groups: Sequence[str] | None = None
    less_is_better: bool = False

    @classmethod
    def of_means(cls, scores: Mapping[str, Floats], how: Resampling, groups: Sequence[str] | None) -> Comparison:
        """Of scores that are means over items."""
        return cls(scores, {name: np.ones(len(values)) for name, values in scores.items()}, how, groups)

    def _right_or_wrong(self, *names: str) -> bool:
        """Whether items are independent and each is right or wrong: exact methods hold there."""
        return self.groups is None and all(
            np.isin(self.above[name], (0, 1)).all() and (self.below[name] == 1).all() for name in names
        )

    def estimate(self, name: str) -> float:
        """A system's score."""
        return Ratio(self.above[name], self.below[name]).estimate

    def score(self, name: str) -> Interval:
        """The same with its interval; Wilson's where items are right or wrong by themselves."""
        if self._right_or_wrong(name):
            return wilson(int(self.above[name].sum()), len(self.above[name]), self.how.confidence)
        return Ratio(self.above[name], self.below[name], self.groups).interval(self.how)

    def _gained(self, name: str, over: str) -> Ratio:
        sign = -1.0 if self.less_is_better else 1.0
        return Ratio(sign * (self.above[name] - self.above[over]), self.below[name], self.groups)

    def gain(self, over: str, name: str = MODEL) -> Interval:
        """What a system is better by, above zero where it is better; paired over items."""
        return self._gained(name, over).interval(self.how)

    def p_value(self, over: str, name: str = MODEL) -> float:
        """Two-sided, of no gain: McNemar's exact test where items are right or wrong by themselves."""
        if self._right_or_wrong(name, over):
            return mcnemar([bool(v) for v in self.above[name]], [bool(v) for v in self.above[over]])
        return self._gained(name, over).p_value(self.how)

    def detectable(self, over: str, name: str = MODEL) -> float | None:
        """The gain that so many groups would find four times in five; None where a single one tells nothing."""
        found = self._gained(name, over).smallest_detectable(confidence=self.how.confidence)
        return round(found, 5) if math.isfinite(found) else None


def interval_of(scores: Floats, how: Resampling, groups: Sequence[str] | None = None) -> Interval:
    """Interval of a mean; Wilson's where items are right or wrong by themselves."""
    return Comparison.of_means({MODEL: scores}, how, groups).score(MODEL)


def summary_of(task: str, metric: str, scored: Scored, how: Resampling) -> dict[str, Any]:
    """Score, interval, baselines, and the paired gain over each of them."""
    compared = Comparison.of_means(scored.scores, how, scored.groups)
    others = [name for name in scored.scores if name != MODEL]
    gains = {name: compared.gain(name).as_dict("mean") for name in others}
    items = len(scored.item_ids)
    return {
        "task": task,
        "metric": metric,
        "better": "neither" if metric == PREFERENCE else "higher",
        **compared.score(MODEL).as_dict(),
        "items": items,
        "groups": len(set(scored.groups)) if scored.groups is not None else items,
        "baselines": {name: round(compared.estimate(name), 5) for name in others},
        "gain_over_random_weights": gains[RANDOM],
        "p_value_over_random_weights": round(compared.p_value(RANDOM), 5),
        "smallest_detectable_difference": compared.detectable(RANDOM),
        "gain_over_baselines": {name: gain for name, gain in gains.items() if name != RANDOM},
    }


def by_kind(
    scores: Floats, kinds: Sequence[str], how: Resampling, groups: Sequence[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Score with its interval and number of items of each kind.

    Where all items of a kind are one group the interval speaks of that group: its items are taken one by one.
    """
    result: dict[str, dict[str, Any]] = {}
    for kind in sorted(set(kinds)):
        places = [place for place, other in enumerate(kinds) if other == kind]
        own = None if groups is None else shared([groups[place] for place in places])
        part = interval_of(scores[places], how, own if own and len(set(own)) > 1 else None)
        result[kind] = part.as_dict() | {"items": len(places)}
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
            "group": scored.groups[place] if scored.groups is not None else None,
            **{name: values[place] for name, values in scored.columns.items()},
            **{name: values[place] for name, values in scored.columns_of.get(system, {}).items()},
        }
        for system, scores in scored.scores.items()
        for place in range(len(scores))
    ]
    write_predictions(build, rows, summary)


def write_predictions(build: Build, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> None:
    """Both files of an evaluation."""
    table = pa.Table.from_pylist(list(rows), schema=PREDICTIONS)
    pq.write_table(table, build.folder / "predictions.parquet", compression="zstd")
    (build.folder / "scores.json").write_text(json.dumps(summary, indent=1, sort_keys=True, ensure_ascii=False))
