"""On a Ray cluster of two nodes every data stage makes the very bytes that it makes on one machine."""

import json
import os
import subprocess
import sys
import urllib.request

import pytest

pytest.importorskip("prefect_ray")

STAGES = ("collect", "clean", "deduplicate", "prepare", "hold_out", "decontaminate", "tokenize")
SETTINGS = ("--preset", "smoke", "--until", "tokenize", "--set", "collect.shard_bytes=100000", "--json")


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    started.add_node(num_cpus=1)
    yield started
    started.shutdown()


def run(workspace, *arguments: str, **settings: str) -> dict:
    environment = {name: v for name, v in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "RAY_"))}
    command = [sys.executable, "-m", "flows.cli", "run", *SETTINGS, "--workspace", str(workspace), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment | {"MILLRACE_THREADS": "1"} | settings
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def stop(workspace) -> None:
    subprocess.run([sys.executable, "-m", "flows.cli", "down", "--workspace", str(workspace)], capture_output=True)


def digests(workspace) -> dict[str, str]:
    manifests = [next((workspace / "artifacts" / stage).glob("*/manifest.json")) for stage in STAGES]
    return {
        stage: json.loads(path.read_text())["content_digest"] for stage, path in zip(STAGES, manifests, strict=True)
    }


def names_of_task_runs(workspace) -> list[str]:
    state = next(workspace.rglob("servers.json"))
    api = json.loads(state.read_text())["prefect"]["address"] + "/api"
    body = json.dumps({"limit": 200}).encode()
    request = urllib.request.Request(f"{api}/task_runs/filter", body, {"Content-Type": "application/json"})
    return [task_run["name"] for task_run in json.load(urllib.request.urlopen(request, timeout=10))]


@pytest.mark.slow
@pytest.mark.server
def test_artifacts_made_on_ray_are_those_made_on_one_machine(tmp_path, cluster):
    local, distributed = tmp_path / "local", tmp_path / "ray"
    try:
        run(local)
        run(distributed, "--runner", "ray", RAY_ADDRESS=cluster.address)
        assert digests(distributed) == digests(local)
        names = names_of_task_runs(distributed)
    finally:
        stop(local)
        stop(distributed)
    for stage in ("clean", "deduplicate", "decontaminate", "tokenize"):
        assert f"{stage} part 2" in names, names
