"""Downstream tasks: list them, fine-tune for one, score a model on them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flows.commands.arguments import (
    DEFAULT_MODEL,
    MODEL_HELP,
    AddCommand,
    Options,
    add_model_argument,
    add_ports,
    model_and_version,
    say,
    use_servers,
)


def add(command: AddCommand) -> None:
    """`tasks`, `finetune`, `evaluate`, `ablate`."""
    command("tasks", "list the downstream tasks, their data and metrics", _tasks, add_data)
    finetune = command("finetune", "fine-tune a model for a task, score and register it", _finetune, add_data,
                       add_size, add_ports)  # fmt: skip
    finetune.add_argument("tasks", metavar="TASK", nargs="+",
                          help="a task that `millrace tasks` lists; several: one model learns them all")  # fmt: skip
    finetune.add_argument("--base", default=DEFAULT_MODEL, metavar="MODEL", dest="model",
                          help=f"{MODEL_HELP} (default: the champion of {DEFAULT_MODEL})")  # fmt: skip
    finetune.add_argument("--name", metavar="NAME", help="register as NAME-TASK (default: the name of the base)")
    evaluate = command("evaluate", "fine-tune a model for tasks, score and register each; what it was tuned for is "
                       "scored as it is", _evaluate, add_model_argument, add_data, add_size, add_ports)  # fmt: skip
    evaluate.add_argument("tasks", metavar="TASK", nargs="*", help="tasks that `millrace tasks` lists")
    evaluate.add_argument("--all", action="store_true", help="every task whose data are there")
    ablate = command("ablate", "what each part of the generalisation toolbox is worth on few examples of a task",
                     _ablate, add_data, add_size, add_ports)  # fmt: skip
    ablate.add_argument("tasks", metavar="TASK", nargs="+", help="a task that `millrace tasks` lists")
    ablate.add_argument("--base", default=DEFAULT_MODEL, metavar="MODEL", dest="model",
                        help=f"{MODEL_HELP} (default: the champion of {DEFAULT_MODEL})")  # fmt: skip


def add_data(parser: argparse.ArgumentParser) -> None:
    """Where the tasks' data lie."""
    parser.add_argument("--data", metavar="DIR", help="folder with the data of the tasks, or `hub` for the Hugging "
                        "Face hub")  # fmt: skip
    parser.add_argument("--tasks-file", type=Path, metavar="FILE", help="TOML file that declares tasks of your own")


def add_size(parser: argparse.ArgumentParser) -> None:
    """How much is done."""
    parser.add_argument("--size", choices=("full", "smoke"), default="full",
                        help="smoke: a few items and steps of each, to see that it runs (default: full)")  # fmt: skip
    parser.add_argument("--smoke", dest="size", action="store_const", const="smoke", help="the same as --size smoke")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE",
                        help="a setting of fine-tuning, finetune.strategy=lora say; as often as you like")  # fmt: skip


def _tasks(options: Options) -> dict[str, Any]:
    from lm_core.downstream.rows import missing_files
    from lm_core.downstream.tasks.registry import declared_tasks

    tasks = declared_tasks(options.tasks_file)
    listed = {}
    for name, task in tasks.items():
        missing = missing_files(task, options.data) if options.data else []
        state = f"misses {missing[0]}" if missing else ""
        say(f"{name:<26} {task.kind:<10} {task.metric:<14} {task.source or ', '.join(task.files.values())}  {state}")
        listed[name] = task.model_dump(mode="json") | {"missing": missing}
    return {"tasks": listed}


def _finetune(options: Options) -> dict[str, Any]:
    from lm_core.downstream.tasks.registry import find_tasks

    tasks = find_tasks(options.tasks, options.tasks_file)
    name = options.name or model_and_version(options)[0]
    return _run(options, tasks, register_as=name, mixed=len(tasks) > 1)


def _ablate(options: Options) -> dict[str, Any]:
    from lm_core.downstream.tasks.registry import find_tasks
    from lm_core.errors import UserError

    tasks = find_tasks(options.tasks, options.tasks_file)
    for task in tasks:
        if task.kind not in ("label", "answer", "text"):
            raise UserError(f"{task.name} is of the kind {task.kind}, which is not fine-tuned in variants")
    return _run(options, tasks, ablation=True)


def _evaluate(options: Options) -> dict[str, Any]:
    from lm_core.downstream.rows import missing_files
    from lm_core.downstream.tasks.registry import declared_tasks, find_tasks
    from lm_core.errors import UserError

    if options.all == bool(options.tasks):
        raise UserError("name tasks, or say --all; `millrace tasks` lists them")
    _check_data(options)
    name = model_and_version(options)[0]
    if not options.all:
        return _run(options, find_tasks(options.tasks, options.tasks_file), register_as=name, as_it_is=True)
    every = declared_tasks(options.tasks_file)
    missing = {name: files[0] for name, task in every.items() if (files := missing_files(task, options.data))}
    tasks = [task for name, task in every.items() if name not in missing]
    if not tasks:
        raise UserError(f"{options.data} holds the data of no task; `millrace tasks --data DIR` says what is missing")
    card = _run(options, tasks, register_as=name, skip_what_fails=True, as_it_is=True)
    card["left_out"] |= {name: f"misses {file}" for name, file in missing.items()}
    return card


def _check_data(options: Options) -> None:
    from lm_core.errors import UserError

    if not options.data:
        raise UserError("say where the data of the tasks lie: --data DIR, or --data hub")
    if options.data != "hub" and not Path(options.data).is_dir():
        raise UserError(f"--data {options.data}: there is no such folder")


def _run(
    options: Options, tasks: list[Any], *, ablation: bool = False, register_as: str = "", **how: bool
) -> dict[str, Any]:
    config = _configured(options, tasks, register_as=register_as, **how)
    found = use_servers(options, ("prefect", "mlflow"))
    from flows.ablation_report import show_ablation
    from flows.downstream import run_ablation, run_downstream
    from flows.downstream_report import show
    from flows.pipeline import display_in_use
    from lm_core.runtime import Runtime
    from tasks import registry, servers
    from tasks.display import Display

    servers.wait(found["mlflow"], options.workspace)
    version = registry.find_version(*model_and_version(options))
    with Display() as display:
        display.say(f"{version.name} version {version.version}; watch the run at {found['prefect'].address}")
        display_in_use.set(display)
        folder = registry.checkpoint_folder(version, Runtime())
        run = run_ablation if ablation else run_downstream
        card = run(config=config, base=str(folder), model=f"{version.name} version {version.version}")
    (show_ablation if ablation else show)(card, display.console)
    return dict(card)


def _configured(options: Options, tasks: list[Any], *, register_as: str, **how: bool) -> Any:
    """What the run is to do; what it cannot do is refused before any server is started."""
    from flows.config import load_config
    from flows.downstream_wiring import DownstreamConfig
    from flows.finetune_settings import check_chosen
    from flows.presets import laptop
    from lm_core.errors import UserError

    _check_data(options)
    for setting in options.settings:
        if not setting.startswith("finetune."):
            raise UserError(f"--set {setting}: here only settings of finetune have an effect")
    base = laptop()
    if how.get("mixed"):
        mixture = base.finetune.model_copy(update={"mixture": tuple(task.name for task in tasks)})
        base = base.model_copy(update={"finetune": mixture})
    settings = load_config(base, settings=options.settings)
    config = DownstreamConfig(
        tasks=tuple(tasks),
        data=options.data if options.data == "hub" else str(Path(options.data).absolute()),
        finetune=settings.finetune,
        chosen=settings.declared.chosen,
        smoke=options.size == "smoke",
        register_as="" if options.size == "smoke" else register_as,  # a smoke's models are no models
        **how,
    )
    for note in check_chosen(config.tasks, config, many=config.skip_what_fails):
        say(note)
    return config
