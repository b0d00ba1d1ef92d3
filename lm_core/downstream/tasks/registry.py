"""All declared tasks by name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from lm_core.downstream.task import Task, load_tasks
from lm_core.errors import UserError

# Modules of this package with a tuple TASKS, in the order in which `millrace tasks` shows them.
MODULES = ("labels", "dialogues", "questions", "texts", "preferences", "zero_shot", "visual")


def declared_tasks(own: Path | None = None) -> dict[str, Task]:
    """Every declared task, and those of a user's TOML file, which may replace a declared one."""
    modules = [import_module(f"lm_core.downstream.tasks.{name}") for name in MODULES]
    tasks = {task.name: task for module in modules for task in module.TASKS}
    return tasks | (load_tasks(own) if own else {})


def find_tasks(names: list[str], own: Path | None = None) -> list[Task]:
    """Declared tasks by name.

    Raises:
        UserError: naming the tasks there are.
    """
    tasks = declared_tasks(own)
    for name in names:
        if name not in tasks:
            raise UserError(f"there is no task {name}; the tasks are {', '.join(tasks)}")
    return [tasks[name] for name in names]
