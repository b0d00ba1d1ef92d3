"""DuckDB, locked down: bounded memory, spill inside the workspace, no extensions, no network, only named folders.

A path handed to DuckDB is otherwise a glob, an address to fetch, or a file anywhere on the machine.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb

from lm_core.runtime import Runtime


@contextmanager
def connect(runtime: Runtime, *, folders: Sequence[Path] = ()) -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory database that can read and write files under `folders` and nowhere else.

    Args:
        folders: folders whose files may be read, besides the one it spills to.
    """
    parent = runtime.workspace / "spill"
    parent.mkdir(parents=True, exist_ok=True)
    spill = tempfile.mkdtemp(dir=parent)
    try:
        with duckdb.connect(config=_settings(runtime, spill)) as connection:
            allowed = ", ".join(quoted(str(folder.absolute())) for folder in [*folders, Path(spill)])
            connection.execute(f"SET allowed_directories = [{allowed}]")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            yield connection
    finally:
        shutil.rmtree(spill, ignore_errors=True)


def _settings(runtime: Runtime, spill: str) -> dict[str, str | bool | int | float | list[str]]:
    return {
        "memory_limit": f"{runtime.memory_limit_bytes}B",
        "threads": runtime.num_threads,
        "temp_directory": spill,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }


def quoted(text: str) -> str:
    """A text as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"
