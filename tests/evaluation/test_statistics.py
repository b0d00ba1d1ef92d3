import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_core.evaluation.statistics import (
    Resampling,
    bootstrap_mean,
    bootstrap_ratio,
    calibration_error,
    holm,
    items_needed,
    mcnemar,
    paired_difference,
    paired_p_value,
    smallest_detectable_difference,
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
    assert paired_p_value(noise, np.zeros(200), HOW) > 0.05 > paired_p_value(noise + 0.5, np.zeros(200), HOW)


def test_mcnemar_is_the_sign_test_of_the_discordant_items():
    first, second = [True] * 8 + [False, True, False], [False] * 8 + [True, True, False]
    assert mcnemar(first, second) == pytest.approx(2 * (1 + 9) / 2**9)
    assert mcnemar([True], [True]) == 1.0


def test_holm_multiplies_the_smallest_most_and_keeps_the_order():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])


def test_so_many_items_find_the_difference_that_they_are_said_to_find():
    differences = np.random.default_rng(3).normal(size=400)
    effect = smallest_detectable_difference(differences)
    assert items_needed(differences, effect) in (399, 400, 401)


def test_calibration_error_of_an_overconfident_system():
    assert calibration_error([0.9] * 10, [1] * 6 + [0] * 4) == pytest.approx(0.3)
