"""lm-evaluation-harness (the extra `harness`) scores a checkpoint as a stock Hugging Face model."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_core.errors import MachineError, UserError
from lm_core.model.export import export_huggingface


def score_with_harness(
    checkpoint: Path,
    tasks: Sequence[str],
    *,
    definitions: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    device: str = "cpu",
    samples: dict[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Figures of each task, as the harness names them.

    Args:
        checkpoint: folder of a `Checkpoint` artifact.
        tasks: names of the harness's tasks.
        definitions: folder with tasks of one's own, in the harness's YAML.
        limit: so many items of each task only.
        batch_size: items at once.
        device: "cpu", "cuda" or "cuda:N".
        samples: receives what the harness keeps of each item.

    Raises:
        MachineError: when the extra is not installed.
        UserError: when the harness knows no such task.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise MachineError("lm-evaluation-harness is not installed; it needs the extra: pip install millrace[harness]")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(definitions), include_defaults=False) if definitions else None
    if manager is None or set(tasks) - set(manager.all_tasks):  # its own definitions take ten seconds to be looked at
        manager = TaskManager(include_path=str(definitions) if definitions else None)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise UserError(f"lm-evaluation-harness knows no task {unknown[0]}; `lm_eval ls tasks` lists them")
    with tempfile.TemporaryDirectory() as folder:
        export_huggingface(checkpoint, Path(folder))
        found = simple_evaluate(
            model="hf",
            model_args={"pretrained": folder, "add_bos_token": True, "dtype": "float32", "trust_remote_code": False},
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            batch_size=batch_size,
            device=device,
            log_samples=samples is not None,
        )
    if samples is not None:
        samples.update(found["samples"])
    return {
        task: {name.removesuffix(",none"): value for name, value in figures.items() if isinstance(value, int | float)}
        for task, figures in found["results"].items()
    }
