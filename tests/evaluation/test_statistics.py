import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_core.evaluation.beside import intervals_beside
from lm_core.evaluation.outcome import Outcome, Scheme
from lm_core.evaluation.statistics import (
    Ratio,
    Resampling,
    bootstrap_mean,
    bootstrap_ratio,
    calibration_error,
    figure_interval,
    holm,
    items_needed,
    mcnemar,
    paired_difference,
    wilson,
)

HOW = Resampling(num_resamples=1000)


def test_wilson_agrees_with_its_formula():
    z, p, n = NormalDist().inv_cdf(0.975), 0.8, 50
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    interval = wilson(40, 50)
    assert (interval.low, interval.high) == pytest.approx((centre - half, centre + half))
    assert wilson(0, 0).high == 1.0


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_a_bootstrap_interval_lies_within_the_values(values):
    interval = bootstrap_mean(values, Resampling(200))
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9
    assert interval.estimate == pytest.approx(np.mean(values))


def test_the_bootstrap_covers_the_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    intervals = [bootstrap_mean(generator.normal(size=60), Resampling(400, seed=i)) for i in range(200)]
    covered = sum(interval.low <= 0 <= interval.high for interval in intervals)
    assert 178 <= covered <= 199


def test_clusters_widen_the_interval():
    values = np.repeat(np.random.default_rng(1).normal(size=20), 10)
    groups = [str(i // 10) for i in range(200)]
    alone, together = bootstrap_mean(values, HOW), bootstrap_mean(values, HOW, groups)
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_a_ratio_weighs_items_by_their_denominator():
    assert bootstrap_ratio([1.0, 9.0], [1, 3], HOW).estimate == 2.5


def test_a_shift_of_every_item_is_found_and_noise_is_not():
    noise = np.random.default_rng(2).normal(size=200)
    assert paired_difference(noise + 0.5, noise, HOW).low == pytest.approx(0.5)
    assert Ratio.mean(noise).p_value(HOW) > 0.05 > Ratio.mean(noise + 0.5).p_value(HOW)


def test_mcnemar_is_the_sign_test_of_the_discordant_items():
    first, second = [True] * 8 + [False, True, False], [False] * 8 + [True, True, False]
    assert mcnemar(first, second) == pytest.approx(2 * (1 + 9) / 2**9)
    assert mcnemar([True], [True]) == 1.0


def test_holm_multiplies_the_smallest_most_and_keeps_the_order():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])


def test_so_many_items_find_the_difference_that_they_are_said_to_find():
    differences = np.random.default_rng(3).normal(size=400)
    effect = Ratio.mean(differences).smallest_detectable()
    assert items_needed(differences, effect) in (399, 400, 401)


def test_calibration_error_of_an_overconfident_system():
    assert calibration_error([0.9] * 10, [1] * 6 + [0] * 4) == pytest.approx(0.3)


def few_groups(seed, num_groups, *, effect=0.0):
    """Items of groups of unequal size whose effects are skewed, their mean moved by `effect`."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(10, 31, num_groups)
    effects = np.repeat(generator.gamma(2, 0.5, num_groups) - 1 + effect, sizes)
    groups = [str(group) for group in np.repeat(np.arange(num_groups), sizes)]
    return effects + generator.normal(size=len(effects)), groups


@pytest.mark.parametrize("num_groups", [2, 6, 40, 250])
def test_interval_and_p_value_agree(num_groups):
    clear = []
    for seed in range(40):
        values, groups = few_groups(seed, num_groups, effect=(seed % 5) * 1.5 / num_groups**0.5)
        ratio = Ratio.mean(values, groups)
        interval, p_value = ratio.interval(Resampling(400)), ratio.p_value(Resampling(400))
        assert (interval.low > 0 or interval.high < 0) == (p_value < 0.05), (seed, interval, p_value)
        clear.append(p_value < 0.05)
    assert any(clear) and not all(clear)


def test_six_articles_hold_their_level_where_the_bootstrap_does_not():
    covered = {"t": 0, "bootstrap": 0}
    for seed in range(300):
        values, groups = few_groups(seed, 6)
        own, resampled = Ratio.mean(values, groups).interval(HOW), bootstrap_mean(values, Resampling(200), groups)
        covered["t"] += own.low <= 0 <= own.high
        covered["bootstrap"] += resampled.low <= 0 <= resampled.high
    assert covered["t"] >= 0.90 * 300 > 0.87 * 300 >= covered["bootstrap"]


def test_with_groups_of_one_size_it_is_students_interval_of_their_means():
    values = np.random.default_rng(5).normal(1, 1, 60)
    means = values.reshape(6, 10).mean(1)
    half = 2.5706 * means.std(ddof=1) / math.sqrt(6)
    interval = Ratio.mean(values, [str(i // 10) for i in range(60)]).interval(HOW)
    assert (interval.low, interval.high) == pytest.approx((means.mean() - half, means.mean() + half), abs=1e-3)


def test_one_group_alone_tells_nothing():
    alone = Ratio.mean([0.4, 0.6, 0.5], ["a"] * 3)
    assert (alone.interval(HOW).low, alone.interval(HOW).high, alone.p_value(HOW)) == (0.0, 0.6, 1.0)
    assert math.isinf(alone.smallest_detectable())


def test_groups_tell_apart_less_than_as_many_items_would():
    values, groups = few_groups(1, 20)
    assert Ratio.mean(values, groups).smallest_detectable() > 1.5 * Ratio.mean(values).smallest_detectable()


def test_intervals_beside_a_score_are_about_the_figures_themselves():
    from sklearn.metrics import f1_score

    generator = np.random.default_rng(7)
    labels = np.array(["a", "b", "c", "none"])
    targets = labels[generator.integers(0, 4, 300)]
    made = [str(t) if right else "a" for t, right in zip(targets, generator.random(300) < 0.7, strict=True)]
    items = [{"target": str(target), "references": None} for target in targets]
    scheme = Scheme("accuracy", ("macro_f1", "calibration_error", "out_of_scope_recall", "exact_match"), (), 8,
                    outside="none")  # fmt: skip
    outcome = Outcome(made, confidences=np.full(300, 0.9))
    found = intervals_beside(items, outcome, scheme, HOW, None)
    right = np.array(made) == targets
    assert found["macro_f1"]["score"] == pytest.approx(f1_score(targets, made, average="macro"), abs=1e-5)
    assert found["calibration_error"]["score"] == pytest.approx(abs(0.9 - right.mean()), abs=1e-5)
    assert found["out_of_scope_recall"]["score"] == pytest.approx(right[targets == "none"].mean(), abs=1e-5)
    assert found["exact_match"]["score"] == pytest.approx(right.mean(), abs=1e-5)
    for name, figure in found.items():
        assert 0 <= figure["low"] < figure["score"] < figure["high"] <= 1, name


@pytest.mark.parametrize("num_groups", [20, 250])
def test_a_figure_of_labels_varies_by_whole_groups(num_groups):
    generator = np.random.default_rng(3)
    right = np.repeat(generator.random(num_groups) < 0.6, 5).astype(float)
    groups = [str(i // 5) for i in range(len(right))]

    def share(weights):
        return float((right * weights).sum() / weights.sum())

    alone, together = (figure_interval(share, len(right), HOW, g) for g in (None, groups))
    assert together.high - together.low > 1.7 * (alone.high - alone.low)
