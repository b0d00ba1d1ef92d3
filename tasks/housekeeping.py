"""`millrace gc`: remove what no registered model and no newest artifact descends from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lm_core.artifact import MANIFEST
from lm_core.runtime import Runtime
from lm_core.stages import PIPELINE
from lm_core.store import Store, read_manifest
from tasks.reports import report_path


def collect_garbage(workspace: Path, *, delete: bool) -> list[tuple[Path, int]]:
    """Folders nothing needs, with their bytes; removed when `delete` is set.

    Kept are the checkpoints of every version registered from this workspace, the newest artifact of each stage and
    downstream task, and all their ancestors.
    """
    store = Store(Runtime(workspace=workspace))
    keep = set()
    for stage in PIPELINE:
        newest: dict[str, str] = {}
        for manifest in store.manifests(stage.name):
            job = json.dumps([manifest["config"].get("task"), manifest["config"].get("from_random")])
            newest.setdefault(job, f"{stage.name}/{manifest['fingerprint']}")
        keep |= set(newest.values())
    registered = {json.loads(path.read_text()).get("digest") for path in (workspace / "registered").glob("*.json")}
    for path in store.root.glob(f"*/*/{MANIFEST}"):
        if read_manifest(path.parent)["content_digest"] in registered:
            keep.add(f"{path.parent.parent.name}/{path.parent.name}")
    loose = store.collectable(keep)
    if delete:
        for path, _ in loose:
            shutil.rmtree(path, ignore_errors=True)
            report_path(workspace, path.parent.name, path.name).unlink(missing_ok=True)
    return loose
