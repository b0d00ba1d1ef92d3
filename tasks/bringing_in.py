"""Bring a checkpoint in from outside: into the store, and into the registry as a model to fine-tune."""

from __future__ import annotations

import re
from pathlib import Path

from lm_core import stages
from lm_core.artifact import Checkpoint
from lm_core.errors import TryLaterError, UserError
from lm_core.model.import_config import ImportConfig
from lm_core.runtime import Runtime
from lm_core.store import Store
from tasks import registry
from tasks.markdown import table
from tasks.registry import Registered

EXPERIMENT = "millrace"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}")


def bring_in(runtime: Runtime, folder: Path, name: str, context_length: int = 0) -> tuple[Registered, Checkpoint]:
    """Import a folder and register it; the first version of a name goes into service.

    Raises:
        UserError: naming what does not fit; nothing is committed then.
        TryLaterError: MLflow does not answer. The model stays in the store; running again registers it.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"--name {name!a}: a model's name is of letters, digits, - and _, at most 61")
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name one with config.json, *.safetensors and tokenizer.json")
    config = ImportConfig(folder=str(folder.absolute()), context_length=_checked(context_length))
    checkpoint, _ = Store(runtime).build(stages.IMPORT, config, {})
    registered = registry.remembered(runtime, name, checkpoint)
    if registered is None:
        registered = registry.register(runtime, name, checkpoint, {}, _described(checkpoint), _new_run(name))
    if registry.version_with_alias(name, "champion") is None:
        registry.promote(name, registered.version, ("there is no champion yet",))
    return registered, checkpoint


def _checked(context_length: int) -> int:
    if context_length and not 8 <= context_length <= 131_072:
        raise UserError(f"--context-length {context_length} is out of bounds: 8 to 131072")
    return context_length


def _described(checkpoint: Checkpoint) -> str:
    names = ("num_parameters", "vocab_size", "context_length", "added_tokens")
    return table(("imported", "value"), [(name.replace("_", " "), checkpoint.statistics[name]) for name in names])


def _new_run(name: str) -> str:
    import mlflow
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient()
    try:
        found = client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT)
        return str(client.create_run(experiment, run_name=f"import {name}").info.run_id)
    except MlflowException as error:
        raise TryLaterError(f"MLflow does not answer: {str(error).splitlines()[0]}") from error
