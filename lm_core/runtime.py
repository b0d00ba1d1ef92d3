"""Where and how a stage runs: everything that must not change its result.

`Runtime` is kept apart from configuration by construction, so that a path, a device or a worker count can never
reach a fingerprint. This is the one module of `lm_core` that reads the environment.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


def usable_cpus() -> int:
    """CPUs this process may run on (its affinity, not the machine's count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fast_precision() -> Literal["fp32", "bf16"]:
    """The arithmetic this machine is good at: bf16 on a GPU or a CPU with bf16 products, else fp32.

    Asked by presets, never by a stage: the word it returns becomes configuration, and so identity.
    """
    if Path("/dev/nvidia0").exists():
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


def _default_threads() -> int:
    return int(os.environ.get("MILLRACE_THREADS") or usable_cpus())


@dataclass(frozen=True)
class Runtime:
    """Where a run takes place. Never part of an artifact's identity.

    Attributes:
        workspace: folder of all state: artifacts, work in progress, databases of the local servers, logs.
        device: "auto" (GPU when there is one), "cpu", "cuda" or "cuda:N".
        num_threads: threads for torch and DuckDB.
        num_workers: processes for parsing and cleaning.
        memory_limit_bytes: what DuckDB may use before it spills to disk.
    """

    workspace: Path = field(default_factory=_default_workspace)
    device: str = field(default_factory=_default_device)
    num_threads: int = field(default_factory=_default_threads)
    num_workers: int = field(default_factory=_default_threads)
    memory_limit_bytes: int = 1_000_000_000

    @property
    def artifacts(self) -> Path:
        """Folder of the published artifacts."""
        return self.workspace / "artifacts"
