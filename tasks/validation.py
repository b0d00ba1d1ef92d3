"""The stage `validate`: the gate between the corpus and everything that learns from it.

It lives here because it joins what may not know each other: the ledger (lm_core) and the contracts (data_contracts).
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.contract import Contract, ContractError, load_contracts
from data_contracts.gate import TableResult, check_all, names_put_aside, warm_up
from data_contracts.profile import quarantine_query
from data_contracts.schemas import QUARANTINE
from lm_core.artifact import Corpus, Decisions, DownstreamData
from lm_core.corpus.ledger import (
    count_fates,
    create_fates,
    largest_clusters,
    parquet,
    register_corpus,
    register_decisions,
    register_redactions,
    write_fates,
    write_redactions,
)
from lm_core.corpus.ledger_config import ValidateConfig
from lm_core.database import connect
from lm_core.errors import IntegrityError, UserError
from lm_core.store import Build
from tasks.contracts import TABLES

RESULTS = "record-contracts.json"

# Not every version of the stage behind it writes it.
_OPTIONAL = frozenset({"signals", "edges", "cuts", "hits"})


def validate(
    build: Build,
    config: ValidateConfig,
    *,
    corpus: Corpus,
    cleaning: Decisions,
    duplicates: Decisions,
    contamination: Decisions,
    examples: DownstreamData,
) -> dict[str, Any]:
    """Give every collected document its one fate, hold all tables against their contracts, put failing rows aside.

    Writes `fates.parquet`, `redactions.parquet`, `quarantine.parquet`, and for the record `record-contracts.json`
    (results and profiles).

    Raises:
        IntegrityError: a critical rule failed, or a warning beyond its bound.
        UserError: there is nothing to train on, or a contract cannot be run.
    """
    threading.Thread(target=warm_up, daemon=True).start()  # the library's import runs beside DuckDB's first passes
    contracts = _contracts(config)
    decided = (cleaning.folder, duplicates.folder, contamination.folder)
    folders = [corpus.folder, *decided, examples.folder, build.folder]
    with connect(build.runtime, folders=folders) as connection:
        register_corpus(connection, corpus.folder)
        register_decisions(connection, *decided)
        register_redactions(connection, cleaning.folder, duplicates.folder)
        tables = _register_tables(
            connection,
            signals=cleaning.file("signals.parquet"),
            edges=duplicates.file("edges.parquet"),
            canaries=duplicates.file("canaries.parquet"),
            cuts=duplicates.file("cuts.parquet"),
            examples=examples.file("examples.parquet"),
            hits=contamination.file("hits.parquet"),
        )
        _refuse_an_empty_corpus(connection)
        connection.execute(
            "CREATE TABLE quarantine (table_name VARCHAR, row_key VARCHAR, rule VARCHAR, rules VARCHAR, row VARCHAR)"
        )
        # Rows that a contract puts aside decide the fates of their documents, which have contracts of their own.
        place = tables.index("fates")
        results = _checked(connection, [contracts[table] for table in tables[:place]])
        build.progress(place, len(tables), "tables")
        create_fates(connection)
        results += _checked(connection, [contracts[table] for table in tables[place:]])
        _refuse_failures(connection, results)
        build.progress(len(tables), len(tables), "tables")
        _refuse_too_little(connection, config)
        write_fates(connection, build.folder / "fates.parquet")
        write_redactions(connection, build.folder / "redactions.parquet")
        num_aside = _write_quarantine(connection, build.folder / "quarantine.parquet")
        counts = count_fates(connection)
    write_results(build.folder, results)
    return {
        **counts,
        "quarantined_rows": num_aside,
        "rules": sum(len(result.rules) for result in results),
        "warnings": sum(rule.status != "passed" for result in results for rule in result.rules),
    }


def _write_quarantine(connection: duckdb.DuckDBPyConnection, path: Path) -> int:
    """The rows put aside, in one order; returns how many."""
    aside: pa.Table = connection.sql("SELECT * FROM quarantine ORDER BY ALL").to_arrow_table()
    pq.write_table(aside.cast(QUARANTINE), path, compression="zstd")
    return aside.num_rows


def _register_tables(connection: duckdb.DuckDBPyConnection, **files: Path) -> list[str]:
    """Give the connection a view of each file; returns the tables to check, in their order."""
    missing = {name for name, path in files.items() if name in _OPTIONAL and not path.exists()}
    for name in files.keys() - missing:
        connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {parquet(files[name])}")
    return [table for table in TABLES if table not in missing]


def _contracts(config: ValidateConfig) -> dict[str, Contract]:
    try:
        return load_contracts(config.contracts_folder)
    except ContractError as error:
        raise UserError(str(error)) from None


def _checked(connection: duckdb.DuckDBPyConnection, contracts: list[Contract]) -> list[TableResult]:
    """Check tables, and put failing rows aside. Documents among them get their fate from `create_fates`."""
    # `decisions` carries the rank of its stage, which no file has.
    relations = {contract.name: contract.name for contract in contracts} | {
        "decisions": "(SELECT * EXCLUDE (rank) FROM decisions)"
    }
    try:
        results = check_all(connection, [(contract, relations[contract.name]) for contract in contracts])
    except ContractError as error:
        raise UserError(str(error)) from None
    for contract, result in zip(contracts, results, strict=True):
        aside = quarantine_query(contract, relations[contract.name], names_put_aside(result.rules))
        if aside:
            connection.execute(f"INSERT INTO quarantine {aside}")
    return results


def _refuse_an_empty_corpus(connection: duckdb.DuckDBPyConnection) -> None:
    documents, rejected = (
        connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0] for table in ("documents", "rejected")
    )
    if documents == 0:
        raise UserError(
            f"the corpus is empty ({rejected} unreadable rows); name a source with text: --data DIR or collect.sources"
        )
    if documents == 1:
        raise UserError(
            "the corpus has a single document; at least two are needed, to train on one and test on another"
        )


def _refuse_failures(connection: duckdb.DuckDBPyConnection, results: list[TableResult]) -> None:
    failures = [failure for result in results for failure in result.failures]
    if not failures:
        return
    more = f" (and {len(failures) - 1} more rules)" if len(failures) > 1 else ""
    clusters = ""
    if any("wiped_out" in failure for failure in failures):
        clusters = "; largest clusters: " + ", ".join(
            f"{number} copies of {source}/{key}" for source, key, number in largest_clusters(connection)
        )
    raise IntegrityError(f"contract broken: {failures[0]}{more}{clusters}")


def _refuse_too_little(connection: duckdb.DuckDBPyConnection, config: ValidateConfig) -> None:
    counts = dict(connection.execute("SELECT split, count(*) FROM fates WHERE fate = 'kept' GROUP BY split").fetchall())
    if counts.get("train", 0) < config.min_train_documents:
        raise UserError(
            f"{counts.get('train', 0)} documents are left to train on (of {sum(counts.values())} kept), fewer than "
            f"validation.min_train_documents = {config.min_train_documents}; add text, or loosen clean and deduplicate"
        )
    if not counts.get("validation") and not counts.get("test"):
        raise UserError(
            f"no document is left to measure on (of {sum(counts.values())} kept, in validation and test); add text, or "
            "loosen clean and deduplicate"
        )


def write_results(folder: Path, results: list[TableResult]) -> None:
    """Keep what the contracts found beside the tables: for the record, no part of what the artifact is."""
    content = {result.table: result.to_json() for result in results}
    (folder / RESULTS).write_text(json.dumps(content, indent=1, allow_nan=False))
