"""The last two stages, register and promote: their result lives in the MLflow registry, not in the store."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from lm_core.artifact import Checkpoint, Evaluation
from lm_core.errors import TryLaterError
from lm_core.evaluation.promotion import Decision, decide
from lm_core.runtime import Runtime
from tasks import registry
from tasks.markdown import table
from tasks.registry import Registered
from tasks.servers import wait_for_mlflow
from tasks.tracking import Journal, forward


@task(name="register", task_run_name="register", cache_policy=NO_CACHE, persist_result=False)
def register(
    runtime: Runtime, journal: Journal, models: Mapping[str, tuple[Checkpoint, Evaluation]]
) -> State[dict[str, Registered]] | dict[str, Registered]:
    """Register every checkpoint under its name; `Cached` when the registry holds them all.

    Raises:
        TryLaterError: MLflow does not answer. The models stay in the store; running again registers them.
    """
    wait_for_mlflow()
    known = {name: registry.remembered(runtime, name, checkpoint) for name, (checkpoint, _) in models.items()}
    result = {name: found for name, found in known.items() if found}
    if len(result) == len(models):
        return Completed(name="Cached", data=result)
    keys = {name: journal.child(f"register {name}", {}) for name in models if name not in result}
    try:
        runs = forward(journal.folder)
    except Exception as error:  # MLflow raises many kinds when its server is gone
        raise TryLaterError(
            f"MLflow does not answer ({str(error).splitlines()[0][:200]}); the models are kept, run the same "
            "command again"
        ) from error
    for name, key in keys.items():
        checkpoint, evaluation = models[name]
        scores, description = headline_scores(evaluation), describe_scores(evaluation)
        result[name] = registry.register(runtime, name, checkpoint, scores, description, runs[key])
        journal.end(key, "FINISHED")
    return {name: result[name] for name in models}


def headline_scores(evaluation: Evaluation) -> dict[str, Any]:
    """The scores that go with a version as a tag."""
    wanted = ("metric", "score", "low", "high", "items", "val_bits_per_byte")
    return {name: evaluation.statistics[name] for name in wanted if name in evaluation.statistics}


def describe_scores(evaluation: Evaluation) -> str:
    """The description of a version: its scores beside the baselines', in Markdown."""
    found = evaluation.statistics
    if "score" in found:
        ours = f"{found['score']:.3f} ({found['low']:.3f} to {found['high']:.3f}, {found['items']} held-out items)"
        rows = [("this model", ours), *((name, f"{value:.3f}") for name, value in found["baselines"].items())]
        return table(("system", str(found["metric"]).replace("_", " ")), rows)
    ours = f"{found['val_bits_per_byte']:.3f} ({found['val_low']:.3f} to {found['val_high']:.3f})"
    rows = [("this model", ours), *((name, f"{value:.3f}") for name, value in found["baseline_bits_per_byte"].items())]
    return table(("system", "bits per byte on validation text, lower is better"), rows)


def put_first_into_service(registered: Mapping[str, Registered]) -> None:
    """Of a name that has no champion the version becomes one."""
    for name, item in registered.items():
        if registry.version_with_alias(name, "champion") is None:
            registry.promote(name, item.version, ("there is no champion yet",))


@task(name="promote", task_run_name="promote", cache_policy=NO_CACHE, persist_result=False)
def promote(
    runtime: Runtime,
    name: str,
    registered: Mapping[str, Registered],
    measure_champion: Callable[[Checkpoint], Evaluation],
    measure_champion_on: Callable[[str, Checkpoint], Evaluation | None],
    evaluations: Mapping[str, Evaluation],
    *,
    allowed: bool,
) -> State[str] | str:
    """Decide between challenger and champion, with evidence; returns the alias the new version ends with.

    Args:
        name: the base model; its fine-tunes follow its decision.
        registered: every version of this run, by model name.
        measure_champion: scores another checkpoint on this run's validation text.
        measure_champion_on: scores the champion among the fine-tunes of a name on this run's items; None when the two
            cannot be compared.
        evaluations: this run's, by model name.
        allowed: False leaves the new version challenger whatever the evidence.
    """
    version = registered[name].version
    decided = runtime.workspace / "registered" / f"decision-{name}-{version}-{int(allowed)}.json"
    if decided.exists():
        alias = str(json.loads(decided.read_text())["alias"])
        if alias == "champion":
            put_first_into_service(registered)  # fine-tunes may have come since that was decided
        return Completed(name="Cached", data=alias)
    champion = registry.version_with_alias(name, "champion")
    decision = _decide(runtime, champion, name, evaluations, measure_champion, measure_champion_on)
    alias = "challenger"
    if decision.promote and allowed:
        alias = "champion"
        for model, item in registered.items():
            registry.promote(model, item.version, decision.evidence)
    verdict = "promoted to champion" if alias == "champion" else "stays challenger"
    lines = [f"# {name} version {version}: {verdict}", *(f"- {line}" for line in decision.evidence)]
    create_markdown_artifact("\n\n".join(lines), key="promotion", description=f"{name} {version}")
    decided.parent.mkdir(parents=True, exist_ok=True)
    decided.write_text(json.dumps({"alias": alias, "evidence": decision.evidence}))
    return alias


def _decide(
    runtime: Runtime,
    champion: Any,
    name: str,
    evaluations: Mapping[str, Evaluation],
    measure_champion: Callable[[Checkpoint], Evaluation],
    measure_champion_on: Callable[[str, Checkpoint], Evaluation | None],
) -> Decision:
    challenger_tasks = {model: item.statistics for model, item in evaluations.items() if model != name}
    if champion is None:
        return decide(evaluations[name].statistics, None, challenger_tasks, {})
    from lm_core.store import Store

    store = Store(runtime)
    scored = measure_champion(store.open(Checkpoint, registry.checkpoint_folder(champion, runtime)))
    champion_tasks = {}
    for model in challenger_tasks:
        version = registry.version_with_alias(model, "champion")
        if version:
            found = store.open(Checkpoint, registry.checkpoint_folder(version, runtime))
            measured = measure_champion_on(model, found)
            if measured:
                champion_tasks[model] = measured.statistics
    return decide(evaluations[name].statistics, scored.statistics, challenger_tasks, champion_tasks)
