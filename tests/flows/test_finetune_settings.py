"""What a person sets holds, then what a task wants, then what a preset says; what has no effect is refused."""

from pathlib import Path

import pytest

from flows.config import load_config
from flows.downstream_wiring import DownstreamConfig, ablate_task, fan_out, score_mixture, score_task
from flows.finetune_settings import check_chosen, finetune_settings
from flows.presets import laptop
from lm_core.artifact import Checkpoint, HeldOut
from lm_core.config import identity_of
from lm_core.downstream.config import FinetuneConfig, PreferConfig
from lm_core.downstream.tasks.registry import declared_tasks
from lm_core.errors import UserError
from lm_core.vision.config import FinetuneVisualConfig

TASKS = declared_tasks()
SETTINGS = [
    "finetune.max_steps=500",
    "finetune.num_epochs=9",
    "finetune.num_buckets=0",
    "finetune.optimization.learning_rate=0.0123",
    "finetune.optimization.batch_tokens=150000",
]
HELD_OUT = HeldOut(Path("h"), "hold_out", "x", "h")
BASE = Checkpoint(Path("base"), "pretrain", "x", "b")


def asked(*names, settings=(), toml=None, **how):
    config = load_config(laptop(), settings=settings, toml=toml)
    tasks = tuple(TASKS[name] for name in names)
    return DownstreamConfig(tasks=tasks, data="data", finetune=config.finetune, chosen=config.declared.chosen, **how)


def settings_of(name, **how):
    return finetune_settings(TASKS[name], asked(name, **how))


class Planned:
    """A run that makes nothing, but keeps what each stage would have been given."""

    def __init__(self):
        self.configs = []

    def __call__(self, stage, config, *, label=None, **inputs):
        stage.check_inputs(inputs)
        self.configs.append(config)
        return stage.output(Path(label), stage.name, label, label, {})

    def together(self, calls, *, counted=""):
        return [call() for call in calls]

    def tuned(self):
        return [config for config in self.configs if isinstance(config, FinetuneConfig)]


def test_without_a_wish_the_task_decides_whatever_the_preset_says():
    made, task = settings_of("sentiment"), TASKS["sentiment"]
    assert (made.max_steps, made.num_epochs) == (task.max_steps, task.num_epochs) != (laptop().finetune.max_steps, 1.0)
    assert made.num_buckets == task.recipe.num_buckets and made.optimization.batch_tokens == task.batch_tokens
    assert made.optimization.precision == laptop().finetune.optimization.precision


def test_what_is_set_by_name_holds_against_budget_and_recipe():
    made = settings_of("sentiment", settings=SETTINGS)
    assert (made.max_steps, made.num_epochs, made.num_buckets) == (500, 9.0, 0)
    assert (made.optimization.learning_rate, made.optimization.batch_tokens) == (0.0123, 150_000)
    assert made.optimization.micro_batch_tokens == TASKS["sentiment"].batch_tokens  # as much memory as before
    assert made.pooling == settings_of("sentiment").pooling  # the rest of the recipe stays


@pytest.mark.parametrize("optimizer", ["muon", "torch_muon"])
def test_either_muon_keeps_the_rate_of_the_recipe(optimizer):
    made = settings_of("topic", settings=[f"finetune.optimization.optimizer={optimizer}"])
    assert made.optimization.muon_learning_rate == TASKS["topic"].recipe.muon_learning_rate


def test_a_value_that_happens_to_be_the_default_is_a_wish_too():
    default = FinetuneConfig().num_buckets
    assert TASKS["intent"].recipe.num_buckets and settings_of("intent").trunk_learns == "residual"
    made = settings_of("intent", settings=[f"finetune.num_buckets={default}"])
    assert (made.num_buckets, made.trunk_learns) == (0, "labels")  # of a recipe only what still has an effect


def test_a_toml_file_and_the_form_say_the_same(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[finetune]\nmax_steps = 500\n[finetune.optimization]\nseed = 7\n")
    made = settings_of("sentiment", toml=file)
    assert (made.max_steps, made.optimization.seed) == (500, 7)
    file.write_text('[declared]\nchosen = ["max_steps"]\n')
    assert settings_of("sentiment", toml=file).max_steps == laptop().finetune.max_steps
    file.write_text('[declared]\nchosen = ["max_stepz"]\n')
    with pytest.raises(UserError, match="did you mean max_steps"):
        load_config(laptop(), toml=file)


def test_a_smoke_is_small_but_for_what_was_set():
    assert settings_of("sentiment", smoke=True).max_steps == 2
    assert settings_of("sentiment", smoke=True, settings=["finetune.max_steps=3"]).max_steps == 3


def test_settings_that_do_not_go_together_are_one_line():
    with pytest.raises(UserError, match="for sentiment: muon_learning_rate has no effect") as caught:
        settings = ["finetune.optimization.optimizer=adamw", "finetune.optimization.muon_learning_rate=0.02"]
        config = asked("sentiment", settings=settings)
        finetune = config.finetune.model_copy(
            update={"optimization": config.finetune.optimization.model_copy(update={"muon_learning_rate": 0.5})}
        )
        finetune_settings(TASKS["sentiment"], config.model_copy(update={"finetune": finetune}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "setting", "why"),
    [
        ("blimp", "finetune.max_steps=9", "nothing is trained for it"),
        ("winogender", "finetune.strategy=lora", "nothing is trained for it"),
        ("visual_qa", "finetune.strategy=lora", "a recipe of their own"),
        ("translation", "finetune.num_buckets=64", "no set of labels"),
        ("translation", "finetune.strategy=head", "head is of tasks with labels"),
        ("story", "finetune.members=3", "combine=weights"),
        ("sentiment", "finetune.loss_on=everything", "declaration says it"),
        ("sentiment", "finetune.from_random=true", "from the base and from random weights"),
    ],
)
def test_what_a_kind_of_task_cannot_use_is_refused_in_one_line(task, setting, why):
    config = asked(task, settings=[setting])
    with pytest.raises(UserError, match=why) as caught:
        check_chosen(config.tasks, config, many=False)
    name = setting.partition("=")[0]
    assert str(caught.value).startswith(f"{name} has no effect on {task}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "setting"),
    [
        ("sentiment", "finetune.strategy=head"),
        ("sentiment", "finetune.members=3"),
        ("story", 'finetune.strategy="lora"'),
        ("visual_qa", "finetune.optimization.seed=3"),
        ("preference", "finetune.max_steps=3"),
    ],
)
def test_what_it_can_use_is_let_through(task, setting):
    config = asked(task, settings=[setting])
    assert check_chosen(config.tasks, config, many=False) == []


def test_of_many_tasks_some_must_be_able_to_use_a_setting():
    config = asked("sentiment", "blimp", settings=["finetune.strategy=lora"])
    assert check_chosen(config.tasks, config, many=True) == ["finetune.strategy has no effect on blimp"]
    with pytest.raises(UserError, match="no effect on blimp"):
        check_chosen(config.tasks, config, many=False)
    alone = asked("blimp", "piqa", settings=["finetune.strategy=lora"])
    with pytest.raises(UserError, match="no effect on blimp"):
        check_chosen(alone.tasks, alone, many=True)


def test_what_a_task_cannot_use_does_not_stand_in_its_configuration():
    config = asked("story", "sentiment", settings=["finetune.token_swap=0.3"])
    assert finetune_settings(TASKS["story"], config).token_swap == 0
    assert finetune_settings(TASKS["sentiment"], config).token_swap == 0.3


@pytest.mark.parametrize("names", [("sentiment", "intent"), ("topic", "story"), ("intent", "topic")])
def test_a_mixture_records_a_configuration_that_is_valid(names):
    run = Planned()
    score_mixture(asked(*names, mixed=True), run, BASE)
    assert len(run.tuned()) == 2
    for config in run.tuned():
        assert FinetuneConfig.model_validate(config.model_dump()) == config
        assert FinetuneConfig.model_validate(identity_of(config)) == config
        assert config.mixture == names and (config.num_buckets, config.trunk_learns, config.pooling) == (
            0,
            "labels",
            "mean",
        )
        assert config.max_steps == sum(TASKS[name].max_steps for name in names)


def test_a_mixture_and_an_ablation_keep_what_was_set():
    run = Planned()
    score_mixture(asked("sentiment", "intent", mixed=True, settings=["finetune.max_steps=7"]), run, BASE)
    assert {config.max_steps for config in run.tuned()} == {7}
    for settings, epochs in ((["finetune.num_epochs=9"], 9.0), ([], 4.0)):
        run = Planned()
        ablate_task(TASKS["sentiment"], asked("sentiment", settings=settings), run, BASE)
        assert {config.num_epochs for config in run.tuned()} == {epochs}


def test_every_fine_tune_that_is_wired_has_a_valid_configuration():
    for task in TASKS.values():
        if task.kind != "visual":
            run = Planned()
            score_task(task, asked(task.name), run, BASE, HELD_OUT)
            assert all(FinetuneConfig.model_validate(config.model_dump()) == config for config in run.tuned())


def test_what_a_visual_model_forgets_is_bounded_on_request_only():
    for settings, bound in (
        ([], 0.0),
        (["finetune.max_forgetting=0.25"], 0.25),
        (["finetune.max_forgetting=0.5"], 0.5),
    ):
        run = Planned()
        score_task(TASKS["visual_qa"], asked("visual_qa", settings=settings), run, BASE, HELD_OUT)
        tuned = [config for config in run.configs if isinstance(config, FinetuneVisualConfig)]
        assert len(tuned) == 4 and {config.max_forgetting for config in tuned} == {bound}


def test_what_a_preference_may_forget_is_what_its_fine_tune_may():
    run = Planned()
    score_task(TASKS["preference"], asked("preference", settings=["finetune.max_forgetting=0.1"]), run, BASE, HELD_OUT)
    stages = [config for config in run.configs if isinstance(config, FinetuneConfig | PreferConfig)]
    assert len(stages) == 4 and {config.max_forgetting for config in stages} == {0.1}


def test_the_pipeline_hands_on_what_was_set(tmp_path):
    (tmp_path / "own.toml").write_text(
        '[[task]]\nname = "own"\nkind = "label"\nfiles = { all = "rows.jsonl" }\nprompt = "{a}"\ntarget = "{b}"\n'
        'metric = "accuracy"\n'
    )
    (tmp_path / "rows.jsonl").write_text("{}\n")
    names = [f"declared.data={tmp_path}", f"declared.tasks_file={tmp_path / 'own.toml'}", 'declared.tasks=["own"]']
    for settings, steps in ((["finetune.max_steps=77"], 77), ([], 60)):
        run = Planned()
        fan_out(load_config(laptop(), settings=[*names, *settings]), run, BASE)
        assert {config.max_steps for config in run.tuned()} == {steps}


def test_a_fine_tune_records_between_what_its_answers_stand():
    assert settings_of("extractive_qa").spans_between == ("\n", "")
    assert settings_of("generative_qa").spans_between == ()
