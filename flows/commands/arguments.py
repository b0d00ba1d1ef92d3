"""What several commands share: their options, the servers they need, how they speak."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from flows.terminal import visible

Options = argparse.Namespace
Handler = Callable[[Options], dict[str, Any]]
DEFAULT_MODEL = "millrace"
MODEL_HELP = "NAME, NAME@ALIAS or NAME/VERSION of a registered model; an alias or a version alone is one of millrace"


class AddCommand(Protocol):
    """Adds one command to the parser: name, help text, what it does, and the groups of options it takes."""

    def __call__(
        self, name: str, text: str, handler: Handler, *groups: Callable[[argparse.ArgumentParser], None]
    ) -> argparse.ArgumentParser: ...


def add_common(parser: argparse.ArgumentParser) -> None:
    """What every command takes."""
    parser.add_argument("--workspace", type=Path, default=Path("workspace"), metavar="DIR",
                        help="folder of all state (default: ./workspace)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line of stdout")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and the logs of the servers' clients")


def add_config(parser: argparse.ArgumentParser) -> None:
    """The configuration of the pipeline."""
    parser.add_argument(
        "--preset", default="laptop", metavar="NAME", help="smoke, laptop, real or gpu (default: laptop)"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file whose values change the preset")
    parser.add_argument("--data", metavar="PATH", help="your own text: a file, folder, glob, web address, s3://... or "
                        "hf://datasets/NAME")  # fmt: skip
    parser.add_argument("--text-column", metavar="NAME",
                        help="column or key of the tables in --data that holds the text (default: the first with a "
                        "usual name, such as text or content)")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", dest="settings",
                        help="change one value, e.g. pretrain.model.num_layers=6; may be repeated")  # fmt: skip
    parser.add_argument("--until", metavar="STAGE", help="stop after this stage")


def add_runner(parser: argparse.ArgumentParser) -> None:
    """Where the parts of the data stages are worked on; no part of what they make."""
    parser.add_argument("--runner", choices=("local", "ray"),
                        help="where parts of the data stages are worked on: local threads, or tasks on a Ray cluster "
                        "(RAY_ADDRESS names it; default: local)")  # fmt: skip


def add_processes(parser: argparse.ArgumentParser) -> None:
    """How many processes pretrain together; no part of what they make."""
    parser.add_argument("--processes", type=int, metavar="N",
                        help="processes that pretrain together under torchrun, one GPU each (default: 1)")  # fmt: skip
    parser.add_argument("--strategy", choices=("ddp", "fsdp"),
                        help="ddp: each holds the whole model; fsdp: each holds a part (default: ddp)")  # fmt: skip


def add_ports(parser: argparse.ArgumentParser) -> None:
    """Ports of the managed servers."""
    parser.add_argument("--prefect-port", type=int, metavar="PORT", help="port of the Prefect server (default: 4200)")
    parser.add_argument("--mlflow-port", type=int, metavar="PORT", help="port of the MLflow server (default: 5000)")


def add_model(parser: argparse.ArgumentParser) -> None:
    """A model as options."""
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="MODEL", help=f"{MODEL_HELP} (default: {DEFAULT_MODEL})"
    )
    parser.add_argument("--version", dest="model_version", metavar="N|ALIAS",
                        help="version number or alias (default: champion)")  # fmt: skip


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """A model named as the first argument."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)


def add_generation(parser: argparse.ArgumentParser) -> None:
    """A model and how it writes."""
    add_model(parser)
    parser.add_argument("--max-new-tokens", type=int, default=80, metavar="N", help="longest answer (default: 80)")
    parser.add_argument("--temperature", type=float, default=0.7, metavar="T",
                        help="0 takes the likeliest token; higher is freer (default: 0.7)")  # fmt: skip
    parser.add_argument("--top-k", type=int, default=50, metavar="K",
                        help="choose among the K likeliest; 0: among all (default: 50)")  # fmt: skip
    parser.add_argument("--top-p", type=float, metavar="P",
                        help="choose among the likeliest that together hold this probability")  # fmt: skip
    parser.add_argument("--min-p", type=float, metavar="P",
                        help="leave out what is less likely than this share of the likeliest")  # fmt: skip
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="F",
                        help="weaken what is there already by this factor (default: 1, off)")  # fmt: skip
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT",
                        help="end before this text; may be repeated")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the sampling (default: 0)")


def load_config(options: Options) -> Any:
    """The preset with the changes asked for."""
    from flows.config import load_config
    from flows.presets import preset

    return load_config(
        preset(options.preset),
        toml=options.config,
        data=options.data,
        text_column=options.text_column,
        settings=options.settings,
    )


def use_servers(options: Options, services: tuple[str, ...]) -> dict[str, Any]:
    """Find or start servers and point this process at them; waits for Prefect only, MLflow gets ready meanwhile."""
    from tasks import servers
    from tasks.environment import use_addresses

    ports = {name: port for name in services if (port := getattr(options, f"{name}_port", None)) is not None}
    found = servers.begin(options.workspace, services, ports)
    if "prefect" in found:
        servers.wait(found["prefect"], options.workspace)
    elif "mlflow" in found:
        servers.wait(found["mlflow"], options.workspace)
    addresses = {name: server.api for name, server in found.items()}
    use_addresses(prefect_api=addresses.get("prefect"), mlflow=addresses.get("mlflow"))
    if "prefect" in found:
        from tasks.supervision import watch_for_crashes

        watch_for_crashes()
    return found


def model_and_version(options: Options) -> tuple[str, str | None]:
    """Registered name and version (number or alias) of what was typed: MLflow's own way to write a model."""
    name, version = options.model, getattr(options, "model_version", None)
    for separator in "@/":
        if separator in name and version is None:
            name, _, version = name.partition(separator)
    if version is None and (name.isdigit() or name in ("champion", "challenger", "previous")):
        name, version = DEFAULT_MODEL, name
    return name, version


def checkpoint(options: Options) -> tuple[Any, Path]:
    """The version asked for and the folder of its checkpoint."""
    use_servers(options, ("mlflow",))
    from lm_core.runtime import Runtime
    from tasks import registry

    version = registry.find_version(*model_and_version(options))
    return version, registry.checkpoint_folder(version, Runtime())


def say(text: str, end: str = "\n") -> None:
    """Words for a person, on stdout (with --json that leads to stderr)."""
    sys.stdout.write(visible(text) + end)
    sys.stdout.flush()
