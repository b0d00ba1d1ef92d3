"""What feeds what for one declared task, from a base model: read by the flows that run it and by the planner alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from flows.config import PipelineConfig
from flows.finetune_settings import (
    OF_LABELS,
    SMOKE_BATCH_TOKENS,
    SMOKE_STEPS,
    finetune_settings,
    lent_to_pictures,
)
from flows.tuned_wiring import AsItIs
from flows.visual_wiring import score_visual
from flows.wiring import Run
from lm_core import stages
from lm_core.artifact import Checkpoint, DownstreamData, Evaluation, HeldOut
from lm_core.config import Config
from lm_core.downstream.config import (
    AblateConfig,
    EvaluatePreferenceConfig,
    EvaluateTaskConfig,
    FinetuneConfig,
    HoldOutConfig,
    PreferConfig,
    ReadMixtureConfig,
    ReadTaskConfig,
    ScoreTaskConfig,
)
from lm_core.downstream.rows import HUB, missing_files
from lm_core.downstream.task import Task
from lm_core.downstream.tasks.registry import declared_tasks, find_tasks
from lm_core.downstream.variants import variants_of
from lm_core.errors import UserError

SMOKE_ITEMS, SMOKE_TOKENS, SMOKE_RESAMPLES = 8, 4, 200
# An ablation is about few examples: with many of them nothing has to be regularised.
ABLATION_ITEMS, ABLATION_EPOCHS = 400, 4.0
MIXTURE = "mixture"


class DownstreamConfig(Config):
    """Which declared tasks a base model is tried on, and how."""

    tasks: tuple[Task, ...] = Field(..., min_length=1, description="Declarations, in order.")
    data: str = Field(..., description="Folder that the tasks' files are relative to, or hub.")
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig, description="Optimizer and strategy.")
    chosen: tuple[str, ...] = Field(
        (), description="Settings of finetune that hold against a task's own budget and recipe."
    )
    evaluate_task: EvaluateTaskConfig = Field(
        default=EvaluateTaskConfig(max_items=5000, max_new_tokens=512), description="Intervals and limits."
    )
    mixed: bool = Field(False, description="One model learns all the tasks at once, instead of one for each.")
    as_it_is: bool = Field(
        False, description="A model that was tuned for a task is scored on it as it is, and not tuned again."
    )
    smoke: bool = Field(False, description="A few items and steps of each task, to see that all of it runs.")
    skip_what_fails: bool = Field(False, description="A task that cannot be scored is named; the others go on.")
    register_as: str = Field("", description="Register the fine-tunes as NAME-TASK; empty registers nothing.")


@dataclass(frozen=True)
class TaskScores:
    """A task's scores, and the fine-tune that got them; none where one stage trains and scores by itself.

    Attributes:
        again: measures another model on the same items; None where that cannot be.
    """

    evaluation: Evaluation
    finetuned: Checkpoint | None = None
    again: Callable[[Checkpoint], Evaluation] | None = None


def score_task(
    task: Task, config: DownstreamConfig, run: Run, base: Checkpoint, held_out: HeldOut, own: AsItIs | None = None
) -> TaskScores:
    """Read, fine-tune, fine-tune from random weights, score.

    Args:
        own: how the base itself was tuned, where it is to be scored as it is on what it was tuned for.
    """
    whole = stages.WHOLE_TASKS.get(task.name) or stages.WHOLE_TASKS.get(task.kind)
    if whole:
        size = "smoke" if config.smoke else "full"
        alone = ScoreTaskConfig(task=task, data=config.data, max_items=_cap(config), size=size)
        return TaskScores(run(whole, alone, label=f"evaluate {task.name}", base=base))
    if own and own.fits(task):
        return _score_as_it_is(task, config, run, own, held_out)
    if task.kind == "visual":
        how = lent_to_pictures(config)
        return TaskScores(*score_visual(task, run, base, data=config.data, lent=how, smoke=config.smoke))
    examples = read(task, config, run, held_out)
    settings = finetune_settings(task, config)
    pair = finetune_pair(task.name, settings, run, base, examples)
    if task.kind == "preference":
        return _score_preference(task, config, run, pair, examples)

    def again(champion: Checkpoint) -> Evaluation:
        return evaluate(task, config, run, (champion, pair[1]), examples, label=f"evaluate champion {task.name}")

    return TaskScores(evaluate(task, config, run, pair, examples), pair[0], again)


def _score_as_it_is(task: Task, config: DownstreamConfig, run: Run, own: AsItIs, held_out: HeldOut) -> TaskScores:
    """The model that was tuned for a task, beside twins and baselines; it is registered already."""
    if config.chosen and not config.skip_what_fails:
        raise UserError(
            f"finetune.{config.chosen[0]} has no effect on {task.name}: the model was tuned for it and is scored as "
            "it is; `millrace finetune` tunes it again"
        )
    model = own.tuned.model
    if task.kind == "visual":
        how, data, smoke = lent_to_pictures(config), config.data, config.smoke
        return TaskScores(score_visual(task, run, own.base(), data=data, lent=how, smoke=smoke, finetuned=model)[0])
    examples = read(task, config, run, held_out)
    if task.kind == "preference":
        reference, random = own.preferred(run, task, examples)
        return TaskScores(_evaluate_preference(task, config, run, (model, reference, random), examples))
    return TaskScores(evaluate(task, config, run, (model, own.random_twin(run, task, examples)), examples))


def expected_work(task: Task) -> float:
    """About how long a task takes, in tokens of training: side by side the longest go first."""
    many_models = {"visual": 4.0, "choice": 1.0, "preference": 2.0}
    items_asked = 10_000.0 * task.max_test_items if task.kind == "choice" else 0.0
    return many_models.get(task.kind, 1.0) * (task.max_steps * task.batch_tokens + items_asked)


def read(task: Task, config: DownstreamConfig, run: Run, held_out: HeldOut) -> DownstreamData:
    """The task's items; those to train on hold none of the held-out items."""
    settings = ReadTaskConfig(task=task, data=config.data, max_items=_cap(config), skim=config.smoke)
    return run(stages.READ_TASK, settings, label=f"read {task.name}", held_out=held_out)


def hold_out(config: DownstreamConfig, run: Run) -> HeldOut:
    """The held-out items of all tasks in the data folder; none of data sets of the hub, nor where nothing is learnt."""
    settings = (
        HoldOutConfig() if config.data == HUB or config.smoke else HoldOutConfig(data=config.data, tasks=config.tasks)
    )
    return run(stages.HOLD_OUT, settings, label="hold out")


def finetune_pair(
    name: str, settings: FinetuneConfig, run: Run, base: Checkpoint, examples: DownstreamData
) -> tuple[Checkpoint, Checkpoint]:
    """The fine-tune, and beside it the same model from random weights with the same budget."""
    inputs = {"base": base, "examples": examples}
    from_random = settings.model_copy(update={"from_random": True, "replay_fraction": 0.0})
    tuned, random = run.together(
        [
            lambda: run(stages.FINETUNE, settings, label=f"finetune {name}", **inputs),
            lambda: run(stages.FINETUNE, from_random, label=f"finetune {name} from random weights", **inputs),
        ]
    )
    return tuned, random


def evaluate(
    task: Task,
    config: DownstreamConfig,
    run: Run,
    pair: tuple[Checkpoint, Checkpoint],
    examples: DownstreamData,
    label: str | None = None,
) -> Evaluation:
    """Scores of a fine-tune beside its twin from random weights and the classical baselines."""
    settings = config.evaluate_task.model_copy(update={"task": task.name, "declared": task, **_limits(config)})
    finetuned, from_random = pair
    return run(stages.EVALUATE_TASK, settings, label=label or f"evaluate {task.name}", finetuned=finetuned,
               from_random=from_random, examples=examples)  # fmt: skip


def _score_preference(
    task: Task, config: DownstreamConfig, run: Run, pair: tuple[Checkpoint, Checkpoint], examples: DownstreamData
) -> TaskScores:
    """Both fine-tunes go on with pairs; the answers of the tuned one stand against those of its reference."""
    optimization = PreferConfig().optimization.model_copy(
        update={"precision": config.finetune.optimization.precision, "seed": config.finetune.optimization.seed}
    )
    guard = finetune_settings(task, config)
    settings = PreferConfig(task=task.name, optimization=optimization, max_forgetting=guard.max_forgetting,
                            guard_tokens=guard.guard_tokens)  # fmt: skip
    if config.smoke:
        few = {"batch_tokens": SMOKE_BATCH_TOKENS, "micro_batch_tokens": SMOKE_BATCH_TOKENS}
        settings = settings.model_copy(
            update={
                "max_steps": SMOKE_STEPS,
                "max_pairs": SMOKE_ITEMS,
                "optimization": optimization.model_copy(update=few),
            }
        )

    def prefer(name: str, base: Checkpoint) -> Checkpoint:
        return run(stages.PREFER, settings, label=f"prefer {name}", base=base, examples=examples)

    tuned, random = run.together(
        [partial(prefer, task.name, pair[0]), partial(prefer, f"{task.name} from random weights", pair[1])]
    )
    return TaskScores(_evaluate_preference(task, config, run, (tuned, pair[0], random), examples), tuned)


def _evaluate_preference(
    task: Task,
    config: DownstreamConfig,
    run: Run,
    models: tuple[Checkpoint, Checkpoint, Checkpoint],
    examples: DownstreamData,
) -> Evaluation:
    """Scores of a model tuned by pairs beside its reference, and the same from random weights."""
    scoring = EvaluatePreferenceConfig(
        task=task.name, max_items=task.max_test_items, max_new_tokens=task.max_new_tokens
    ).model_copy(update=_limits(config))
    finetuned, reference, from_random = models
    return run(stages.EVALUATE_PREFERENCE, scoring, label=f"evaluate {task.name}", finetuned=finetuned,
               reference=reference, from_random=from_random, examples=examples)  # fmt: skip


def score_mixture(config: DownstreamConfig, run: Run, base: Checkpoint) -> dict[str, TaskScores]:
    """One model that learns all the tasks at once, scored on each."""
    settings = ReadMixtureConfig(tasks=config.tasks, data=config.data, max_items=_cap(config), skim=config.smoke)
    examples = run(stages.READ_MIXTURE, settings, label=f"read {MIXTURE}", held_out=hold_out(config, run))
    longest = max(config.tasks, key=lambda task: task.max_steps)
    steps = sum(task.max_steps for task in config.tasks)
    values: dict[str, Any] = {"task": MIXTURE, "mixture": tuple(task.name for task in config.tasks)}
    if not config.smoke and "max_steps" not in config.chosen:
        values["max_steps"] = steps
    defaults = FinetuneConfig()
    values |= {name: getattr(defaults, name) for name in OF_LABELS}  # its answers are written, whatever a recipe says
    learnt = finetune_settings(longest, config).model_copy(update=values)
    pair = finetune_pair(MIXTURE, learnt, run, base, examples)
    scores = run.together([partial(evaluate, task, config, run, pair, examples) for task in config.tasks])
    return {task.name: TaskScores(made, pair[0]) for task, made in zip(config.tasks, scores, strict=True)}


def fan_out(config: PipelineConfig, run: Run, base: Checkpoint) -> dict[str, TaskScores]:
    """All declared tasks that the pipeline's configuration asks for, from its one base."""
    asked = config.declared
    if not asked.data:
        return {}
    own = Path(asked.tasks_file) if asked.tasks_file else None
    tasks = find_tasks(list(asked.tasks), own) or [
        task for task in declared_tasks(own).values() if not missing_files(task, asked.data)
    ]
    data = asked.data if asked.data == HUB else str(Path(asked.data).absolute())
    whole = DownstreamConfig(tasks=tuple(tasks), data=data, finetune=config.finetune, chosen=asked.chosen)
    held_out = hold_out(whole, run)
    scores = run.together([partial(score_task, task, whole, run, base, held_out) for task in tasks], counted="tasks")
    return {task.name: made for task, made in zip(tasks, scores, strict=True)}


def ablate_task(task: Task, config: DownstreamConfig, run: Run, base: Checkpoint) -> Evaluation:
    """The generalisation toolbox on few examples of a task, one fine-tune for each variant."""
    few = task.model_copy(update={"max_train_items": ABLATION_ITEMS})
    examples = read(few, config, run, hold_out(config, run))
    settings = finetune_settings(few, config)
    if "num_epochs" not in config.chosen:
        settings = settings.model_copy(update={"num_epochs": ABLATION_EPOCHS})
    variants = variants_of(settings, labels=task.kind == "label")

    def tune(name: str, one: FinetuneConfig) -> Checkpoint:
        return run(stages.FINETUNE, one, label=f"finetune {task.name} {name}", base=base, examples=examples)

    tuned = run.together([partial(tune, name, one) for name, (_, one) in variants.items()], counted="variants")
    made = {f"variant_{name}": one for name, one in zip(variants, tuned, strict=True)}
    scoring = AblateConfig.model_validate(
        config.evaluate_task.model_dump() | {"task": task.name, "declared": task} | _limits(config)
    )
    return run(stages.ABLATE, scoring, label=f"ablate {task.name}", examples=examples, **made)


def _cap(config: DownstreamConfig) -> int | None:
    return SMOKE_ITEMS if config.smoke else None


def _limits(config: DownstreamConfig) -> dict[str, Any]:
    if not config.smoke:
        return {}
    return {"max_items": SMOKE_ITEMS, "max_new_tokens": SMOKE_TOKENS, "num_resamples": SMOKE_RESAMPLES}
