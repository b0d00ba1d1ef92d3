"""The stages teach_encoder and finetune_visual: both learn through the one training loop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm_core.artifact import Checkpoint, DownstreamData, PictureEncoder
from lm_core.config import identity_of
from lm_core.downstream.classifier import PooledClassifier
from lm_core.downstream.encoding import Row
from lm_core.downstream.forgetting import guard_against_forgetting
from lm_core.errors import UserError
from lm_core.model.build import build_model
from lm_core.model.language_model import LanguageModel
from lm_core.model.weights import load_model
from lm_core.store import Build
from lm_core.tokenizer import TextTokenizer, load_tokenizer
from lm_core.training.loop import Batch, train
from lm_core.vision.bag import BagAnswerer
from lm_core.vision.checkpoint import load_answerer, save_answerer, save_visual, visual_decoder_of
from lm_core.vision.config import FinetuneVisualConfig, TeachEncoderConfig
from lm_core.vision.encoder import PatchEncoder
from lm_core.vision.fusion import Seeing, VisualDecoder
from lm_core.vision.pictures import Pixels
from lm_core.vision.rows import VisualData, augmented, batch_of, blank_like, plan_steps, rows_about, validation_loss

ANY_LENGTH = 1 << 16


def teach_encoder(
    build: Build, config: TeachEncoderConfig, *, base: Checkpoint, examples: DownstreamData
) -> Mapping[str, Any]:
    """Train the classical answerer on a task with labels, and keep it with the encoder it has taught.

    Args:
        base: lends its tokenizer.

    Raises:
        UserError: when the task has no closed set of labels.
    """
    data = VisualData(examples, config.task, build.runtime)
    if not data.labels:
        raise UserError(f"the task {config.task} has no labels, so no classical answerer can learn it")
    tokenizer = load_tokenizer(base.file("tokenizer.json"))
    model = BagAnswerer(
        picture_size=config.picture_size,
        encoder_width=config.encoder_width,
        width=config.answerer_width,
        num_words=tokenizer.vocab_size,
        pad=tokenizer.pad,
        num_labels=len(data.labels),
        seed=config.optimization.seed,
    )
    statistics = _learn(build, config, model, model, data, tokenizer, ANY_LENGTH)
    save_answerer(model, build.folder)
    return {"task": config.task, **statistics}


def finetune_visual(
    build: Build,
    config: FinetuneVisualConfig,
    *,
    base: Checkpoint,
    examples: DownstreamData,
    encoder: PictureEncoder | None = None,
) -> Mapping[str, Any]:
    """Train the base, or the same decoder from random weights, to answer about pictures; write a checkpoint.

    Args:
        encoder: what the encoder starts from; fresh weights without.
    """
    data = VisualData(examples, config.task, build.runtime)
    tokenizer = load_tokenizer(base.file("tokenizer.json"))
    model = starting_model(base, config, data.labels, encoder)
    inner = visual_decoder_of(model)
    statistics = _learn(build, config, model, inner, data, tokenizer, inner.context_length)
    if not (config.from_random or config.blind):
        inner.trunk.compute_dtype = model.compute_dtype
        statistics["forgetting"] = guard_against_forgetting(inner.trunk, base, tokenizer, config)
    statistics["weights_sha256"] = save_visual(model, build.folder)
    shutil.copyfile(base.file("tokenizer.json"), build.folder / "tokenizer.json")
    training = {"config": identity_of(config), "num_steps": statistics["num_steps"]}
    (build.folder / "training.json").write_text(json.dumps(training, indent=1, sort_keys=True))
    return {"task": config.task, "fusion": config.vision.fusion, "from_random": config.from_random, **statistics}


def starting_model(
    base: Checkpoint, config: FinetuneVisualConfig, labels: Sequence[str], taught: PictureEncoder | None
) -> LanguageModel:
    """The base's weights or fresh ones, with eyes; with a head where the task has a closed set of labels."""
    trunk = load_model(base.folder)
    seed = config.optimization.seed
    if config.from_random:
        trunk = build_model(trunk.config, vocab_size=trunk.vocab_size, context_length=trunk.context_length, seed=seed)
    encoder = PatchEncoder(config.vision.picture_size, config.vision.encoder_width, seed=seed)
    if taught is not None:
        encoder.load_state_dict(load_answerer(taught.folder).encoder.state_dict())
    model = VisualDecoder(trunk, config.vision, encoder, seed=seed)
    return PooledClassifier(model, labels) if labels else model


def _learn(
    build: Build,
    config: TeachEncoderConfig | FinetuneVisualConfig,
    model: LanguageModel,
    seeing: Seeing,
    data: VisualData,
    tokenizer: TextTokenizer,
    context_length: int,
) -> dict[str, Any]:
    """One run of the training loop; without a picture bank of its own, a blind model sees one blank picture."""
    blind = isinstance(config, FinetuneVisualConfig) and config.blind
    pixels = blank_like(data.pictures.pixels) if blind else data.pictures.pixels

    def rows_of(split: str) -> list[Row]:
        items = data.items[split]
        numbers = [0] * len(items) if blind else data.numbers(items)
        return rows_about(items, numbers, tokenizer, context_length, data.labels)

    rows, optimization = rows_of("train"), config.optimization
    # A blind model's rows are all about one picture; the plan goes by the pictures they were about.
    pictures = data.numbers(data.items["train"])
    steps = plan_steps(rows, pictures, config.batches, optimization.batch_tokens, optimization.seed)
    seeing.look_at(pixels)

    def batch_at(step: int) -> Batch:
        batch = batch_of([rows[i] for i in steps[step]], tokenizer.pad)
        if config.batches.augment:
            seeing.look_at(_augmented_bank(pixels, batch.tokens[:, 0].unique().numpy(), (optimization.seed, step)))
        return batch

    held_out = rows_of("validation")
    measure = validation_loss(held_out, tokenizer.pad)

    def evaluate(trained: Any) -> dict[str, float]:
        seeing.look_at(pixels)
        return measure(trained) if measure else {}

    return train(model, batch_at, optimization, num_steps=len(steps), build=build, evaluate=evaluate)


def _augmented_bank(pixels: Pixels, numbers: Any, seed: tuple[int, int]) -> Pixels:
    """The bank with the numbered pictures changed; the others stay as they are."""
    bank = pixels.copy()
    bank[numbers] = augmented(pixels[numbers], np.random.default_rng(seed))
    return bank
