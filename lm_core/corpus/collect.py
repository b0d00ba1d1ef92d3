"""Stage collect: documents of all sources as one corpus in a fixed order.

The order is (source, key), by an external merge: documents come in any order, are sorted in runs that fit in memory,
and the runs are merged. So neither the number of workers nor the size of the corpus matters to the result.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from lm_core.corpus.config import CollectConfig, Source
from lm_core.errors import UserError
from lm_core.runtime import Runtime
from lm_core.store import Build

if TYPE_CHECKING:
    from lm_core.corpus.sources.reuse import ReadBefore
    from lm_core.corpus.text import Item

_MODULES = {"installed_packages": "installed_packages", "local_files": "local_files", "web": "web", "hub": "hub"}


class _Reader(Protocol):
    """What the module of each kind of source has."""

    def digests(self, config: Any, runtime: Runtime) -> dict[str, str]:
        """Cheap identity of the source, name -> digest."""

    def check(self, config: Any) -> None:
        """Refuse, without reading anything, a source that cannot be there."""

    def read(self, config: Any, runtime: Runtime, before: ReadBefore) -> Iterator[Item]:
        """Its documents, in any order that is always the same."""


def _reader(source: Source) -> _Reader:
    # Each is imported only where it is used: planning must not load Parquet to look at packages.
    return cast(_Reader, importlib.import_module(f"lm_core.corpus.sources.{_MODULES[source.kind]}"))


def source_digests(config: CollectConfig, runtime: Runtime) -> dict[str, str]:
    """Cheap identity of each source, by its place in the configuration.

    Raises:
        UserError: a path that does not exist or holds nothing to read.
    """
    digests = {}
    for index, source in enumerate(config.sources):
        for name, digest in _reader(source).digests(source, runtime).items():
            digests[f"sources[{index}].{name}"] = digest
    return digests


def check_sources(config: CollectConfig) -> None:
    """Find out at once, without reading anything, that a source cannot be there.

    Raises:
        UserError: a path that does not exist or holds nothing to read, a package that is not installed.
    """
    for source in config.sources:
        _reader(source).check(source)


def left_aside(config: CollectConfig) -> list[str]:
    """What lies in the folders of one's own and is not read, in lines for a person."""
    from lm_core.corpus.sources import local_files

    return [
        line for source in config.sources if source.kind == "local_files" for line in local_files.left_aside(source)
    ]


def collect(build: Build, config: CollectConfig) -> dict[str, Any]:
    """Read all sources into `documents-*.parquet` and `rejected.parquet`.

    Raises:
        UserError: when there is no document at all, or a source cannot be there.
    """
    from lm_core.corpus.corpus_writer import CorpusWriter
    from lm_core.corpus.sources.reuse import ReadBefore

    # A package that is named and not installed would only be missing from what is read.
    check_sources(config)
    num_reused = num_read = 0
    with CorpusWriter(build, shard_bytes=config.shard_bytes, max_bytes=config.max_bytes) as writer:
        for source in config.sources:
            pack = _pack(source, build.runtime) if config.reuse else None
            with ReadBefore(pack, build.mapper, build.work) as before:
                for item in _reader(source).read(source, build.runtime, before):
                    writer.add(item)
            num_reused += before.num_reused
            num_read += before.num_read
        statistics = writer.finish()
    if statistics["num_documents"] == 0:
        first = f", the first: {writer.first_rejected}" if writer.first_rejected else ""
        raise UserError(f"the sources hold no readable document ({statistics['num_rejected']} rejected{first})")
    return statistics | {"num_parts_read": num_read, "num_parts_reused": num_reused}


def _pack(source: Source, runtime: Runtime) -> Path:
    """Where the items of a source are kept for the next run."""
    name = hashlib.sha256(source.model_dump_json().encode("utf-8", "replace")).hexdigest()[:32]
    return runtime.workspace / "cache" / "collected" / f"{name}.pack"
