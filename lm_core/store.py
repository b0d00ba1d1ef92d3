"""The store: a stage's output folder is named after everything that made it.

    <workspace>/artifacts/<stage>/<fingerprint>/   published, immutable
    <workspace>/staging/<random>/                  being written; renamed into place when complete
    <workspace>/work/<stage>/<fingerprint>/        progress of a long stage (checkpoints), survives a kill
    <workspace>/locks/<stage>-<fingerprint>        held while a stage is built; the kernel frees it with its process

fingerprint = SHA-256 over the canonical JSON of (stage, its version, its configuration, its inputs' content digests).
Inputs count by content, so an input that is rebuilt to the same bytes causes no work below it.

`Store.build` is the only place that creates an artifact. It stages on the same filesystem, hashes, fsyncs every file
and folder, and publishes with one atomic rename. Readers call `verify` (done once per process by `find`).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel

from lm_core.artifact import MANIFEST, Artifact, ArtifactT
from lm_core.config import identity_of
from lm_core.errors import IntegrityError, TryLaterError, UserError
from lm_core.mapping import Mapper, in_threads
from lm_core.runtime import Runtime

PartT = TypeVar("PartT")
ResultT = TypeVar("ResultT")

MANIFEST_FORMAT = 1
CONTENT, RECORD = "content", "record"


class Progress(Protocol):
    """Receives the progress of a stage; cheap enough to call a hundred times a second."""

    def __call__(self, done: float, total: float | None, unit: str, **figures: float) -> None: ...


def silent(done: float, total: float | None, unit: str, **figures: float) -> None:
    """The progress receiver of tests and scripts: ignores everything."""


@dataclass(frozen=True)
class Stage(Generic[ArtifactT]):
    """One step of the pipeline, as plain data: importing it loads neither torch nor the code of the stage.

    Attributes:
        name: a verb; the folder under `artifacts/`, the task in Prefect, the child run in MLflow.
        version: raised whenever the values it computes change; a golden test enforces it.
        output: the kind of artifact it makes.
        function: "module:function", called as `function(build, config, **inputs) -> statistics`.
        inputs: name -> kind of each input; a name ending in "*" takes any number of names that start so.
        optional: names that may be absent.
        external: "module:function", called as `function(config, runtime) -> {name: digest}`: the cheap identity of
            what the stage reads from outside the store. Counts like the digest of an input.
    """

    name: str
    version: int
    output: type[ArtifactT]
    function: str
    inputs: Mapping[str, type[Artifact]]
    optional: frozenset[str] = frozenset()
    external: str | None = None

    def check_inputs(self, inputs: Mapping[str, Artifact]) -> None:
        """Refuse a missing, unknown or wrong kind of input.

        Raises:
            TypeError: naming the stage and the input.
        """
        for name, artifact in inputs.items():
            kind = self.inputs.get(name) or next(
                (k for n, k in self.inputs.items() if n.endswith("*") and name.startswith(n[:-1])), None
            )
            if kind is None:
                raise TypeError(f"stage {self.name} takes no input named {name}")
            if not isinstance(artifact, kind):
                raise TypeError(
                    f"stage {self.name}: input {name} must be a {kind.__name__}, not a {type(artifact).__name__}"
                )
        missing = {n for n in self.inputs if not n.endswith("*")} - set(inputs) - self.optional
        if missing:
            raise TypeError(f"stage {self.name} misses its input {', '.join(sorted(missing))}")

    def load(self) -> Callable[..., Mapping[str, Any]]:
        """Import the function that does the work."""
        return _import(self.function)

    def external_digests(self, config: BaseModel, runtime: Runtime) -> dict[str, str]:
        """Identity of what the stage reads from outside the store, name -> digest."""
        return dict(_import(self.external)(config, runtime)) if self.external else {}


def _import(path: str) -> Callable[..., Mapping[str, Any]]:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Build:
    """What a stage function is given besides its configuration and inputs.

    Attributes:
        folder: write the output files here, and nowhere else.
        work: scratch folder that survives a kill: partial shards, checkpoints. Removed after publication.
        runtime: where it runs.
        progress: call it with (done, total or None, unit, **figures).
        published: where the folder will stand once it is complete.
        mapper: who works on parts; threads of this process when there is none.
    """

    folder: Path
    work: Path
    runtime: Runtime
    progress: Progress = silent
    published: Path | None = None
    mapper: Mapper | None = None

    def map(self, function: Callable[[PartT], ResultT], parts: Iterable[PartT]) -> Iterator[ResultT]:
        """Results of a function for each part, in the order of the parts (see `lm_core.mapping`)."""
        return (self.mapper or in_threads(self.runtime.num_threads))(function, parts)


def canonical_json(value: Any) -> str:
    """JSON with one spelling for each value: sorted keys, no spaces.

    Raises:
        UserError: for a value without a stable serialisation (it is refused, never hashed by its repr).
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"a configuration value cannot be serialised: {error}") from None


def fingerprint_of(stage: Stage[Any], config: Mapping[str, Any], input_digests: Mapping[str, str]) -> str:
    """SHA-256 (hex) of everything that makes the stage's output what it is.

    Args:
        config: as `config.identity_of` describes it.
        input_digests: content digests of the inputs and of what is read from outside the store.
    """
    identity = {
        "stage": stage.name,
        "version": stage.version,
        "config": dict(config),
        "inputs": dict(input_digests),
    }
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn a full disk into the one line a user can act on."""
    try:
        yield
    except Exception as error:
        if _says_disk_full(error):
            raise TryLaterError(
                f"the disk under {where} is full; free some space and run the same command again"
            ) from error
        raise


def _says_disk_full(error: Exception) -> bool:
    """Libraries in Rust and C++ (safetensors, DuckDB) say it in words, in exceptions of their own."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in numbers or any(os.strerror(number) in str(error) for number in numbers)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """Commit of the code that runs, with "+" when the tree has changes; None outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")


class Store:
    """Finds, verifies and builds artifacts in one workspace."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.root = runtime.artifacts
        self._verified: set[str] = set()

    # ---------------------------------------------------------------- reading

    def folder(self, stage: str, fingerprint: str) -> Path:
        """Where the artifact stands, or would stand."""
        return self.root / stage / fingerprint

    def find(self, stage: Stage[ArtifactT], fingerprint: str, *, verify: bool = True) -> ArtifactT | None:
        """The published artifact, verified before first use; None when there is none.

        Raises:
            IntegrityError: naming the first file that is not what the manifest says.
        """
        folder = self.folder(stage.name, fingerprint)
        if not (folder / MANIFEST).exists():
            return None
        return self.open(stage.output, folder, verify=verify)

    def open(self, kind: type[ArtifactT], folder: Path, *, verify: bool = True) -> ArtifactT:
        """The artifact in a folder, as a handle of the given kind.

        Raises:
            IntegrityError: when the manifest is missing or torn, the kind is another, or a file does not match.
        """
        manifest = read_manifest(folder)
        if manifest["kind"] != kind.__name__:
            raise IntegrityError(f"{folder} holds a {manifest['kind']}, not a {kind.__name__}")
        if verify and str(folder) not in self._verified:
            verify_files(folder, manifest)
            self._verified.add(str(folder))
        return kind(
            folder=folder,
            stage=manifest["stage"],
            fingerprint=manifest["fingerprint"],
            content_digest=manifest["content_digest"],
            statistics=manifest["statistics"],
            inputs={name: item["folder"] for name, item in manifest["inputs"].items()},
        )

    def input(self, artifact: Artifact, name: str, kind: type[ArtifactT]) -> ArtifactT:
        """An input of an artifact, found through its manifest."""
        return self.open(kind, self.root / artifact.inputs[name])

    def manifests(self, stage: str) -> list[dict[str, Any]]:
        """Manifests of all artifacts of a stage, the newest first."""
        found = [read_manifest(path.parent) for path in self.root.glob(f"{stage}/*/{MANIFEST}")]
        return sorted(found, key=lambda manifest: manifest["created"], reverse=True)

    def newest(self, stage: Stage[ArtifactT]) -> ArtifactT | None:
        """The artifact of a stage that was made last; None when there is none."""
        manifests = self.manifests(stage.name)
        return self.open(stage.output, self.folder(stage.name, manifests[0]["fingerprint"])) if manifests else None

    # ---------------------------------------------------------------- building

    def build(
        self,
        stage: Stage[ArtifactT],
        config: BaseModel,
        inputs: Mapping[str, Artifact],
        progress: Progress = silent,
        on_start: Callable[[Build], None] | None = None,
        mapper: Mapper | None = None,
    ) -> tuple[ArtifactT, bool]:
        """Return the artifact of (stage, config, inputs), making it first if need be.

        Args:
            on_start: called once when the artifact has to be made, before its stage begins.
            mapper: who works on the stage's parts; threads of this process when there is none.

        Returns:
            The handle, and whether it was found (True) rather than made (False).

        Raises:
            TypeError: an input of the wrong kind.
            TryLaterError: another process is building the same artifact, or the disk is full.
            MillraceError: whatever the stage refuses; nothing is published then.
        """
        stage.check_inputs(inputs)
        external = stage.external_digests(config, self.runtime)
        digests = {name: artifact.content_digest for name, artifact in inputs.items()} | external
        fingerprint = fingerprint_of(stage, identity_of(config), digests)
        found = self.find(stage, fingerprint)
        if found:
            return found, True
        with self._lock(stage.name, fingerprint):
            found = self.find(stage, fingerprint)
            if found:
                return found, True
            with disk_errors(self.runtime.workspace):
                return self._make(stage, config, fingerprint, inputs, external, progress, on_start, mapper), False

    def _make(
        self,
        stage: Stage[ArtifactT],
        config: BaseModel,
        fingerprint: str,
        inputs: Mapping[str, Artifact],
        external: Mapping[str, str],
        progress: Progress,
        on_start: Callable[[Build], None] | None,
        mapper: Mapper | None,
    ) -> ArtifactT:
        staging = self.runtime.workspace / "staging" / uuid.uuid4().hex
        work = self.runtime.workspace / "work" / stage.name / fingerprint
        for path in (staging, work, self.root / stage.name):
            path.mkdir(parents=True, exist_ok=True)
        started = time.time()
        try:
            published = self.folder(stage.name, fingerprint)
            build = Build(staging, work, self.runtime, progress, published, mapper)
            if on_start:
                on_start(build)
            statistics = dict(stage.load()(build, config, **inputs))
            manifest = {
                "format": MANIFEST_FORMAT,
                "kind": stage.output.__name__,
                "stage": stage.name,
                "version": stage.version,
                "fingerprint": fingerprint,
                "config": identity_of(config),
                "external": dict(external),
                "inputs": {
                    name: {
                        "folder": f"{artifact.stage}/{artifact.fingerprint}",
                        "content_digest": artifact.content_digest,
                    }
                    for name, artifact in inputs.items()
                },
                "statistics": statistics,
                "code": git_commit(),
                "created": started,
                "seconds": round(time.time() - started, 3),
            }
            folder = self._publish(staging, published, manifest)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)
        self._verified.add(str(folder))
        return self.open(stage.output, folder)

    def _publish(self, staging: Path, folder: Path, manifest: dict[str, Any]) -> Path:
        """Hash, fsync, write the manifest last, rename into place."""
        files = {}
        for path in sorted(p for p in staging.rglob("*") if p.is_file()):
            name = path.relative_to(staging).as_posix()
            # Journals hold wall-clock times: they are kept and verified, but are no part of what the artifact is.
            role = RECORD if path.suffix == ".jsonl" or name.startswith("record") else CONTENT
            files[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path), "role": role}
            _fsync(path)
        content = {name: item["sha256"] for name, item in files.items() if item["role"] == CONTENT}
        manifest["files"] = files
        manifest["content_digest"] = hashlib.sha256(canonical_json(content).encode()).hexdigest()
        target = staging / MANIFEST
        target.write_text(json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False))
        _fsync(target)
        for directory in [*(p for p in staging.rglob("*") if p.is_dir()), staging]:
            _fsync(directory)
        staging.rename(folder)
        _fsync(folder.parent)
        return folder

    @contextmanager
    def _lock(self, stage: str, fingerprint: str) -> Iterator[None]:
        """An advisory kernel lock: it dies with the process that holds it."""
        path = self.runtime.workspace / "locks" / f"{stage}-{fingerprint}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise TryLaterError(
                    f"another process is building {stage} in this workspace; wait for it to finish"
                ) from None
            yield

    # ---------------------------------------------------------------- removing

    def collectable(self, keep: set[str]) -> list[tuple[Path, int]]:
        """Artifacts, staging and work folders that nothing in `keep` descends from, with their bytes.

        Args:
            keep: folders relative to `artifacts` ("stage/fingerprint"); their ancestors are kept with them.
        """
        wanted, todo = set(), list(keep)
        while todo:
            name = todo.pop()
            if name in wanted or not (self.root / name / MANIFEST).exists():
                continue
            wanted.add(name)
            todo += [item["folder"] for item in read_manifest(self.root / name)["inputs"].values()]
        loose = [p for p in self.root.glob("*/*") if f"{p.parent.name}/{p.name}" not in wanted]
        loose += list((self.runtime.workspace / "staging").glob("*"))
        loose += list((self.runtime.workspace / "work").glob("*/*"))
        return [(path, sum(f.stat().st_size for f in path.rglob("*") if f.is_file())) for path in sorted(loose)]


_MANIFEST_KEYS = {"kind", "stage", "fingerprint", "content_digest", "statistics", "inputs", "files"}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Manifest of a published artifact.

    Raises:
        IntegrityError: when it is missing, is not valid JSON, or lacks what a manifest holds.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        if not isinstance(manifest, dict) or not manifest.keys() >= _MANIFEST_KEYS:
            raise ValueError("it is not a whole manifest")
        return manifest
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{folder / MANIFEST} cannot be read ({error}); remove the folder to rebuild it") from None


def verify_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compare sizes and SHA-256 of all files with the manifest.

    Raises:
        IntegrityError: naming the first file that is missing or differs.
    """
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.exists():
            raise IntegrityError(f"{path} is missing; remove the folder {folder} to rebuild it")
        if path.stat().st_size != expected["bytes"] or file_sha256(path) != expected["sha256"]:
            raise IntegrityError(f"{path} does not match its manifest; remove the folder {folder} to rebuild it")
