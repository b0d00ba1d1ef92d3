"""SIGTERM to the command line while it pretrains with two processes: exit 143, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.end_to_end.conftest import THREADS, Millrace

pytestmark = [pytest.mark.exhaustive, pytest.mark.server]


def test_two_processes_stop_cleanly_and_go_on(millrace: Millrace, smoke_run):
    settings = ["run", "--preset", "smoke", "--until", "pretrain", "--processes", "2", "--json"]
    settings += ["--set", "pretrain.train_tokens=307200", "--set", "pretrain.optimization.checkpoint_seconds=600"]
    command = [sys.executable, "-m", "flows.cli", *settings, "--workspace", str(millrace.workspace)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | THREADS
    )
    deadline = time.monotonic() + 200
    while not any(
        "train_loss" in path.read_text() for path in millrace.workspace.glob("work/pretrain/*/journal.jsonl")
    ):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "resumes from there" in errors.strip().splitlines()[-1]
    assert list(millrace.workspace.glob("work/pretrain/*/checkpoint-*/state.json"))
    resumed = millrace(*settings)
    assert resumed.code == 0, resumed.stderr
    assert "Traceback" not in resumed.stderr
