"""What feeds what for a visual task: both fusions, random weights and the blind control from one base."""

from __future__ import annotations

from functools import partial
from typing import Any

from flows.wiring import Run
from lm_core import stages
from lm_core.artifact import Checkpoint, DownstreamData, Evaluation, PictureEncoder
from lm_core.downstream.config import FinetuneConfig
from lm_core.downstream.task import Task
from lm_core.training.config import OptimizationConfig
from lm_core.vision.config import (
    EvaluateVisualConfig,
    FinetuneVisualConfig,
    PictureBatches,
    ReadPicturesConfig,
    TeachEncoderConfig,
    VisionConfig,
)

SMOKE_PICTURES, SMOKE_STEPS, SMOKE_RESAMPLES, SMOKE_CANDIDATES, SMOKE_GUARD_TOKENS = 12, 3, 200, 10, 256
# The classical answerer learns shapes from some hundred steps on, and only where a step holds enough pictures.
ENCODER_EPOCHS, ENCODER_BATCH_TOKENS, ENCODER_TEXTS = 6.0, 2048, 4
DECODER_TEXTS = 2
# A blind model has some hundred different questions to learn: a third of the steps is plenty.
BLIND_SHARE = 1 / 3
CAPTION_CANDIDATES = 50


def score_visual(
    task: Task,
    run: Run,
    base: Checkpoint,
    *,
    data: str,
    lent: FinetuneConfig,
    smoke: bool,
    finetuned: Checkpoint | None = None,
) -> tuple[Evaluation, Checkpoint | None]:
    """Scores of a visual task, and the fine-tune (prefix tokens) that got them.

    Of a model that answers without looking nothing is handed on but its scores, so that nobody can register it.

    Args:
        lent: lends precision, seed, and what may be forgotten.
        finetuned: a model that was tuned for the task from this base, to be scored in the place of a new one.
    """
    reading = ReadPicturesConfig(task=task, data=data, max_pictures=SMOKE_PICTURES if smoke else None)
    examples = run(stages.READ_PICTURES, reading, label=f"read {task.name}")
    arms = _Arms(task, run, base, examples, lent, smoke, finetuned)
    scoring = EvaluateVisualConfig(
        task=task.name,
        answer_types=task.answer_types,
        max_new_tokens=task.max_new_tokens,
        num_candidates=SMOKE_CANDIDATES if smoke else CAPTION_CANDIDATES,
        num_resamples=SMOKE_RESAMPLES if smoke else 2000,
    )
    label = f"evaluate {task.name}"
    if not task.labels:
        made = arms.fusions(None)
        evaluation = run(stages.EVALUATE_CAPTIONS, scoring, label=label, examples=examples, **made)
        return evaluation, _unless_refused(evaluation, made["prefix"])
    encoder = arms.teach()
    made = arms.fusions(encoder, question_only=True)
    inputs = {"examples": examples, "encoder": encoder, **made}
    evaluation = run(stages.EVALUATE_VISUAL, scoring, label=label, **inputs)
    return evaluation, _unless_refused(evaluation, made["prefix"])


def _unless_refused(evaluation: Evaluation, finetuned: Checkpoint) -> Checkpoint | None:
    return None if evaluation.statistics.get("refused") else finetuned


class _Arms:
    """The models that a visual task compares, all from one base and with one budget."""

    def __init__(
        self,
        task: Task,
        run: Run,
        base: Checkpoint,
        examples: DownstreamData,
        lent: FinetuneConfig,
        smoke: bool,
        finetuned: Checkpoint | None = None,
    ) -> None:
        self.task, self.run, self.base, self.examples, self.smoke = task, run, base, examples, smoke
        self.finetuned = finetuned
        self.shared = {"precision": lent.optimization.precision, "seed": lent.optimization.seed}
        tokens = min(lent.guard_tokens, SMOKE_GUARD_TOKENS) if smoke else lent.guard_tokens
        self.guard = {"max_forgetting": lent.max_forgetting, "guard_tokens": tokens}

    def _settings(self, batches: PictureBatches, tokens: int, **values: Any) -> dict[str, Any]:
        steps = SMOKE_STEPS if self.smoke else batches.max_steps
        optimization = OptimizationConfig(
            batch_tokens=tokens, micro_batch_tokens=tokens, warmup_fraction=0.1, **self.shared | values
        )
        return {
            "task": self.task.name,
            "batches": batches.model_copy(update={"max_steps": steps}),
            "optimization": optimization,
        }

    def teach(self) -> PictureEncoder:
        """The classical answerer, and the encoder that learnt to see in it."""
        batches = PictureBatches(num_epochs=ENCODER_EPOCHS, texts_per_picture=ENCODER_TEXTS)
        settings = TeachEncoderConfig(
            **self._settings(batches, ENCODER_BATCH_TOKENS, optimizer="adamw", learning_rate=3e-3)
        )
        label = f"teach the encoder of {self.task.name}"
        return self.run(stages.TEACH_ENCODER, settings, label=label, base=self.base, examples=self.examples)

    def finetune(
        self, name: str, encoder: PictureEncoder | None, *, fusion: str = "prefix", **values: Any
    ) -> Checkpoint:
        """One decoder that learns to answer."""
        task = self.task
        steps = round(task.max_steps * BLIND_SHARE) if values.get("blind") else task.max_steps
        batches = PictureBatches(
            num_epochs=task.num_epochs, max_steps=steps, augment=not task.labels, texts_per_picture=DECODER_TEXTS
        )
        settings = FinetuneVisualConfig(
            vision=VisionConfig.model_validate({"fusion": fusion}),
            **self._settings(batches, task.batch_tokens, learning_rate=3e-3, muon_learning_rate=0.02),
            **self.guard,
            **values,
        )
        inputs: dict[str, Any] = {"base": self.base, "examples": self.examples}
        inputs |= {"encoder": encoder} if encoder else {}
        return self.run(stages.FINETUNE_VISUAL, settings, label=f"finetune {task.name} {name}", **inputs)

    def first(self, encoder: PictureEncoder | None) -> Checkpoint:
        """The model that the others are compared with: as it was given, or learnt here."""
        return self.finetuned or self.finetune("prefix", encoder)

    def fusions(self, encoder: PictureEncoder | None, *, question_only: bool = False) -> dict[str, Checkpoint]:
        """Both ways of looking, the first of them from random weights, and the blind control where it is wanted."""
        arms = {
            "prefix": partial(self.first, encoder),
            "cross_attention": partial(self.finetune, "cross attention", encoder, fusion="cross_attention"),
            "random_weights": partial(self.finetune, "from random weights", encoder, from_random=True),
        }
        if question_only:
            arms["question_only"] = partial(self.finetune, "question only", encoder, blind=True)
        return dict(zip(arms, self.run.together(list(arms.values())), strict=True))
