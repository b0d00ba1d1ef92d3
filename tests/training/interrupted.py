"""Pretraining in processes of its own, to be stopped and run again; used by the tests and by the resume grid."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from lm_core.runtime import fast_precision
from lm_core.training.config import ModelConfig, OptimizationConfig, PretrainConfig

MODEL = ModelConfig(num_layers=2, d_model=32, num_heads=2, num_kv_heads=2, d_ff=64)
OPTIMIZATION = OptimizationConfig(batch_tokens=256, micro_batch_tokens=128, checkpoint_seconds=0.1)
CONFIG = PretrainConfig(
    model=MODEL, optimization=OPTIMIZATION, train_tokens=256 * 40, validation_tokens=640, num_evaluations=2
)
LONGER = CONFIG.model_copy(update={"train_tokens": 256 * 100})

RUN = """
import json, sys
from pathlib import Path
from lm_core.artifact import TokenDataset, Tokenizer
from lm_core.errors import MillraceError
from lm_core.runtime import Runtime
from lm_core.store import Build
from lm_core.training import pretrain
from lm_core.training.config import PretrainConfig
tokens, tokenizer, folder, work, config, threads, processes, strategy = sys.argv[1:]
runtime = Runtime(
    device="cpu", num_threads=int(threads), num_processes=int(processes), strategy=strategy, workspace=Path(work))
build = Build(Path(folder), Path(work), runtime)
try:
    statistics = pretrain.pretrain(
        build, PretrainConfig.model_validate_json(config),
        tokens=TokenDataset(Path(tokens), "", "", ""), tokenizer=Tokenizer(Path(tokenizer), "", "", ""))
except MillraceError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
print(json.dumps(statistics))
"""


def start(
    tokens, tokenizer, root: Path, config: PretrainConfig, threads: int = 1, processes: int = 1, strategy: str = "ddp"
) -> subprocess.Popen[str]:
    folder, work = root / f"folder-{time.monotonic_ns()}", root / "work"
    for path in (folder, work):
        path.mkdir(parents=True, exist_ok=True)
    arguments = [tokens.folder, tokenizer.folder, folder, work, config.model_dump_json(), threads, processes, strategy]
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )


def wait_for_step(work: Path, step: int, process: subprocess.Popen[str]) -> None:
    journal = work / "journal.jsonl"
    while process.poll() is None:
        if journal.exists() and journal.stat().st_size and journal.read_text().count("train_loss") >= step:
            return
        time.sleep(0.01)


def wait_for_checkpoint(work: Path, process: subprocess.Popen[str]) -> None:
    """Until one is published: a run killed while the first is being written rightly starts over."""
    while process.poll() is None and not list(work.glob("checkpoint-*/state.json")):
        time.sleep(0.01)


def finish(process: subprocess.Popen[str], timeout: float = 300) -> dict:
    """Statistics of a run that must end well."""
    output, errors = process.communicate(timeout=timeout)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


def run_disturbed(
    tokens, tokenizer, root: Path, config: PretrainConfig, how: int, threads: int = 1, stops: tuple[int, ...] = (40,)
) -> dict:
    """Stop the run at some steps, then let it end; returns its statistics."""
    for step in stops:
        process = start(tokens, tokenizer, root, config, threads)
        wait_for_step(root / "work", step, process)
        if how == signal.SIGKILL:
            wait_for_checkpoint(root / "work", process)
        process.send_signal(how)
        _, errors = process.communicate(timeout=120)
        if how == signal.SIGTERM:
            assert process.returncode == 143, errors
            assert "resumes" in errors
        else:
            assert process.returncode == -how
    return finish(start(tokens, tokenizer, root, config, threads))


Mode = tuple[int, bool, str, str]
MODES: list[Mode] = list(itertools.product([1, 2], [False, True], ["adamw", "muon"], ["fp32", "bf16"]))
# The others take a quarter of an hour: `pytest -m exhaustive`, or tests/benchmarks/resume_grid.py. A processor without
# products in bf16 takes a minute more for each that has them.
TESTED_ALWAYS = {
    (1, False, "muon", fast_precision()),
    (2, False, "adamw", "fp32"),
    (2, True, "muon", fast_precision()),
}


def name_of(mode: Mode) -> str:
    threads, compiled, optimizer, precision = mode
    return f"{threads} threads, {'compile' if compiled else 'eager'}, {optimizer}, {precision}"


def both_ways(tokens, tokenizer, root: Path, mode: Mode) -> tuple[dict, dict]:
    """Statistics of an undisturbed run of a mode, and of one that was killed (SIGKILL) and run again."""
    threads, compiled, optimizer, precision = mode
    changes = {"compile": compiled, "optimizer": optimizer, "precision": precision}
    config = LONGER.model_copy(update={"optimization": OPTIMIZATION.model_copy(update=changes)})
    undisturbed = finish(start(tokens, tokenizer, root / "whole", config, threads))
    return undisturbed, run_disturbed(tokens, tokenizer, root / "stopped", config, signal.SIGKILL, threads)
