"""Clean: measure every document's signals and let the quality rules decide. Writes decisions, never text."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.schemas import DECISIONS
from lm_core.artifact import Corpus
from lm_core.corpus.config import CleanConfig
from lm_core.corpus.language import language_of
from lm_core.corpus.rules import IDEOGRAPHS, LINES, SIGNALS, WORDS, rules
from lm_core.database import connect
from lm_core.store import Build

BATCH_ROWS = 4096
SIGNALS_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("doc_id", "kind", "language")] + [(name, pa.float64()) for name in SIGNALS]
)


def clean(build: Build, config: CleanConfig, *, corpus: Corpus) -> dict[str, Any]:
    """Write signals.parquet (a row for each document) and decisions.parquet (a row for each dropped one)."""
    decisions: list[pa.Table] = []
    num_documents = 0
    total = int(corpus.statistics.get("num_documents", 0)) or None
    with (
        connect(build.runtime) as connection,
        pq.ParquetWriter(build.folder / "signals.parquet", SIGNALS_SCHEMA, compression="zstd") as writer,
    ):
        for shard in corpus.document_shards():
            for batch in pq.ParquetFile(shard).iter_batches(BATCH_ROWS, columns=["doc_id", "kind", "text"]):
                signals = _signals(connection, batch)
                writer.write_table(signals)
                decisions.append(_decisions(connection, signals, config))
                num_documents += batch.num_rows
                build.progress(num_documents, total, "documents")
    dropped = pa.concat_tables(decisions) if decisions else DECISIONS.empty_table()
    dropped = dropped.sort_by("doc_id")
    pq.write_table(dropped, build.folder / "decisions.parquet", compression="zstd")
    reasons = dropped["reason"].value_counts().to_pylist()
    return {
        "kept": num_documents - dropped.num_rows,
        "dropped": dropped.num_rows,
        "reasons": {row["values"]: row["counts"] for row in sorted(reasons, key=lambda row: -row["counts"])},
    }


def _signals(connection: Any, batch: pa.RecordBatch) -> pa.Table:
    """The signals of a batch of documents, in their order."""
    languages = pa.array([language_of(text) for text in batch["text"].to_pylist()], pa.string())
    numbers = pa.array(range(batch.num_rows), pa.int64())
    documents = pa.Table.from_batches([batch]).append_column("language", languages).append_column("number", numbers)
    columns = ", ".join(f"({expression})::DOUBLE AS {name}" for name, expression in SIGNALS.items())
    connection.register("batch_documents", documents)
    query = f"""
        WITH parts AS (SELECT *, {WORDS} AS words, {LINES} AS lines, {IDEOGRAPHS} AS num_ideographs
                       FROM batch_documents)
        SELECT doc_id, kind, language, {columns} FROM parts ORDER BY number
    """
    signals: pa.Table = connection.sql(query).to_arrow_table()
    connection.unregister("batch_documents")
    return signals.cast(SIGNALS_SCHEMA)


def _decisions(connection: Any, signals: pa.Table, config: CleanConfig) -> pa.Table:
    """The documents that break a rule, each with the first rule it breaks."""
    active = rules(config)
    reason = " ".join(f"WHEN {rule.condition} THEN '{rule.name}'" for rule in active)
    figure = " ".join(f"WHEN {rule.condition} THEN {rule.signal}" for rule in active)
    connection.register("batch_signals", signals)
    query = f"""
        SELECT doc_id, 'clean' AS stage, 'quality' AS fate, CASE {reason} END AS reason,
               NULL::VARCHAR AS keeper, CASE {figure} END::DOUBLE AS figure
        FROM batch_signals WHERE reason IS NOT NULL
    """
    dropped: pa.Table = connection.sql(query).to_arrow_table()
    connection.unregister("batch_signals")
    return dropped.cast(DECISIONS)
