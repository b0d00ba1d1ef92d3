"""One finished smoke run, with real Prefect and MLflow servers, that all end-to-end tests look at."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Two test processes share the cores: two threads each would wait for each other.
THREADS = {"MILLRACE_THREADS": "1"}


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.stdout.strip().splitlines()[-1])


@dataclass(frozen=True)
class Millrace:
    """The command line, on one workspace."""

    workspace: Path

    def __call__(self, *arguments: str, timeout: float = 240, **settings: str) -> Finished:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PREFECT_", "MLFLOW_", "MILLRACE_")) or name == "MLFLOW_DISABLE_TELEMETRY"
        }
        command = [sys.executable, "-m", "flows.cli", *arguments, "--workspace", str(self.workspace)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=environment | THREADS | settings, check=False
        )
        return Finished(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def millrace(tmp_path_factory: pytest.TempPathFactory) -> Any:
    program = Millrace(tmp_path_factory.mktemp("end_to_end") / "workspace")
    yield program
    program("down")


@pytest.fixture(scope="session")
def first_run(millrace: Millrace) -> Finished:
    done = millrace("run", "--preset", "smoke", "--json")
    assert done.code == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="session")
def smoke_run(first_run: Finished) -> dict[str, Any]:
    return first_run.json
