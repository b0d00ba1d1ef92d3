"""DuckDB, locked down: it reads the folders it is given, writes its spill files, and reaches nothing else."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb

from lm_core.runtime import Runtime


@contextmanager
def connect(runtime: Runtime, *, folders: Sequence[Path] = ()) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an in-memory database that may read only `folders` and spills into the workspace.

    Paths in a query are globs and an http path makes DuckDB fetch an extension, so that access is closed rather than
    trusted: no extensions, no network, no files beside the folders, and no query can change that.

    Args:
        runtime: threads, memory limit and workspace.
        folders: folders whose files queries may read and write.
    """
    spill = runtime.workspace / "spill"
    spill.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=spill) as temporary, duckdb.connect(":memory:") as connection:
        allowed = ", ".join(_quoted(folder) for folder in folders)
        for setting in (
            f"memory_limit = '{runtime.memory_limit_bytes // 1_000_000}MB'",
            f"threads = {runtime.num_threads}",
            f"temp_directory = {_quoted(Path(temporary))}",
            "autoinstall_known_extensions = false",
            "autoload_known_extensions = false",
            f"allowed_directories = [{allowed}]",
            "enable_external_access = false",
            "lock_configuration = true",
        ):
            connection.execute(f"SET {setting}")
        yield connection


def _quoted(path: Path) -> str:
    return "'" + str(path.absolute()).replace("'", "''") + "'"
