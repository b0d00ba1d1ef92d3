"""A model that was tuned for a task is scored on it as it is: only what it is compared with is trained."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from flows.downstream_wiring import DownstreamConfig, score_task
from flows.tuned_wiring import AsItIs
from lm_core.artifact import Checkpoint, DownstreamData, HeldOut
from lm_core.config import identity_of
from lm_core.downstream.config import FinetuneConfig, PreferConfig, ScoreTaskConfig
from lm_core.downstream.tasks.registry import declared_tasks
from lm_core.downstream.tuned import Tuned, own_text, tuned
from lm_core.errors import UserError
from lm_core.evaluation.zero_shot import scorers_of
from lm_core.runtime import Runtime
from lm_core.store import Store
from tests.downstream.tiny_world import make_world

TASKS = declared_tasks()
BASE = Checkpoint(Path("base"), "pretrain", "x", "b")
EXAMPLES = DownstreamData(Path("learnt"), "read_task", "x", "e")
HELD_OUT = HeldOut(Path("h"), "hold_out", "x", "h")


class Planned:
    """A run that makes nothing, but keeps what each stage would have been given."""

    def __init__(self):
        self.made = []

    def __call__(self, stage, config, *, label=None, **inputs):
        stage.check_inputs(inputs)
        self.made.append((stage.name, config, inputs))
        return stage.output(Path(label), stage.name, label, label, {})

    def together(self, calls, *, counted=""):
        return [call() for call in calls]

    def of(self, *names):
        return [(config, inputs) for stage, config, inputs in self.made if stage in names]


def model(stage="finetune"):
    return Checkpoint(Path("model"), stage, "x", "m")


def as_it_is(task, config, stage="finetune", base=BASE, lineage=lambda checkpoint: None):
    return AsItIs(Tuned(model(stage), identity_of(config), base, EXAMPLES), lineage)


def scored(task, own, **how):
    run = Planned()
    config = DownstreamConfig(tasks=(TASKS[task],), data="data", as_it_is=True, **how)
    return score_task(TASKS[task], config, run, model(own.tuned.model.stage), HELD_OUT, own), run


def test_the_tuned_model_itself_is_scored_beside_its_twin():
    settings = FinetuneConfig(task="sentiment", max_steps=123, num_buckets=64)
    result, run = scored("sentiment", as_it_is("sentiment", settings))
    ((twin, inputs),) = run.of("finetune")
    assert twin == settings.model_copy(update={"from_random": True})
    assert inputs["base"] == BASE and inputs["examples"] == EXAMPLES
    ((_, judged),) = run.of("evaluate_task")
    assert judged["finetuned"] == model() and judged["from_random"] != model()
    assert result.finetuned is None  # it is registered already


def test_another_task_is_learnt_as_from_any_base():
    own = as_it_is("sentiment", FinetuneConfig(task="sentiment"))
    result, run = scored("intent", own)
    assert len(run.of("finetune")) == 2 and all(inputs["base"] == model() for _, inputs in run.of("finetune"))
    assert result.finetuned is not None


def test_of_a_mixture_each_task_is_scored_as_it_is():
    own = as_it_is("mixture", FinetuneConfig(task="mixture", mixture=("sentiment", "intent")))
    for task in ("sentiment", "intent"):
        _, run = scored(task, own)
        assert run.of("evaluate_task")[0][1]["finetuned"] == model()
        assert run.of("finetune")[0][1]["examples"] == EXAMPLES


def test_a_model_tuned_by_pairs_keeps_its_reference():
    reference = Checkpoint(Path("reference"), "finetune", "x", "r")
    before = Tuned(reference, identity_of(FinetuneConfig(task="preference")), BASE, EXAMPLES)
    own = as_it_is("preference", PreferConfig(max_steps=5), "prefer", reference, {reference: before}.get)
    result, run = scored("preference", own)
    ((_, judged),) = run.of("evaluate_preference")
    assert judged["finetuned"] == model("prefer") and judged["reference"] == reference
    ((pairs, inputs),) = run.of("prefer")
    assert pairs == PreferConfig(max_steps=5) and "random weights" in str(inputs["base"].folder)
    assert result.finetuned is None
    with pytest.raises(UserError, match="not in this workspace"):
        scored("preference", as_it_is("preference", PreferConfig(), "prefer", None))


def test_a_visual_model_is_the_one_its_controls_are_compared_with():
    own = as_it_is("visual_qa", FinetuneConfig(task="visual_qa"), "finetune_visual")
    _, run = scored("visual_qa", own)
    ((_, judged),) = run.of("evaluate_visual")
    assert judged["prefix"] == model("finetune_visual") and judged["cross_attention"] != judged["prefix"]
    assert len(run.of("finetune_visual")) == 3
    assert all(inputs["base"] == BASE for _, inputs in run.of("finetune_visual"))


def test_what_cannot_be_is_said():
    own = as_it_is("sentiment", FinetuneConfig(task="sentiment"))
    with pytest.raises(UserError, match=r"finetune\.max_steps has no effect on sentiment"):
        scored("sentiment", own, chosen=("max_steps",))
    with pytest.raises(UserError, match="another name for the task"):
        scored("visual_qa", as_it_is("visual_qa", FinetuneConfig(task="visual_qa")))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("tuned_world"))


def in_store(world, kind, name, inputs, **content):
    """A folder as the store leaves it: a manifest that names the inputs."""
    folder = world.root / "artifacts" / name / "x"
    shutil.copytree(world.base.folder, folder)
    for file, text in content.items():
        (folder / f"{file}.json").write_text(json.dumps(text))
    manifest = {"kind": "Checkpoint", "stage": name, "fingerprint": "x", "content_digest": name, "statistics": {},
                "inputs": {n: {"folder": f, "content_digest": ""} for n, f in inputs.items()}, "files": {}}  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return kind(folder, name, "x", name, {}, dict(inputs))


def test_lineage_and_own_text_are_found_through_what_a_model_was_tuned_from(world):
    in_store(world, Checkpoint, "base_of_all", {"tokens": f"tokens/{world.tokens.folder.name}"})
    settings = {"config": identity_of(FinetuneConfig(task="sentiment", mixture=("sentiment", "topic")))}
    first = in_store(world, Checkpoint, "first", {"base": "base_of_all/x"}, training=settings)
    second = in_store(world, Checkpoint, "second", {"base": "first/x", "examples": "gone/x"}, training=settings)
    store = Store(Runtime(workspace=world.root, device="cpu", num_threads=1))
    found = tuned(store, second)
    assert found.base.folder == first.folder and found.examples is None
    assert found.tasks == ("sentiment", "topic") and tuned(store, found.base).base.stage == "base_of_all"
    assert tuned(store, world.base) is None
    assert own_text(second) == own_text(first) == world.tokens.folder
    assert own_text(dataclasses.replace(second, inputs={"base": "gone/x"})) is None
    assert own_text(dataclasses.replace(second, inputs={})) is None


def test_a_tuned_model_has_its_n_gram_and_its_forgetting(world):
    from lm_core.downstream.finetune import finetune
    from lm_core.training.config import OptimizationConfig

    in_store(world, Checkpoint, "another_base", {"tokens": f"tokens/{world.tokens.folder.name}"})
    model = in_store(world, Checkpoint, "tuned_once", {"base": "another_base/x"})
    config = ScoreTaskConfig(task=TASKS["piqa"], data="", size="smoke")
    assert any(name.startswith("kneser_ney") for name in scorers_of(model, config, world.build("scorers"))[1])
    build = world.build("tuned_twice")
    optimization = OptimizationConfig(batch_tokens=1024, micro_batch_tokens=1024)
    again = FinetuneConfig(task="topic", max_steps=2, optimization=optimization)
    statistics = finetune(build, again, base=model, examples=world.examples, corpus=world.valid)
    assert statistics["forgetting"]["before"] > 0
