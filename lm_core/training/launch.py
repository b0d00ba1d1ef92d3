"""Training with several processes: torchrun as a child of the stage, and what each of its processes does.

    stage (the task's process)  ->  torchrun  ->  rank 0, rank 1, ...    each runs the stage's function, in one world

Rank 0 writes the artifact's files and tells its progress on stdout. A process that dies is replaced by torchrun, all
ranks then resume from the last checkpoint. What ends the run for good (a result, an error a user can act on, a stop
on request) is written to `outcome.json`, which a replaced process looks at first. All of them die with their parent.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import BaseModel
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from lm_core import artifact, errors
from lm_core.artifact import Artifact
from lm_core.errors import MachineError, MillraceError, Preempted, UserError
from lm_core.model.weights import resolve_device
from lm_core.runtime import Rank, Runtime, Tariff
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
                _relay(line, build)
            child.wait()
    if not outcome.exists():
        if stopped.is_set():
            raise Preempted("stopped before the first step; the same command goes on from the last checkpoint")
        last = next((text for text in reversed((build.work / LOG).read_text().splitlines()) if "Error" in text), "")
        raise MachineError(
            f"the processes of the training died {MAX_RESTARTS + 1} times without a result ({last.strip()[:200]}); "
            f"see {build.work / LOG}; the same command resumes from the last checkpoint"
        )
    content = json.loads(outcome.read_text())
    if "error" in content:
        kind: type[MillraceError] = getattr(errors, content["error"])
        raise kind(content["message"])
    return dict(content["result"])


def _order(function: str, build: Build, config: BaseModel, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    runtime = build.runtime
    device = resolve_device(runtime.device).type
    if device == "cuda" and torch.cuda.device_count() < runtime.num_processes:
        raise MachineError(
            f"{runtime.num_processes} processes need a GPU each, this machine has {torch.cuda.device_count()}"
        )
    if runtime.num_processes > 64:
        raise UserError(f"--processes {runtime.num_processes} is more than the 64 that one machine is given")
    threads = max(1, runtime.num_threads // runtime.num_processes)
    return {
        "function": function,
        "config": [type(config).__module__, type(config).__name__, config.model_dump(mode="json")],
        "inputs": {name: [type(item).__name__, _as_json(item)] for name, item in inputs.items()},
        "folder": str(build.folder),
        "work": str(build.work),
        "runtime": asdict(replace(runtime, device=device, num_threads=threads)) | {"workspace": str(runtime.workspace)},
    }


def _as_json(item: Artifact) -> dict[str, Any]:
    values = asdict(item)
    return values | {"folder": str(item.folder)}


def _relay(line: str, build: Build) -> None:
    """Hand on a line of progress; whatever else a library writes to stdout is left out."""
    try:
        event = json.loads(line)
        arguments, figures = event["progress"], event["figures"]
    except (ValueError, KeyError, TypeError):
        return
    build.progress(*arguments, **figures)


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
    runtime = _runtime(order["runtime"], place)
    _join(place, "nccl" if runtime.device.startswith("cuda") else "gloo")
    rank = place.rank
    folder = Path(order["folder"]) if rank == 0 else work / f"rank-{rank}"
    folder.mkdir(exist_ok=True)
    build = Build(folder, work, runtime, _say if rank == 0 else silent)
    module, name, values = order["config"]
    config = getattr(importlib.import_module(module), name).model_validate(values)
    inputs = {name: _artifact(kind, values) for name, (kind, values) in order["inputs"].items()}
    module, _, name = order["function"].partition(":")
    try:
        content = {"result": getattr(importlib.import_module(module), name)(build, config, **inputs)}
    except MillraceError as error:
        content = {"error": type(error).__name__, "message": str(error)}
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


def _runtime(values: Mapping[str, Any], place: Rank) -> Runtime:
    device = values["device"]
    if device == "cuda":
        device = f"cuda:{place.local_rank}"
        torch.cuda.set_device(device)
    tariff = Tariff(**values["tariff"])
    return Runtime(**{**values, "workspace": Path(values["workspace"]), "device": device, "tariff": tariff})


def _artifact(kind: str, values: Mapping[str, Any]) -> Artifact:
    made: Artifact = getattr(artifact, kind)(**{**values, "folder": Path(values["folder"])})
    return made


def _say(done: float, total: float | None, unit: str, **figures: float) -> None:
    sys.stdout.write(json.dumps({"progress": [done, total, unit], "figures": figures}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
