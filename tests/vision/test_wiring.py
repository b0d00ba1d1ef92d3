"""The wiring of visual tasks: what feeds what, and that a refused model goes no further."""

from pathlib import Path

import pytest

from flows.visual_wiring import score_visual
from lm_core.artifact import Checkpoint
from lm_core.downstream.config import FinetuneConfig
from lm_core.training.config import OptimizationConfig
from tests.vision.tiny_pictures import asking, naming

LENT = FinetuneConfig(optimization=OptimizationConfig(precision="bf16", seed=3), max_forgetting=0.25, guard_tokens=128)


class Planned:
    """A run that makes nothing, but checks the inputs of each stage as the store does."""

    def __init__(self, refused: str) -> None:
        self.refused, self.stages = refused, []

    def __call__(self, stage, config, *, label=None, **inputs):
        stage.check_inputs(inputs)
        self.stages.append((stage.name, label, config))
        return stage.output(Path(label), stage.name, label, label, {"refused": self.refused})

    def together(self, calls, *, counted=""):
        return [call() for call in calls]


@pytest.mark.parametrize("task", [asking(), naming()], ids=["questions", "captions"])
@pytest.mark.parametrize("refused", ["", "it answers without looking"])
def test_only_a_model_that_looks_goes_on(task, refused):
    run = Planned(refused)
    base = Checkpoint(Path("base"), "pretrain", "x", "b")
    evaluation, finetuned = score_visual(task, run, base, data="folder", lent=LENT, smoke=True)
    assert evaluation.stage.startswith("evaluate_")
    assert (finetuned is None) == bool(refused)
    learning = [config for name, _, config in run.stages if name == "finetune_visual"]
    assert {config.vision.fusion for config in learning} == {"prefix", "cross_attention"}
    assert all(config.optimization.precision == "bf16" and config.optimization.seed == 3 for config in learning)
    assert all((config.max_forgetting, config.guard_tokens) == (0.25, 128) for config in learning)
    assert sum(config.blind for config in learning) == bool(task.labels)
    assert sum(config.from_random for config in learning) == 1
    assert len({label for _, label, _ in run.stages}) == len(run.stages)
