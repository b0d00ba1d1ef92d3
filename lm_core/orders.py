"""A stage's function as an order in JSON, for another process to carry out, and what came of it.

Nothing is pickled: a configuration travels as its class and its values, an artifact as its kind and its handle.
"""

from __future__ import annotations

import importlib
import json
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel

from lm_core import artifact, errors
from lm_core.artifact import Artifact
from lm_core.errors import MillraceError
from lm_core.runtime import Runtime, Tariff
from lm_core.store import Build, Progress

Order = Mapping[str, Any]


class ForeignError(RuntimeError):
    """A defect in the other process; the message is its traceback."""


def order_of(
    function: str, build: Build, config: BaseModel, inputs: Mapping[str, Artifact], runtime: Runtime
) -> dict[str, Any]:
    """What another process needs to call a stage's function, "module:name".

    Args:
        runtime: where it will run: another than `build.runtime`, mostly with fewer threads.
    """
    return {
        "function": function,
        "config": [type(config).__module__, type(config).__name__, config.model_dump(mode="json")],
        "inputs": {
            name: [type(item).__name__, asdict(item) | {"folder": str(item.folder)}] for name, item in inputs.items()
        },
        "folder": str(build.folder),
        "work": str(build.work),
        "runtime": asdict(runtime) | {"workspace": str(runtime.workspace)},
    }


def runtime_of(order: Order) -> Runtime:
    """Where an order is to be carried out."""
    values = order["runtime"]
    return Runtime(**{**values, "workspace": Path(values["workspace"]), "tariff": Tariff(**values["tariff"])})


def carry_out(order: Order, build: Build) -> dict[str, Any]:
    """Call the function of an order; `result_of` gives its statistics, or raises what it raised."""
    module, name, values = order["config"]
    config = getattr(importlib.import_module(module), name).model_validate(values)
    inputs = {name: _artifact(kind, values) for name, (kind, values) in order["inputs"].items()}
    module, _, name = order["function"].partition(":")
    try:
        return {"result": getattr(importlib.import_module(module), name)(build, config, **inputs)}
    except MillraceError as error:
        return {"error": type(error).__name__, "message": str(error)}


def defect() -> dict[str, Any]:
    """What came of an order whose function met a defect; called where that was caught."""
    return {"error": ForeignError.__name__, "message": traceback.format_exc()}


def result_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """What an order came to.

    Raises:
        MillraceError: what its function raised.
        ForeignError: a defect.
    """
    if "error" not in content:
        return dict(content["result"])
    kind: type[Exception] = getattr(errors, content["error"], ForeignError)
    raise kind(content["message"])


def _artifact(kind: str, values: Mapping[str, Any]) -> Artifact:
    made: Artifact = getattr(artifact, kind)(**{**values, "folder": Path(values["folder"])})
    return made


def say(stream: IO[str], event: Mapping[str, Any]) -> None:
    """One line to the process that gave the order."""
    stream.write(json.dumps(event) + "\n")
    stream.flush()


def progress_to(stream: IO[str]) -> Progress:
    """A receiver of progress that hands it on as lines."""

    def progress(done: float, total: float | None, unit: str, **figures: float) -> None:
        say(stream, {"progress": [done, total, unit], "figures": figures})

    return progress


def relay(line: str, progress: Progress) -> dict[str, Any] | None:
    """Hand on a line of progress; a line that says something else comes back. What is no JSON object is left out."""
    try:
        event = dict(json.loads(line))
        arguments, figures = event.get("progress"), event.get("figures", {})
    except (ValueError, TypeError):
        return None
    if arguments is None:
        return event
    progress(*arguments, **figures)
    return None
