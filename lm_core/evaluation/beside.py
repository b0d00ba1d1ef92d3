"""Intervals of the figures that stand beside a task's score, where a figure is one of single items or of labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_core.evaluation.metrics import TEXT_METRICS
from lm_core.evaluation.outcome import Items, Outcome, Scheme
from lm_core.evaluation.statistics import Interval, Ratio, Resampling, calibration_error, figure_interval

Floats = NDArray[np.float64]


def intervals_beside(
    items: Items, outcome: Outcome, scheme: Scheme, how: Resampling, groups: Sequence[str] | None
) -> dict[str, dict[str, Any]]:
    """`{figure: {"score", "low", "high"}}` of the scheme's figures that have one for this outcome."""
    found = {name: _interval(name, items, outcome, scheme, how, groups) for name in scheme.guards}
    return {name: interval.as_dict() for name, interval in found.items() if interval}


def _interval(
    name: str, items: Items, outcome: Outcome, scheme: Scheme, how: Resampling, groups: Sequence[str] | None
) -> Interval | None:
    if name in TEXT_METRICS and any(outcome.predictions):
        pairs = zip(items, outcome.predictions, strict=True)
        score = TEXT_METRICS[name]
        values = [score(made, item["references"] or [item["target"]]) for item, made in pairs]
        return Ratio.mean(values, groups).interval(how)
    if name == "bits_per_byte" and len(outcome.bits):
        return Ratio(outcome.bits, outcome.num_bytes, groups).interval(how)
    targets = [item["target"] for item in items]
    right = np.array([made == wanted for made, wanted in zip(outcome.predictions, targets, strict=True)], np.float64)
    if name == "out_of_scope_recall":
        outside = np.array([target == scheme.outside for target in targets], np.float64)
        return Ratio(right * outside, outside, groups).interval(how) if outside.any() else None
    if name == "macro_f1":
        return figure_interval(_MacroF1(targets, outcome.predictions), len(items), how, groups)
    if name == "calibration_error" and len(outcome.confidences):
        sure = outcome.confidences
        return figure_interval(lambda w: calibration_error(sure, right, weights=w), len(items), how, groups)
    return None


class _MacroF1:
    """Macro-F1 of a weighted test set, as scikit-learn counts it: over the labels that are wanted or given."""

    def __init__(self, targets: Sequence[str], predictions: Sequence[str]) -> None:
        number = {label: place for place, label in enumerate(sorted({*targets, *predictions}))}
        self._size = len(number)
        self._wanted = np.array([number[label] for label in targets])
        self._given = np.array([number[label] for label in predictions])

    def __call__(self, weights: Floats) -> float:
        wanted = np.bincount(self._wanted, weights, self._size)
        given = np.bincount(self._given, weights, self._size)
        both = np.bincount(self._wanted, weights * (self._wanted == self._given), self._size)
        occurs = wanted + given > 0
        return float((2 * both[occurs] / (wanted + given)[occurs]).mean()) if occurs.any() else 0.0
