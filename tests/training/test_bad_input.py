"""What cannot be trained on, or gone on with, is refused in one line that names the field or the file."""

import json
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest

from flows.wiring import Until
from lm_core.artifact import TokenDataset, Tokenizer
from lm_core.errors import IntegrityError, MachineError, Preempted, UserError
from lm_core.model.build import build_model
from lm_core.runtime import Runtime
from lm_core.tokenizer import train_tokenizer
from lm_core.training.config import ModelConfig, TokenizerConfig
from lm_core.training.loop import train
from lm_core.training.pretrain import pretrain
from tests.end_to_end.conftest import Millrace
from tests.training.corpus_files import new_build
from tests.training.interrupted import CONFIG
from tests.training.tiny_runs import MODEL, batch_at, config, fit


def refused(error, match, run) -> None:
    with pytest.raises(error, match=match) as caught:
        run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("vocab_size", [420, 400])
def test_another_tokenizer(corpus, tokens, tokenizer, tmp_path, vocab_size):
    build = new_build(tmp_path, "artifacts/train_tokenizer")
    train_tokenizer(build, TokenizerConfig(vocab_size=vocab_size, normalisation="nfkc"), corpus=corpus)
    other = Tokenizer(build.folder, "train_tokenizer", "o", "3" * 64)
    home = tmp_path / "artifacts/train_tokenizer/t"
    shutil.copytree(tokenizer.folder, home)
    made = replace(tokens, folder=tmp_path / "artifacts/tokenize/k", inputs={"tokenizer": "train_tokenizer/t"})
    shutil.copytree(tokens.folder, made.folder)
    run = new_build(tmp_path, "run")
    refused(UserError, "tokenize again", lambda: pretrain(run, CONFIG, tokens=made, tokenizer=other))
    assert not list(run.folder.iterdir())


@pytest.fixture
def own_tokens(tokens, tmp_path):
    shutil.copytree(tokens.folder, tmp_path / "tokens")
    return TokenDataset(tmp_path / "tokens", "tokenize", "k", "2" * 64)


def test_a_truncated_shard(own_tokens, tokenizer, tmp_path):
    shard = own_tokens.folder / "train-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    run = new_build(tmp_path, "run")
    refused(IntegrityError, r"train-00000\.bin", lambda: pretrain(run, CONFIG, tokens=own_tokens, tokenizer=tokenizer))


def test_ids_beyond_the_embedding(own_tokens, tokenizer, tmp_path):
    shard = own_tokens.folder / "train-00000.bin"
    ids = np.fromfile(shard, "<u2")
    ids[17] = 400
    ids.tofile(shard)
    run = new_build(tmp_path, "run")
    refused(
        IntegrityError,
        r"train-00000\.bin holds the id 400.*vocabulary of 400",
        lambda: pretrain(run, CONFIG, tokens=own_tokens, tokenizer=tokenizer),
    )


def test_a_device_that_is_not_there(tokens, tokenizer, tmp_path):
    run = new_build(tmp_path, "run")
    elsewhere = Runtime(workspace=tmp_path, device="cuda:7", num_threads=1)
    run = replace(run, runtime=elsewhere)
    refused(MachineError, "cuda:7 is not there", lambda: pretrain(run, CONFIG, tokens=tokens, tokenizer=tokenizer))
    for until in (None, "pretrain", "evaluate"):
        refused(MachineError, "cuda:7 is not there", lambda until=until: Until(until).check_devices(elsewhere))
    Until("tokenize").check_devices(elsewhere)  # no stage up to there asks for one
    for device in ("auto", "cpu"):
        Until().check_devices(Runtime(workspace=tmp_path, device=device))
    for device in ("mps", "gpu", "cuda:", "cuda:-1", ""):
        refused(UserError, rf"device={device} \(MILLRACE_DEVICE\)", lambda device=device: Runtime(device=device))


def test_it_is_said_before_any_stage_or_server_starts(tmp_path):
    millrace = Millrace(tmp_path / "workspace")
    missing = millrace("run", "--preset", "smoke", MILLRACE_DEVICE="cuda:7")
    assert (missing.code, missing.stderr.count("\n")) == (MachineError.exit_code, 1)
    assert "cuda:7 is not there" in missing.stderr
    wrong = millrace("plan", "--preset", "smoke", MILLRACE_DEVICE="nonsense")
    assert (wrong.code, wrong.stderr.count("\n")) == (UserError.exit_code, 1)
    assert "device=nonsense" in wrong.stderr
    assert not list((tmp_path / "workspace").glob("artifacts/*"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("MILLRACE_THREADS", "two"), ("MILLRACE_PROCESSES", "many"), ("MILLRACE_STRATEGY", "zero"),
     ("MILLRACE_STRATEGY", "fsdp"), ("MILLRACE_PROCESSES", "0"), ("MILLRACE_WATTS", "-3"),
     ("MILLRACE_THREADS", "0.5"), ("MILLRACE_PROCESSES", "2.7"), ("MILLRACE_SIDE_BY_SIDE", "1.5"),
     ("MILLRACE_PROCESSES", "65"), ("MILLRACE_DEVICE", "nonsense")],
)  # fmt: skip
def test_a_setting_of_the_environment(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    refused(UserError, f"(?i){name.removeprefix('MILLRACE_')}.*{value}|{value}.*{name}", Runtime)


@pytest.fixture
def stopped(tmp_path):
    """A build whose work folder holds a checkpoint of step 20."""

    def evaluate(model):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"val_loss": 1.0}

    with pytest.raises(Preempted):
        fit(tmp_path, "stopped", evaluate=evaluate, num_evaluations=2)
    return new_build(tmp_path, "stopped")


def test_a_checkpoint_of_another_architecture(stopped):
    changes = {"d_model": 48}, {"num_layers": 1}, {"tie_embeddings": False}
    for change, tensor in zip(changes, ("embed_tokens.weight", "layers.1.", "lm_head.weight"), strict=True):
        other = ModelConfig(**MODEL.model_dump() | change)
        model = build_model(other, vocab_size=40, context_length=16, seed=0)
        refused(
            UserError,
            f"another architecture: tensor {tensor}",
            lambda model=model: train(model, batch_at, config(), num_steps=40, build=stopped),
        )


def test_a_checkpoint_of_another_determinism_key(stopped):
    model = build_model(MODEL, vocab_size=40, context_length=16, seed=0)
    for settings, match in (
        (config(precision="bf16"), "precision=fp32, this run has precision=bf16"),
        (config(seed=1), "seed=0, this run has seed=1"),
    ):
        refused(
            UserError,
            match,
            lambda settings=settings: train(model, batch_at, settings, num_steps=40, build=stopped),
        )
    state = next(stopped.work.glob("checkpoint-*")) / "state.json"
    content = json.loads(state.read_text())
    content["determinism"]["processor"] = "a machine of another kind"
    state.write_text(json.dumps(content))
    refused(
        UserError, "processor=a machine of another kind", lambda: train(
            model, batch_at, config(), num_steps=40, build=stopped
        )
    )  # fmt: skip


def test_a_checkpoint_of_another_release(stopped):
    state = next(stopped.work.glob("checkpoint-*")) / "state.json"
    content = json.loads(state.read_text())

    def go_on():
        state.write_text(json.dumps(content))
        model = build_model(MODEL, vocab_size=40, context_length=16, seed=0)
        return train(model, batch_at, config(), num_steps=40, build=stopped)

    content["figures"]["of_the_future"] = 1
    refused(UserError, "state.json.*figures.of_the_future", go_on)
    del content["figures"]["of_the_future"], content["figures"]["num_averaged"], content["figures"]["worlds"]
    assert go_on()["resumed_from_step"] == 20
