"""The main job, whole: raw text to a promoted model, with real servers; then everything a user does with it."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from flows.presets import smoke
from tests.end_to_end.conftest import THREADS, Millrace

pytestmark = pytest.mark.server
FATES = {"kept", "quality", "exact_duplicate", "near_duplicate", "contaminated", "quarantined", "removed"}


def test_card_is_complete(smoke_run):
    assert smoke_run["model"] == "millrace-smoke"
    assert smoke_run["version"] == "1"
    assert smoke_run["alias"] == "champion"
    assert len(smoke_run["weights_sha256"]) == 64
    assert {stage["state"] for stage in smoke_run["stages"]} == {"Completed"}
    assert [stage["name"] for stage in smoke_run["stages"]][:3] == ["collect", "clean", "deduplicate"]
    assert smoke_run["peak_rss_mb"] < 4000


def test_stdout_is_one_json_object_and_nothing_else(first_run):
    assert len(first_run.stdout.splitlines()) == 1
    assert "pretrain" in first_run.stderr


def test_every_document_has_one_fate(smoke_run):
    corpus = smoke_run["corpus"]
    assert set(corpus["fates"]) == FATES
    assert sum(corpus["fates"].values()) == corpus["collected"]
    assert corpus["fates"]["kept"] == corpus["kept"] > 0
    for counts in corpus["by_source"].values():
        assert sum(counts["fates"].values()) == counts["collected"]
    assert sum(counts["collected"] for counts in corpus["by_source"].values()) == corpus["collected"]


def test_scores_stand_beside_baselines(smoke_run):
    pretrain = smoke_run["pretrain"]
    assert 0 < pretrain["val_bits_per_byte"] < 8
    assert pretrain["val_bits_per_byte"] < pretrain["baseline_bits_per_byte"]["random_weights"]
    assert smoke_run["downstream"]
    for scores in smoke_run["downstream"].values():
        assert scores["low"] <= scores["score"] <= scores["high"]
        assert "random_weights" in scores["baselines"]
        assert all(math.isfinite(value) for value in scores["baselines"].values())


def test_second_run_is_cached(millrace, smoke_run):
    again = millrace("run", "--preset", "smoke", "--json").json
    assert {stage["state"] for stage in again["stages"]} == {"Cached"}
    assert again["weights_sha256"] == smoke_run["weights_sha256"]
    assert (again["version"], again["alias"]) == (smoke_run["version"], "champion")


def test_plan_names_what_runs_and_why(millrace, smoke_run):
    change = ["--preset", "smoke", "--set", "pretrain.train_tokens=30720", "--until", "pretrain", "--json"]
    plan = millrace("plan", *change).json["stages"]
    assert [stage["name"] for stage in plan if stage["state"] == "run"] == ["pretrain"]
    assert "train_tokens: 40960 -> 30720" in plan[-1]["why"]
    run = millrace("run", *change).json["stages"]
    assert [stage["name"] for stage in run if stage["state"] == "Completed"] == ["pretrain"]


def test_registry_commands(millrace, smoke_run):
    models = millrace("models", "--json").json["models"]
    ours = next(row for row in models if row["model"] == "millrace-smoke" and row["version"] == "1")
    assert set(ours["aliases"]) == {"champion", "challenger"}
    nothing = millrace("rollback", "--model", "millrace-smoke")
    assert nothing.code == 2
    assert "no previous champion" in nothing.stderr


def test_a_second_version_is_judged_promoted_and_rolled_back(millrace, smoke_run):
    change = ("--set", "pretrain.optimization.seed=1", "--set", "registry.promote=false")
    second = millrace("run", "--preset", "smoke", "--json", *change).json
    assert (second["version"], second["alias"]) == ("2", "challenger")
    assert millrace("promote", "--model", "millrace-smoke", "--version", "2", "--json").json["version"] == "2"
    assert millrace("rollback", "--model", "millrace-smoke", "--json").json["version"] == "1"


def test_generate_and_chat(millrace, smoke_run):
    done = millrace("generate", "Return the", "--model", "millrace-smoke", "--max-new-tokens", "12", "--json")
    assert done.code == 0, done.stderr
    assert isinstance(done.json["text"], str)
    again = millrace("generate", "Return the", "--model", "millrace-smoke", "--max-new-tokens", "12", "--json")
    assert done.json["text"] == again.json["text"]
    chat = millrace("chat", "--once", "What is an array?", "--model", "millrace-smoke", "--json")
    assert chat.json["turns"][0]["user"] == "What is an array?"


def test_explain_and_funnel(millrace, smoke_run):
    funnel = millrace("funnel", "--json").json
    assert funnel["collected"] == smoke_run["corpus"]["collected"]
    unknown = millrace("explain", "0" * 32)
    assert unknown.code == 2
    assert len(unknown.stderr.strip().splitlines()) == 1


def test_export_has_the_stock_layout(millrace, smoke_run, tmp_path):
    done = millrace("export", "millrace-smoke", str(tmp_path / "hf"), "--to", "hf", "--json")
    assert done.code == 0, done.stderr
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert {path.name for path in (tmp_path / "hf").iterdir()} >= {"model.safetensors", "tokenizer.json"}


TICKETS = """
[[task]]
name = "tickets"
kind = "label"
files = { all = "tickets.jsonl" }
prompt = "{text}"
target = "{queue}"
metric = "accuracy"
baselines = ["majority"]
"""


@pytest.mark.slow
@pytest.mark.exhaustive
def test_an_export_is_imported_scores_the_same_and_is_fine_tuned(millrace, smoke_run, tmp_path):
    assert millrace("export", "millrace-smoke", str(tmp_path / "hf")).code == 0
    imported = millrace("import", str(tmp_path / "hf"), "--name", "brought-in", "--json")
    assert imported.code == 0, imported.stderr
    assert imported.json["weights_sha256"] == smoke_run["weights_sha256"]
    assert millrace("import", str(tmp_path / "hf"), "--name", "brought-in", "--json").json["version"] == "1"
    scores = [
        millrace("score", name, "--text", "Return the array", "--json").json
        for name in ("millrace-smoke", "brought-in")
    ]
    assert scores[0] == scores[1]
    assert set(scores[0]) == {"ids", "logprobs"}
    assert len(scores[0]["logprobs"]) == len(scores[0]["ids"]) - 1
    rows = [
        {"text": f"the {'bill' if i % 2 else 'mill'} {i}", "queue": ("repair", "billing")[i % 2]} for i in range(120)
    ]
    (tmp_path / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.toml").write_text(TICKETS)
    own = ("--tasks-file", str(tmp_path / "own.toml"), "--data", str(tmp_path), "--size", "smoke")
    tuned = millrace("finetune", "tickets", "--base", "brought-in", *own, "--json")
    assert tuned.code == 0, tuned.stderr
    assert tuned.json["downstream"]["tickets"]["items"] > 0


def test_a_folder_that_does_not_fit_is_refused_in_one_line(millrace, smoke_run, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    done = millrace("import", str(tmp_path), "--name", "brought-in")
    assert done.code == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "pickle" in done.stderr


@pytest.mark.exhaustive
@pytest.mark.parametrize("algorithm", ["unigram", "wordpiece"])
def test_the_other_tokenizers_go_the_whole_way_to_a_model(millrace, smoke_run, algorithm):
    settings = ("--set", f"train_tokenizer.algorithm={algorithm}", "--until", "pretrain", "--json")
    done = millrace("run", "--preset", "smoke", *settings)
    assert done.code == 0, done.stderr[-2000:]
    ran = [stage["name"] for stage in done.json["stages"] if stage["state"] == "Completed"]
    assert ran == ["train_tokenizer", "tokenize", "pretrain"]


def test_mlflow_holds_parent_children_and_curves(millrace, smoke_run):
    address = json.loads((millrace.workspace / "servers.json").read_text())["mlflow"]["address"]
    runs = _post(f"{address}/api/2.0/mlflow/runs/search", {"experiment_ids": ["1"], "max_results": 500})["runs"]
    tags = [{tag["key"]: tag["value"] for tag in run["data"].get("tags", [])} for run in runs]
    parents = {run["info"]["run_id"] for run, own in zip(runs, tags, strict=True) if "mlflow.parentRunId" not in own}
    pretrain = next(
        run for run, own in zip(runs, tags, strict=True) if own.get("millrace.stage") == "pretrain"
    )  # fmt: skip
    own = {tag["key"]: tag["value"] for tag in pretrain["data"]["tags"]}
    assert own["mlflow.parentRunId"] in parents
    assert {"train_loss", "val_bits_per_byte"} <= {metric["key"] for metric in pretrain["data"]["metrics"]}
    history = json.load(
        urllib.request.urlopen(
            f"{address}/api/2.0/mlflow/metrics/get-history?run_id={pretrain['info']['run_id']}&metric_key=train_loss"
        )
    )["metrics"]
    assert len({point["step"] for point in history}) > 3
    assert pretrain["inputs"]["dataset_inputs"]


def test_no_pickle_in_the_registered_model(millrace, smoke_run):
    files = [path.name for path in (millrace.workspace / "mlflow").rglob("*") if path.is_file()]
    assert "model.safetensors" in files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".bin"))]


def test_a_schedule_makes_scheduled_runs(millrace, smoke_run):
    done = millrace("schedule", "* * * * *", "--preset", "smoke", "--name", "every-minute", "--json")
    assert done.code == 0, done.stderr
    address = json.loads((millrace.workspace / "servers.json").read_text())["prefect"]["address"]
    wanted = {"deployments": {"id": {"any_": [done.json["id"]]}}, "limit": 5}
    deadline = time.monotonic() + 100
    runs = []
    while not runs and time.monotonic() < deadline:
        runs = _post(f"{address}/api/flow_runs/filter", wanted)
        time.sleep(1)
    assert runs
    assert {run["state_type"] for run in runs} <= {"SCHEDULED", "PENDING", "LATE"}


def test_bad_schedule_is_one_line(millrace, smoke_run):
    done = millrace("schedule", "every night", "--preset", "smoke")
    assert done.code == 2
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_killed_in_pretraining_resumes_to_the_same_weights(millrace: Millrace, smoke_run):
    settings = ["--preset", "smoke", "--until", "pretrain", "--set", "pretrain.train_tokens=122880", "--json"]
    settings += ["--set", "pretrain.optimization.checkpoint_seconds=0.3"]
    before = set(millrace.workspace.glob("artifacts/pretrain/*"))
    undisturbed = millrace("run", *settings).json["weights_sha256"]
    (made,) = set(millrace.workspace.glob("artifacts/pretrain/*")) - before
    shutil.rmtree(made)
    command = [sys.executable, "-m", "flows.cli", "run", *settings, "--workspace", str(millrace.workspace)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | THREADS)
    deadline = time.monotonic() + 200
    # A published checkpoint: a kill while the first one is still staged would rightly start over.
    while not list(millrace.workspace.glob("work/pretrain/*/checkpoint-*/state.json")) and time.monotonic() < deadline:
        assert process.poll() is None, "it finished before it could be killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not made.exists()
    assert millrace("run", *settings).json["weights_sha256"] == undisturbed
    assert json.loads((made / "manifest.json").read_text())["statistics"]["resumed_from_step"] > 0


def test_up_runs_what_is_started_in_prefect_and_stops_cleanly(millrace: Millrace, smoke_run):
    """Last of this file: it stops the servers that the others share."""
    command = [sys.executable, "-m", "flows.cli", "up", "--workspace", str(millrace.workspace)]
    up = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | THREADS
    )
    try:
        assert up.stdout is not None
        shown = ""
        while "Ctrl-C" not in shown:
            line = up.stdout.readline()
            assert line, shown
            shown += line
        address = json.loads((millrace.workspace / "servers.json").read_text())["prefect"]["address"]
        assert address in shown
        names = {automation["name"] for automation in _post(f"{address}/api/automations/filter", {})}
        assert "runs without a heartbeat are crashed" in names
        wanted = {"deployments": {"name": {"any_": ["by-hand"]}}}
        deployments = {item["entrypoint"]: item for item in _post(f"{address}/api/deployments/filter", wanted)}
        assert {"flows.pipeline.run_corpus", "flows.pipeline.run_promote"} < set(deployments)
        corpus = deployments["flows.pipeline.run_corpus"]
        parameters = {"config": smoke().model_dump(mode="json")}
        run = _post(f"{address}/api/deployments/{corpus['id']}/create_flow_run", {"parameters": parameters})
        deadline = time.monotonic() + 120
        while run["state"]["type"] not in ("COMPLETED", "FAILED", "CRASHED") and time.monotonic() < deadline:
            time.sleep(0.5)
            run = _ask(f"{address}/api/flow_runs/{run['id']}")
        assert run["state"]["type"] == "COMPLETED", run["state"]
    finally:
        up.send_signal(signal.SIGINT)
        rest = up.communicate(timeout=60)[0]
    assert up.returncode == 0, rest
    assert "stopped" in rest
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{address}/api/health", timeout=5)


def _post(url, body):
    return _ask(urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"}))


def _ask(request, patience_s=60):
    """The answer; like Prefect's own client, asks again while the server is too busy to give one (503)."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > deadline:
                raise
        time.sleep(1)
