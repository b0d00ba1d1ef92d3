"""What a checkpoint was tuned for, and what it was tuned from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_core.artifact import MANIFEST, Artifact, Checkpoint, DownstreamData
from lm_core.errors import IntegrityError
from lm_core.store import Store, read_manifest

PREFERRED, PICTURED = "prefer", "finetune_visual"


@dataclass(frozen=True)
class Tuned:
    """A model that has been tuned.

    Attributes:
        settings: the configuration of the stage that tuned it.
        base: what it was tuned from; None where this store does not hold it.
        examples: what it has learnt from; None likewise.
    """

    model: Checkpoint
    settings: Mapping[str, Any]
    base: Checkpoint | None
    examples: DownstreamData | None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The downstream tasks it was tuned for."""
        return tuple(self.settings.get("mixture") or ()) or (self.settings["task"],)


def tuned(store: Store, model: Checkpoint) -> Tuned | None:
    """How a checkpoint was tuned; None for one that is a base itself.

    Raises:
        IntegrityError: what it says of its training cannot be read.
    """
    path = model.file("training.json")
    if not path.exists():
        return None
    try:
        settings = json.loads(path.read_text())["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} cannot be read ({error})") from None
    if "task" not in settings:
        return None
    held = {name: store.root / folder for name, folder in model.inputs.items() if _is_there(store.root / folder)}
    base = store.open(Checkpoint, held["base"]) if "base" in held else None
    examples = store.open(DownstreamData, held["examples"]) if "examples" in held else None
    return Tuned(model, settings, base, examples)


def _is_there(folder: Path) -> bool:
    return (folder / MANIFEST).exists()


def own_text(model: Artifact) -> Path | None:
    """The token shards that a model, or the base it was tuned from, was trained on; None when they are not at hand."""
    artifacts, inputs = model.folder.parents[1], model.inputs
    while "tokens" not in inputs:
        folder = artifacts / inputs["base"] if "base" in inputs else None
        if folder is None or not _is_there(folder):
            return None
        inputs = {name: item["folder"] for name, item in read_manifest(folder)["inputs"].items()}
    tokens = artifacts / inputs["tokens"]
    return tokens if (tokens / "dataset.json").exists() else None
