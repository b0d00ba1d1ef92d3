"""On a Ray cluster of two nodes every data stage makes the very bytes that it makes on one machine."""

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from flows.config import load_config
from flows.presets import smoke
from flows.wiring import Until, UntilReached, corpus_to_model
from lm_core.runtime import Runtime
from lm_core.store import Store
from tasks.gates import gated

pytest.importorskip("prefect_ray")

SHARDS = "collect.shard_bytes=100000"


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    started.add_node(num_cpus=1)
    yield started
    started.shutdown()


def made_here(workspace: Path) -> dict[str, str]:
    """Content digests of what threads of this process make of the same configuration."""
    store, until, found = Store(Runtime(workspace=workspace, num_threads=1, num_workers=1)), Until("tokenize"), {}

    def run(stage, config, *, label=None, **inputs):
        until.check(stage)
        artifact, _ = store.build(gated(stage), config, inputs)
        found[stage.name] = artifact.content_digest
        return artifact

    with contextlib.suppress(UntilReached):
        corpus_to_model(load_config(smoke(), settings=[SHARDS]), run)
    return found


def run_on(cluster, workspace: Path) -> None:
    settings = {"MILLRACE_THREADS": "1", "MILLRACE_RUNNER": "ray", "RAY_ADDRESS": cluster.address}
    environment = {name: v for name, v in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "RAY_"))}
    command = [sys.executable, "-m", "flows.cli", "run", "--preset", "smoke", "--until", "tokenize", "--set", SHARDS]
    done = subprocess.run(
        [*command, "--workspace", str(workspace)], capture_output=True, text=True, timeout=400,
        env=environment | settings, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def digests(workspace: Path) -> dict[str, str]:
    manifests = [json.loads(path.read_text()) for path in (workspace / "artifacts").glob("*/*/manifest.json")]
    return {manifest["stage"]: manifest["content_digest"] for manifest in manifests}


def names_of_task_runs(workspace) -> list[str]:
    state = next(workspace.rglob("servers.json"))
    api = json.loads(state.read_text())["prefect"]["address"] + "/api"
    body = json.dumps({"limit": 200}).encode()
    request = urllib.request.Request(f"{api}/task_runs/filter", body, {"Content-Type": "application/json"})
    return [task_run["name"] for task_run in json.load(urllib.request.urlopen(request, timeout=10))]


@pytest.mark.exhaustive
@pytest.mark.server
def test_artifacts_made_on_ray_are_those_made_on_one_machine(tmp_path, cluster):
    workspace = tmp_path / "ray"
    try:
        run_on(cluster, workspace)
        names = names_of_task_runs(workspace)
    finally:
        subprocess.run([sys.executable, "-m", "flows.cli", "down", "--workspace", str(workspace)], check=False)
    assert digests(workspace) == made_here(tmp_path / "here")
    for stage in ("clean", "deduplicate", "decontaminate", "tokenize"):
        assert f"{stage} part 2" in names, names
