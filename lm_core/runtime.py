"""Where and how a stage runs: everything that must not change its result.

`Runtime` is kept apart from configuration by construction, so that a path, a device or a worker count can never
reach a fingerprint. This is the one module of `lm_core` that reads the environment.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lm_core.errors import UserError

STRATEGIES = ("ddp", "fsdp")
RUNNERS = ("local", "ray")
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
MAX_PROCESSES = 64
# What a process takes that fine-tunes or scores a model of some million parameters, and what the run itself takes with
# its servers: more side by side only where there is room.
MEMORY_OF_A_WORKER_BYTES, MEMORY_OF_THE_RUN_BYTES, MAX_SIDE_BY_SIDE = 1_500_000_000, 2_000_000_000, 16
MIN_MEMORY_LIMIT_BYTES = 100_000_000
# One process of many must not start a thread for each CPU: OpenMP, BLAS, numba and tokenizers all would.
THREAD_SETTINGS = ("MILLRACE_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
                   "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")  # fmt: skip


def usable_cpus() -> int:
    """CPUs this process may run on (its affinity, not the machine's count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_gpu() -> bool:
    """Whether the driver of an NVIDIA GPU shows one; asked where torch must not be loaded."""
    return Path("/dev/nvidia0").exists()


def fast_precision() -> Literal["fp32", "bf16"]:
    """The arithmetic this machine is good at: bf16 on a GPU or a CPU with bf16 products, else fp32.

    Asked by presets, never by a stage: the word it returns becomes configuration, and so identity.
    """
    if has_gpu():
        return "bf16"
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "fp32"
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"


def _default_workspace() -> Path:
    return Path(os.environ.get("MILLRACE_WORKSPACE", "workspace")).absolute()


def _default_device() -> str:
    return os.environ.get("MILLRACE_DEVICE", "auto")


def _number(name: str) -> float | None:
    """A setting of the environment; None when it is not there."""
    text = os.environ.get(name)
    try:
        number = float(text) if text else None
    except ValueError:
        number = -1.0
    if number is not None and not 0 <= number < float("inf"):
        raise UserError(f"{name}={text} is not a number; unset it or give one of at least 0")
    return number


def _whole_number(name: str) -> int | None:
    number = _number(name)
    if number is not None and not number.is_integer():
        raise UserError(f"{name}={os.environ[name]} is not a whole number")
    return None if number is None else int(number)


def _default_threads() -> int:
    return _whole_number("MILLRACE_THREADS") or usable_cpus()


def _default_processes() -> int:
    number = _whole_number("MILLRACE_PROCESSES")
    return 1 if number is None else number


def usable_memory_bytes() -> int:
    """Memory that this process may use: the machine's, or less where its control group says so."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no control groups, or "max"
        return machine


def _default_memory_limit() -> int:
    number = _whole_number("MILLRACE_MEMORY_LIMIT")
    if number is not None and number < MIN_MEMORY_LIMIT_BYTES:
        raise UserError(f"MILLRACE_MEMORY_LIMIT={number:g} is too little: give at least {MIN_MEMORY_LIMIT_BYTES} bytes")
    return 1_000_000_000 if number is None else number


def _default_side_by_side() -> int:
    number = _whole_number("MILLRACE_SIDE_BY_SIDE")
    if number is not None:
        return number
    if has_gpu() or _default_processes() > 1:
        return 1  # they would wait for each other
    room = (usable_memory_bytes() - MEMORY_OF_THE_RUN_BYTES) // MEMORY_OF_A_WORKER_BYTES
    return max(1, min(_default_threads(), room, MAX_SIDE_BY_SIDE))


def _default_runner() -> str:
    return os.environ.get("MILLRACE_RUNNER", RUNNERS[0])


def _default_ray_address() -> str | None:
    return os.environ.get("RAY_ADDRESS") or None


def _default_strategy() -> str:
    return os.environ.get("MILLRACE_STRATEGY", STRATEGIES[0])


@dataclass(frozen=True)
class Tariff:
    """What running costs; None takes the assumption that `lm_core.training.forecast` states.

    Attributes:
        watts: power of one device (or of all CPU threads in use) at work.
        price_per_kwh: USD.
        price_per_hour: USD for one rented device; with it the power is the landlord's.
    """

    watts: float | None = field(default_factory=lambda: _number("MILLRACE_WATTS"))
    price_per_kwh: float | None = field(default_factory=lambda: _number("MILLRACE_PRICE_PER_KWH"))
    price_per_hour: float | None = field(default_factory=lambda: _number("MILLRACE_PRICE_PER_HOUR"))


@dataclass(frozen=True)
class Runtime:
    """Where a run takes place. Never part of an artifact's identity.

    Attributes:
        workspace: folder of all state: artifacts, work in progress, databases of the local servers, logs.
        device: "auto" (GPU when there is one), "cpu", "cuda" or "cuda:N".
        num_threads: threads for torch and DuckDB.
        num_workers: processes for parsing and cleaning.
        memory_limit_bytes: what DuckDB may use before it spills to disk, and deduplication before it uses files.
        num_processes: processes that pretrain together, one device each; of the same batch, so of the same model.
        strategy: how they share the model: "ddp" (each holds all of it) or "fsdp" (each holds a part).
        num_side_by_side: stages that do not need each other and run at the same time, each in a process of its own with
            its share of the threads; 1: one after the other.
        runner: where the parts of data stages are worked on: "local" (threads of this process) or "ray".
        ray_address: of a Ray cluster; None starts one on this machine for the time of each stage.
        tariff: prices for the estimates of energy and cost.
    """

    workspace: Path = field(default_factory=_default_workspace)
    device: str = field(default_factory=_default_device)
    num_threads: int = field(default_factory=_default_threads)
    num_workers: int = field(default_factory=_default_threads)
    memory_limit_bytes: int = field(default_factory=_default_memory_limit)
    num_processes: int = field(default_factory=_default_processes)
    strategy: str = field(default_factory=_default_strategy)
    num_side_by_side: int = field(default_factory=_default_side_by_side)
    runner: str = field(default_factory=_default_runner)
    ray_address: str | None = field(default_factory=_default_ray_address)
    tariff: Tariff = field(default_factory=Tariff)

    def __post_init__(self) -> None:
        if not DEVICE.fullmatch(self.device):
            raise UserError(
                f"device={self.device} (MILLRACE_DEVICE) is not a device to train on; use auto, cpu, cuda or cuda:N"
            )
        if self.runner not in RUNNERS:
            raise UserError(f"runner={self.runner} (MILLRACE_RUNNER) is not known; it is one of {', '.join(RUNNERS)}")
        if self.strategy not in STRATEGIES:
            raise UserError(f"strategy={self.strategy} is not known; it is one of {', '.join(STRATEGIES)}")
        if self.num_side_by_side < 1:
            raise UserError(f"num_side_by_side={self.num_side_by_side} (MILLRACE_SIDE_BY_SIDE) must be at least 1")
        if self.num_processes < 1:
            raise UserError(f"num_processes={self.num_processes} (MILLRACE_PROCESSES, --processes) must be at least 1")
        if self.num_processes > MAX_PROCESSES:
            raise UserError(
                f"num_processes={self.num_processes} (MILLRACE_PROCESSES, --processes) is more than the "
                f"{MAX_PROCESSES} that one machine is given"
            )
        if self.num_processes == 1 and self.strategy != STRATEGIES[0]:
            raise UserError(f"strategy={self.strategy} has no effect with one process; give --processes, too")

    @property
    def artifacts(self) -> Path:
        """Folder of the published artifacts."""
        return self.workspace / "artifacts"


def environment_for(runtime: Runtime) -> dict[str, str]:
    """The environment of a process that is to use only the threads of a runtime."""
    return dict(os.environ) | dict.fromkeys(THREAD_SETTINGS, str(runtime.num_threads))


@dataclass(frozen=True)
class Rank:
    """One of the processes that torchrun has started, as it tells them.

    Attributes:
        rank: number among all.
        local_rank: number on this host.
        size: how many there are.
        address: host of the store in which they find each other.
        port: its port.
        attempt: how often they were started again.
    """

    rank: int
    local_rank: int
    size: int
    address: str
    port: int
    attempt: int

    @classmethod
    def of_this_process(cls) -> Rank:
        """What torchrun has put into the environment."""
        number = {name: int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
        return cls(
            rank=number["RANK"],
            local_rank=number["LOCAL_RANK"],
            size=number["WORLD_SIZE"],
            address=os.environ["MASTER_ADDR"],
            port=number["MASTER_PORT"],
            attempt=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
        )
