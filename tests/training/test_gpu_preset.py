"""The preset gpu: what it is, and its code path at a size that a CPU can take."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from flows.presets import gpu
from lm_core.training.forecast import Workload
from lm_core.training.pretrain import pretrain
from tests.training.corpus_files import new_build

PRESET = gpu().pretrain


def test_it_is_of_the_class_of_gpt_2_small():
    work = Workload(PRESET.model, gpu().train_tokenizer.vocab_size, gpu().tokenize.context_length, PRESET.train_tokens)
    assert 100e6 < work.num_parameters < 140e6
    settings = PRESET.optimization
    assert (settings.precision, settings.compile) == ("bf16", True)
    assert settings.batch_tokens % settings.micro_batch_tokens == 0
    assert settings.micro_batch_tokens % gpu().tokenize.context_length == 0
    assert PRESET.train_tokens >= 10 * work.num_parameters


# Compiling takes half a minute on a machine that has not done it before; test_pretrain.py does it in one mode, always.
@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_its_code_path_learns_on_a_cpu(tokens, tokenizer, tmp_path, compiled):
    small = {"num_layers": 1, "d_model": 32, "num_heads": 2, "num_kv_heads": 2, "d_ff": 64}
    sizes = {"batch_tokens": 512, "micro_batch_tokens": 256, "compile": compiled}
    config = PRESET.model_copy(
        update={
            "model": PRESET.model.model_copy(update=small),
            "optimization": PRESET.optimization.model_copy(update=sizes),
            "train_tokens": 512 * 30,
            "validation_tokens": 640,
            "num_evaluations": 2,
        }
    )
    statistics = pretrain(new_build(tmp_path, "a"), config, tokens=tokens, tokenizer=tokenizer)
    assert statistics["num_steps"] == 30
    assert statistics["val_loss"] < 5.9  # log(400) = 5.99 is where an untrained model stands


@pytest.mark.slow
def test_the_benchmark_that_waits_for_a_gpu_is_ready_to_run():
    options = "--tiny --device cpu --eager --steps 1 --micro-batch-tokens 256 --micro-batches 1 --muon --documents 32"
    command = [sys.executable, "-m", "tests.benchmarks.gpu_training", *options.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    found = json.loads(done.stdout.splitlines()[-1])
    systems = {"ours", "ours_muon", "ours_muon_in_parts", "ours_within_documents"}
    assert found["loss"].keys() == found["tokens_per_second"].keys() == found["mfu"].keys() == systems
    assert all(loss == pytest.approx(math.log(512), abs=0.5) for loss in found["loss"].values())
    assert all(rate > 0 for rate in found["tokens_per_second"].values())
    assert found["ratio"].keys() == systems - {"ours"}
