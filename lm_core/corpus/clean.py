"""Clean: measure every document's signals, let the quality rules decide, and find what must not be learned.

Writes decisions and places, never text.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_contracts.schemas import DECISIONS, REDACTIONS
from lm_core.artifact import Corpus
from lm_core.corpus.config import CleanConfig
from lm_core.corpus.language import SAMPLE_CHARACTERS, language_of
from lm_core.corpus.privacy import find_in_texts
from lm_core.corpus.rules import rules
from lm_core.corpus.signals import SIGNALS, signals_of
from lm_core.database import connect
from lm_core.store import Build

SIGNALS_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("doc_id", "kind", "language")] + [(name, pa.float64()) for name in SIGNALS]
)


def clean(build: Build, config: CleanConfig, *, corpus: Corpus) -> dict[str, Any]:
    """Write signals.parquet, decisions.parquet (documents that break a rule) and redactions.parquet."""
    decisions: list[pa.Table] = [DECISIONS.empty_table()]
    redactions: list[pa.Table] = [REDACTIONS.empty_table()]
    num_documents = 0
    total = int(corpus.statistics.get("num_documents", 0)) or None
    groups = [
        (shard, number)
        for shard in corpus.document_shards()
        for number in range(pq.ParquetFile(shard).num_row_groups)
    ]  # fmt: skip
    with (
        connect(build.runtime) as connection,
        ThreadPoolExecutor(build.runtime.num_threads) as pool,
        pq.ParquetWriter(build.folder / "signals.parquet", SIGNALS_SCHEMA, compression="zstd") as writer,
    ):
        for signals, places in pool.map(partial(_measured, config=config), groups):
            redactions.append(places)
            writer.write_table(signals)
            decisions.append(_decisions(connection, signals, config))
            num_documents += signals.num_rows
            build.progress(num_documents, total, "documents")
    personal = pa.concat_tables(redactions).sort_by([("doc_id", "ascending"), ("start", "ascending")])
    pq.write_table(personal, build.folder / "redactions.parquet", compression="zstd")
    dropped = pa.concat_tables(decisions).sort_by("doc_id")
    pq.write_table(dropped, build.folder / "decisions.parquet", compression="zstd")
    reasons = dropped["reason"].value_counts().to_pylist()
    kinds = personal["kind"].value_counts().to_pylist()
    return {
        "kept": num_documents - dropped.num_rows,
        "dropped": dropped.num_rows,
        "reasons": {row["values"]: row["counts"] for row in sorted(reasons, key=lambda row: -row["counts"])},
        "redactions": {row["values"]: row["counts"] for row in sorted(kinds, key=lambda row: row["values"])},
    }


def _measured(group: tuple[Path, int], *, config: CleanConfig) -> tuple[pa.Table, pa.Table]:
    """The signals of the documents of a row group, in their order, and the places of what is to be redacted."""
    shard, number = group
    documents = pq.ParquetFile(shard).read_row_group(number, columns=["doc_id", "kind", "text"], use_threads=False)
    texts = documents["text"].cast(pa.large_string()).combine_chunks()
    # The language shows in the first characters; only these become Python's strings.
    beginnings = pc.utf8_slice_codeunits(texts, 0, SAMPLE_CHARACTERS).to_pylist()
    languages = pa.array(list(map(language_of, beginnings)), pa.string())
    columns = [documents["doc_id"], documents["kind"], languages, *signals_of(texts).T]
    places = [(documents["doc_id"][row].as_py(), *place) for row, place in find_in_texts(texts, config.redact)]
    rows = [dict(zip(REDACTIONS.names, place, strict=True)) for place in places]
    redactions = pa.Table.from_pylist(rows, REDACTIONS)
    return pa.table(columns, schema=SIGNALS_SCHEMA), redactions


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
