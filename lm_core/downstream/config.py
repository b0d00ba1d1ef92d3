"""Configuration of the downstream stages: making examples, fine-tuning, evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lm_core.config import Added, Config, Incidental
from lm_core.downstream.task import Task
from lm_core.training.config import OptimizationConfig

EmbeddedTask = Literal["summary", "answer", "topic"]
EMBEDDED_TASKS: tuple[EmbeddedTask, ...] = ("summary", "answer", "topic")

MAX_FORGETTING = (
    "Most bits per byte that the base's own text may cost more after this step; beyond it the base's weights are mixed "
    "back in, a quarter at a time. 0: measured and shown, but not bounded."
)
GUARD_TOKENS = (
    "Tokens of the base's own validation text on which forgetting is measured; 0: not, and nothing is bounded."
)
# Of 19 tasks only intent forgot more, 0.50: with half of the base mixed back in 0.10, at the same accuracy (0.909).
FORGETTING_BOUND = 0.25


def check_guard(max_forgetting: float, guard_tokens: int, *, default: float = FORGETTING_BOUND) -> None:
    """Raises ValueError where a bound is set on what is not measured."""
    if max_forgetting not in (0, default) and not guard_tokens:
        raise ValueError("max_forgetting has no effect without guard_tokens: forgetting is not measured")


class PrepareConfig(Config):
    """Which downstream tasks are made from the corpus itself, and how many examples of each."""

    tasks: tuple[EmbeddedTask, ...] = Field(
        EMBEDDED_TASKS,
        description="summary: a docstring's body to its first line. answer: a question about a function or parameter "
        "to its documentation. topic: the package family (or the source) that a text comes from.",
    )
    max_train_items: int = Field(2000, ge=1, description="Most training examples of one task.")
    max_validation_items: int = Field(200, ge=1, description="Most validation examples of one task.")
    max_test_items: int = Field(300, ge=1, description="Most test examples of one task: they give the scores.")
    min_train_items: int = Field(40, ge=1, description="A task with fewer training examples is left out.")
    min_test_items: int = Field(20, ge=1, description="A task with fewer test examples is left out.")
    max_prompt_chars: int = Field(400, ge=40, description="A text in a prompt is cut to so many characters.")
    max_target_chars: int = Field(160, ge=8, description="Examples with a longer target are not made.")
    num_topics: int = Field(8, ge=2, le=100, description="Labels of topic: so many of the biggest families.")


class TaskDataConfig(Config):
    """A declared task and where its data are."""

    task: Task = Field(..., description="The declaration: files, templates, sizes, bounds.")
    data: str = Incidental(..., description="Folder that the files are relative to, or hub.")
    max_items: int | None = Field(None, ge=4, description="Most items of each split, below what the task declares.")


class ReadTaskConfig(TaskDataConfig):
    """A declared task's data folder as examples."""

    skim: bool = Field(
        False, description="Read the first 256 rows of each file and then one in 16, to see that the task works."
    )


class ReadMixtureConfig(Config):
    """The data folders of several declared tasks as one set of examples."""

    tasks: tuple[Task, ...] = Field(..., min_length=2, description="The declarations.")
    data: str = Incidental(..., description="Folder that the files are relative to, or hub.")
    max_items: int | None = Field(None, ge=4, description="Most items of each split of each task.")
    skim: bool = Added(False, description="Read only a part of each file's rows, as ReadTaskConfig says.")


class HoldOutConfig(Config):
    """Stage hold_out: the items of the declared downstream tasks that no text for learning may hold."""

    data: str | None = Incidental(
        None,
        description="Folder with the data of the declared tasks (`millrace tasks`); a folder given by --data is one. "
        "Tasks whose files are not there are left out.",
    )
    tasks_file: str | None = Incidental(None, description="TOML file that declares tasks of your own.")
    tasks: tuple[Task, ...] = Incidental((), description="Declarations beside those.")

    @model_validator(mode="after")
    def _tasks_have_data(self) -> HoldOutConfig:
        if (self.tasks_file or self.tasks) and not self.data:
            raise ValueError("tasks_file and tasks have no effect without data, the folder of the tasks' files")
        return self


class ScoreTaskConfig(TaskDataConfig):
    """A task that one stage trains and scores by itself from a base model: choices, pictures, preferences."""

    size: Literal["full", "smoke"] = Field("full", description="smoke: a few items and steps, to see that it runs.")
    num_resamples: int = Field(2000, ge=100, description="Bootstrap resamples of an interval.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of training and bootstrap.")


class FinetuneConfig(Config):
    """Supervised training on one downstream task; the loss counts the target only."""

    task: str = Field("summary", min_length=1, description="Name of the downstream task.")
    from_random: bool = Field(
        False,
        description="Start from random weights of the same architecture instead of the base model, with the same "
        "budget: the baseline `random_weights` of the scores.",
    )
    strategy: Literal["full", "head", "lora", "gradual"] = Field(
        "full",
        description="full: all weights move. head: the trunk is frozen, the labels' head learns. lora: low-rank "
        "updates of the blocks' matrices, merged into them at the end. gradual: blocks are unfrozen from the top down, "
        "and lower ones learn slower (layer_decay).",
    )
    lora_rank: int = Field(8, ge=1, le=1024, description="Rank of the updates (strategy lora).")
    layer_decay: float = Field(
        0.8, gt=0, le=1, description="Learning rate of a block as a share of the one above it (strategy gradual)."
    )
    unfreezing_fraction: float = Field(
        0.5, ge=0, le=1, description="Share of the steps after which every block has been unfrozen (strategy gradual)."
    )
    mixture: tuple[str, ...] = Field(
        (), description="Tasks that one model learns at once; answers of labelled ones are written. `task` names it."
    )
    mixture_temperature: float = Field(
        2.0, ge=1, le=100, description="Tasks are drawn by their size to the power of 1 over it: 1 by size alone."
    )
    pooling: Literal["mean", "mean_max", "all_layers"] = Field(
        "mean",
        description="What a classifier reads of the trunk: the mean of the last states; beside it their "
        "maximum; the means after every block.",
    )
    num_buckets: int = Field(
        0,
        ge=0,
        le=1 << 22,
        description="Buckets of a linear model of subwords and their pairs that answers beside the trunk; 0: none.",
    )
    trunk_learns: Literal["labels", "residual"] = Added(
        "labels",
        description="Beside a bag of subwords. labels: the trunk learns as if it were alone, answers are the mean of "
        "both. residual: it learns what the bag leaves to say, answers are their sum.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on residual branches and on a classifier's states.")
    token_dropout: float = Field(
        0.0, ge=0, lt=1, description="Augmentation: share of the tokens of a labelled text left out, anew each step."
    )
    token_swap: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Augmentation: share of the tokens of a labelled text replaced by a near neighbour in the base's "
        "embedding. It stands for synonyms and for translation there and back, which need a lexicon or models; from "
        "random weights neighbours mean nothing, and the tokens are left out instead.",
    )
    members: int = Field(1, ge=1, le=16, description="Fine-tunes of different seeds that become one model (combine).")
    combine: Literal["logits", "weights"] = Field(
        "logits", description="How members become one: the mean of their logits (labels only), or of their weights."
    )
    replay_fraction: float = Field(
        0.0, ge=0, lt=1, description="Share of the targets of a step that the base's own training text gives."
    )
    max_forgetting: float = Field(FORGETTING_BOUND, ge=0, description=MAX_FORGETTING)
    guard_tokens: int = Field(8192, ge=0, description=GUARD_TOKENS)
    num_evaluations: int = Field(
        1, ge=1, le=1000, description="Looks at the validation items; optimization.patience counts them."
    )
    loss_on: Literal["target", "everything"] = Field(
        "target", description="everything: texts without a prompt, of which every token is learnt."
    )
    spans_between: tuple[str, ...] = Added(
        (),
        max_length=2,
        description="What stands in a prompt right before and after the text of which every answer is a span; none: "
        "answers are written freely.",
    )
    num_epochs: float = Field(1.0, gt=0, le=100, description="Passes over the training examples.")
    max_steps: int = Field(200, ge=1, description="Most optimizer steps, however many examples there are.")
    optimization: OptimizationConfig = Field(
        default=OptimizationConfig(learning_rate=2e-3, muon_learning_rate=0.01, warmup_fraction=0.1),
        description="Optimizer and schedule. batch_tokens counts padding; the seed also orders the examples.",
    )

    @model_validator(mode="after")
    def _every_setting_has_effect(self) -> FinetuneConfig:
        needs = {
            "lora_rank": (self.strategy == "lora", "strategy=lora"),
            "layer_decay": (self.strategy == "gradual", "strategy=gradual"),
            "unfreezing_fraction": (self.strategy == "gradual", "strategy=gradual"),
            "mixture_temperature": (bool(self.mixture), "mixture"),
            "trunk_learns": (self.num_buckets > 0, "num_buckets"),
            "combine": (self.members > 1, "members of 2 or more"),
        }
        for name, (has_effect, needed) in needs.items():
            if not has_effect and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect without {needed}")
        check_guard(self.max_forgetting, self.guard_tokens)
        if self.from_random and self.replay_fraction:
            raise ValueError("replay_fraction has no effect from random weights, which have no text of their own")
        return self


class PreferConfig(Config):
    """Direct preference optimisation of a fine-tune, by pairs that stated rules make of a task's items."""

    task: str = Field("preference", min_length=1, description="Name of the downstream task.")
    beta: float = Field(0.1, gt=0, le=10, description="How dearly drifting from the reference is paid for.")
    max_pairs: int = Field(2000, ge=1, description="Most pairs learnt from.")
    max_steps: int = Field(24, ge=1, description="Optimizer steps.")
    max_forgetting: float = Field(FORGETTING_BOUND, ge=0, description=MAX_FORGETTING)
    guard_tokens: int = Field(8192, ge=0, description=GUARD_TOKENS)
    optimization: OptimizationConfig = Field(
        default=OptimizationConfig(
            optimizer="adamw", learning_rate=2e-4, warmup_fraction=0.1, batch_tokens=2048, micro_batch_tokens=2048
        ),
        description="Optimizer and schedule.",
    )

    @model_validator(mode="after")
    def _bound_is_measured(self) -> PreferConfig:
        check_guard(self.max_forgetting, self.guard_tokens)
        return self


class EvaluatePreferenceConfig(Config):
    """Answers of a preference-tuned model against those of its reference, by the stated rules."""

    task: str = Field("preference", min_length=1, description="Name of the downstream task.")
    max_items: int = Field(300, ge=1, description="Most test prompts answered.")
    max_new_tokens: int = Field(40, ge=1, description="Longest answer in tokens.")
    best_of: int = Field(4, ge=2, le=64, description="Samples of the reference of which the rules choose one.")
    num_resamples: int = Field(2000, ge=100, description="Bootstrap resamples of an interval.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of sampling and bootstrap.")


class EvaluateConfig(Config):
    """Bits per byte of held-out text, beside baselines."""

    max_documents: int = Field(400, ge=1, description="Most documents scored of each split, in order of doc_id.")
    max_document_bytes: int = Field(8192, ge=64, description="So many leading bytes of a document are scored.")
    baseline_train_bytes: int = Field(
        4_000_000, ge=1024, description="Bytes of training text that the n-gram and compressor baselines see."
    )
    ngram_order: int = Field(4, ge=1, le=6, description="Order of the interpolated Kneser-Ney token n-gram.")
    num_resamples: int = Field(2000, ge=100, description="Bootstrap resamples of an interval.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap and of the random-weights baseline.")


class EvaluateTaskConfig(Config):
    """Scores of one downstream task on its test split, beside baselines."""

    task: str = Field("summary", min_length=1, description="Name of the downstream task.")
    declared: Task | None = Field(None, description="Its declaration; none for the tasks made from the corpus.")
    max_items: int = Field(300, ge=1, description="Most test items scored, in order of item_id.")
    max_new_tokens: int = Field(48, ge=1, description="Longest generated answer in tokens.")
    num_resamples: int = Field(2000, ge=100, description="Bootstrap resamples of an interval.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")


class AblateConfig(EvaluateTaskConfig):
    """The ablation table of a task: variants of its fine-tune against the plain one."""
