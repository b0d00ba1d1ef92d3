"""`millrace up`: the local stack in the foreground: both servers, the deployments, a worker that runs what is due."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tasks import servers
from tasks.servers import Server

WORK_POOL = "millrace"
POLL_SECONDS = 0.5


def stay_up(workspace: Path, found: Mapping[str, Server], say: Callable[[str], None]) -> dict[str, Any]:
    """Serve until Ctrl-C or SIGTERM, then stop everything that was started."""
    servers.wait(found["mlflow"], workspace)
    stopping = False

    def stop(*_: Any) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    with open(workspace / "logs" / "worker.log", "ab") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", WORK_POOL, "--type", "process"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {"MILLRACE_WORKSPACE": str(workspace)},
            start_new_session=True,
        )
    for server in found.values():
        say(f"{server.service:<8} {server.address}")
    say(f"worker   pool {WORK_POOL}, log {workspace / 'logs' / 'worker.log'}")
    say("Ctrl-C stops all of them.")
    try:
        while not stopping and worker.poll() is None:
            time.sleep(POLL_SECONDS)
    finally:
        if worker.poll() is None:
            worker.send_signal(signal.SIGINT)
            try:
                worker.wait(timeout=15)
            except subprocess.TimeoutExpired:
                worker.kill()
        stopped = servers.stop(workspace)
    say("stopped " + ", ".join([*stopped, "worker"]))
    return {"stopped": [*stopped, "worker"]}
