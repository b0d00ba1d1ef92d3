"""A document's whole story, told from one valid corpus: where it came from, what each stage said, what became of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from lm_core.artifact import TokenDataset, ValidCorpus
from lm_core.corpus.ledger import opened, parquet, register_decisions
from lm_core.errors import UserError
from lm_core.exposure import TrainingOrder
from lm_core.runtime import Runtime

MAX_STORIES = 20
EXCERPT_CHARACTERS, CUT_CHARACTERS = 400, 200

_SPANS_SQL = """
SELECT split, count(DISTINCT "window") AS windows, sum(num_tokens) AS tokens, min("window") AS first_window,
       max("window") AS last_window
FROM spans WHERE doc_id = ? GROUP BY split ORDER BY split
"""


def explain(
    corpus: ValidCorpus,
    *,
    runtime: Runtime,
    doc_id: str | None = None,
    text: str | None = None,
    tokens: TokenDataset | None = None,
    order: TrainingOrder | None = None,
) -> list[dict[str, Any]]:
    """What became of a document, by its id (or the beginning of it) or by a piece of its text.

    Args:
        doc_id: 4 hex digits or more.
        text: documents whose text contains it are told, at most `MAX_STORIES`, the shortest first.
        tokens: a token data set of this corpus, to tell in which training windows the document stands.
        order: of a pretraining on these tokens, to tell at which of its steps the document was seen.

    Returns:
        One JSON-ready story per document: doc_id, source, key, title, licence, version, url, time, content_hash,
        num_bytes, excerpt, fate, stage, reason, keeper, figure, split, decisions, signals, redactions, cluster, cuts,
        copies, training, steps.

    Raises:
        UserError: nothing, or neither of the two, was asked for or found.
    """
    if (doc_id is None) == (text is None):
        raise UserError("explain takes either a document id or --text")
    folders = [tokens.folder] if tokens else []
    with opened(corpus, runtime, *folders) as connection:
        stages = [corpus.input_folder(name) for name in ("cleaning", "duplicates", "contamination")]
        register_decisions(connection, *stages)
        connection.execute(f"CREATE VIEW edges AS SELECT * FROM {_edges(stages[1])}")
        connection.execute(f"CREATE VIEW redactions AS SELECT * FROM {parquet(corpus.file('redactions.parquet'))}")
        if tokens:
            connection.execute(f"CREATE VIEW spans AS SELECT * FROM {parquet(tokens.file('spans.parquet'))}")
        stories = _documents(connection, doc_id, text)
        for story in stories:
            story |= _told(connection, story, stages)
            if tokens:
                story |= _learnt(connection, story["doc_id"], order)
    return stories


def _edges(folder: Path) -> str:
    """Verified pairs (doc_id, keeper, jaccard); the decisions hold the same pairs where no edge table was kept."""
    path = folder / "edges.parquet"
    if path.exists():
        return parquet(path)
    return (
        "(SELECT doc_id, keeper, figure AS jaccard FROM decisions WHERE fate IN ('exact_duplicate', 'near_duplicate'))"
    )


def _documents(connection: duckdb.DuckDBPyConnection, doc_id: str | None, text: str | None) -> list[dict[str, Any]]:
    # Corpora of older versions lack them.
    there = {row[0] for row in connection.execute("DESCRIBE documents").fetchall()}
    columns_there = [name if name in there else f"NULL AS {name}" for name in ("url", "time", "content_hash")]
    columns = f"""
        fates.*, documents.title, documents.licence, documents.version, documents.kind, {", ".join(columns_there)},
        left(documents.text, {EXCERPT_CHARACTERS}) AS excerpt, rejected.detail
        FROM fates LEFT JOIN documents USING (doc_id) LEFT JOIN rejected USING (doc_id)
    """
    if text is not None:
        query = f"SELECT {columns} WHERE contains(documents.text, ?) ORDER BY num_bytes, doc_id LIMIT {MAX_STORIES}"
        stories = _rows(connection, query, [text])
        asked = f"text {text[:60]!r}"
    else:
        wanted = (doc_id or "").lower()
        if len(wanted) < 4 or set(wanted) - set("0123456789abcdef"):
            raise UserError(f"{doc_id!r} is no document id; give at least its first 4 hex digits, or --text")
        query = f"SELECT {columns} WHERE starts_with(fates.doc_id, ?) ORDER BY fates.doc_id LIMIT {MAX_STORIES}"
        stories = _rows(connection, query, [wanted])
        asked = f"id {wanted}"
    if not stories:
        raise UserError(f"no collected document has the {asked}; it may be in another corpus, or was never collected")
    return stories


def _told(connection: duckdb.DuckDBPyConnection, story: dict[str, Any], stages: list[Path]) -> dict[str, Any]:
    doc_id = story["doc_id"]
    cluster = _rows(connection, "SELECT cluster FROM splits WHERE doc_id = ?", [doc_id])
    told: dict[str, Any] = {
        "decisions": _rows(
            connection,
            "SELECT stage, fate, reason, keeper, figure FROM decisions WHERE doc_id = ? ORDER BY rank",
            [doc_id],
        ),
        "signals": _signals(connection, stages[0] / "signals.parquet", doc_id),
        "redactions": _rows(
            connection,
            "SELECT kind, count(*) AS places FROM redactions WHERE doc_id = ? GROUP BY kind ORDER BY kind",
            [doc_id],
        ),
        "cuts": _cuts(connection, stages[1], story),
        "kept_instead": _place(connection, story["keeper"]),
        "cluster": cluster[0]["cluster"] if cluster else None,
        "copies": _rows(
            connection,
            "SELECT edges.doc_id, source, key, jaccard FROM edges LEFT JOIN fates USING (doc_id) "
            "WHERE edges.keeper = ? ORDER BY jaccard DESC, edges.doc_id LIMIT 20",
            [doc_id],
        ),
    }
    return told


def _cuts(connection: duckdb.DuckDBPyConnection, duplicates: Path, story: dict[str, Any]) -> list[dict[str, Any]]:
    """What stands in other documents too and is not learnt from this one: its kind, its place, and how it begins."""
    path = duplicates / "cuts.parquet"
    if not path.exists():
        return []
    query = f"""
        SELECT c.kind, c.start, c.length, substring(d.text, c.start + 1, least(c.length, {CUT_CHARACTERS})) AS excerpt
        FROM {parquet(path)} AS c JOIN documents AS d USING (doc_id) WHERE c.doc_id = ? ORDER BY c.start
    """
    return _rows(connection, query, [story["doc_id"]])


def _learnt(connection: duckdb.DuckDBPyConnection, doc_id: str, order: TrainingOrder | None) -> dict[str, Any]:
    """The windows that hold the document, and the steps that read them."""
    found: dict[str, Any] = {"training": _rows(connection, _SPANS_SQL, [doc_id])}
    if order:
        windows = _rows(
            connection, "SELECT DISTINCT \"window\" FROM spans WHERE doc_id = ? AND split = 'train'", [doc_id]
        )
        found["steps"] = order.steps_of([row["window"] for row in windows])
        found["num_steps"] = order.num_steps
    return found


def _signals(connection: duckdb.DuckDBPyConnection, path: Path, doc_id: str) -> dict[str, Any]:
    """The statistics that the quality rules looked at."""
    if not path.exists():
        return {}
    rows = _rows(connection, f"SELECT * EXCLUDE (doc_id) FROM {parquet(path)} WHERE doc_id = ?", [doc_id])
    return rows[0] if rows else {}


def _place(connection: duckdb.DuckDBPyConnection, keeper: str | None) -> dict[str, Any] | None:
    """Source and key of the document that was kept instead; None when the keeper is an evaluation item."""
    rows = _rows(connection, "SELECT doc_id, source, key, fate FROM fates WHERE doc_id = ?", [keeper])
    return rows[0] if rows else None


def _rows(connection: duckdb.DuckDBPyConnection, query: str, parameters: list[Any]) -> list[dict[str, Any]]:
    cursor = connection.execute(query, parameters)
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
