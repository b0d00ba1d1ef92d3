import pytest

from lm_core.artifact import Checkpoint
from lm_core.downstream.config import FinetuneConfig
from lm_core.downstream.finetune import finetune
from lm_core.training.config import OptimizationConfig
from tests.downstream.tiny_world import World, make_world

OPTIMIZATION = OptimizationConfig(batch_tokens=1024, micro_batch_tokens=1024, warmup_fraction=0.1)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("evaluated_world"))


@pytest.fixture(scope="session")
def tuned(world):
    """(task) -> fine-tuned from the base, and from random weights; each made once."""
    made: dict[str, tuple[Checkpoint, Checkpoint]] = {}

    def of(task: str) -> tuple[Checkpoint, Checkpoint]:
        if task not in made:
            made[task] = tuple(_tune(world, task, from_random) for from_random in (False, True))
        return made[task]

    return of


def _tune(world: World, task: str, from_random: bool) -> Checkpoint:
    build = world.build(f"finetune_{task}_{from_random}")
    config = FinetuneConfig(task=task, from_random=from_random, num_epochs=3, optimization=OPTIMIZATION)
    finetune(build, config, base=world.base, examples=world.examples, corpus=world.valid)
    return Checkpoint(build.folder, "finetune", "x", task)
