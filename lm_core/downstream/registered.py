"""Which declared tasks have their data at hand, and what identifies these. Planning asks it, so it loads no pyarrow."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lm_core.config import identity_of
from lm_core.downstream.config import HoldOutConfig
from lm_core.downstream.rows import file_digests, missing_files
from lm_core.downstream.task import Task
from lm_core.downstream.tasks.registry import declared_tasks
from lm_core.errors import UserError
from lm_core.runtime import Runtime
from lm_core.store import canonical_json


def registered_tasks(config: HoldOutConfig) -> dict[str, Task]:
    """The declared tasks whose files lie in the data folder, by name.

    Raises:
        UserError: there is no such folder, or a task of one's own misses a file.
    """
    if config.data is None:
        return {}
    if not Path(config.data).is_dir():
        raise UserError(f"hold_out.data: there is no folder {config.data}")
    own = Path(config.tasks_file) if config.tasks_file else None
    # The text of a question about a picture gives nothing away without the picture.
    declared = declared_tasks(own) | {task.name: task for task in config.tasks}
    tasks = {name: task for name, task in declared.items() if task.kind != "visual"}
    return {name: task for name, task in tasks.items() if not missing_files(task, config.data)}


def source_digests(config: HoldOutConfig, runtime: Runtime) -> dict[str, str]:
    """Identity of each task's declaration and files."""
    digests = {}
    for name, task in registered_tasks(config).items():
        content = canonical_json([identity_of(task), file_digests(task, str(config.data))])
        digests[name] = hashlib.sha256(content.encode()).hexdigest()
    return digests
