"""Tracking: runs write a local journal, a forwarder ships it to MLflow.

Nothing that computes ever waits for MLflow. A pipeline run appends events to
`<workspace>/tracking/<run>/journal.jsonl`:

    {"op": "run",      "key": "...", "parent": "...|null", "name": "...", "time": ms, "tags": {...}}
    {"op": "params",   "key": "...", "values": {...}}
    {"op": "metrics",  "key": "...", "step": n, "time": ms, "values": {...}}
    {"op": "file",     "key": "...", "path": "...", "folder": "..."}
    {"op": "text",     "key": "...", "name": "...", "text": "..."}
    {"op": "end",      "key": "...", "status": "FINISHED|FAILED|KILLED", "time": ms}
    {"op": "tail",     "key": "...", "path": "..."}      a training journal to follow from here on

and `forward` (called by a side process during the run, before a registration, and by the next run for what was left)
sends them in order, remembering its place after each batch. Sending a batch twice changes nothing: runs are found again
by their tag `millrace.key`, and MLflow keeps one row for equal (key, step, time, value). So each event arrives exactly
once, whether MLflow is up now or later.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KEY_TAG = "millrace.key"
BATCH_METRICS = 1000
MAX_NAME = 240  # MLflow's bound is 250
POLL_SECONDS = 2.0


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return int(time.time() * 1000)


class Journal:
    """Append-only journal of one pipeline run. Opens its file lazily: a run that computes nothing leaves no trace."""

    def __init__(self, workspace: Path, name: str, tags: Mapping[str, str] | None = None) -> None:
        self.key = uuid.uuid4().hex
        self.name = name
        self.tags = dict(tags or {})
        self.folder = workspace / "tracking" / f"{time.strftime('%Y%m%dT%H%M%S')}-{self.key[:8]}"
        self._forwarder: subprocess.Popen[bytes] | None = None
        self._writing = threading.RLock()  # stages side by side write, too

    @property
    def started(self) -> bool:
        """Whether anything was written."""
        return self.folder.exists()

    def write(self, op: str, key: str, **values: Any) -> None:
        """Append one event."""
        with self._writing:
            if not self.started:
                self.folder.mkdir(parents=True)
                self._append({"op": "run", "key": self.key, "parent": None, "name": self.name, "time": now_ms(),
                              "tags": self.tags})  # fmt: skip
            self._append({"op": op, "key": key, **values})

    def _append(self, event: Mapping[str, Any]) -> None:
        with open(self.folder / "journal.jsonl", "a") as stream:
            stream.write(json.dumps(event, default=str) + "\n")

    def child(self, name: str, tags: Mapping[str, str]) -> str:
        """Begin a child run; returns its key."""
        key = uuid.uuid4().hex
        self.write("run", key, parent=self.key, name=name, time=now_ms(), tags=dict(tags))
        return key

    def metrics(self, key: str, values: Mapping[str, Any], step: int = 0) -> None:
        """Log figures; what is not a finite number is left out."""
        finite = {n: float(v) for n, v in values.items() if isinstance(v, int | float) and abs(v) < float("inf")}
        if finite:
            self.write("metrics", key, step=step, time=now_ms(), values=finite)

    def end(self, key: str, status: str) -> None:
        """Close a run."""
        self.write("end", key, status=status, time=now_ms())

    def start_forwarder(self) -> None:
        """Ship the journal from a side process for as long as this process lives."""
        with self._writing:
            self._start_forwarder()

    def _start_forwarder(self) -> None:
        if self._forwarder is None and os.environ.get("MLFLOW_TRACKING_URI"):
            log = open(self.folder / "forwarder.log", "ab")  # noqa: SIM115, the child inherits it
            self._forwarder = subprocess.Popen(
                [sys.executable, "-m", "tasks.tracking", str(self.folder), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            log.close()

    def stop_forwarder(self) -> None:
        """End the side process; it finishes the batch it is sending."""
        if self._forwarder is not None:
            self._forwarder.send_signal(signal.SIGTERM)
            try:
                self._forwarder.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self._forwarder.kill()
            self._forwarder = None


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    with open(folder / "lock", "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


class _Sender:
    """Sends the events of one journal; its state file says how far it got."""

    def __init__(self, folder: Path, experiment: str) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient()
        self.folder = folder
        self.path = folder / "sent.json"
        self.state: dict[str, Any] = {"offset": 0, "runs": {}, "tails": {}}
        if self.path.exists():
            self.state = json.loads(self.path.read_text())
        found = self.client.get_experiment_by_name(experiment)
        self.experiment = found.experiment_id if found else self.client.create_experiment(experiment)

    def save(self) -> None:
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(self.state))
        temporary.replace(self.path)

    def send_all(self) -> None:
        events, offset = _read_lines(self.folder / "journal.jsonl", self.state["offset"])
        for event, end in events:
            self.send(event)
            self.state["offset"] = end
            self.save()
        self.state["offset"] = offset
        for path in list(self.state["tails"]):
            self.send_tail(path)
        self.save()

    def send(self, event: Mapping[str, Any]) -> None:
        handler = getattr(self, f"_send_{event['op']}")
        handler(event)

    def _send_run(self, event: Mapping[str, Any]) -> None:
        filter_string = f"tags.`{KEY_TAG}` = '{event['key']}'"
        found = self.client.search_runs([self.experiment], filter_string)
        if found:
            run_id = found[0].info.run_id
        else:
            tags = event["tags"] | {KEY_TAG: event["key"]}
            if event["parent"]:
                tags["mlflow.parentRunId"] = self.state["runs"][event["parent"]]
            run = self.client.create_run(self.experiment, event["time"], tags, event["name"])
            run_id = run.info.run_id
        self.state["runs"][event["key"]] = run_id

    def _send_params(self, event: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name_for_mlflow(k), str(value)[:6000]) for k, value in event["values"].items()]
        for start in range(0, len(params), 100):
            self.client.log_batch(self.state["runs"][event["key"]], params=params[start : start + 100])

    def _send_metrics(self, event: Mapping[str, Any]) -> None:
        self._log_metrics(event["key"], [(n, v, event["time"], event["step"]) for n, v in event["values"].items()])

    def _log_metrics(self, key: str, rows: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        for start in range(0, len(rows), BATCH_METRICS):
            batch = [
                Metric(name_for_mlflow(n), v, stamp, step) for n, v, stamp, step in rows[start : start + BATCH_METRICS]
            ]
            self.client.log_batch(self.state["runs"][key], metrics=batch)

    def _send_file(self, event: Mapping[str, Any]) -> None:
        if Path(event["path"]).exists():
            self.client.log_artifact(self.state["runs"][event["key"]], event["path"], event["folder"])

    def _send_text(self, event: Mapping[str, Any]) -> None:
        self.client.log_text(self.state["runs"][event["key"]], event["text"], event["name"])

    def _send_dataset(self, event: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entry = DatasetInput(
            Dataset(
                name=event["name"],
                digest=event["digest"][:36],
                source_type="local",
                source=json.dumps({"uri": event["source"]}),
                profile=json.dumps(event["profile"]),
            ),
            [InputTag("mlflow.data.context", event["context"])],
        )
        self.client.log_inputs(self.state["runs"][event["key"]], [entry])

    def _send_end(self, event: Mapping[str, Any]) -> None:
        for path, tail in list(self.state["tails"].items()):
            if tail["key"] == event["key"]:
                self.send_tail(path)
                self.state["tails"].pop(path)
        self.client.set_terminated(self.state["runs"][event["key"]], event["status"], event["time"])

    def _send_tail(self, event: Mapping[str, Any]) -> None:
        self.state["tails"].setdefault(event["path"], {"key": event["key"], "offset": 0, "final": event.get("final")})

    def send_tail(self, path: str) -> None:
        """Ship the new lines of a training journal; once it is published, from its final place."""
        tail = self.state["tails"][path]
        place = Path(path) if Path(path).exists() or not tail["final"] else Path(tail["final"])
        events, offset = _read_lines(place, tail["offset"])
        rows = []
        for line, _ in events:
            stamp, step = int(line.get("time", 0) * 1000), int(line.get("step", 0))
            figures = {n: v for n, v in line.items() if n not in ("time", "step") and isinstance(v, int | float)}
            rows += [(n, float(v), stamp, step) for n, v in figures.items() if abs(v) < float("inf")]
        self._log_metrics(tail["key"], rows)
        tail["offset"] = offset


def name_for_mlflow(name: str) -> str:
    """A name that MLflow takes: figures and settings stand under names of files, sources and columns."""
    return re.sub(r"[^\w\-. :]", "_", name)[:MAX_NAME]


def _read_lines(path: Path, offset: int) -> tuple[list[tuple[dict[str, Any], int]], int]:
    """Complete JSON lines from an offset on, each with the offset after it, and the offset after the last."""
    if not path.exists():
        return [], offset
    events = []
    with open(path, "rb") as stream:
        stream.seek(offset)
        for line in stream:
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            events.append((json.loads(line), offset))
    return events, offset


def forward(folder: Path, experiment: str = "millrace") -> dict[str, str]:
    """Ship what a journal holds beyond what was sent; returns key -> MLflow run id.

    Raises:
        mlflow.exceptions.MlflowException: MLflow cannot be reached; nothing is lost, the next call goes on.
    """
    with _exclusive(folder):
        sender = _Sender(folder, experiment)
        sender.send_all()
        return dict(sender.state["runs"])


def unsent(workspace: Path) -> list[Path]:
    """Journals that hold events MLflow has not got yet."""
    waiting = []
    for journal in sorted((workspace / "tracking").glob("*/journal.jsonl")):
        sent = journal.parent / "sent.json"
        offset = json.loads(sent.read_text())["offset"] if sent.exists() else 0
        if offset < journal.stat().st_size:
            waiting.append(journal.parent)
    return waiting


def forward_unsent(workspace: Path) -> list[Path]:
    """Ship what is left of all journals; returns those that could not be shipped."""
    waiting = unsent(workspace)
    for place, folder in enumerate(waiting):
        try:
            forward(folder)
        except Exception:  # MLflow raises many kinds when its server is gone; the journal keeps everything
            return waiting[place:]
    return []


def _follow(folder: Path, parent_pid: int) -> None:
    """The side process: ship every few seconds until the parent is gone or asks to stop."""
    stopping = False

    def stop(*_: Any) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        last = stopping or os.getppid() != parent_pid
        try:
            forward(folder)
        except Exception as error:  # MLflow is down: the journal keeps everything until it is back
            sys.stderr.write(f"{time.ctime()}: {type(error).__name__}: {error}\n")
        if last:
            return
        deadline = time.monotonic() + POLL_SECONDS
        while time.monotonic() < deadline and not stopping:
            time.sleep(0.1)


if __name__ == "__main__":
    _follow(Path(sys.argv[1]), int(sys.argv[2]))
