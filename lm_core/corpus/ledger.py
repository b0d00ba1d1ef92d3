"""The ledger of documents: one row, one fate, for every document that was ever collected.

Stages between collection and tokenisation write decisions, not copies of the text. This module puts the decisions
together (`write_fates`), reads the text of the documents that are left (`kept_documents`) and answers what became of
a document (`fate_counts`, and `lm_core.corpus.story.explain`). All of it is SQL over Parquet that a user can write too:

    SELECT source, fate, count(*) FROM 'workspace/artifacts/validate/*/fates.parquet' GROUP BY ALL ORDER BY ALL

    SELECT f.key, k.key AS kept_instead, e.jaccard
    FROM 'workspace/artifacts/deduplicate/*/edges.parquet' AS e
    JOIN 'workspace/artifacts/validate/*/fates.parquet' AS f ON f.doc_id = e.doc_id
    JOIN 'workspace/artifacts/validate/*/fates.parquet' AS k ON k.doc_id = e.keeper

    SELECT DISTINCT step FROM 'steps.parquet' JOIN 'workspace/artifacts/tokenize/*/spans.parquet' USING ("window")
    WHERE split = 'train' AND doc_id = '...' ORDER BY step

`*` is the fingerprint of a run, which `millrace funnel` names; `millrace explain --steps` writes `steps.parquet`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_contracts.schemas import DOCUMENTS, EXAMPLES, FATES, FATES_IN_ORDER, REDACTIONS
from lm_core.artifact import ValidCorpus
from lm_core.corpus.privacy import Redaction, redacted
from lm_core.database import connect
from lm_core.runtime import Runtime

_FATES_SQL = """
WITH decided AS (
    SELECT doc_id, fate, stage, reason, keeper, figure FROM (
        SELECT doc_id, fate, stage, reason, keeper, figure, rank FROM decisions
        UNION ALL
        SELECT row_key, 'quarantined', 'validate', rule, NULL, NULL, 1000 FROM quarantine
        WHERE table_name = 'documents'
    )
    QUALIFY row_number() OVER (PARTITION BY doc_id ORDER BY rank, reason, keeper) = 1
)
SELECT doc_id, source, key, coalesce(fate, 'kept') AS fate, stage, reason, keeper, figure,
       CASE WHEN fate IS NULL THEN split END AS split, num_bytes
FROM documents LEFT JOIN decided USING (doc_id) LEFT JOIN splits USING (doc_id)
UNION ALL
SELECT doc_id, source, key, 'quarantined', 'collect', reason, NULL, NULL, NULL, 0 FROM rejected
ORDER BY doc_id, source, key
"""


def parquet(paths: Path | Sequence[Path]) -> str:
    """The SQL of a scan of Parquet files, whatever characters their names hold (a bare path would be a glob)."""
    files = [paths] if isinstance(paths, Path) else list(paths)
    quoted = ", ".join("'" + str(path).replace("'", "''") + "'" for path in files)
    return f"read_parquet([{quoted}], hive_partitioning=false)"


def write_table(reader: pa.RecordBatchReader, path: Path, schema: pa.Schema) -> int:
    """Write a stream of rows as Parquet under its documented schema; returns the number of rows."""
    num_rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_table(pa.Table.from_batches([batch]).select(schema.names).cast(schema))
            num_rows += batch.num_rows
    return num_rows


def document_shards(folder: Path) -> list[Path]:
    """The shards of the text of the corpus in a folder, in order."""
    return sorted(folder.glob("documents-*.parquet"))


def register_corpus(connection: duckdb.DuckDBPyConnection, folder: Path, shards: Sequence[Path] | None = None) -> None:
    """Give a connection the views `documents` (with the text) and `rejected` of the corpus in a folder.

    Args:
        shards: only these of its documents.
    """
    shards = document_shards(folder) if shards is None else shards
    empty = ", ".join(f"NULL::{_sql_type(field)} AS {field.name}" for field in DOCUMENTS)
    source = parquet(shards) if shards else f"(SELECT {empty} WHERE false)"
    connection.execute(f"CREATE VIEW documents AS SELECT * FROM {source}")
    connection.execute(f"CREATE VIEW rejected AS SELECT * FROM {parquet(folder / 'rejected.parquet')}")


def register_decisions(
    connection: duckdb.DuckDBPyConnection, cleaning: Path, duplicates: Path, contamination: Path
) -> None:
    """Give a connection the views `decisions` and `splits` from the folders of the deciding stages.

    A row of `decisions` has a `rank`, the place of its stage in the pipeline: the first stage that drops a document
    decides its fate.
    """
    scans = [
        f"SELECT *, {rank} AS rank FROM {parquet(folder / 'decisions.parquet')}"
        for rank, folder in enumerate((cleaning, duplicates, contamination))
    ]
    connection.execute(f"CREATE VIEW decisions AS {' UNION ALL '.join(scans)}")
    connection.execute(f"CREATE VIEW splits AS SELECT * FROM {parquet(duplicates / 'splits.parquet')}")


def register_redactions(connection: duckdb.DuckDBPyConnection, cleaning: Path, duplicates: Path) -> None:
    """Give a connection the view `redactions`: personal data found when cleaning, and what deduplication cuts.

    Places of a document do not overlap: a cut covers the personal data within it, and gives way to what reaches beyond.
    """
    cuts = duplicates / "cuts.parquet"
    places = parquet(cleaning / "redactions.parquet")
    if not cuts.exists():
        connection.execute(f"CREATE VIEW redactions AS SELECT * FROM {places}")
        return
    meet = "c.doc_id = p.doc_id AND p.start < c.start + c.length AND c.start < p.start + p.length"
    within = "c.start <= p.start AND p.start + p.length <= c.start + c.length"
    connection.execute(f"""
        CREATE VIEW redactions AS
        WITH cuts AS (
            SELECT * FROM {parquet(cuts)} AS c WHERE NOT EXISTS (FROM {places} AS p WHERE {meet} AND NOT ({within}))
        )
        SELECT * FROM cuts UNION ALL
        SELECT * FROM {places} AS p WHERE NOT EXISTS (FROM cuts AS c WHERE {meet})
    """)


def create_fates(connection: duckdb.DuckDBPyConnection) -> None:
    """Assemble the table `fates` from the registered corpus, the decisions and the rows a contract put aside.

    Needs the table `quarantine` (table_name, row_key, rule): its documents are decided after all stages.
    """
    connection.execute(f"CREATE TABLE fates AS {_FATES_SQL}")


def largest_clusters(connection: duckdb.DuckDBPyConnection, limit: int = 10) -> list[tuple[str, str, int]]:
    """The documents that most others were dropped in favour of: (source, key, number of copies)."""
    return connection.execute(
        "SELECT any_value(documents.source), any_value(documents.key), count(*) AS copies "
        "FROM fates JOIN documents ON documents.doc_id = fates.keeper "
        "WHERE fate IN ('exact_duplicate', 'near_duplicate') GROUP BY fates.keeper "
        "ORDER BY copies DESC, fates.keeper LIMIT ?",
        [limit],
    ).fetchall()


def write_fates(connection: duckdb.DuckDBPyConnection, path: Path) -> int:
    """Write the table `fates` as Parquet; returns the number of rows."""
    return write_table(
        connection.sql("SELECT * FROM fates ORDER BY doc_id, source, key").to_arrow_reader(), path, FATES
    )


def write_redactions(connection: duckdb.DuckDBPyConnection, path: Path) -> int:
    """Write the redactions of the documents that were kept as Parquet; returns the number of rows."""
    query = "SELECT r.* FROM redactions AS r JOIN fates USING (doc_id) WHERE fate = 'kept' ORDER BY doc_id, start"
    return write_table(connection.sql(query).to_arrow_reader(), path, REDACTIONS)


# -------------------------------------------------------------------- reading


def kept_documents(
    corpus: ValidCorpus,
    *,
    splits: Sequence[str],
    columns: Sequence[str] = ("doc_id", "text"),
    runtime: Runtime,
    batch_rows: int = 4096,
    shards: Sequence[Path] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Stream the documents that were kept, in the order of doc_id, personal data and secrets replaced.

    A doc_id is a hash, so every prefix of the stream is a fair sample of all sources.

    Args:
        splits: which of train, validation, test.
        columns: any of `schemas.DOCUMENTS`, and `split`.
        batch_rows: at most so many documents in a batch.
        shards: only documents of these shards.
    """
    wanted = ", ".join(f"{'fates' if name == 'split' else 'documents'}.{name}" for name in ("doc_id", *columns))
    places = _Places(corpus.folder / "redactions.parquet") if "text" in columns else None
    query = f"""
        SELECT {wanted} FROM documents JOIN fates USING (doc_id)
        WHERE fates.fate = 'kept' AND fates.split IN (SELECT unnest(?)) ORDER BY documents.doc_id
    """
    with opened(corpus, runtime, shards=shards) as connection:
        reader: pa.RecordBatchReader = connection.sql(query, params=[list(splits)]).to_arrow_reader(batch_rows)
        for batch in reader:
            if places is not None and batch.num_rows:
                batch = _without_personal_data(batch, places.of(batch[0]))
            yield batch.select(range(1, batch.num_columns))


class _Places:
    """Places to redact, read beside the documents: both come in the order of doc_id."""

    def __init__(self, path: Path) -> None:
        self._batches = pq.ParquetFile(path).iter_batches() if path.exists() else iter(())
        self._ahead = REDACTIONS.empty_table()

    def of(self, doc_ids: pa.Array) -> dict[str, list[Redaction]]:
        """Those of the next documents."""
        last = doc_ids[-1].as_py()
        while not self._ahead.num_rows or self._ahead["doc_id"][-1].as_py() <= last:
            batch = next(self._batches, None)
            if batch is None:
                break
            read = pa.Table.from_batches([batch]).select(REDACTIONS.names).cast(REDACTIONS)
            self._ahead = pa.concat_tables([self._ahead, read])
            # What lies before these documents is of none that were asked for.
            self._ahead = self._ahead.filter(pc.greater_equal(self._ahead["doc_id"], doc_ids[0]))
        own = self._ahead.filter(pc.is_in(self._ahead["doc_id"], value_set=doc_ids))
        self._ahead = self._ahead.filter(pc.greater(self._ahead["doc_id"], last))
        places: dict[str, list[Redaction]] = {}
        for row in own.to_pylist():
            places.setdefault(row["doc_id"], []).append(Redaction(row["kind"], row["start"], row["length"]))
        return places


def _without_personal_data(batch: pa.RecordBatch, places: dict[str, list[Redaction]]) -> pa.RecordBatch:
    """The batch (doc_id first) with placeholders in its texts."""
    found = {row: places[doc_id] for row, doc_id in enumerate(batch[0].to_pylist()) if doc_id in places}
    if not found:
        return batch
    column = batch.schema.get_field_index("text")
    texts = batch.column(column).to_pylist()
    for row, own in found.items():
        texts[row] = redacted(texts[row], own)
    return batch.set_column(column, batch.schema.field(column), pa.array(texts, batch.schema.field(column).type))


def kept_examples(
    corpus: ValidCorpus, *, runtime: Runtime, task: str | None = None, splits: Sequence[str] | None = None
) -> pa.Table:
    """The examples that passed the gate: their document (if any) was kept and no contract put them aside.

    Returns:
        A table of `schemas.EXAMPLES`, in the order of item_id.
    """
    query = f"""
        SELECT examples.* FROM {parquet(corpus.input_folder("examples") / "examples.parquet")} AS examples
        LEFT JOIN fates USING (doc_id)
        WHERE (examples.doc_id IS NULL OR fates.fate = 'kept')
          AND item_id NOT IN (SELECT row_key FROM {parquet(corpus.file("quarantine.parquet"))}
                              WHERE table_name = 'examples')
          AND ($task IS NULL OR task = $task)
          AND ($splits IS NULL OR list_contains($splits, examples.split))
        ORDER BY item_id
    """
    with opened(corpus, runtime) as connection:
        parameters = {"task": task, "splits": list(splits) if splits else None}
        table: pa.Table = connection.sql(query, params=parameters).to_arrow_table()
    return table.select(EXAMPLES.names).cast(EXAMPLES)


def fate_counts(corpus: ValidCorpus, *, runtime: Runtime) -> dict[str, Any]:
    """How many documents met which fate, in all and by source.

    Returns:
        {"collected", "kept", "fates": {fate: n}, "by_source": {source: {"collected", "kept", "fates": {fate: n}}}},
        sources in the order of their documents' number, the largest first.
    """
    with opened(corpus, runtime) as connection:
        return count_fates(connection)


def count_fates(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """`fate_counts` over the table or view `fates` of a connection."""
    rows = connection.execute(
        "SELECT source, fate, count(*) AS n, sum(n) OVER (PARTITION BY source) AS total "
        "FROM fates GROUP BY source, fate ORDER BY total DESC, source, fate"
    ).fetchall()
    by_source: dict[str, dict[str, int]] = {}
    totals: dict[str, int] = {}
    for source, fate, number, _ in rows:
        by_source.setdefault(source, {})[fate] = number
        totals[fate] = totals.get(fate, 0) + number
    return _counted(totals) | {"by_source": {source: _counted(fates) for source, fates in by_source.items()}}


@contextmanager
def opened(
    corpus: ValidCorpus, runtime: Runtime, *others: Path, shards: Sequence[Path] | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with the views `documents`, `rejected` and `fates`, of files in reach."""
    inputs = {name: corpus.input_folder(name) for name in corpus.inputs}
    with connect(runtime, folders=[corpus.folder, *inputs.values(), *others]) as connection:
        register_corpus(connection, inputs["corpus"], shards)
        connection.execute(f"CREATE VIEW fates AS SELECT * FROM {parquet(corpus.file('fates.parquet'))}")
        yield connection


def _counted(fates: dict[str, int]) -> dict[str, Any]:
    return {
        "collected": sum(fates.values()),
        "kept": fates.get("kept", 0),
        "fates": {fate: fates.get(fate, 0) for fate in FATES_IN_ORDER},
    }


def _sql_type(field: pa.Field) -> str:
    return "BIGINT" if pa.types.is_integer(field.type) else "VARCHAR"
