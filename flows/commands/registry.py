"""The registered models: list, promote, roll back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows.commands.arguments import AddCommand, Options, add_model, model_and_version, say, use_servers


def add(command: AddCommand) -> None:
    """`models`, `promote`, `rollback`."""
    command("models", "list the registered models, their versions, aliases and scores", _models)
    command("promote", "make a version champion by hand", _promote, add_model)
    command("rollback", "make the previous champion champion again", _rollback, add_model)


def _models(options: Options) -> dict[str, Any]:
    use_servers(options, ("mlflow",))
    from tasks import registry

    rows = registry.list_versions()
    for row in rows:
        say(f"{row['model']:<24} {row['version']:>3}  {', '.join(row['aliases']):<24} {_in_words(row['scores'])}")
    if not rows:
        say("no model is registered yet; `millrace run` makes one")
    return {"models": rows}


def _in_words(scores: Mapping[str, Any]) -> str:
    """A score with its metric and interval; empty when the version carries none."""
    name = str(scores.get("metric", "bits per byte")).replace("_", " ")
    score = scores.get("score", scores.get("val_bits_per_byte"))
    return f"{name} {score:.3f} ({scores['low']:.3f} to {scores['high']:.3f})" if score is not None else ""


def _promote(options: Options) -> dict[str, Any]:
    use_servers(options, ("mlflow",))
    from tasks import registry

    name, wanted = model_and_version(options)
    version = registry.find_version(name, wanted or "challenger")
    registry.promote(name, str(version.version), ("promoted by hand",))
    say(f"{name} version {version.version} is champion")
    return {"model": name, "version": str(version.version), "alias": "champion"}


def _rollback(options: Options) -> dict[str, Any]:
    use_servers(options, ("mlflow",))
    from tasks import registry

    name, _ = model_and_version(options)
    version = registry.rollback(name)
    say(f"{name} version {version} is champion again")
    return {"model": name, "version": version, "alias": "champion"}
