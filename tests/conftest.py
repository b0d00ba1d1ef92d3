"""Fixtures for all tests: one torch thread, nothing phones home, the data bundle when it is there."""

import os
from pathlib import Path

import pytest

# Two threads on a busy machine can be several times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

REPOSITORY = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests with servers first: they take longest."""
    items.sort(key=lambda item: item.get_closest_marker("server") is None)


@pytest.fixture(scope="session")
def data_bundle() -> Path:
    """Folder of real text for tests that need it; a user does not have it, so they are skipped without."""
    folder = Path(os.environ.get("MILLRACE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the data bundle is not at {folder} (set MILLRACE_TEST_DATA)")
    return folder
