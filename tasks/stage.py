"""Runs one stage as a Prefect task: pick the inputs, call the store, report. The same few lines for every stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed

from lm_core.artifact import Artifact, ArtifactT, ValidCorpus
from lm_core.config import Config, identity_of
from lm_core.runtime import Runtime
from lm_core.store import Build, Stage, Store, git_commit
from tasks.acceptance import accept
from tasks.display import Display
from tasks.gates import gated
from tasks.ray_parts import mapper_of
from tasks.reports import Report, report_on, report_path, summary_of
from tasks.side_by_side import SideBySide
from tasks.tracking import Journal
from tasks.wording import amount, describe, duration

ResultT = TypeVar("ResultT")

PREFECT_LOG_EVERY_SECONDS = 15.0
WORTH_A_FORECAST_SECONDS = 10.0


@dataclass(frozen=True)
class StageRecord:
    """How one stage went. `state` is Completed or Cached, as in Prefect."""

    name: str
    seconds: float
    state: str


@dataclass
class StageRunner:
    """The wiring's `run`: makes or finds the artifact of each stage in a task of its own.

    Attributes:
        until: called with each stage first; raises to end the line early.
        made: the artifact of each stage, by its label.
    """

    runtime: Runtime
    journal: Journal
    display: Display
    until: Callable[[Stage], None]
    records: list[StageRecord] = field(default_factory=list)
    made: dict[str, Artifact] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store = Store(self.runtime)
        self._side_by_side = SideBySide(self.runtime, self.display)

    def __call__(
        self, stage: Stage[ArtifactT], config: Config, *, label: str | None = None, **inputs: Artifact
    ) -> ArtifactT:
        """Run the stage as a task named after it; its state is `Cached` when the artifact was there."""
        self.until(stage)
        name = label or stage.name

        with self._side_by_side.worker() as worker:
            # The inputs are the task's only parameter: from them Prefect draws the graph of the run.
            @task(name=stage.name, task_run_name=name, cache_policy=NO_CACHE, persist_result=False)
            def execute(inputs: Mapping[str, Artifact]) -> State[ArtifactT] | ArtifactT:
                artifact, cached = self._make(gated(stage, worker), name, config, inputs)
                return Completed(name="Cached", data=artifact) if cached else artifact

            # Prefect counts the runs of a key, and two threads could count the same.
            execute.task_key = f"{execute.task_key}-{name}"
            artifact: ArtifactT = self.recorded(name, lambda: execute(inputs, return_state=True))
        self.made[name] = artifact
        return artifact

    def together(self, calls: Sequence[Callable[[], ResultT]], *, counted: str = "") -> list[ResultT]:
        """Results of calls that do not need each other, side by side."""
        return self._side_by_side.together(calls, counted=counted)

    def close(self) -> None:
        """End the processes of stages that ran side by side."""
        self._side_by_side.close()

    def recorded(self, name: str, run: Callable[[], State[Any]]) -> Any:
        """Run something that returns a Prefect state; show it, and keep how it went."""
        started = time.monotonic()
        self.display.begin(name)
        state = run()
        result = state.result()
        seconds = time.monotonic() - started
        shown = "Cached" if state.name == "Cached" else "Completed"
        self.records.append(StageRecord(name, round(seconds, 3), shown))
        self.display.end(
            name, shown, seconds, summary_of(result) if isinstance(result, Artifact) else _in_words(result)
        )
        return result

    def _make(
        self, stage: Stage[ArtifactT], name: str, config: Config, inputs: Mapping[str, Artifact]
    ) -> tuple[ArtifactT, bool]:
        run_key = ""

        def begin(build: Build) -> None:
            nonlocal run_key
            run_key = self.journal.child(
                name, {"millrace.stage": stage.name, "millrace.code": git_commit() or "unknown"}
            )
            self.journal.write("params", run_key, values=_flat(identity_of(config)))
            self.journal.write(
                "tail",
                run_key,
                path=str(build.folder / "journal.jsonl"),
                final=str(build.published / "journal.jsonl") if build.published else None,
            )
            self.journal.start_forwarder()

        try:
            with mapper_of(self.runtime, name) as mapper:
                artifact, cached = self.store.build(stage, config, inputs, self._progress(name), begin, mapper)
        except BaseException:
            if run_key:
                self.journal.end(run_key, "FAILED")
            raise
        report = self._report(artifact, name, cached)
        create_markdown_artifact(report.markdown, key=stage.name.replace("_", "-"), description=name)
        if run_key:
            self._track(run_key, artifact, report)
        if isinstance(artifact, ValidCorpus):
            self._accept(artifact, any_drift=bool(getattr(config, "accept_drift", False)))
        return artifact, cached

    def _accept(self, corpus: ValidCorpus, *, any_drift: bool) -> None:
        """Measure a corpus against the last accepted one; a drift that its contract calls critical ends the run."""
        drifted = accept(corpus, self.runtime, any_drift=any_drift)
        if drifted:
            self.display.say(f"  {len(drifted)} figures moved since the last accepted run; the most: {drifted[0]}")
        for item in drifted:
            get_run_logger().warning("drift: %s", item)

    def _report(self, artifact: Artifact, name: str, cached: bool) -> Report:
        """The report of an artifact; of a cached one the text that was kept, for drawing takes a tenth of a second."""
        kept = report_path(self.runtime.workspace, artifact.stage, artifact.fingerprint)
        if cached and kept.exists():
            return Report(kept.read_text())
        report = report_on(artifact, self.store, name)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(report.markdown)
        return report

    def _track(self, key: str, artifact: Artifact, report: Report) -> None:
        # The last point of the curves that a training journal has drawn, not their first.
        last_step = int(artifact.statistics.get("num_steps", 0))
        self.journal.metrics(key, _flat(artifact.statistics), last_step)
        self.journal.write(
            "dataset",
            key,
            name=type(artifact).__name__,
            digest=artifact.content_digest,
            source=str(artifact.folder),
            profile={n: v for n, v in artifact.statistics.items() if isinstance(v, int | float | str)},
            context=artifact.stage,
        )
        folder = self.journal.folder / "pictures" / key
        for name, picture in report.pictures.items():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(picture)
            self.journal.write("file", key, path=str(folder / name), folder="pictures")
        for name, page in report.pages.items():
            self.journal.write("text", key, name=name, text=page)
        self.journal.write("text", key, name="report.md", text=report.markdown)
        self.journal.end(key, "FINISHED")

    def _say_forecast(self, name: str, figures: Mapping[str, float]) -> None:
        if figures["forecast_seconds"] < WORTH_A_FORECAST_SECONDS:
            return
        line = (
            f"{name} should take about {duration(figures['forecast_seconds'])}, "
            f"{amount(figures['forecast_memory_mb'])} MB of memory, {amount(figures['forecast_disk_mb'])} MB of disk, "
            f"{figures['forecast_cost_usd']:.2g} USD"
        )
        get_run_logger().info(line)
        self.display.say(f"  {line}")

    def _progress(self, name: str) -> Callable[..., None]:
        logger = get_run_logger()
        started = last = time.monotonic()

        def progress(done: float, total: float | None, unit: str, **figures: float) -> None:
            nonlocal last
            if "forecast_seconds" in figures:
                self._say_forecast(name, figures)
                return
            self.display.progress(name, done, total, unit, figures)
            now = time.monotonic()
            if now - last > PREFECT_LOG_EVERY_SECONDS:
                last = now
                logger.info("%s: %s", name, describe(done, total, unit, now - started, figures))

        return progress


def _in_words(result: Any) -> str:
    """What register and promote return, for the line a stage ends with."""
    if isinstance(result, Mapping):
        return ", ".join(f"{name} {item.version}" for name, item in result.items())
    return str(result)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level, names joined by dots: what MLflow takes."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        flat |= _flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return flat
