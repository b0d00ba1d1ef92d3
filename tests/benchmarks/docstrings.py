"""What limits the collection of the installed packages' documentation: `ast.parse`, or us?

    python -m tests.benchmarks.docstrings

Collects all installed packages as the pipeline does, then reads the same packages in as many processes with a clock
around `ast.parse`. The last line is one JSON object: `parse_share` is the share of all cores' time during collection
that goes into parsing the very files that are parsed. Freeing the trees is no part of it.
"""

import ast
import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from lm_core.corpus.collect import collect
from lm_core.corpus.config import CollectConfig, InstalledPackages
from lm_core.corpus.sources import docstrings, installed_packages
from lm_core.corpus.sources.docstrings import Package
from lm_core.runtime import Runtime
from lm_core.store import Build


def timed(package: Package) -> tuple[float, float]:
    """Seconds in `ast.parse`, and of reading the package in all, of one processor."""
    spent = 0.0
    parse = ast.parse

    def clocked(source: bytes) -> ast.Module:
        nonlocal spent
        started = time.process_time()
        try:
            return parse(source)
        finally:
            spent += time.process_time() - started

    docstrings.ast.parse = clocked
    started = time.process_time()
    docstrings.read_package(package)
    docstrings.ast.parse = parse
    return spent, time.process_time() - started


def main() -> None:
    """Print the figures."""
    config = InstalledPackages()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        runtime = Runtime(workspace=root / "workspace")
        for name in ("folder", "work"):
            (root / name).mkdir()
        started = time.perf_counter()
        statistics = collect(Build(root / "folder", root / "work", runtime), CollectConfig(sources=(config,)))
        seconds = time.perf_counter() - started
    packages = [installed_packages._package(folder, config) for folder in installed_packages._dist_infos(config)]
    packages.append(installed_packages._standard_library(config))
    packages.sort(key=lambda package: -len(package.files))
    with ProcessPoolExecutor(runtime.num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        times = list(pool.map(timed, packages))
    parse, read = (sum(part) for part in zip(*times, strict=True))
    figures = {
        "packages": len(packages),
        "documents": statistics["num_documents"],
        "megabytes": round(statistics["num_bytes"] / 1e6, 1),
        "processes": runtime.num_workers,
        "collect_seconds": round(seconds, 2),
        "parse_seconds": round(parse, 2),
        "read_seconds": round(read, 2),
        "parse_share": round(parse / (runtime.num_workers * seconds), 3),
        "parse_share_of_reading": round(parse / read, 3),
    }
    print(json.dumps({"benchmark": "docstrings"} | figures))


if __name__ == "__main__":
    main()
