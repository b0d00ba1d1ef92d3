"""The Prefect flows of the declared downstream tasks: from one base model, each is read, fine-tuned and scored."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from flows.ablation_report import ablation_as_html, ablation_as_markdown
from flows.downstream_report import as_html, as_markdown
from flows.downstream_wiring import (
    DownstreamConfig,
    TaskScores,
    ablate_task,
    expected_work,
    hold_out,
    score_mixture,
    score_task,
)
from flows.pipeline import display_in_use
from flows.tuned_wiring import AsItIs
from lm_core.artifact import Checkpoint
from lm_core.downstream.task import Task
from lm_core.downstream.tuned import tuned
from lm_core.downstream.variants import VARIANTS
from lm_core.errors import MillraceError, Preempted, TryLaterError
from lm_core.evaluation.statistics import adjusted_gains
from lm_core.runtime import Runtime
from lm_core.store import Store
from lm_core.training.devices import check_devices
from tasks.display import Display
from tasks.release import put_first_into_service, register
from tasks.stage import StageRunner
from tasks.tracking import Journal, forward_unsent

Scores = dict[str, TaskScores]


@flow(name="downstream", flow_run_name="downstream tasks of {model}", persist_result=False)
def run_downstream(config: DownstreamConfig, base: str, model: str) -> dict[str, Any]:
    """Fine-tune a base model for declared tasks and score each beside its baselines.

    Args:
        base: folder of the base's checkpoint in the store.
        model: what it is called, for people.
    """

    def work(runner: StageRunner, checkpoint: Checkpoint) -> dict[str, Any]:
        scores, left_out = _score_all(config, runner, checkpoint)
        found = {name: dict(made.evaluation.statistics) for name, made in scores.items()}
        return {
            "model": model,
            "downstream": found,
            "gains_adjusted_for_many_tasks": adjusted_gains(found),
            "left_out": left_out,
            "registered": _register(config, runner, scores),
        }

    return _tracked("downstream", base, work, (as_markdown, as_html))


@flow(name="ablate", flow_run_name="ablation of {model}", persist_result=False)
def run_ablation(config: DownstreamConfig, base: str, model: str) -> dict[str, Any]:
    """Fine-tune a base model in every variant of the generalisation toolbox, on few examples of the tasks.

    Args:
        base: folder of the base's checkpoint in the store.
        model: what it is called, for people.
    """

    def work(runner: StageRunner, checkpoint: Checkpoint) -> dict[str, Any]:
        tables = {task.name: dict(ablate_task(task, config, runner, checkpoint).statistics) for task in config.tasks}
        return {"model": model, "ablation": tables, "meaning": {v.name: v.meaning for v in VARIANTS}}

    return _tracked("ablation", base, work, (ablation_as_markdown, ablation_as_html))


def _tracked(
    name: str,
    base: str,
    work: Callable[[StageRunner, Checkpoint], dict[str, Any]],
    texts: tuple[Callable[[Mapping[str, Any]], str], Callable[[Mapping[str, Any]], str]],
) -> dict[str, Any]:
    """Do the work within a tracked run; leave its card as a Markdown artifact in Prefect and as HTML in MLflow."""
    runtime = Runtime()
    check_devices(runtime)
    started = time.monotonic()
    journal = Journal(runtime.workspace, flow_run.name or name)
    runner = StageRunner(runtime, journal, display_in_use.get() or Display(quiet=True), lambda stage: None)
    status = "FAILED"
    try:
        card = work(runner, runner.store.open(Checkpoint, Path(base)))
        card["stages"] = [vars(record) for record in runner.records]
        card["seconds"] = round(time.monotonic() - started, 2)
        create_markdown_artifact(texts[0](card), key=name, description=f"{name} of {card['model']}")
        if any(record.state != "Cached" for record in runner.records):
            journal.write("text", journal.key, name=f"{name}.html", text=texts[1](card))
            journal.metrics(journal.key, _figures(card))
        status = "FINISHED"
    finally:
        runner.close()
        if journal.started:
            journal.end(journal.key, status)
            journal.stop_forwarder()
            forward_unsent(runtime.workspace)
    return card


def _figures(card: Mapping[str, Any]) -> dict[str, float]:
    tables = card.get("downstream") or card.get("ablation") or {}
    return {f"{name}.{scores['metric']}": scores["score"] for name, scores in tables.items()}


def _score_all(config: DownstreamConfig, runner: StageRunner, base: Checkpoint) -> tuple[Scores, dict[str, str]]:
    if config.mixed:
        return score_mixture(config, runner, base), {}
    held_out = hold_out(config, runner)
    own = as_it_is(config, runner.store, base)
    left_out: dict[str, str] = {}

    def score(task: Task) -> TaskScores | None:
        try:
            return score_task(task, config, runner, base, held_out, own)
        except (Preempted, TryLaterError):
            raise
        except MillraceError as error:
            if not config.skip_what_fails:
                raise
            left_out[task.name] = str(error)
            runner.display.say(f"  {task.name} is left out: {error}")
            return None

    longest_first = sorted(config.tasks, key=expected_work, reverse=True)
    made = runner.together([partial(score, task) for task in longest_first], counted="tasks")
    found = {task.name: scores for task, scores in zip(longest_first, made, strict=True) if scores}
    return {task.name: found[task.name] for task in config.tasks if task.name in found}, left_out


def as_it_is(config: DownstreamConfig, store: Store, base: Checkpoint) -> AsItIs | None:
    """How the model was tuned, where it is to be scored as it is on what it was tuned for."""
    lineage = partial(tuned, store)
    found = lineage(base) if config.as_it_is else None
    return AsItIs(found, lineage, config.smoke) if found else None


def _register(config: DownstreamConfig, runner: StageRunner, scores: Scores) -> dict[str, str]:
    """Register every fine-tune as a model of its own; the first version of a name goes into service.

    A model that has learnt several tasks at once is one model, with the score card of its first task.
    """
    models = {
        f"{config.register_as}-{'mixture' if config.mixed else name}": (made.finetuned, made.evaluation)
        for name, made in reversed(scores.items())
        if made.finetuned is not None
    }
    if not config.register_as or not models:
        return {}
    made = runner.recorded("register", lambda: register(runner.runtime, runner.journal, models, return_state=True))
    put_first_into_service(made)
    return {name: item.version for name, item in made.items()}
