"""SIGTERM at the moments that used to outlast it: in an evaluation, in a long step, while compiling."""

import os
import signal
import subprocess
import time

import pytest

from lm_core.errors import Preempted
from lm_core.training.preemption import Stopped, StopRequest
from tests.training.interrupted import LONGER, OPTIMIZATION, start, wait_for_step
from tests.training.tiny_runs import fit

ENDLESS_SECONDS = 60.0


def stop_and_wait() -> None:
    """As if the signal came at the beginning of something that takes a minute."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ENDLESS_SECONDS)
    raise AssertionError("the signal did not end the wait")


def weights_of(model) -> list:
    return [parameter.detach().clone() for parameter in model.parameters()]


def assert_equal_weights(a, b) -> None:
    assert all(x.equal(y) for x, y in zip(weights_of(a), weights_of(b), strict=True))


@pytest.mark.parametrize("average", [{}, {"ema_decay": 0.9}, {"average_checkpoints": 3, "average_fraction": 0.9}])
def test_in_an_evaluation(tmp_path, average):
    calls = []

    def evaluate(model):
        calls.append(1)
        if len(calls) == 2:
            stop_and_wait()
        return {"val_loss": float(next(iter(model.parameters())).detach().abs().sum())}

    changes = {"num_evaluations": 4, **average}
    with pytest.raises(Preempted, match="after step 20"):
        fit(tmp_path, "stopped", evaluate=evaluate, **changes)
    resumed, figures, build = fit(tmp_path, "stopped", evaluate=evaluate, **changes)
    whole, wanted, other = fit(tmp_path, "whole", evaluate=lambda model: evaluate(model), **changes)
    assert figures["resumed_from_step"] == 20
    assert_equal_weights(resumed, whole)
    assert figures["val_loss"] == wanted["val_loss"]
    journals = [(b.folder / "journal.jsonl").read_text().count("val_loss") for b in (build, other)]
    assert journals == [4, 4]


@pytest.mark.parametrize("optimizer", ["muon", "torch_muon"])
def test_in_a_long_step(tmp_path, optimizer):
    calls = []

    def slow_in_the_middle(*_):
        calls.append(1)
        if len(calls) == 31:  # the second of two micro-batches of step 16
            stop_and_wait()

    def hook(model):
        model.blocks()[0].register_forward_pre_hook(slow_in_the_middle)

    changes = {"micro_batch_tokens": 64, "optimizer": optimizer}
    with pytest.raises(Preempted, match="after step 15"):
        fit(tmp_path, "stopped", before=hook, **changes)
    resumed, figures, _ = fit(tmp_path, "stopped", **changes)
    whole, _, _ = fit(tmp_path, "whole", **changes)
    assert figures["resumed_from_step"] == 15
    assert_equal_weights(resumed, whole)


def test_with_the_last_step(tmp_path):
    def stop_at_the_end(done, total, unit, **figures):
        if total is not None and done == total:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted, match="after step 40"):
        fit(tmp_path, "stopped", progress=stop_at_the_end)
    resumed, figures, _ = fit(tmp_path, "stopped")
    assert figures["resumed_from_step"] == figures["num_steps"] == 40
    assert_equal_weights(resumed, fit(tmp_path, "whole")[0])


@pytest.mark.slow
def test_while_compiling(tokens, tokenizer, tmp_path):
    changes = {"compile": True, "micro_batch_tokens": 256}
    config = LONGER.model_copy(update={"optimization": OPTIMIZATION.model_copy(update=changes)})
    process = start(tokens, tokenizer, tmp_path, config)
    wait_for_step(tmp_path / "work", 0, process)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "stopped after step 0" in errors
    assert list((tmp_path / "work").glob("checkpoint-00000000/state.json"))


def test_what_must_not_be_torn_is_finished_first():
    stop, done = StopRequest(), False
    with pytest.raises(Stopped), stop.listening():
        with stop.interruptible():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        done = True  # between two interruptible parts, an optimizer's step say
        with stop.interruptible():
            raise AssertionError("it goes on")
    assert done
    assert signal.getsignal(signal.SIGTERM) != stop._arrived


def test_the_handler_before_is_restored():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest().listening():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_process_ends_by_itself(tokens, tokenizer, tmp_path):
    process = start(tokens, tokenizer, tmp_path, LONGER)
    wait_for_step(tmp_path / "work", 3, process)
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 143
    assert list((tmp_path / "work").glob("checkpoint-*/state.json"))
