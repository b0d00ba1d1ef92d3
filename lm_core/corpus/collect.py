"""Stage collect: documents of all sources as one corpus in a fixed order.

The order is (source, key), by an external merge: documents come in any order, are sorted in runs that fit in memory,
and the runs are merged. So neither the number of workers nor the size of the corpus matters to the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lm_core.corpus.config import CollectConfig, HubDataset, InstalledPackages, LocalFiles
from lm_core.corpus.text import Document, Rejected
from lm_core.errors import UserError
from lm_core.runtime import Runtime
from lm_core.store import Build


def source_digests(config: CollectConfig, runtime: Runtime) -> dict[str, str]:
    """Cheap identity of each source, by its place in the configuration.

    Raises:
        UserError: a path that does not exist or holds nothing to read.
    """
    digests = {}
    for index, source in enumerate(config.sources):
        for name, digest in _digests(source, runtime).items():
            digests[f"sources[{index}].{name}"] = digest
    return digests


def check_sources(config: CollectConfig) -> None:
    """Find out at once, without reading anything, that a source cannot be there.

    Raises:
        UserError: a path that does not exist or holds nothing to read, a package that is not installed.
    """
    for source in config.sources:
        if isinstance(source, InstalledPackages):
            from lm_core.corpus.sources.installed_packages import check_packages

            check_packages(source)
        elif isinstance(source, LocalFiles):
            from lm_core.corpus.sources.local_files import find_files

            find_files(source)
        else:
            from lm_core.corpus.sources.hub import check_hub

            check_hub(source)


def _digests(source: InstalledPackages | LocalFiles | HubDataset, runtime: Runtime) -> dict[str, str]:
    # Each reader is imported only where it is used: planning must not load Parquet to look at packages.
    if isinstance(source, InstalledPackages):
        from lm_core.corpus.sources.installed_packages import package_digests

        return package_digests(source)
    if isinstance(source, LocalFiles):
        from lm_core.corpus.sources.local_files import local_digests

        return local_digests(source, runtime)
    from lm_core.corpus.sources.hub import hub_digests

    return hub_digests(source, runtime)


def _read(source: InstalledPackages | LocalFiles | HubDataset, runtime: Runtime) -> Iterator[Document | Rejected]:
    if isinstance(source, InstalledPackages):
        from lm_core.corpus.sources.installed_packages import read_installed_packages

        return read_installed_packages(source, runtime)
    if isinstance(source, LocalFiles):
        from lm_core.corpus.sources.local_files import read_local_files

        return read_local_files(source, runtime)
    from lm_core.corpus.sources.hub import read_hub_dataset

    return read_hub_dataset(source, runtime)


def collect(build: Build, config: CollectConfig) -> dict[str, Any]:
    """Read all sources into `documents-*.parquet` and `rejected.parquet`.

    Raises:
        UserError: when there is no document at all.
    """
    from lm_core.corpus.corpus_writer import CorpusWriter

    with CorpusWriter(build, shard_bytes=config.shard_bytes, max_bytes=config.max_bytes) as writer:
        for source in config.sources:
            for item in _read(source, build.runtime):
                writer.add(item)
        statistics = writer.finish()
    if statistics["num_documents"] == 0:
        raise UserError(f"the sources hold no readable document ({statistics['num_rejected']} rejected)")
    return statistics
