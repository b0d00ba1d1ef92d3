"""Training with several processes: torchrun as a child of the stage, and what each of its processes does.

    stage (the task's process)  ->  torchrun  ->  rank 0, rank 1, ...    each runs the stage's function, in one world

Rank 0 writes the artifact's files and tells its progress on stdout. A process that dies is replaced by torchrun, all
ranks then resume from the last checkpoint. What ends the run for good (a result, an error a user can act on, a stop
on request) is written to `outcome.json`, which a replaced process looks at first. All of them die with their parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import BaseModel
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from lm_core.artifact import Artifact
from lm_core.errors import MachineError, Preempted
from lm_core.model.weights import resolve_device
from lm_core.orders import carry_out, order_of, progress_to, relay, result_of, runtime_of
from lm_core.runtime import Rank, Runtime
from lm_core.store import Build, silent

MAX_RESTARTS = 3
ORDER, OUTCOME, LOG = "launch.json", "outcome.json", "torchrun.log"
TIMEOUT = timedelta(minutes=10)  # longest wait of a process for another
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def wanted(runtime: Runtime) -> bool:
    """Whether several processes are asked for and this is none of them."""
    return runtime.num_processes > 1 and not dist.is_initialized()


def launch(function: str, build: Build, config: BaseModel, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """Run a stage's function, "module:name", in `build.runtime.num_processes` processes; returns its statistics.

    Raises:
        MachineError: fewer GPUs than processes; or processes died again and again.
        MillraceError: whatever the function raises.
    """
    outcome = build.work / OUTCOME
    outcome.unlink(missing_ok=True)
    order = build.work / ORDER
    order.write_text(json.dumps(_order(function, build, config, inputs)))
    command = [sys.executable, "-m", __name__, "torchrun", str(os.getpid()), str(order)]
    with open(build.work / LOG, "w") as log:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        with _forwarding_sigterm(child) as stopped:
            assert child.stdout is not None
            for line in child.stdout:
                relay(line, build.progress)
            child.wait()
    if not outcome.exists():
        if stopped.is_set():
            raise Preempted("stopped before the first step; the same command goes on from the last checkpoint")
        last = next((text for text in reversed((build.work / LOG).read_text().splitlines()) if "Error" in text), "")
        raise MachineError(
            f"the processes of the training died {MAX_RESTARTS + 1} times without a result ({last.strip()[:200]}); "
            f"see {build.work / LOG}; the same command resumes from the last checkpoint"
        )
    return result_of(json.loads(outcome.read_text()))


def device_for(runtime: Runtime) -> torch.device:
    """The device of a runtime, or the first of those that its processes will have.

    Raises:
        MachineError: it is not there, or there are fewer GPUs than processes.
    """
    device = resolve_device(runtime.device)
    if device.type == "cuda" and torch.cuda.device_count() < runtime.num_processes:
        raise MachineError(
            f"{runtime.num_processes} processes need a GPU each, this machine has {torch.cuda.device_count()}"
        )
    return device


def _order(function: str, build: Build, config: BaseModel, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    runtime = build.runtime
    device = device_for(runtime).type
    threads = max(1, runtime.num_threads // runtime.num_processes)
    return order_of(function, build, config, inputs, replace(runtime, device=device, num_threads=threads))


@contextmanager
def _forwarding_sigterm(child: subprocess.Popen[str]) -> Iterator[threading.Event]:
    """SIGTERM reaches the ranks through torchrun, which waits for their checkpoint; the event says that it came."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def forward(*_: Any) -> None:
        stopped.set()
        child.send_signal(signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, forward)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, previous)


# ------------------------------------------------------------------------------------------------ in the child


def main(mode: str, *arguments: str) -> None:
    """`torchrun PARENT ORDER` starts the ranks of an order, `rank PARENT ORDER` is one of them."""
    parent, order = arguments
    if mode == "rank":
        _die_with(os.getppid())
        _rank(json.loads(Path(order).read_text()))
        return
    _die_with(int(parent))
    from torch.distributed.run import main as torchrun

    num_processes = json.loads(Path(order).read_text())["runtime"]["num_processes"]
    settings = ["--standalone", f"--nproc-per-node={num_processes}", f"--max-restarts={MAX_RESTARTS}"]
    torchrun([*settings, "-m", "lm_core.training.launch", "rank", parent, order])


def _die_with(parent: int) -> None:
    """No process of a run outlives the one that holds its lock: the next run would train beside it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        sys.exit(1)


def _rank(order: Mapping[str, Any]) -> None:
    work = Path(order["work"])
    outcome = work / OUTCOME
    if outcome.exists():
        return
    place = Rank.of_this_process()
    runtime = _on_own_device(runtime_of(order), place)
    _join(place, "nccl" if runtime.device.startswith("cuda") else "gloo")
    rank = place.rank
    folder = Path(order["folder"]) if rank == 0 else work / f"rank-{rank}"
    folder.mkdir(exist_ok=True)
    build = Build(folder, work, runtime, progress_to(sys.stdout) if rank == 0 else silent)
    content = carry_out(order, build)
    draft = work / f"{OUTCOME}.{rank}"
    draft.write_text(json.dumps(content))
    if rank == 0 or "error" in content:
        draft.replace(outcome)
    else:
        draft.unlink()
        shutil.rmtree(folder, ignore_errors=True)
    dist.destroy_process_group()


def _join(place: Rank, backend: str) -> None:
    """Meet the others in the store that torchrun keeps; in one of its own after each restart.

    Otherwise gloo reads the addresses of processes that are gone, and waits for them.
    """
    store = TCPStore(place.address, place.port, place.size, is_master=False, timeout=TIMEOUT)
    own = PrefixStore(f"attempt-{place.attempt}", store)
    dist.init_process_group(backend, store=own, rank=place.rank, world_size=place.size, timeout=TIMEOUT)


def _on_own_device(runtime: Runtime, place: Rank) -> Runtime:
    if runtime.device != "cuda":
        return runtime
    device = f"cuda:{place.local_rank}"
    torch.cuda.set_device(device)
    return replace(runtime, device=device)


if __name__ == "__main__":
    main(*sys.argv[1:])
