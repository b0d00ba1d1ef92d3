"""Intervals and tests for scores.

Scores are means or ratios over items. Items that share a text are not independent: give `groups`, and whole groups are
resampled (cluster bootstrap, Field and Welsh 2007).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
RESAMPLE_CHUNK = 1 << 22


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its confidence interval."""

    estimate: float
    low: float
    high: float

    def as_dict(self, name: str = "score", digits: int = 5) -> dict[str, float]:
        """`{name, low, high}`, rounded."""
        values = {name: self.estimate, "low": self.low, "high": self.high}
        return {key: round(float(value), digits) for key, value in values.items()}


@dataclass(frozen=True)
class Resampling:
    """How intervals are made.

    Attributes:
        num_resamples: bootstrap resamples.
        confidence: coverage.
        seed: the same seed gives the same resamples, so that all systems are compared on the same ones.
    """

    num_resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0

    @property
    def tails(self) -> tuple[float, float]:
        """Quantiles of the two bounds."""
        return (1 - self.confidence) / 2, (1 + self.confidence) / 2


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927); (0, 0, 1) without trials."""
    if not trials:
        return Interval(0.0, 0.0, 1.0)
    bounds = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return Interval(successes / trials, float(bounds.low), float(bounds.high))


def _group_sums(values: Floats, groups: Sequence[str] | None) -> Floats:
    """Sums by group, in order of first appearance; the values themselves without groups."""
    if groups is None:
        return values
    order = {name: index for index, name in enumerate(dict.fromkeys(groups))}
    return np.bincount([order[name] for name in groups], weights=values, minlength=len(order)).astype(np.float64)


def _resampled_sums(columns: Floats, how: Resampling) -> Floats:
    """Sums of each column over bootstrap resamples of the rows: (num_columns, num_resamples)."""
    generator = np.random.default_rng(how.seed)
    num_rows = columns.shape[1]
    step = max(1, RESAMPLE_CHUNK // num_rows)
    sums = []
    for start in range(0, how.num_resamples, step):
        picks = generator.integers(0, num_rows, (min(step, how.num_resamples - start), num_rows))
        sums.append(columns[:, picks].sum(2))
    return np.concatenate(sums, 1)


def bootstrap_ratio(
    numerators: ArrayLike, denominators: ArrayLike, how: Resampling, groups: Sequence[str] | None = None
) -> Interval:
    """Percentile interval of sum(numerators) / sum(denominators) over items: bits per byte, say."""
    pair = np.stack([_group_sums(np.asarray(v, np.float64), groups) for v in (numerators, denominators)])
    if not pair.size:
        raise ValueError("no items")
    sums = _resampled_sums(pair, how)
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = np.nanquantile(sums[0] / sums[1], how.tails)
        return Interval(float(pair[0].sum() / pair[1].sum()), float(low), float(high))


def bootstrap_mean(values: ArrayLike, how: Resampling, groups: Sequence[str] | None = None) -> Interval:
    """Percentile interval of a mean over items."""
    values = np.asarray(values, np.float64)
    return bootstrap_ratio(values, np.ones_like(values), how, groups)


def paired_difference(
    first: ArrayLike, second: ArrayLike, how: Resampling, groups: Sequence[str] | None = None
) -> Interval:
    """Paired bootstrap of mean(first - second) over the same items (Efron and Tibshirani 1993)."""
    return bootstrap_mean(np.asarray(first, np.float64) - np.asarray(second, np.float64), how, groups)


def paired_p_value(first: ArrayLike, second: ArrayLike, how: Resampling, groups: Sequence[str] | None = None) -> float:
    """Two-sided p-value of mean(first - second) = 0: the share of centred resamples at least as far from zero."""
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    sums = _group_sums(differences, groups)
    counts = _group_sums(np.ones_like(differences), groups)
    observed = differences.mean()
    centred = np.stack([sums - observed * counts, counts])
    resampled = _resampled_sums(centred, how)
    extreme = int((np.abs(resampled[0] / resampled[1]) >= abs(observed) - 1e-12).sum())
    return (extreme + 1) / (how.num_resamples + 1)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided p-value that two classifiers are right equally often on the same items (McNemar 1947)."""
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    discordant = only_first + only_second
    return float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values for a family of tests (Holm 1979), in the order given."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def smallest_detectable_difference(differences: ArrayLike, *, confidence: float = 0.95, power: float = 0.8) -> float:
    """Mean paired difference that so many items would find with the given power (normal approximation)."""
    differences = np.asarray(differences, np.float64)
    if len(differences) < 2:
        return math.inf
    z = stats.norm.ppf((1 + confidence) / 2) + stats.norm.ppf(power)
    return float(z * differences.std(ddof=1) / math.sqrt(len(differences)))


def items_needed(differences: ArrayLike, effect: float, *, confidence: float = 0.95, power: float = 0.8) -> int:
    """Items at which a mean paired difference of `effect` would be found with the given power."""
    differences = np.asarray(differences, np.float64)
    if len(differences) < 2 or not effect:
        raise ValueError("needs two items at least, and an effect other than zero")
    z = stats.norm.ppf((1 + confidence) / 2) + stats.norm.ppf(power)
    return math.ceil((z * differences.std(ddof=1) / effect) ** 2)


def calibration_error(confidences: ArrayLike, correct: ArrayLike, *, num_bins: int = 10) -> float:
    """Expected calibration error over bins of equal width (Guo et al. 2017)."""
    confidences, right = np.asarray(confidences, np.float64), np.asarray(correct, np.float64)
    bins = np.minimum((confidences * num_bins).astype(int), num_bins - 1)
    gaps = np.bincount(bins, weights=right - confidences, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(right))


def adjusted_gains(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """p-values of the gains over random weights, adjusted for the number of tasks that were looked at (Holm).

    Args:
        scores: task -> its summary; those without `p_value_over_random_weights` are no test and stay out.
    """
    tested = {
        n: float(s["p_value_over_random_weights"]) for n, s in scores.items() if "p_value_over_random_weights" in s
    }
    return {name: round(p, 5) for name, p in zip(tested, holm(list(tested.values())), strict=True)}
