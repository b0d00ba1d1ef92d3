from dataclasses import dataclass
from pathlib import Path

import pytest

from lm_core.artifact import Checkpoint, DownstreamData, PictureEncoder
from lm_core.model.build import build_model
from lm_core.model.weights import save_model
from lm_core.runtime import Runtime
from lm_core.store import Build
from lm_core.tokenizer import new_encoder
from lm_core.training.config import ModelConfig, OptimizationConfig, TokenizerConfig
from lm_core.vision.config import (
    FinetuneVisualConfig,
    PictureBatches,
    ReadPicturesConfig,
    TeachEncoderConfig,
    VisionConfig,
)
from lm_core.vision.finetune_visual import finetune_visual, teach_encoder
from lm_core.vision.read_pictures import read_pictures
from tests.vision.tiny_pictures import SIZE, asking, naming, write_captions, write_world

OPTIMIZATION = OptimizationConfig(
    learning_rate=3e-3, muon_learning_rate=0.01, batch_tokens=512, micro_batch_tokens=512, warmup_fraction=0.1
)
VISION = VisionConfig(picture_size=SIZE, encoder_width=16)


TEXTS = ("what colour is it?", "is it not red?", "a blue square beside a red disc", "yes or no, said the miller")


@dataclass
class World:
    """A tiny base, and where stages write."""

    root: Path
    base: Checkpoint

    def build(self, name: str) -> Build:
        folder, work = self.root / "artifacts" / name / "x", self.root / "work" / name
        folder.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        return Build(folder, work, Runtime(workspace=self.root, device="cpu", num_threads=1))


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    root = tmp_path_factory.mktemp("world")
    folder = root / "artifacts" / "pretrain" / "x"
    folder.mkdir(parents=True)
    tokenizer, trainer = new_encoder(TokenizerConfig(vocab_size=300))
    tokenizer.train_from_iterator(TEXTS, trainer)
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    config = ModelConfig(num_layers=2, d_model=32, num_heads=2, num_kv_heads=2, d_ff=64)
    save_model(build_model(config, vocab_size=tokenizer.get_vocab_size(), context_length=64, seed=0), folder)
    return World(root, Checkpoint(folder, "pretrain", "x", "b"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_world(folder)
    write_captions(folder)
    return folder


def read(world: World, task, folder: Path, name: str) -> DownstreamData:
    build = world.build(name)
    statistics = read_pictures(build, ReadPicturesConfig(task=task, data=str(folder), picture_size=SIZE))
    return DownstreamData(build.folder, "read_pictures", "x", name, statistics)


@pytest.fixture(scope="session")
def questions(world, pictures) -> DownstreamData:
    return read(world, asking(), pictures, "read_own_pictures")


@pytest.fixture(scope="session")
def captioned(world, pictures) -> DownstreamData:
    return read(world, naming(), pictures, "read_own_captions")


@pytest.fixture(scope="session")
def encoder(world, questions) -> PictureEncoder:
    build = world.build("teach_own")
    config = TeachEncoderConfig(
        task="own_pictures",
        picture_size=SIZE,
        encoder_width=16,
        answerer_width=32,
        batches=PictureBatches(num_epochs=40),
        optimization=OptimizationConfig(
            optimizer="adamw", learning_rate=5e-3, batch_tokens=1024, micro_batch_tokens=1024
        ),
    )
    teach_encoder(build, config, base=world.base, examples=questions)
    return PictureEncoder(build.folder, "teach_encoder", "x", "e")


@pytest.fixture(scope="session")
def tuned(world, questions, captioned, encoder):
    """(task, name, settings) -> checkpoint of a fine-tune, made once."""
    made = {}

    def tune(task: str, name: str, *, fusion: str = "prefix", epochs: float = 50, **values) -> Checkpoint:
        if (task, name) not in made:
            config = FinetuneVisualConfig(
                task=task,
                vision=VISION.model_copy(update={"fusion": fusion}),
                batches=PictureBatches(num_epochs=epochs),
                optimization=OPTIMIZATION,
                **values,
            )
            build = world.build(f"tune_{task}_{name}")
            asked = task == "own_pictures"
            inputs = {"examples": questions if asked else captioned} | ({"encoder": encoder} if asked else {})
            statistics = finetune_visual(build, config, base=world.base, **inputs)
            made[task, name] = Checkpoint(build.folder, "finetune_visual", "x", name, statistics)
        return made[task, name]

    return tune
