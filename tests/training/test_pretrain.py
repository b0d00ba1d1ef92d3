"""Pretraining as the pipeline runs it, killed and resumed."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lm_core.errors import UserError
from lm_core.model.weights import load_model
from lm_core.training.config import ModelConfig, OptimizationConfig, PretrainConfig
from lm_core.training.pretrain import pretrain
from tests.training.corpus_files import new_build

MODEL = ModelConfig(num_layers=2, d_model=32, num_heads=2, num_kv_heads=2, d_ff=64)
OPTIMIZATION = OptimizationConfig(batch_tokens=256, micro_batch_tokens=128, checkpoint_seconds=0.2)
CONFIG = PretrainConfig(
    model=MODEL, optimization=OPTIMIZATION, train_tokens=256 * 40, validation_tokens=640, num_evaluations=2
)


def test_it_learns_and_writes_a_checkpoint(tokens, tokenizer, tmp_path):
    build = new_build(tmp_path, "a")
    statistics = pretrain(build, CONFIG, tokens=tokens, tokenizer=tokenizer)
    lines = [json.loads(line) for line in (build.folder / "journal.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in evaluations] == [20, 40]
    assert evaluations[-1]["val_loss"] < 5.9  # log(400) = 5.99 is where an untrained model stands
    assert statistics["val_bits_per_byte"] == evaluations[-1]["val_bits_per_byte"]
    assert statistics["tokens"] == 256 * 40
    assert load_model(build.folder).num_parameters() == statistics["num_parameters"]
    again = pretrain(new_build(tmp_path, "b"), CONFIG, tokens=tokens, tokenizer=tokenizer)
    assert again["weights_sha256"] == statistics["weights_sha256"]


RUN = """
import json, sys
from pathlib import Path
from lm_core.artifact import TokenDataset, Tokenizer
from lm_core.errors import MillraceError
from lm_core.runtime import Runtime
from lm_core.store import Build
from lm_core.training import pretrain
from lm_core.training.config import PretrainConfig
tokens, tokenizer, folder, work, config, threads = sys.argv[1:]
build = Build(Path(folder), Path(work), Runtime(device="cpu", num_threads=int(threads)))
try:
    statistics = pretrain.pretrain(
        build, PretrainConfig.model_validate_json(config),
        tokens=TokenDataset(Path(tokens), "", "", ""), tokenizer=Tokenizer(Path(tokenizer), "", "", ""))
except MillraceError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
print(json.dumps(statistics))
"""


def start(tokens, tokenizer, root: Path, config: PretrainConfig, threads: int = 1) -> subprocess.Popen[str]:
    folder, work = root / f"folder-{time.monotonic_ns()}", root / "work"
    for path in (folder, work):
        path.mkdir(parents=True, exist_ok=True)
    arguments = [tokens.folder, tokenizer.folder, folder, work, config.model_dump_json(), threads]
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
        if journal.exists() and journal.read_text().count("train_loss") >= step:
            return
        time.sleep(0.01)


def run_disturbed(
    tokens, tokenizer, root: Path, config: PretrainConfig, how: int, threads: int = 1, stops: tuple[int, ...] = (40,)
) -> dict:
    """Stop the run at some steps, then let it end; returns its statistics."""
    for step in stops:
        process = start(tokens, tokenizer, root, config, threads)
        wait_for_step(root / "work", step, process)
        process.send_signal(how)
        _, errors = process.communicate(timeout=120)
        if how == signal.SIGTERM:
            assert process.returncode == 143, errors
            assert "resumes" in errors
        else:
            assert process.returncode == -how
    process = start(tokens, tokenizer, root, config, threads)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


LONGER = CONFIG.model_copy(update={"train_tokens": 256 * 100})


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_run_ends_with_the_weights_of_an_undisturbed_one(tokens, tokenizer, tmp_path, how):
    config = LONGER.model_copy(
        update={
            "model": MODEL.model_copy(update={"dropout": 0.1}),
            "optimization": OPTIMIZATION.model_copy(update={"ema_decay": 0.9}),
        }
    )
    undisturbed = pretrain(new_build(tmp_path, "whole"), config, tokens=tokens, tokenizer=tokenizer)
    resumed = run_disturbed(tokens, tokenizer, tmp_path / "stopped", config, how)
    assert resumed["resumed_from_step"] > 0
    assert resumed["weights_sha256"] == undisturbed["weights_sha256"]
    assert resumed["val_bits_per_byte"] == undisturbed["val_bits_per_byte"]


MODES = list(itertools.product([1, 2], [False, True], ["adamw", "muon"], ["fp32", "bf16"]))
# The others take a quarter of an hour: `pytest -m exhaustive`.
TESTED_ALWAYS = {(1, False, "muon", "bf16"), (2, False, "adamw", "fp32"), (2, True, "muon", "bf16")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("threads", "compiled", "optimizer", "precision"),
    [pytest.param(*mode, marks=[] if mode in TESTED_ALWAYS else pytest.mark.exhaustive) for mode in MODES],
)
def test_resume_is_exact_in_every_mode(tokens, tokenizer, tmp_path, threads, compiled, optimizer, precision):
    changes = {"compile": compiled, "optimizer": optimizer, "precision": precision}
    config = LONGER.model_copy(update={"optimization": OPTIMIZATION.model_copy(update=changes)})
    whole = start(tokens, tokenizer, tmp_path / "whole", config, threads)
    output, errors = whole.communicate(timeout=300)
    assert whole.returncode == 0, errors
    resumed = run_disturbed(tokens, tokenizer, tmp_path / "stopped", config, signal.SIGKILL, threads)
    assert resumed["weights_sha256"] == json.loads(output.splitlines()[-1])["weights_sha256"]


def with_optimization(**changes) -> PretrainConfig:
    return CONFIG.model_copy(update={"optimization": OPTIMIZATION.model_copy(update=changes)})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (with_optimization(learning_rate=1e38, gradient_clip=0.0), "learning_rate"),
        (with_optimization(optimizer="sgd", learning_rate=3000.0, schedule="constant"), "learning_rate"),
        (with_optimization(batch_tokens=16, micro_batch_tokens=16), "batch_tokens=16"),
    ],
)
def test_hopeless_settings_end_in_one_line_that_names_them(tokens, tokenizer, tmp_path, config, message):
    with pytest.raises(UserError, match=message) as error:
        pretrain(new_build(tmp_path, "a"), config, tokens=tokens, tokenizer=tokenizer)
    assert "\n" not in str(error.value)
