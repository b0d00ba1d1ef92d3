"""`millrace plan` says what pretraining would take before anything runs."""

import pytest

from flows.plan import PlannedStage, in_words, pretraining_forecasts
from flows.presets import preset
from lm_core.runtime import Runtime, Tariff

RUN = [PlannedStage("pretrain", "run", "never run in this workspace")]
ASSUMED = Tariff(watts=None, price_per_kwh=None, price_per_hour=None)


def test_a_run_of_more_than_a_day_is_priced_on_a_rented_gpu_too(tmp_path):
    here, rented = pretraining_forecasts(preset("gpu"), Runtime(tmp_path, device="cpu", tariff=ASSUMED), RUN)
    assert here.seconds > 86_400 > rented.seconds
    assert "H100" in in_words(rented)
    assert f"{rented.cost_usd:.2g} USD" in in_words(rented)


def test_a_small_run_is_foretold_for_this_machine(tmp_path):
    (here,) = pretraining_forecasts(preset("smoke"), Runtime(tmp_path, device="cpu", tariff=ASSUMED), RUN)
    assert here.seconds < 600
    assert "CPU" in here.assumptions


@pytest.mark.parametrize("stages", [[], [PlannedStage("pretrain", "cached", "")]])
def test_nothing_is_foretold_where_nothing_runs(tmp_path, stages):
    assert pretraining_forecasts(preset("smoke"), Runtime(tmp_path, device="cpu"), stages) == []
