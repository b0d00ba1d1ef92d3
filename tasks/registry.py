"""The MLflow registry: versions, aliases, promotion and rollback.

Aliases: `challenger` is the newest registered version, `champion` the one in service, `previous` what was
champion before (for rollback). Versions carry as tags the content digest of their checkpoint, the fingerprints of their
whole ancestry and their scores. The library loads lazily: a cached run never imports it.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_core.artifact import Checkpoint
from lm_core.errors import TryLaterError, UserError
from lm_core.runtime import Runtime
from lm_core.store import read_manifest
from tasks.environment import configured_address

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

DIGEST_TAG = "millrace.checkpoint"
FOLDER_TAG = "millrace.folder"
SCORES_TAG = "millrace.scores"
PIP_REQUIREMENTS = ["torch", "safetensors", "tokenizers", "pydantic", "numpy", "pandas", "pyarrow"]


@dataclass(frozen=True)
class Registered:
    """One version of a registered model."""

    name: str
    version: str
    run_id: str


def _client() -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient()


def ancestry(checkpoint: Checkpoint, artifacts: Path) -> dict[str, str]:
    """Tags that name the fingerprint of every stage the checkpoint descends from."""
    tags, todo = {}, [f"{checkpoint.stage}/{checkpoint.fingerprint}"]
    while todo:
        folder = todo.pop()
        stage, _, fingerprint = folder.partition("/")
        if f"millrace.fingerprint.{stage}" not in tags:
            tags[f"millrace.fingerprint.{stage}"] = fingerprint
            todo += [item["folder"] for item in read_manifest(artifacts / folder)["inputs"].values()]
    return tags


# ---------------------------------------------------------------- registering


def remembered(runtime: Runtime, name: str, checkpoint: Checkpoint) -> Registered | None:
    """The version this checkpoint has already, when the registry still holds it. One HTTP request, no MLflow import."""
    try:
        entry = json.loads(_memory(runtime, name, checkpoint).read_text())
        registered = Registered(entry["name"], entry["version"], entry["run_id"])
    except (OSError, ValueError, KeyError):
        return None
    found = _get_version(registered)
    tags = {tag["key"]: tag["value"] for tag in found.get("tags", [])}
    return registered if tags.get(DIGEST_TAG) == checkpoint.content_digest else None


def alias_of(registered: Registered) -> str | None:
    """The weightiest alias of a version: champion before challenger before previous."""
    aliases = _get_version(registered).get("aliases", [])
    return next((alias for alias in ("champion", "challenger", "previous") if alias in aliases), None)


def _get_version(registered: Registered) -> dict[str, Any]:
    """A version as the server describes it; empty when it is not there."""
    query = urllib.parse.urlencode({"name": registered.name, "version": registered.version})
    address = configured_address("mlflow") or ""
    try:
        with urllib.request.urlopen(f"{address}/api/2.0/mlflow/model-versions/get?{query}", timeout=10) as response:
            version: dict[str, Any] = json.load(response)["model_version"]
            return version
    except urllib.error.HTTPError:
        return {}
    except (OSError, ValueError) as error:
        raise TryLaterError(
            f"the MLflow server at {address} does not answer ({error}); start it and run again"
        ) from None


def _memory(runtime: Runtime, name: str, checkpoint: Checkpoint) -> Path:
    return runtime.workspace / "registered" / f"{name}-{checkpoint.content_digest[:32]}.json"


def register(
    runtime: Runtime, name: str, checkpoint: Checkpoint, scores: Mapping[str, Any], description: str, run_id: str
) -> Registered:
    """Log the model without pickle and register it; it becomes `challenger`.

    Raises:
        TryLaterError: MLflow cannot be reached.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    client = _client()
    tags = {
        **ancestry(checkpoint, runtime.artifacts),
        DIGEST_TAG: checkpoint.content_digest,
        FOLDER_TAG: f"{checkpoint.stage}/{checkpoint.fingerprint}",
        SCORES_TAG: json.dumps(scores),
        "millrace.weights_sha256": str(checkpoint.statistics.get("weights_sha256", "")),
    }
    try:
        with mlflow.start_run(run_id=run_id):
            model = _log_model(name, checkpoint)
            figures = {name: float(value) for name, value in scores.items() if isinstance(value, int | float)}
            mlflow.log_metrics(figures, model_id=model.model_id)
        # start_run ends the run it resumed; the journal sets the time at which the pipeline really ended.
        _ensure_registered_model(client, name)
        version = client.create_model_version(
            name, model.model_uri, run_id, tags=tags, model_id=model.model_id, description=description
        )
        client.set_registered_model_alias(name, "challenger", version.version)
    except MlflowException as error:
        raise TryLaterError(f"MLflow refused the model {name}: {str(error).splitlines()[0]}") from error
    registered = Registered(name, str(version.version), run_id)
    memory = _memory(runtime, name, checkpoint)
    memory.parent.mkdir(parents=True, exist_ok=True)
    memory.write_text(json.dumps({**asdict(registered), "digest": checkpoint.content_digest}))
    return registered


def _ensure_registered_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description="Made by the flow corpus_to_model.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _log_model(name: str, checkpoint: Checkpoint) -> Any:
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    from lm_core.vision.answerer import has_eyes
    from lm_core.vision.pictures import blank_png

    source = Path(__file__).parents[1]
    example: dict[str, list[Any]] = {"prompt": ["Return the"]}
    columns: list[Any] = [ColSpec(DataType.string, "prompt")]
    if has_eyes(checkpoint.folder):
        example, columns = example | {"picture": [blank_png()]}, [*columns, ColSpec(DataType.binary, "picture")]
    signature = ModelSignature(
        inputs=Schema(columns),
        outputs=Schema([ColSpec(DataType.string, "text")]),
        params=ParamSchema(
            [
                ParamSpec("max_new_tokens", DataType.long, 64),
                ParamSpec("temperature", DataType.double, 0.0),
                ParamSpec("top_k", DataType.long, 0),
                ParamSpec("top_p", DataType.double, 1.0),
                ParamSpec("min_p", DataType.double, 0.0),
                ParamSpec("repetition_penalty", DataType.double, 1.0),
                ParamSpec("seed", DataType.long, 0),
            ]
        ),
    )
    return mlflow.pyfunc.log_model(
        name=name,
        python_model=str(Path(__file__).with_name("served_model.py")),
        artifacts={"checkpoint": str(checkpoint.folder)},
        code_paths=[str(source / "lm_core"), str(source / "data_contracts")],
        signature=signature,
        input_example=pd.DataFrame(example),
        pip_requirements=PIP_REQUIREMENTS,
    )


# ---------------------------------------------------------------- reading


def version_with_alias(name: str, alias: str) -> ModelVersion | None:
    """The version an alias points to; None when there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return _client().get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise TryLaterError(f"MLflow does not answer: {str(error).splitlines()[0]}") from error


def find_version(name: str, wanted: str | None = None) -> ModelVersion:
    """A version by number or alias; the champion when nothing is named.

    Raises:
        UserError: there is none such; the message names those that are.
    """
    from mlflow.exceptions import MlflowException

    client = _client()
    wanted = wanted or "champion"
    if not wanted.isdigit():
        version = version_with_alias(name, wanted)
        if version:
            return version
    else:
        try:
            return client.get_model_version(name, wanted)
        except MlflowException:
            pass
    known = [str(v.version) for v in client.search_model_versions(f"name = '{name}'")]
    hint = f"its versions are {', '.join(sorted(known, key=int))}" if known else "run `millrace run` to make one"
    raise UserError(f"the registry holds no version {wanted} of the model {name}; {hint}")


def checkpoint_folder(version: ModelVersion, runtime: Runtime) -> Path:
    """Folder with the version's checkpoint: in the store when it is there, else downloaded from MLflow once."""
    in_store = runtime.artifacts / version.tags.get(FOLDER_TAG, "-")
    if (in_store / "manifest.json").exists():
        return in_store
    import mlflow

    target = runtime.workspace / "downloads" / f"{version.name}-{version.version}"
    if not target.exists():
        temporary = target.with_suffix(".part")
        mlflow.artifacts.download_artifacts(
            artifact_uri=f"models:/{version.name}/{version.version}", dst_path=str(temporary)
        )
        temporary.rename(target)
    return next(target.glob("artifacts/*"))


def list_versions() -> list[dict[str, Any]]:
    """All versions of all models, the newest first, with aliases and scores."""
    client = _client()
    rows = []
    for model in client.search_registered_models():
        aliases: dict[str, list[str]] = {}
        for alias, number in client.get_registered_model(model.name).aliases.items():
            aliases.setdefault(str(number), []).append(alias)
        for version in client.search_model_versions(f"name = '{model.name}'"):
            rows.append(
                {
                    "model": model.name,
                    "version": str(version.version),
                    "aliases": sorted(aliases.get(str(version.version), [])),
                    "created": version.creation_timestamp,
                    "scores": json.loads(version.tags.get(SCORES_TAG, "{}")),
                    "weights_sha256": version.tags.get("millrace.weights_sha256", ""),
                }
            )
    return sorted(rows, key=lambda row: (row["model"], -int(row["version"])))


# ---------------------------------------------------------------- promoting


def promote(name: str, version: str, evidence: tuple[str, ...] = ()) -> None:
    """Make a version champion; the one it replaces becomes `previous`."""
    client = _client()
    champion = version_with_alias(name, "champion")
    if champion is not None and str(champion.version) == str(version):
        return
    if champion is not None:
        client.set_registered_model_alias(name, "previous", champion.version)
    client.set_registered_model_alias(name, "champion", version)
    if evidence:
        client.set_model_version_tag(name, version, "millrace.promoted_because", "; ".join(evidence)[:4000])


def rollback(name: str) -> str:
    """Make `previous` champion again and the champion `previous`; returns the version now in service.

    Raises:
        UserError: there is nothing to go back to.
    """
    previous = version_with_alias(name, "previous")
    if previous is None:
        raise UserError(f"the model {name} has no previous champion to go back to")
    promote(name, str(previous.version), ("rolled back by hand",))
    return str(previous.version)
