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
from data_contracts.gate import QUARANTINE, TableResult, check, names_put_aside, warm_up
from data_contracts.profile import quarantine_query
from data_contracts.report import html_report, markdown_report
from lm_core.artifact import Artifact, Corpus, Decisions, DownstreamData, TokenDataset, ValidCorpus
from lm_core.corpus.ledger import (
    count_fates,
    create_fates,
    largest_clusters,
    opened,
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
from lm_core.runtime import Runtime
from lm_core.store import Build

# In the order of the pipeline; a table's rules may name the tables before it.
TABLES = ("documents", "rejected", "decisions", "redactions", "canaries", "splits", "examples", "fates")


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

    Writes `fates.parquet`, `redactions.parquet`, `quarantine.parquet`, `contracts.json` (results and
    profiles), `report.md`, `report.html`.

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
        connection.execute(f"CREATE VIEW canaries AS SELECT * FROM {parquet(duplicates.file('canaries.parquet'))}")
        connection.execute(f"CREATE VIEW examples AS SELECT * FROM {parquet(examples.file('examples.parquet'))}")
        _refuse_an_empty_corpus(connection)
        connection.execute(
            "CREATE TABLE quarantine (table_name VARCHAR, row_key VARCHAR, rule VARCHAR, rules VARCHAR, row VARCHAR)"
        )
        results = []
        for number, table in enumerate(TABLES):
            build.progress(number, len(TABLES), "tables")
            if table == "fates":
                create_fates(connection)
            results.append(_checked(connection, contracts[table]))
        _refuse_failures(connection, results)
        build.progress(len(TABLES), len(TABLES), "tables")
        _refuse_too_little(connection, config)
        write_fates(connection, build.folder / "fates.parquet")
        write_redactions(connection, build.folder / "redactions.parquet")
        aside: pa.Table = connection.sql("SELECT * FROM quarantine ORDER BY ALL").to_arrow_table()
        pq.write_table(aside.cast(QUARANTINE), build.folder / "quarantine.parquet", compression="zstd")
        counts = count_fates(connection)
    _write_results(build.folder, results)
    return {
        **counts,
        "quarantined_rows": aside.num_rows,
        "rules": sum(len(result.rules) for result in results),
        "warnings": sum(rule.status != "passed" for result in results for rule in result.rules),
    }


def check_tokens(tokens: TokenDataset, corpus: ValidCorpus, *, runtime: Runtime) -> TableResult:
    """Hold the spans of a token data set against their contract.

    Raises:
        IntegrityError: a span breaks it: a document that was not kept, say.
    """
    with opened(corpus, runtime, tokens.folder) as connection:
        connection.execute(f"CREATE VIEW spans AS SELECT * FROM {parquet(tokens.file('spans.parquet'))}")
        result = check(connection, load_contracts()["spans"], "spans")
    if result.failures:
        raise IntegrityError(f"{tokens.folder}: {result.failures[0]}")
    return result


def check_predictions(evaluation: Artifact, *, runtime: Runtime) -> TableResult:
    """Hold the predictions of an evaluation against their contract.

    Raises:
        IntegrityError: an item answered twice by a system, or a score that is no number.
    """
    with connect(runtime, folders=[evaluation.folder]) as connection:
        path = evaluation.file("predictions.parquet")
        connection.execute(f"CREATE VIEW predictions AS SELECT * FROM {parquet(path)}")
        result = check(connection, load_contracts()["predictions"], "predictions")
    if result.failures:
        raise IntegrityError(f"{evaluation.folder}: {result.failures[0]}")
    return result


def _contracts(config: ValidateConfig) -> dict[str, Contract]:
    try:
        return load_contracts(config.contracts_folder)
    except ContractError as error:
        raise UserError(str(error)) from None


def _checked(connection: duckdb.DuckDBPyConnection, contract: Contract) -> TableResult:
    """Check one table. Documents that step aside before a fate is assembled are quarantined by `create_fates`."""
    # `decisions` carries the rank of its stage, which no file has.
    relation = "(SELECT * EXCLUDE (rank) FROM decisions)" if contract.name == "decisions" else contract.name
    try:
        result = check(connection, contract, relation)
    except ContractError as error:
        raise UserError(str(error)) from None
    aside = quarantine_query(contract, relation, names_put_aside(result.rules))
    if aside:
        connection.execute(f"INSERT INTO quarantine {aside}")
    return result


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


def _write_results(folder: Path, results: list[TableResult]) -> None:
    content = {result.table: result.to_json() for result in results}
    (folder / "contracts.json").write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False))
    (folder / "report.md").write_text(markdown_report(results), encoding="utf-8")
    (folder / "report.html").write_text(html_report(results), encoding="utf-8")
