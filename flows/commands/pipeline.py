"""Run the pipeline, plan it, schedule it."""

from __future__ import annotations

from typing import Any

from flows.commands.arguments import (
    AddCommand,
    Options,
    add_config,
    add_ports,
    add_processes,
    add_runner,
    load_config,
    say,
    use_servers,
)


def add(command: AddCommand) -> None:
    """`run`, `plan`, `config`, `schedule`."""
    command("run", "run the pipeline; what exists already is reused", _run, add_config, add_runner,
            add_processes, add_ports)  # fmt: skip
    command("plan", "say what `run` would do and why, without doing it", _plan, add_config)
    command("config", "print the configuration of a preset, with every field's meaning", _config, add_config)
    schedule = command("schedule", "make a scheduled deployment of the pipeline", _schedule, add_config, add_ports)
    schedule.add_argument("cron", help='when to run, as a cron line: "0 3 * * *" is every night at three')
    schedule.add_argument("--name", default="scheduled", help="name of the deployment (default: scheduled)")
    schedule.add_argument("--timezone", default="UTC", help="time zone of the cron line (default: UTC)")


def _run(options: Options) -> dict[str, Any]:
    config = load_config(options)
    from tasks.environment import use_processes, use_runner

    use_processes(options.processes, options.strategy)
    use_runner(options.runner)
    from flows.wiring import Until

    until = Until(options.until)
    from lm_core.corpus.collect import left_aside, source_digests
    from lm_core.corpus.sources.local_files import found_once
    from lm_core.runtime import Runtime

    runtime = Runtime()
    until.check_devices(runtime)
    with found_once():
        source_digests(config.collect, runtime)  # a path that is not there is said before any server starts
        aside = left_aside(config.collect)
    found = use_servers(options, ("prefect", "mlflow"))
    from flows.pipeline import display_in_use, run_corpus_to_model
    from flows.scorecard import show
    from tasks.display import Display

    with Display() as display:
        display.say(f"preset {options.preset}; watch the run at {found['prefect'].address}")
        for line in aside:
            display.say(line)
        display_in_use.set(display)
        card = run_corpus_to_model(config=config, until=options.until)
    addresses = {"Prefect": f"{found['prefect'].address}/runs", "MLflow": f"{found['mlflow'].address}/#/models"}
    show(card, addresses, display.console)
    return card


def _plan(options: Options) -> dict[str, Any]:
    from dataclasses import asdict

    from flows.plan import in_words, make_plan, pretraining_forecasts
    from lm_core.corpus.collect import left_aside
    from lm_core.corpus.sources.local_files import found_once
    from lm_core.runtime import Runtime

    config = load_config(options)
    with found_once():
        stages = make_plan(config, Runtime(), options.until)
        aside = left_aside(config.collect)
    for stage in stages:
        say(f"{stage.name:<36} {stage.state:<7} {stage.why}")
    for line in aside:
        say(line)
    forecasts = pretraining_forecasts(config, Runtime(), stages)
    for forecast in forecasts:
        say(f"pretrain would take about {in_words(forecast)}")
    return {"stages": [asdict(stage) for stage in stages], "pretrain": [f.figures() for f in forecasts],
            "left_aside": aside}  # fmt: skip


def _config(options: Options) -> dict[str, Any]:
    config = load_config(options)
    from flows.config import describe

    for line in describe(config):
        say(line)
    return dict(config.model_dump(mode="json"))


def _schedule(options: Options) -> dict[str, Any]:
    config = load_config(options)
    use_servers(options, ("prefect", "mlflow"))
    from flows.deployments import deploy_scheduled

    result = deploy_scheduled(config, options.cron, options.name, options.timezone, options.until)
    say(f"deployment {result['deployment']}: {options.cron} ({options.timezone}); `millrace up` runs what is due")
    return result
