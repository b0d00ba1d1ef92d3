"""Configuration of the visual models. Loads neither torch nor Pillow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from lm_core.config import Config
from lm_core.downstream.config import GUARD_TOKENS, MAX_FORGETTING, TaskDataConfig, check_guard
from lm_core.training.config import OptimizationConfig

Fusion = Literal["prefix", "cross_attention"]
FUSIONS: tuple[Fusion, ...] = ("prefix", "cross_attention")

_OPTIMIZATION = OptimizationConfig(
    optimizer="adamw", learning_rate=1e-3, warmup_fraction=0.1, batch_tokens=2048, micro_batch_tokens=2048
)


class ReadPicturesConfig(TaskDataConfig):
    """A visual task's data folder as decoded pictures and the texts about them."""

    picture_size: int = Field(64, ge=16, multiple_of=16, description="Pictures are scaled to so many pixels a side.")
    max_pictures: int | None = Field(None, ge=4, description="Most pictures of each split; none: all.")


class VisionConfig(Config):
    """How a picture reaches the decoder."""

    fusion: Fusion = Field(
        "prefix",
        description="prefix: tokens before the text, made from the picture. cross_attention: layers between the "
        "decoder's blocks that look at the patches.",
    )
    picture_size: int = Field(64, ge=16, multiple_of=16, description="Pixels a side of the pictures.")
    encoder_width: int = Field(64, ge=8, multiple_of=8, description="Width of a patch.")
    num_prefix_tokens: int = Field(2, ge=1, le=256, description="Tokens that a picture becomes (prefix).")


class PictureBatches(Config):
    """Which rows a step takes: several texts about each of a few pictures, so that a picture is encoded once."""

    num_epochs: float = Field(1.0, gt=0, le=1000, description="Passes over the training pictures.")
    texts_per_picture: int = Field(10, ge=1, description="Most texts about one picture in one pass, drawn anew.")
    max_steps: int = Field(1000, ge=1, description="Most optimizer steps, however many pictures there are.")
    augment: bool = Field(
        False, description="Pictures are shifted by a few pixels and brightened or darkened, anew in each step."
    )


class TeachEncoderConfig(Config):
    """The classical answerer (convolutions, a bag of words, a small network), which teaches the encoder to see."""

    task: str = Field(..., min_length=1, description="Name of the downstream task.")
    picture_size: int = Field(64, ge=16, multiple_of=16, description="Pixels a side of the pictures.")
    encoder_width: int = Field(64, ge=8, multiple_of=8, description="Width of a patch.")
    answerer_width: int = Field(128, ge=8, description="Width of the layers behind the convolutions.")
    batches: PictureBatches = Field(default=PictureBatches(num_epochs=4), description="Rows of the steps.")
    optimization: OptimizationConfig = Field(default=_OPTIMIZATION, description="Optimizer and schedule.")


class FinetuneVisualConfig(Config):
    """A decoder that learns to answer about pictures, or to name them."""

    task: str = Field(..., min_length=1, description="Name of the downstream task.")
    vision: VisionConfig = Field(default_factory=VisionConfig, description="Fusion and encoder.")
    from_random: bool = Field(
        False, description="Start from random weights of the decoder, with the same budget: `random_weights`."
    )
    blind: bool = Field(
        False, description="Every picture is blank: the control `question_only`, which knows what texts alone tell."
    )
    max_forgetting: float = Field(
        0.0,
        ge=0,
        description=MAX_FORGETTING
        + " The default here, since what learns to look becomes another model. easy-VQA goes from 1.89 to 4.31; half "
        "of the base mixed back in gives 2.22 and accuracy 0.988 instead of 0.999 (800 questions), three quarters 1.94 "
        "and 0.831.",
    )
    guard_tokens: int = Field(8192, ge=0, description=GUARD_TOKENS)
    batches: PictureBatches = Field(default_factory=PictureBatches, description="Rows of the steps.")
    optimization: OptimizationConfig = Field(default=_OPTIMIZATION, description="Optimizer and schedule.")

    @model_validator(mode="after")
    def _bound_is_measured(self) -> FinetuneVisualConfig:
        check_guard(self.max_forgetting, self.guard_tokens, default=0.0)
        return self


class EvaluateVisualConfig(Config):
    """Scores of a visual task on its test split, beside controls and baselines."""

    task: str = Field(..., min_length=1, description="Name of the downstream task.")
    answer_types: Mapping[str, tuple[str, ...]] = Field(
        default={}, description="Kind of answer to its labels, by which scores are given too."
    )
    max_new_tokens: int = Field(24, ge=1, description="Longest caption in tokens.")
    num_candidates: int = Field(100, ge=2, description="Captions among which the right one is looked for (retrieval).")
    num_resamples: int = Field(2000, ge=100, description="Bootstrap resamples of an interval.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap and of the shuffled pictures.")
