"""Fixtures for all tests: one torch thread, nothing phones home, the data bundle when it is there."""

import os
from pathlib import Path
from typing import Any

import pytest

# Two threads on a busy machine can be several times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

REPOSITORY = Path(__file__).parents[1]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests stay together, so that what they share is made once; those with a finished run share that run."""
    from xdist.scheduler import LoadFileScheduling

    class TogetherWhereShared(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folder, _, _ = nodeid.rpartition("/")
            return folder if folder.endswith("end_to_end") else super()._split_scope(nodeid)

    return TogetherWhereShared(config, log)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Packed bytes can hold the time at which they were packed, and two processes must give a test the same name."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with servers first, which take longest, then those with slow tests: no process works alone at the end."""
    marked = {name: {item.path for item in items if item.get_closest_marker(name)} for name in ("server", "slow")}
    items.sort(key=lambda item: [item.path not in files for files in marked.values()])


@pytest.fixture(scope="session")
def data_bundle() -> Path:
    """Folder of real text for tests that need it; a user does not have it, so they are skipped without."""
    folder = Path(os.environ.get("MILLRACE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the data bundle is not at {folder} (set MILLRACE_TEST_DATA)")
    return folder
