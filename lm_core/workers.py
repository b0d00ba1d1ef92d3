"""Stages side by side: each computes in a process of its own, with its share of the threads.

    a thread for each stage  ->  Workers  ->  process, process, ...    each carries out one order at a time

Two processes with one thread each use two cores fully where one with two threads gains a half. What is decided here
is where a stage computes, never what: the process that asks keeps the lock, publishes, and answers for errors. Orders
and progress are lines of JSON on the worker's stdin and stdout; it ends with its stdin, so it outlives nobody.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lm_core.artifact import Artifact
from lm_core.errors import MachineError, Preempted
from lm_core.orders import Order, carry_out, defect, order_of, progress_to, relay, result_of, runtime_of, say
from lm_core.runtime import Runtime, environment_for
from lm_core.store import Build, Progress

SECONDS_BETWEEN_PROGRESS = 0.2
STOPPED = "stopped on request; the same command goes on from here"
# Loaded while the first order is on its way: what nearly every stage that runs side by side needs.
PRELOADED = ("torch", "lm_core.downstream.finetune")


class Worker:
    """One process that carries out orders; started with its first one."""

    def __init__(self, runtime: Runtime, log: Path) -> None:
        self.runtime = runtime
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self._busy = False
        self._stopped = False

    def start(self) -> subprocess.Popen[str]:
        """The running process."""
        if self._process is None or self._process.poll() is not None:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with open(self._log, "a") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", __name__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=environment_for(self.runtime),
                )
        return self._process

    def carry_out(self, function: str, build: Build, config: BaseModel, **inputs: Artifact) -> Mapping[str, Any]:
        """Call a stage's function, "module:name", in the process; returns its statistics.

        Raises:
            Preempted: it was asked to stop.
            MachineError: the process died.
            MillraceError: whatever the function raises.
        """
        if self._stopped:
            raise Preempted(STOPPED)
        process = self.start()
        assert process.stdin is not None and process.stdout is not None
        self._busy = True
        try:
            say(process.stdin, order_of(function, build, config, inputs, self.runtime))
            for line in process.stdout:
                if (answer := relay(line, build.progress)) is not None:
                    return result_of(answer)
        except BrokenPipeError:
            pass  # it is gone; its end says why
        finally:
            self._busy = False
        ended = process.wait()
        if self._stopped or ended == -signal.SIGTERM:
            raise Preempted(STOPPED)
        why = f"signal {-ended}; out of memory?" if ended < 0 else f"exit {ended}"
        raise MachineError(f"the process of {build.work.parent.name} died ({why}); {self._log} holds its last words")

    def stop(self) -> None:
        """Ask it to end; what trains saves a checkpoint first."""
        self._stopped = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """End it at once."""
        self._stopped = True
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None and not self._busy:
                    stream.close()


class Workers:
    """The workers of a run; as many as `Runtime.num_side_by_side` says, each with its share of the threads."""

    def __init__(self, runtime: Runtime) -> None:
        number = runtime.num_side_by_side
        share = replace(runtime, num_threads=max(1, runtime.num_threads // number), num_side_by_side=1)
        logs = runtime.workspace / "logs"
        self._all = [Worker(share, logs / f"worker-{place + 1}.log") for place in range(number)]
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._all:
            self._free.put(worker)

    @contextmanager
    def one(self) -> Iterator[Worker]:
        """A worker that nobody else uses meanwhile; waits for it."""
        worker = self._free.get()
        try:
            yield worker
        finally:
            self._free.put(worker)

    def start(self) -> None:
        """Start all processes, so that each loads its packages beside the others."""
        for worker in self._all:
            worker.start()

    def stop(self) -> None:
        """Ask all to end; whoever waits for one is told so."""
        for worker in self._all:
            worker.stop()

    def end(self) -> None:
        """End all at once."""
        for worker in self._all:
            worker.end()


# ------------------------------------------------------------------------------------------------ in the process


def main() -> None:
    """Carry out the orders on stdin, one after the other, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the one that asks, and it ends us
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints
    orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    for module in PRELOADED:
        importlib.import_module(module)
    while True:
        order = orders.get()
        build = Build(Path(order["folder"]), Path(order["work"]), runtime_of(order), _sparing(progress_to(answers)))
        try:
            answer = carry_out(order, build)
        except Exception:
            answer = defect()
        say(answers, answer)


def _listen(orders: queue.SimpleQueue[Order]) -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    os._exit(0)  # whoever asked is gone: nobody holds the lock of what is being made


def _sparing(progress: Progress) -> Progress:
    """Progress a few times a second: each line costs the one that asks some of its time."""
    last = 0.0

    def sparing(done: float, total: float | None, unit: str, **figures: float) -> None:
        nonlocal last
        now = time.monotonic()
        if "forecast_seconds" in figures or now - last > SECONDS_BETWEEN_PROGRESS:
            last = now
            progress(done, total, unit, **figures)

    return sparing


if __name__ == "__main__":
    main()
