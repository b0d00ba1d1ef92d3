"""The Prefect flows: the whole pipeline, and its parts as deployments of their own.

All walk the same wiring; a part is the wiring up to some stage. What exists already is `Cached`, so running a part
after the whole, or the whole after a part, computes nothing twice.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from flows.config import PipelineConfig
from flows.downstream_wiring import TaskScores, fan_out
from flows.presets import laptop
from flows.scorecard import as_markdown, headline_metrics, score_card
from flows.wiring import Products, Until, UntilReached, corpus_to_model, evaluate_task
from lm_core import stages
from lm_core.artifact import Checkpoint, Evaluation
from lm_core.evaluation.promotion import labels_of
from lm_core.runtime import Runtime
from tasks.display import Display
from tasks.memory import PeakMemory
from tasks.registry import Registered, alias_of
from tasks.release import promote, register
from tasks.servers import managed_pids
from tasks.stage import StageRunner
from tasks.tracking import Journal, forward_unsent

# The command line puts its live display here; under a worker there is none and Prefect's own log tells.
display_in_use: ContextVar[Display | None] = ContextVar("display_in_use", default=None)


def _leave_post_mortem(flow: Any, flow_run: Any, state: Any) -> None:
    """A Markdown artifact that says what failed and which command goes on from there."""
    lines = [
        f"# {flow_run.name}: {state.name}",
        f"> {state.message}",
        "Everything finished before stays in the store, long stages kept their last checkpoint. To go on:",
        "```\nmillrace run   # with the same preset and settings\n```",
    ]
    create_markdown_artifact("\n\n".join(lines), key="post-mortem", description="what failed, how to go on")


@flow(
    name="corpus_to_model",
    flow_run_name="corpus to model {config.registry.model_name}",
    on_failure=[_leave_post_mortem],
    on_crashed=[_leave_post_mortem],
    persist_result=False,
)
def run_corpus_to_model(config: PipelineConfig | None = None, until: str | None = None) -> dict[str, Any]:
    """From raw text to a registered and, when it is better, promoted model.

    Args:
        config: everything that decides what comes out; the preset laptop when not given.
        until: last stage to run (collect, clean, ... evaluate_task); all of them, and registration, when not given.
    """
    return _run(config or laptop(), Until(until))


def _part(name: str, until: str, doc: str) -> Callable[..., dict[str, Any]]:
    """A flow that is the pipeline up to one stage."""

    def run_part(config: PipelineConfig | None = None) -> dict[str, Any]:
        return _run(config or laptop(), Until(until))

    run_part.__doc__ = doc
    run_part.__name__ = run_part.__qualname__ = f"run_{name}"  # a worker imports it by this name
    return flow(name=name, flow_run_name=f"{name} {{config.registry.model_name}}", persist_result=False)(run_part)


run_corpus = _part("corpus", "validate", "Collect, clean, deduplicate, decontaminate and validate.")
run_pretrain = _part("pretrain", "pretrain", "Everything up to a pretrained checkpoint.")
run_finetune = _part("finetune", "finetune", "Everything up to the fine-tunes of all downstream tasks.")
run_evaluate = _part("evaluate", "evaluate_task", "Everything up to the scores, without registration.")


@flow(name="promote", flow_run_name="promote {model} {version}", persist_result=False)
def run_promote(model: str = "millrace", version: str = "challenger") -> str:
    """Make a version (by number or alias) champion, by a person's decision."""
    from tasks import registry

    found = registry.find_version(model, version)
    registry.promote(model, str(found.version), ("promoted by hand",))
    return str(found.version)


def _run(config: PipelineConfig, until: Until) -> dict[str, Any]:
    runtime = Runtime()
    until.check_devices(runtime)
    started = time.monotonic()
    journal = Journal(runtime.workspace, flow_run.name or "corpus to model")
    runner = StageRunner(runtime, journal, display_in_use.get() or Display(quiet=True), until.check)
    registered: dict[str, Registered] = {}
    alias = None
    status = "FAILED"
    try:
        with PeakMemory(lambda: managed_pids(runtime.workspace)) as memory, contextlib.suppress(UntilReached):
            products = corpus_to_model(config, runner)
            declared = fan_out(config, runner, products.base)
            if until.stage is None:
                registered, alias = _release(config, runner, products, declared)
        seconds, peak_rss_mb = time.monotonic() - started, memory.peak_bytes // 1_000_000
        card = score_card(runner, registered, alias, seconds, peak_rss_mb, config.registry.model_name)
        create_markdown_artifact(as_markdown(card), key="score-card", description=f"what {flow_run.name} came to")
        if journal.started:
            journal.metrics(journal.key, headline_metrics(card))
            journal.write("text", journal.key, name="score-card.md", text=as_markdown(card))
        status = "FINISHED"
    finally:
        runner.close()
        if journal.started:
            journal.end(journal.key, status)
            journal.stop_forwarder()
            forward_unsent(runtime.workspace)
    return card


def _release(
    config: PipelineConfig, runner: StageRunner, products: Products, declared: Mapping[str, TaskScores]
) -> tuple[dict[str, Registered], str | None]:
    """Register all models, then let the gate decide on the new version."""
    name = config.registry.model_name
    models = {name: (products.base, products.evaluation)}
    models |= {f"{name}-{task}": (made.finetuned, made.evaluation) for task, made in products.tasks.items()}
    models |= {
        f"{name}-{task}": (made.finetuned, made.evaluation)
        for task, made in declared.items()
        if made.finetuned is not None
    }

    def measure_champion(champion: Checkpoint) -> Evaluation:
        return runner(
            stages.EVALUATE,
            config.evaluate,
            label="evaluate champion",
            base=champion,
            tokens=products.tokens,
            corpus=products.corpus,
        )

    def measure_champion_on(model: str, champion: Checkpoint) -> Evaluation | None:
        task = model.removeprefix(f"{name}-")
        if task in declared:
            made = declared[task]
            comparable = labels_of(champion) == labels_of(models[model][0])
            return made.again(champion) if made.again and comparable else None
        ours = products.tasks[task]
        if labels_of(champion) != labels_of(ours.finetuned):
            return None
        return evaluate_task(
            task,
            config,
            runner,
            champion,
            ours.from_random,
            label=f"evaluate champion {task}",
            examples=products.examples,
            corpus=products.corpus,
        )

    registered = runner.recorded(
        "register", lambda: register(runner.runtime, runner.journal, models, return_state=True)
    )
    runner.recorded(
        "promote",
        lambda: promote(
            runner.runtime,
            name,
            registered,
            measure_champion,
            measure_champion_on,
            {model: evaluation for model, (_, evaluation) in models.items()},
            allowed=config.registry.promote,
            return_state=True,
        ),
    )
    return registered, alias_of(registered[name])
