"""Several processes train one model: real ones, over gloo, started by torchrun as the stage does it."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest
import torch

from lm_core.errors import MachineError
from lm_core.runtime import Runtime
from lm_core.store import Build
from lm_core.training.devices import check_devices
from lm_core.training.distributed import World
from lm_core.training.pretrain import pretrain
from tests.training.corpus_files import new_build
from tests.training.interrupted import LONGER, MODEL, OPTIMIZATION, finish, start, wait_for_checkpoint, wait_for_step

# Largest relative difference of a loss to that of one process, over a hundred steps. ddp sums gradients in another
# order: measured up to 4e-5. fsdp does so too, and Muon, which rounds to bf16, makes more of it: measured 2e-3.
TOLERANCE = {"ddp": 1e-3, "fsdp": 1e-2}
CONFIG = LONGER.model_copy(
    update={
        "model": MODEL.model_copy(update={"dropout": 0.1}),
        "optimization": OPTIMIZATION.model_copy(update={"checkpoint_seconds": 0.5}),
    }
)


def losses(folder) -> list[float]:
    lines = [json.loads(line) for line in (folder / "work/journal.jsonl").read_text().splitlines()]
    return [line["train_loss"] for line in lines if "train_loss" in line]


def ranks_of(process) -> list[psutil.Process]:
    return [p for p in psutil.Process(process.pid).children(recursive=True) if "rank" in p.cmdline()]


def test_rows_are_shared_evenly_and_none_is_lost(tmp_path):
    rows = torch.arange(7)[:, None].expand(7, 3)
    shares = []
    for rank in range(3):
        world = World(Runtime(tmp_path))
        world.size, world.rank = 3, rank
        shares.append(world.share(rows, -100))
    assert [len(share) for share in shares] == [3, 3, 3]
    assert torch.cat(shares)[:, 0].tolist() == [*range(7), -100, -100]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "optimizer"),
    [
        ("fsdp", "muon"),
        pytest.param("fsdp", "torch_muon", marks=pytest.mark.exhaustive),
        pytest.param("ddp", "muon", marks=pytest.mark.exhaustive),
    ],
)
def test_a_process_that_has_only_filler_trains_with_the_others(tokens, tokenizer, tmp_path, strategy, optimizer):
    """Three windows for two processes, one at a time: the second process's second window is filler."""
    optimization = OPTIMIZATION.model_copy(
        update={"batch_tokens": 96, "micro_batch_tokens": 32, "optimizer": optimizer}
    )
    config = CONFIG.model_copy(update={"optimization": optimization, "train_tokens": 96 * 8, "num_evaluations": 1})
    found = {}
    for name, processes in (("one", {}), ("two", {"num_processes": 2, "strategy": strategy})):
        build = new_build(tmp_path, name)
        build = replace(build, runtime=replace(build.runtime, **processes))
        found[name] = pretrain(build, config, tokens=tokens, tokenizer=tokenizer)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=TOLERANCE[strategy])
    assert len(losses(tmp_path / "two")) == 8
    assert found["two"]["val_bits_per_byte"] == pytest.approx(
        found["one"]["val_bits_per_byte"], rel=TOLERANCE[strategy]
    )
    assert found["two"]["processes"] == f"2 processes, {strategy}"


@pytest.fixture(scope="module")
def alone(tokens, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return finish(start(tokens, tokenizer, folder, CONFIG)), losses(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "then"),
    [
        ("ddp", 1),
        pytest.param("fsdp", 1, marks=pytest.mark.exhaustive),
        pytest.param("ddp", 2, marks=pytest.mark.exhaustive),
    ],
)
def test_same_losses_and_a_checkpoint_for_any_number_of_processes(tokens, tokenizer, tmp_path, alone, strategy, then):
    statistics, wanted = alone
    process = start(tokens, tokenizer, tmp_path, CONFIG, processes=2, strategy=strategy)
    wait_for_step(tmp_path / "work", 50, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    other = "fsdp" if then > 1 else "ddp"
    resumed = finish(start(tokens, tokenizer, tmp_path, CONFIG, processes=then, strategy=other))
    assert resumed["resumed_from_step"] >= 50
    tolerance = TOLERANCE["fsdp" if "fsdp" in (strategy, other) else "ddp"]
    assert losses(tmp_path) == pytest.approx(wanted, rel=tolerance)
    assert resumed["val_bits_per_byte"] == pytest.approx(statistics["val_bits_per_byte"], rel=tolerance)
    after = "1 process" if then == 1 else "2 processes, fsdp"
    assert resumed["processes"] == f"2 processes, {strategy}, then {after}"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.exhaustive)])
def test_a_stop_in_the_middle_of_an_evaluation_or_a_step_ends_it_for_all(tmp_path, strategy):
    """Only the second process is asked; fifty batches of an evaluation, or the micro-batches left, would follow."""
    (tmp_path / "runs").mkdir()
    command = [sys.executable, "-m", "tests.training.stopped_together"]
    both = [
        subprocess.Popen([*command, str(rank), strategy, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        first, second = (json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in both)
    finally:
        for process in both:
            process.kill()
    assert first.keys() == second.keys()
    for found in (first, second):
        assert "after step 2" in found["evaluation"]["said"]
        assert found["evaluation"]["calls"] == 2 * 4 + 3  # at the next batch, before its first block
        assert "after step 1" in found["step"]["said"]
        assert found["step"]["calls"] == 4 + 2
        ends = [found[name]["weights"] for name in ("then", "after", "undisturbed")]
        assert len({*ends}) == 1
        assert found["then"]["calls"] == 2 * 4 + 2 * 50


@pytest.mark.slow
def test_a_killed_rank_is_replaced_and_the_run_goes_on(tokens, tokenizer, tmp_path, alone):
    process = start(tokens, tokenizer, tmp_path, CONFIG, processes=2)
    wait_for_step(tmp_path / "work", 20, process)
    wait_for_checkpoint(tmp_path / "work", process)
    ranks_of(process)[1].kill()
    statistics = finish(process)
    assert statistics["resumed_from_step"] > 0
    assert losses(tmp_path) == pytest.approx(alone[1], rel=TOLERANCE["ddp"])


@pytest.mark.slow
def test_no_process_outlives_the_stage_and_errors_come_as_one_line(tokens, tokenizer, tmp_path):
    process = start(tokens, tokenizer, tmp_path / "killed", CONFIG, processes=2)
    wait_for_step(tmp_path / "killed/work", 1, process)
    ranks = ranks_of(process)
    process.kill()
    process.wait()
    assert len(ranks) == 2
    assert not psutil.wait_procs(ranks, timeout=20)[1]
    hopeless = OPTIMIZATION.model_copy(update={"learning_rate": 1e38, "gradient_clip": 0.0})
    config = CONFIG.model_copy(update={"optimization": hopeless})
    process = start(tokens, tokenizer, tmp_path / "hopeless", config, processes=2)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "optimization.learning_rate" in errors.strip().splitlines()[-1]


def test_more_processes_than_gpus(tokens, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("lm_core.training.devices.has_gpu", lambda: True)
    build = Build(tmp_path, tmp_path, Runtime(workspace=tmp_path, num_processes=2))
    with pytest.raises(MachineError, match=r"2 processes need a GPU each, this machine has 1"):
        pretrain(build, CONFIG, tokens=tokens, tokenizer=tokenizer)
    with pytest.raises(MachineError, match=r"2 processes need a GPU each, this machine has 1"):
        check_devices(build.runtime)
    check_devices(replace(build.runtime, num_processes=1))
