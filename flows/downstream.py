"""The Prefect flow of the declared downstream tasks: from one base model, each is read, fine-tuned and scored."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from pydantic import Field

from flows.downstream_report import as_html, as_markdown
from flows.pipeline import display_in_use
from lm_core import stages
from lm_core.artifact import Checkpoint, Evaluation
from lm_core.config import Config
from lm_core.downstream.config import EvaluateTaskConfig, FinetuneConfig, ReadTaskConfig, ScoreTaskConfig
from lm_core.downstream.task import Task
from lm_core.errors import MillraceError, Preempted, TryLaterError
from lm_core.runtime import Runtime
from tasks import registry
from tasks.display import Display
from tasks.release import register
from tasks.stage import StageRunner
from tasks.tracking import Journal, forward_unsent

SMOKE_ITEMS, SMOKE_STEPS, SMOKE_TOKENS, SMOKE_RESAMPLES = 24, 2, 8, 200


class DownstreamConfig(Config):
    """Which declared tasks a base model is tried on, and how."""

    tasks: tuple[Task, ...] = Field(..., min_length=1, description="Declarations, in order.")
    data: str = Field(..., description="Folder that the tasks' files are relative to, or hub.")
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig, description="Optimizer and strategy.")
    evaluate_task: EvaluateTaskConfig = Field(
        default=EvaluateTaskConfig(max_items=5000, max_new_tokens=512), description="Intervals and limits."
    )
    smoke: bool = Field(False, description="A few items and steps of each task, to see that all of it runs.")
    skip_what_fails: bool = Field(False, description="A task that cannot be scored is named; the others go on.")
    register_as: str = Field("", description="Register the fine-tunes as NAME-TASK; empty registers nothing.")


@flow(name="downstream", flow_run_name="downstream tasks of {model}", persist_result=False)
def run_downstream(config: DownstreamConfig, base: str, model: str) -> dict[str, Any]:
    """Fine-tune a base model for declared tasks and score each beside its baselines.

    Args:
        base: folder of the base's checkpoint in the store.
        model: what it is called, for people.
    """
    runtime = Runtime()
    started = time.monotonic()
    journal = Journal(runtime.workspace, flow_run.name or "downstream")
    runner = StageRunner(runtime, journal, display_in_use.get() or Display(quiet=True), lambda stage: None)
    status = "FAILED"
    try:
        checkpoint = runner.store.open(Checkpoint, Path(base))
        scores, left_out = _score_all(config, runner, checkpoint)
        registered = _register(config, runner, scores)
        card = {
            "model": model,
            "downstream": {name: dict(evaluation.statistics) for name, (_, evaluation) in scores.items()},
            "left_out": left_out,
            "registered": registered,
            "stages": [vars(record) for record in runner.records],
            "seconds": round(time.monotonic() - started, 2),
        }
        _show(card, journal, runner)
        status = "FINISHED"
    finally:
        if journal.started:
            journal.end(journal.key, status)
            journal.stop_forwarder()
            forward_unsent(runtime.workspace)
    return card


Scored = dict[str, tuple[Checkpoint | None, Evaluation]]


def _score_all(config: DownstreamConfig, runner: StageRunner, base: Checkpoint) -> tuple[Scored, dict[str, str]]:
    scores: Scored = {}
    left_out: dict[str, str] = {}
    for task in config.tasks:
        try:
            scores[task.name] = score_task(task, config, runner, base)
        except (Preempted, TryLaterError):
            raise
        except MillraceError as error:
            if not config.skip_what_fails:
                raise
            left_out[task.name] = str(error)
    return scores, left_out


def score_task(
    task: Task, config: DownstreamConfig, runner: StageRunner, base: Checkpoint
) -> tuple[Checkpoint | None, Evaluation]:
    """The fine-tune of one task and its scores; no fine-tune where one stage trains and scores by itself."""
    cap = SMOKE_ITEMS if config.smoke else None
    whole = stages.WHOLE_TASKS.get(task.name) or stages.WHOLE_TASKS.get(task.kind)
    if whole:
        alone = ScoreTaskConfig(task=task, data=config.data, max_items=cap, size="smoke" if config.smoke else "full")
        return None, runner(whole, alone, label=f"evaluate {task.name}", base=base)
    read = ReadTaskConfig(task=task, data=config.data, max_items=cap)
    examples = runner(stages.READ_TASK, read, label=f"read {task.name}")
    settings = finetune_settings(task, config)
    finetuned = runner(stages.FINETUNE, settings, label=f"finetune {task.name}", base=base, examples=examples)
    from_random = runner(
        stages.FINETUNE,
        settings.model_copy(update={"from_random": True}),
        label=f"finetune {task.name} from random weights",
        base=base,
        examples=examples,
    )
    limits: dict[str, Any] = {"max_items": SMOKE_ITEMS, "max_new_tokens": SMOKE_TOKENS} if config.smoke else {}
    if config.smoke:
        limits["num_resamples"] = SMOKE_RESAMPLES
    evaluation = runner(
        stages.EVALUATE_TASK,
        config.evaluate_task.model_copy(update={"task": task.name, "declared": task, **limits}),
        label=f"evaluate {task.name}",
        finetuned=finetuned,
        from_random=from_random,
        examples=examples,
    )
    return finetuned, evaluation


def finetune_settings(task: Task, config: DownstreamConfig) -> FinetuneConfig:
    """The general settings with the task's own budget."""
    optimization = config.finetune.optimization.model_copy(
        update={"batch_tokens": task.batch_tokens, "micro_batch_tokens": task.batch_tokens}
    )
    return config.finetune.model_copy(
        update={
            "task": task.name,
            "loss_on": task.loss_on,
            "num_epochs": task.num_epochs,
            "max_steps": SMOKE_STEPS if config.smoke else task.max_steps,
            "optimization": optimization,
        }
    )


def _register(config: DownstreamConfig, runner: StageRunner, scores: Scored) -> dict[str, str]:
    """Register every fine-tune as a model of its own; the first version of a name goes into service."""
    models = {
        f"{config.register_as}-{name}": (finetuned, evaluation)
        for name, (finetuned, evaluation) in scores.items()
        if finetuned is not None
    }
    if not config.register_as or not models:
        return {}
    made = runner.recorded("register", lambda: register(runner.runtime, runner.journal, models, return_state=True))
    for name, item in made.items():
        if registry.version_with_alias(name, "champion") is None:
            registry.promote(name, item.version, ("there is no champion yet",))
    return {name: item.version for name, item in made.items()}


def _show(card: Mapping[str, Any], journal: Journal, runner: StageRunner) -> None:
    """A Markdown artifact in Prefect; the same as HTML in MLflow when anything was computed."""
    create_markdown_artifact(as_markdown(card), key="downstream", description=f"downstream tasks of {card['model']}")
    if any(record.state != "Cached" for record in runner.records):
        journal.write("text", journal.key, name="downstream.html", text=as_html(card))
        figures = {f"{name}.{scores['metric']}": scores["score"] for name, scores in card["downstream"].items()}
        journal.metrics(journal.key, figures)
