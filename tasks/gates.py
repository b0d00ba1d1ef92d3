"""Contracts of the tables of the stages beyond the corpus: spans, predictions, examples and rows of declared tasks.

The stage `validate` holds the corpus. Every other stage is checked where it runs: a table whose name is that of a
contract meets it before the artifact is published, so a broken one is never read by anybody.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import duckdb

from data_contracts.contract import Contract, load_contracts
from data_contracts.gate import TableResult, check_all, warm_up
from data_contracts.profile import empty_relation
from lm_core.artifact import Artifact, ArtifactT, DownstreamData, Evaluation, HeldOut, TokenDataset, ValidCorpus
from lm_core.corpus.ledger import parquet
from lm_core.database import connect
from lm_core.errors import IntegrityError
from lm_core.store import Build, Stage
from lm_core.workers import Worker
from tasks.validation import write_results

# Their tables are held by `validate`, all at once, for their contracts speak of each other.
CORPUS_STAGES = frozenset({"collect", "clean", "deduplicate", "prepare", "decontaminate", "validate"})
# What contracts speak of besides their own table; empty where a stage has no corpus.
_SPOKEN_OF = ("documents", "splits", "decisions")
_WITH_TABLES = (TokenDataset, DownstreamData, HeldOut, Evaluation)


@dataclass(frozen=True)
class GatedStage(Stage[ArtifactT]):
    """A stage whose tables are held against their contracts before they are published; its identity is the stage's.

    Attributes:
        worker: where its function is called; in this process when there is none.
    """

    worker: Worker | None = None

    def load(self) -> Callable[..., Mapping[str, Any]]:
        """The function of the stage, and the gate after it."""
        work = partial(self.worker.carry_out, self.function) if self.worker else super().load()

        def checked(build: Build, config: Any, **inputs: Artifact) -> Mapping[str, Any]:
            if issubclass(self.output, _WITH_TABLES):
                threading.Thread(target=warm_up, daemon=True).start()  # its import takes seconds: beside the work
            statistics = work(build, config, **inputs)
            check_tables(build, inputs)
            return statistics

        return checked


def gated(stage: Stage[ArtifactT], worker: Worker | None = None) -> Stage[ArtifactT]:
    """The stage with the gate behind it, unless its tables go through `validate`."""
    return stage if stage.name in CORPUS_STAGES else GatedStage(**vars(stage), worker=worker)


@lru_cache(maxsize=1)
def _contracts() -> dict[str, Contract]:
    return load_contracts()


def check_tables(build: Build, inputs: Mapping[str, Artifact]) -> list[TableResult]:
    """Hold every table of a build against the contract of its name, and keep the results beside them.

    Raises:
        IntegrityError: a critical rule is broken.
    """
    contracts = _contracts()
    tables = {path.stem: path for path in sorted(build.folder.glob("*.parquet")) if path.stem in contracts}
    if not tables:
        return []
    with _connection(build, inputs, contracts) as connection:
        results = check_all(connection, [(_critical(contracts[name]), parquet(path)) for name, path in tables.items()])
    if failures := [failure for result in results for failure in result.failures]:
        raise IntegrityError(f"contract broken: {failures[0]}")
    write_results(build.folder, results)
    return results


def _critical(contract: Contract) -> Contract:
    """Without its warnings: rows step aside at the gate of the corpus alone, a declared task has bounds of its own."""
    critical = tuple(rule for rule in contract.quality if rule.severity == "critical")
    return contract.model_copy(update={"quality": critical})


@contextmanager
def _connection(
    build: Build, inputs: Mapping[str, Artifact], contracts: Mapping[str, Contract]
) -> Iterator[duckdb.DuckDBPyConnection]:
    corpus = next((artifact for artifact in inputs.values() if isinstance(artifact, ValidCorpus)), None)
    fates = parquet(corpus.file("fates.parquet")) if corpus else f"({empty_relation(contracts['fates'])})"
    with connect(build.runtime, folders=[build.folder, *([corpus.folder] if corpus else [])]) as connection:
        connection.execute(f"CREATE VIEW fates AS FROM {fates}")
        for name in _SPOKEN_OF:
            connection.execute(f"CREATE VIEW {name} AS {empty_relation(contracts[name])}")
        yield connection
