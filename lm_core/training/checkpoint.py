"""Checkpoints inside a run: safetensors and JSON, written beside the training, two kept, verified before use.

    <work>/checkpoint-00000400/model.safetensors, optimizer.safetensors, state.json (step, digests, determinism key)
    <work>/anchor-00000400/    the same files by hard links: where a run that went astray goes back to

A checkpoint becomes visible by one rename after everything in it is on disk: a kill at any moment leaves the one
before. Checkpoints come by the clock. Anchors come at fixed steps, so that going back is as reproducible as going on.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lm_core.errors import UserError
from lm_core.store import disk_errors, file_sha256

KEPT = 2
STATE = "state.json"
# What may differ when the processes that share a run are others: the weights go on, their last bits are new.
ALONE = "1 process"
OF_THE_MACHINE = ("num_threads", "processor")


@dataclass(frozen=True)
class State:
    """Everything that a run needs to go on as if it had never stopped.

    Attributes:
        step: optimizer steps done.
        tensors: group ("model", "optimizer", ...) -> name -> tensor.
        figures: the loop's own JSON-ready memory.
        world: the processes that shared the run when this was written.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    figures: Mapping[str, Any]
    world: str = ALONE


class Checkpointer:
    """Writes and finds the checkpoints of one run.

    Args:
        folder: the run's work folder.
        determinism: what must be equal for a resumed run to give the same bits (threads, device, versions).
        world: the processes that share the run. Another world goes on all the same, within rounding.
    """

    def __init__(self, folder: Path, determinism: Mapping[str, Any], world: str = ALONE) -> None:
        self.folder, self.determinism, self.world = folder, dict(determinism), world
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, state: State, *, anchor: bool = False) -> None:
        """Copy the state and write it in the background; waits for the write before this one.

        Args:
            anchor: keep it, too, as a place to go back to.
        """
        self.wait()
        groups = {g: {n: t.detach().cpu().clone() for n, t in ts.items()} for g, ts in state.tensors.items()}
        copy = State(state.step, groups, json.loads(json.dumps(state.figures)), self.world)
        self._writer = threading.Thread(target=self._write_safely, args=(copy, anchor), name="checkpoint")
        self._writer.start()

    def wait(self) -> None:
        """Until the last checkpoint is on disk; raises what went wrong there."""
        if self._writer:
            self._writer.join()
            self._writer = None
        if self._error:
            error, self._error = self._error, None
            raise error

    def newest(self) -> State | None:
        """The newest checkpoint that is whole.

        Raises:
            UserError: when it was written under other conditions, so that the run could not be continued exactly.
        """
        return self._first_whole("checkpoint", None)

    def anchor(self, step: int) -> State | None:
        """The newest anchor of at most so many steps."""
        return self._first_whole("anchor", step)

    def _first_whole(self, kind: str, step: int | None) -> State | None:
        for folder in sorted(self.folder.glob(f"{kind}-*"), reverse=True):
            if step is None or int(folder.name.rpartition("-")[2]) <= step:
                state = self._read(folder)
                if state:
                    return state
        return None

    def _write_safely(self, state: State, anchor: bool) -> None:
        try:
            with disk_errors(self.folder):
                self._write(state, anchor)
        except BaseException as error:  # handed to the training thread by `wait`
            self._error = error

    def _write(self, state: State, anchor: bool) -> None:
        target = self.folder / f"checkpoint-{state.step:08d}"
        staging = self.folder / f".{target.name}"
        for stale in (staging, target):
            shutil.rmtree(stale, ignore_errors=True)
        staging.mkdir(parents=True)
        digests = {}
        for group, tensors in state.tensors.items():
            path = staging / f"{group}.safetensors"
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
            digests[path.name] = file_sha256(path)
            _fsync(path)
        content = {"step": state.step, "figures": state.figures, "files": digests, "world": state.world}
        content["determinism"] = self.determinism
        (staging / STATE).write_text(json.dumps(content, indent=1))
        _fsync(staging / STATE)
        _fsync(staging)
        if anchor:  # before the checkpoint: a run that resumes from it must find its anchor
            self._link(staging, self.folder / f"anchor-{state.step:08d}")
        staging.rename(target)
        _fsync(self.folder)
        for kind in ("checkpoint", "anchor"):
            for old in sorted(self.folder.glob(f"{kind}-*"))[:-KEPT]:
                shutil.rmtree(old, ignore_errors=True)

    def _link(self, source: Path, target: Path) -> None:
        """The same files under a second name; by copy where the file system knows no links."""
        staging = self.folder / f".{target.name}"
        for stale in (staging, target):
            shutil.rmtree(stale, ignore_errors=True)
        staging.mkdir()
        for path in source.iterdir():
            try:
                os.link(path, staging / path.name)
            except OSError:
                shutil.copyfile(path, staging / path.name)
        _fsync(staging)
        staging.rename(target)

    def _read(self, folder: Path) -> State | None:
        """The checkpoint; None when a file of it is damaged, missing or not what this class writes."""
        try:
            content = json.loads((folder / STATE).read_text())
            if any(file_sha256(folder / name) != digest for name, digest in content["files"].items()):
                return None
            tensors = {Path(name).stem: load_file(folder / name) for name in content["files"]}
            state = State(int(content["step"]), tensors, dict(content["figures"]), str(content.get("world", ALONE)))
            determinism = dict(content["determinism"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
            return None
        self._check_determinism(folder, determinism, state.world)
        return state

    def _check_determinism(self, folder: Path, written: Mapping[str, Any], world: str) -> None:
        for name, value in self.determinism.items():
            if world != self.world and name in OF_THE_MACHINE:
                continue
            if written.get(name) != value:
                raise UserError(
                    f"{folder} was written with {name}={written.get(name)}, this run has {name}={value} and "
                    f"would not continue exactly; restore {name}, or remove {self.folder} to start over"
                )


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
