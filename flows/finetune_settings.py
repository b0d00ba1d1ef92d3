"""What one task is fine-tuned with: the general settings, its own budget and recipe, and what a person chose by name.

What a person chose (`--set finetune.NAME=VALUE`, a TOML file, or `declared.chosen`) comes first, then the task's own
recipe and budget, then the preset. What a kind of task cannot use is refused, or said where many tasks run at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pydantic import ValidationError

from lm_core import stages
from lm_core.downstream.config import FinetuneConfig
from lm_core.downstream.task import Task, literals_around
from lm_core.errors import UserError
from lm_core.training.config import MUON_OPTIMIZERS, OptimizationConfig
from lm_core.vision.config import FinetuneVisualConfig

SMOKE_STEPS, SMOKE_BATCH_TOKENS = 2, 256
OPTIMIZATION = "optimization."
# Of a closed set of labels; of no use to a model that writes.
OF_LABELS = ("pooling", "num_buckets", "trunk_learns", "token_dropout", "token_swap")
# What a visual task takes from the general settings: its arms share a budget of their own.
OF_PICTURES = ("optimization.precision", "optimization.seed", "max_forgetting", "guard_tokens")
DECIDED = {
    "task": "the command names the task",
    "mixture": "several tasks on the command line of `millrace finetune` are one",
    "from_random": "every task is tuned from the base and from random weights",
    "loss_on": "the task's declaration says it",
    "spans_between": "the task's declaration says it",
}
TRAINED_NOT = "nothing is trained for it"


class Asked(Protocol):
    """What of a downstream run decides how a task is fine-tuned."""

    @property
    def finetune(self) -> FinetuneConfig: ...
    @property
    def chosen(self) -> tuple[str, ...]: ...
    @property
    def smoke(self) -> bool: ...
    @property
    def mixed(self) -> bool: ...


def finetune_settings(task: Task, config: Asked) -> FinetuneConfig:
    """The settings of one task's fine-tunes.

    Raises:
        UserError: what was chosen does not go with what the task wants.
    """
    chosen = {name for name in config.chosen if not why_without_effect(name, task, config)}
    values = _flat(config.finetune)
    defaults = _flat(FinetuneConfig())
    values |= {name: defaults[name] for name in config.chosen if name not in chosen and name in defaults}
    own = _own_settings(task, config)
    values |= {name: value for name, value in own.items() if name not in chosen}
    micro = "optimization.micro_batch_tokens"
    if "optimization.batch_tokens" in chosen and micro not in chosen:
        values[micro] = min(values["optimization.batch_tokens"], task.batch_tokens)
    for name, has_effect in _has_effect(values).items():
        if not has_effect and name not in chosen:
            values[name] = defaults[name]
    spans_between = literals_around(task.prompt, task.focus) if task.rows == "span" else ()
    values |= {"task": task.name, "loss_on": task.loss_on, "spans_between": spans_between}
    return _settings_of(values, task.name)


def lent_to_pictures(config: Asked) -> FinetuneConfig:
    """The general settings for a visual task, of which it takes a few; what it forgets is bounded on request only."""
    if "max_forgetting" in config.chosen:
        return config.finetune
    return config.finetune.model_copy(
        update={"max_forgetting": FinetuneVisualConfig.model_fields["max_forgetting"].default}
    )


def _own_settings(task: Task, config: Asked) -> dict[str, Any]:
    """The task's own budget and recipe; a few steps of it for a smoke."""
    of_optimizer = OptimizationConfig.model_fields
    recipe = {
        (OPTIMIZATION if name in of_optimizer else "") + name: value
        for name, value in task.recipe.model_dump().items()
        if value is not None
    }
    batch_tokens = min(task.batch_tokens, SMOKE_BATCH_TOKENS) if config.smoke else task.batch_tokens
    own = {
        "num_epochs": task.num_epochs,
        "max_steps": SMOKE_STEPS if config.smoke else task.max_steps,
        "optimization.batch_tokens": batch_tokens,
        "optimization.micro_batch_tokens": batch_tokens,
    }
    return own | recipe | ({"guard_tokens": SMOKE_BATCH_TOKENS} if config.smoke else {})


def _has_effect(values: Mapping[str, Any]) -> dict[str, bool]:
    """Settings of a recipe that depend on others."""
    return {
        "trunk_learns": values["num_buckets"] > 0,
        "optimization.muon_learning_rate": values["optimization.optimizer"] in MUON_OPTIMIZERS,
    }


def _flat(config: FinetuneConfig) -> dict[str, Any]:
    values = config.model_dump()
    return {OPTIMIZATION + name: value for name, value in values.pop("optimization").items()} | values


def _settings_of(values: Mapping[str, Any], task: str) -> FinetuneConfig:
    nested = {name: value for name, value in values.items() if not name.startswith(OPTIMIZATION)}
    optimization = {n.removeprefix(OPTIMIZATION): v for n, v in values.items() if n.startswith(OPTIMIZATION)}
    try:
        return FinetuneConfig.model_validate(nested | {"optimization": optimization})
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"finetune, for {task}: {said}") from None


def why_without_effect(name: str, task: Task, config: Asked) -> str:
    """Why a setting of fine-tuning has no effect on a task; empty where it has one."""
    if name in DECIDED:
        return DECIDED[name]
    if task.kind == "choice" or task.name in stages.WHOLE_TASKS:
        return TRAINED_NOT
    if task.kind == "visual":
        return "" if name in OF_PICTURES else "models of pictures have a budget and a recipe of their own"
    if task.kind == "label" and not config.mixed:
        return ""
    if name in OF_LABELS:
        return "of several tasks one model writes the answers" if config.mixed else "it has no set of labels"
    if name == "strategy" and config.finetune.strategy == "head":
        return "head is of tasks with labels; take lora, gradual or full"
    if name in ("members", "combine") and config.finetune.members > 1 and config.finetune.combine == "logits":
        return "combine=logits is of tasks with labels; set finetune.combine=weights"
    return ""


def check_chosen(tasks: tuple[Task, ...], config: Asked, *, many: bool) -> list[str]:
    """Refuse what was chosen and has no effect.

    Args:
        many: all tasks at once: a setting is refused only where none of them can use it.

    Returns:
        A line for each setting that some of many tasks cannot use.

    Raises:
        UserError: naming the setting, a task and the reason.
    """
    notes = []
    for name in config.chosen:
        reasons = {task.name: why for task in tasks if (why := why_without_effect(name, task, config))}
        if reasons and (not many or len(reasons) == len(tasks)):
            task, why = next(iter(reasons.items()))
            raise UserError(f"finetune.{name} has no effect on {task}: {why}")
        if reasons:
            notes.append(f"finetune.{name} has no effect on {', '.join(reasons)}")
    return notes
