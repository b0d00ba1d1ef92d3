"""Configuration of the downstream stages: making examples, fine-tuning, evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lm_core.config import Config, Incidental
from lm_core.downstream.task import Task
from lm_core.training.config import OptimizationConfig

EmbeddedTask = Literal["summary", "answer", "topic"]
EMBEDDED_TASKS: tuple[EmbeddedTask, ...] = ("summary", "answer", "topic")


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


class ReadTaskConfig(Config):
    """A declared task's data folder as examples."""

    task: Task = Field(..., description="The declaration: files, templates, sizes, bounds.")
    data: str = Incidental(..., description="Folder that the files are relative to, or hub.")
    max_items: int | None = Field(None, ge=4, description="Most items of each split, below what the task declares.")


class ScoreTaskConfig(ReadTaskConfig):
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
    strategy: Literal["full", "head", "lora"] = Field(
        "full",
        description="full: all weights move. head: the trunk is frozen, the labels' head learns. lora: low-rank "
        "updates of the blocks' matrices, merged into them at the end.",
    )
    lora_rank: int = Field(8, ge=1, le=1024, description="Rank of the updates (strategy lora).")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the residual branches while fine-tuning.")
    token_dropout: float = Field(
        0.0, ge=0, lt=1, description="Augmentation: share of the tokens of a labelled text left out, anew each step."
    )
    max_forgetting: float = Field(
        0.0,
        ge=0,
        description="Most bits per byte that the base's own text may cost more afterwards; beyond it the "
        "base's weights are mixed back in. 0: measured, but not bounded.",
    )
    num_evaluations: int = Field(
        1, ge=1, le=1000, description="Looks at the validation items; optimization.patience counts them."
    )
    loss_on: Literal["target", "everything"] = Field(
        "target", description="everything: texts without a prompt, of which every token is learnt."
    )
    num_epochs: float = Field(1.0, gt=0, le=100, description="Passes over the training examples.")
    max_steps: int = Field(200, ge=1, description="Most optimizer steps, however many examples there are.")
    optimization: OptimizationConfig = Field(
        default=OptimizationConfig(learning_rate=2e-3, muon_learning_rate=0.01, warmup_fraction=0.1),
        description="Optimizer and schedule. batch_tokens counts padding; the seed also orders the examples.",
    )


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
