"""`millrace plan`: what would run and why, without running it and without loading Prefect or torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.config import PipelineConfig
from flows.downstream_wiring import fan_out
from flows.wiring import ResultT, Until, UntilReached, corpus_to_model
from lm_core.artifact import Artifact, ArtifactT
from lm_core.config import Config, identity_of
from lm_core.runtime import Runtime, has_gpu
from lm_core.stages import PRETRAIN
from lm_core.store import Stage, Store, fingerprint_of
from tasks.wording import amount, duration

if TYPE_CHECKING:
    from lm_core.training.forecast import Forecast

UNKNOWN = ""
A_DAY = 86_400.0


@dataclass(frozen=True)
class PlannedStage:
    """One line of the plan. `state` is "cached" or "run"; `why` says what differs from the last time."""

    name: str
    state: str
    why: str


class Planner:
    """Walks the wiring and asks the store what it would find."""

    def __init__(self, runtime: Runtime, until: Until) -> None:
        self.store = Store(runtime)
        self.until = until
        self.stages: list[PlannedStage] = []

    def __call__(
        self, stage: Stage[ArtifactT], config: Config, *, label: str | None = None, **inputs: Artifact
    ) -> ArtifactT:
        """Plan one stage; the handle it returns has an unknown content when the stage would run."""
        self.until.check(stage)
        stage.check_inputs(inputs)
        described = identity_of(config)
        digests = {name: artifact.content_digest for name, artifact in inputs.items()}
        digests |= stage.external_digests(config, self.store.runtime)
        changing = [name for name, digest in digests.items() if digest == UNKNOWN]
        fingerprint = fingerprint_of(stage, described, digests)
        found = None if changing else self.store.find(stage, fingerprint, verify=False)
        if found:
            self.stages.append(PlannedStage(label or stage.name, "cached", ""))
            return found
        why = self._why(stage, described, digests, changing)
        self.stages.append(PlannedStage(label or stage.name, "run", why))
        return stage.output(self.store.folder(stage.name, UNKNOWN), stage.name, UNKNOWN, UNKNOWN)

    def together(self, calls: Sequence[Callable[[], ResultT]], *, counted: str = "") -> list[ResultT]:
        """Plan one after the other."""
        return [call() for call in calls]

    def _why(
        self, stage: Stage[Any], config: Mapping[str, Any], digests: Mapping[str, str], changing: list[str]
    ) -> str:
        same_job = [m for m in self.store.manifests(stage.name) if _job(m["config"]) == _job(config)]
        if not same_job:
            return (
                "never run in this workspace" if not changing else f"never run; its input {changing[0]} is made first"
            )
        last = same_job[0]
        reasons = [f"{n}: {_short(a)} -> {_short(b)}" for n, a, b in _differences(last["config"], config)]
        if last["version"] != stage.version:
            reasons.append(f"version {last['version']} -> {stage.version}")
        before = {n: item["content_digest"] for n, item in last["inputs"].items()} | last["external"]
        for name in sorted(set(before) | set(digests)):
            if name in changing:
                reasons.append(f"input {name} is made anew (unless it comes out the same)")
            elif before.get(name) != digests.get(name):
                reasons.append(f"input {name} is another")
        return "; ".join(reasons) or "its artifact was removed"


def _job(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """What tells the runs of one stage apart within a pipeline run."""
    return config.get("task"), config.get("from_random")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {
        n: v for name, part in value.items() for n, v in _flat(part, f"{prefix}.{name}" if prefix else name).items()
    }


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    old, new = _flat(before), _flat(after)
    names = sorted(set(old) | set(new))
    return [(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def make_plan(config: PipelineConfig, runtime: Runtime, until: str | None = None) -> list[PlannedStage]:
    """The plan, in the order in which the stages would run.

    Raises:
        UserError: `until` names no stage, or a source is not there.
    """
    planner = Planner(runtime, Until(until))
    with contextlib.suppress(UntilReached):
        fan_out(config, planner, corpus_to_model(config, planner).base)
    return planner.stages


def pretraining_forecasts(config: PipelineConfig, runtime: Runtime, stages: list[PlannedStage]) -> list[Forecast]:
    """What pretraining would take here; where that is more than a day, on a rented GPU too. Empty when it is cached."""
    if not any(stage.name == PRETRAIN.name and stage.state == "run" for stage in stages):
        return []
    from lm_core.training.forecast import Workload, planned  # loads NumPy, which a plan without pretraining can spare

    pretrain = config.pretrain
    evaluation_tokens = pretrain.num_evaluations * pretrain.validation_tokens
    work = Workload(
        pretrain.model,
        config.train_tokenizer.vocab_size,
        config.tokenize.context_length,
        pretrain.train_tokens,
        evaluation_tokens,
    )
    on_gpu = runtime.device.startswith("cuda") or (runtime.device == "auto" and has_gpu())
    here = planned(work, pretrain.optimization, runtime, on_gpu=on_gpu)
    if on_gpu or here.seconds < A_DAY:
        return [here]
    return [here, planned(work, pretrain.optimization, runtime, on_gpu=True)]


def in_words(forecast: Forecast) -> str:
    """A forecast in one line."""
    return (
        f"{duration(forecast.seconds)}, {amount(forecast.memory_bytes)}B of memory, {amount(forecast.disk_bytes)}B of "
        f"disk, {forecast.energy_kwh:.2g} kWh, {forecast.cost_usd:.2g} USD ({forecast.assumptions})"
    )
