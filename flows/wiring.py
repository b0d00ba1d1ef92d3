"""What feeds what: the pipeline as one straight line, read by the flow that runs it and by the planner alike.

`run(stage, config, label=..., **inputs)` returns the handle of the stage's artifact. The flow's `run` makes the
artifact in a Prefect task; the planner's only asks the store whether it would be found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from flows.config import PipelineConfig
from lm_core import stages
from lm_core.artifact import Artifact, ArtifactT, Checkpoint, DownstreamData, Evaluation, TokenDataset, ValidCorpus
from lm_core.config import Config
from lm_core.errors import UserError
from lm_core.runtime import Runtime
from lm_core.store import Stage
from lm_core.training.devices import check_devices

ResultT = TypeVar("ResultT")


class Run(Protocol):
    """Makes, finds or plans the artifact of one stage."""

    def __call__(
        self, stage: Stage[ArtifactT], config: Config, *, label: str | None = None, **inputs: Artifact
    ) -> ArtifactT: ...

    def together(self, calls: Sequence[Callable[[], ResultT]], *, counted: str = "") -> list[ResultT]:
        """Results of calls that do not need each other, in their order; `counted` is what a call is, in the plural."""


class UntilReached(Exception):  # noqa: N818, not an error: it ends the straight line early
    """All stages up to the one named by `--until` are done."""


@dataclass(frozen=True)
class Until:
    """The last stage that a run should reach; None for all of them."""

    stage: str | None = None

    def __post_init__(self) -> None:
        names = [stage.name for stage in stages.PIPELINE]
        if self.stage is not None and self.stage not in names:
            raise UserError(f"--until {self.stage}: there is no such stage; the stages are {', '.join(names)}")

    def check_devices(self, runtime: Runtime) -> None:
        """Refuse, before the first stage, a run whose training would find its device missing."""
        names = [stage.name for stage in stages.PIPELINE]
        if self.stage is None or names.index(self.stage) >= names.index(stages.PRETRAIN.name):
            check_devices(runtime)

    def check(self, stage: Stage) -> None:
        """Raise UntilReached for a stage that stands beyond the last one."""
        names = [stage.name for stage in stages.PIPELINE]
        if stage.name not in names:  # of a declared task: those come after everything that can be named
            return
        if self.stage is not None and names.index(stage.name) > names.index(self.stage):
            raise UntilReached


@dataclass(frozen=True)
class TaskProducts:
    """What one downstream task yields."""

    finetuned: Checkpoint
    from_random: Checkpoint
    evaluation: Evaluation


@dataclass(frozen=True)
class Products:
    """What a pipeline run yields, as handles."""

    corpus: ValidCorpus
    examples: DownstreamData
    tokens: TokenDataset
    base: Checkpoint
    evaluation: Evaluation
    tasks: dict[str, TaskProducts] = field(default_factory=dict)


def corpus_to_model(config: PipelineConfig, run: Run) -> Products:
    """From sources to an evaluated model and its fine-tunes."""
    corpus = run(stages.COLLECT, config.collect)
    cleaning = run(stages.CLEAN, config.clean, corpus=corpus)
    duplicates = run(stages.DEDUPLICATE, config.deduplicate, corpus=corpus, cleaning=cleaning)
    examples = run(stages.PREPARE, config.prepare, corpus=corpus, cleaning=cleaning, duplicates=duplicates)
    held_out = run(stages.HOLD_OUT, config.holding_out())
    contamination = run(
        stages.DECONTAMINATE,
        config.decontaminate,
        corpus=corpus,
        cleaning=cleaning,
        duplicates=duplicates,
        examples=examples,
        held_out=held_out,
    )
    valid = run(
        stages.VALIDATE,
        config.validation,
        corpus=corpus,
        cleaning=cleaning,
        duplicates=duplicates,
        contamination=contamination,
        examples=examples,
    )
    tokenizer = run(stages.TRAIN_TOKENIZER, config.train_tokenizer, corpus=valid)
    tokens = run(stages.TOKENIZE, config.tokenize, corpus=valid, tokenizer=tokenizer)
    base = run(stages.PRETRAIN, config.pretrain, tokens=tokens, tokenizer=tokenizer)
    tasks = tasks_of(examples, config)

    def tune(task: str) -> tuple[Checkpoint, Checkpoint]:
        return finetune(task, config, run, base=base, examples=examples, corpus=valid)

    def score(task: str, pair: tuple[Checkpoint, Checkpoint]) -> Evaluation:
        return evaluate_task(task, config, run, *pair, examples=examples, corpus=valid)

    tuned = run.together([partial(tune, task) for task in tasks])
    scored: list[Callable[[], Evaluation]] = [
        lambda: run(stages.EVALUATE, config.evaluate, base=base, tokens=tokens, corpus=valid)
    ]
    scored += [partial(score, task, pair) for task, pair in zip(tasks, tuned, strict=True)]
    evaluation, *evaluations = run.together(scored)
    return Products(
        corpus=valid,
        examples=examples,
        tokens=tokens,
        base=base,
        evaluation=evaluation,
        tasks={task: TaskProducts(*pair, scores) for task, pair, scores in zip(tasks, tuned, evaluations, strict=True)},
    )


def tasks_of(examples: DownstreamData, config: PipelineConfig) -> tuple[str, ...]:
    """The downstream tasks there is data for; before that is known, those that are asked for."""
    return tuple(examples.statistics.get("tasks", config.prepare.tasks))


def finetune(
    task: str, config: PipelineConfig, run: Run, *, base: Checkpoint, examples: DownstreamData, corpus: ValidCorpus
) -> tuple[Checkpoint, Checkpoint]:
    """Fine-tune for one task, and beside it the same model from random weights with the same budget."""
    inputs = {"base": base, "examples": examples, "corpus": corpus}
    settings = config.finetune.model_copy(update={"task": task})
    from_scratch = settings.model_copy(update={"from_random": True})
    tuned, random = run.together(
        [
            lambda: run(stages.FINETUNE, settings, label=f"finetune {task}", **inputs),
            lambda: run(stages.FINETUNE, from_scratch, label=f"finetune {task} from random weights", **inputs),
        ]
    )
    return tuned, random


def evaluate_task(
    task: str,
    config: PipelineConfig,
    run: Run,
    finetuned: Checkpoint,
    from_random: Checkpoint,
    *,
    examples: DownstreamData,
    corpus: ValidCorpus,
    label: str | None = None,
) -> Evaluation:
    """Score a fine-tune on held-out items, beside its baselines."""
    return run(
        stages.EVALUATE_TASK,
        config.evaluate_task.model_copy(update={"task": task}),
        label=label or f"evaluate {task}",
        finetuned=finetuned,
        from_random=from_random,
        examples=examples,
        corpus=corpus,
    )
