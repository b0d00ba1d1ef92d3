"""What a model that learns to look forgets of its base's own text is measured, and bounded on request."""

import dataclasses

import pytest

from lm_core.artifact import Checkpoint
from lm_core.evaluation.visual import forgetting_of
from lm_core.model.weights import load_model
from lm_core.vision.config import FinetuneVisualConfig, PictureBatches
from lm_core.vision.finetune_visual import finetune_visual
from tests.downstream.tiny_world import make_world
from tests.vision.conftest import OPTIMIZATION, VISION


@pytest.fixture(scope="module")
def text_world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("seeing_world"))


def tuned(text_world, questions, name, **values):
    base = dataclasses.replace(text_world.base, inputs={"tokens": f"tokens/{text_world.tokens.folder.name}"})
    build = text_world.build(f"seeing_{name}")
    batches = PictureBatches(num_epochs=20, max_steps=12)
    config = FinetuneVisualConfig(
        task="own_pictures", vision=VISION, batches=batches, optimization=OPTIMIZATION, **values
    )
    return Checkpoint(build.folder, "finetune_visual", "x", name, finetune_visual(build, config, base=base,
                      examples=questions))  # fmt: skip


def test_it_is_measured_and_shown(text_world, questions):
    model = tuned(text_world, questions, "free", max_forgetting=0)
    found = forgetting_of(model)["forgetting"]
    assert found["after"] > found["before"] > 0 and found["share_of_base"] == 0
    assert "forgetting" not in tuned(text_world, questions, "random", from_random=True).statistics
    assert not forgetting_of(tuned(text_world, questions, "unmeasured", guard_tokens=0))


def test_beyond_the_bound_the_base_is_mixed_back_in(text_world, questions):
    free = tuned(text_world, questions, "free", max_forgetting=0)
    model = tuned(text_world, questions, "bounded", max_forgetting=0.01)
    found = model.statistics["forgetting"]
    assert free.statistics["forgetting"]["after"] - found["before"] > 0.01 >= found["after"] - found["before"]
    assert found["share_of_base"] > 0
    base, own = (load_model(one.folder).state_dict() for one in (text_world.base, free))
    for name, weight in load_model(model.folder).state_dict().items():
        assert weight.allclose(own[name].lerp(base[name], found["share_of_base"]), atol=1e-5), name


def test_a_bound_without_a_measure_is_refused():
    with pytest.raises(ValueError, match="max_forgetting has no effect without guard_tokens"):
        FinetuneVisualConfig(task="own_pictures", max_forgetting=0.1, guard_tokens=0)
