"""Clean: measure every document's signals, let the quality rules decide, and find what must not be learned.

Writes decisions and places, never text. What was measured of a corpus is kept in the workspace: with other bounds only
the rules decide anew, and no text is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.schemas import DECISIONS, REDACTIONS
from lm_core.artifact import Corpus
from lm_core.corpus.config import CleanConfig
from lm_core.corpus.language import languages_of
from lm_core.corpus.ledger import parquet
from lm_core.corpus.privacy import find_in_texts
from lm_core.corpus.rules import decision_sql
from lm_core.corpus.signals import SIGNALS, signals_of
from lm_core.database import connect
from lm_core.store import Build

SIGNALS_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("doc_id", "kind", "language")]
    + [(name, pa.float64()) for name in (*SIGNALS, "language_confidence")]
)
# Raised when signals or places of the same text come out otherwise: what was kept of earlier runs is then of no use.
MEASURE_VERSION = 1
_MEASURED = ("signals.parquet", "redactions.parquet")


def clean(build: Build, config: CleanConfig, *, corpus: Corpus) -> dict[str, Any]:
    """Write signals.parquet, redactions.parquet and decisions.parquet (documents that break a rule)."""
    kept = _folder_of_measures(build, config, corpus)
    if not _restore(kept, build.folder):
        _measure(build, config, corpus)
        _keep(build.folder, kept)
    signals, redactions = (build.folder / name for name in _MEASURED)
    dropped = _decisions(build, signals, config)
    pq.write_table(dropped, build.folder / "decisions.parquet", compression="zstd")
    reasons = dropped["reason"].value_counts().to_pylist()
    kinds = pq.read_table(redactions, columns=["kind"])["kind"].value_counts().to_pylist()
    return {
        "kept": pq.read_metadata(signals).num_rows - dropped.num_rows,
        "dropped": dropped.num_rows,
        "reasons": {row["values"]: row["counts"] for row in sorted(reasons, key=lambda row: -row["counts"])},
        "redactions": {row["values"]: row["counts"] for row in sorted(kinds, key=lambda row: row["values"])},
    }


def _measure(build: Build, config: CleanConfig, corpus: Corpus) -> None:
    redactions: list[pa.Table] = [REDACTIONS.empty_table()]
    num_documents = 0
    total = int(corpus.statistics.get("num_documents", 0)) or None
    groups = [
        (shard, number)
        for shard in corpus.document_shards()
        for number in range(pq.ParquetFile(shard).num_row_groups)
    ]  # fmt: skip
    with pq.ParquetWriter(build.folder / "signals.parquet", SIGNALS_SCHEMA, compression="zstd") as writer:
        for signals, places in build.map(partial(_measured, config=config), groups):
            redactions.append(places)
            writer.write_table(signals)
            num_documents += signals.num_rows
            build.progress(num_documents, total, "documents")
    personal = pa.concat_tables(redactions).sort_by([("doc_id", "ascending"), ("start", "ascending")])
    pq.write_table(personal, build.folder / "redactions.parquet", compression="zstd")


def _measured(group: tuple[Path, int], *, config: CleanConfig) -> tuple[pa.Table, pa.Table]:
    """The signals of the documents of a row group, in their order, and the places of what is to be redacted."""
    shard, number = group
    documents = pq.ParquetFile(shard).read_row_group(number, columns=["doc_id", "kind", "text"], use_threads=False)
    texts = documents["text"].cast(pa.large_string()).combine_chunks()
    languages, confidence = languages_of(texts)
    signals = signals_of(texts, languages)
    columns = [documents["doc_id"], documents["kind"], languages, *np.ascontiguousarray(signals.T), confidence]
    places = [(documents["doc_id"][row].as_py(), *place) for row, place in find_in_texts(texts, config.redact)]
    rows = [dict(zip(REDACTIONS.names, place, strict=True)) for place in places]
    redactions = pa.Table.from_pylist(rows, REDACTIONS)
    return pa.table(columns, schema=SIGNALS_SCHEMA), redactions


def _decisions(build: Build, signals: Path, config: CleanConfig) -> pa.Table:
    """The documents that break a rule, each with the first rule it breaks."""
    with connect(build.runtime, folders=[build.folder]) as connection:
        query = f"""
            SELECT doc_id, 'clean' AS stage, 'quality' AS fate, reason, NULL::VARCHAR AS keeper, figure
            FROM ({decision_sql(config, parquet(signals))}) ORDER BY doc_id
        """
        dropped: pa.Table = connection.sql(query).to_arrow_table()
    return dropped.select(DECISIONS.names).cast(DECISIONS)


# ---------------------------------------------------------------- what was measured before


def _folder_of_measures(build: Build, config: CleanConfig, corpus: Corpus) -> Path:
    identity = repr((MEASURE_VERSION, corpus.content_digest, corpus.fingerprint, sorted(config.redact)))
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return build.runtime.workspace / "cache" / "signals" / name


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for name in _MEASURED:
        with open(folder / name, "rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _restore(kept: Path, folder: Path) -> bool:
    """Copy what was measured before, unless there is nothing or it is not what was kept."""
    try:
        if json.loads((kept / "digests.json").read_text()) != _digests(kept):
            return False
        for name in _MEASURED:
            shutil.copyfile(kept / name, folder / name)
    except (OSError, ValueError):
        return False
    return True


def _keep(folder: Path, kept: Path) -> None:
    """Keep what was measured in the place of what may lie there."""
    new = kept.with_name(f"{kept.name}.new-{os.getpid()}")
    new.mkdir(parents=True)
    for name in _MEASURED:
        shutil.copyfile(folder / name, new / name)
    (new / "digests.json").write_text(json.dumps(_digests(new)))
    shutil.rmtree(kept, ignore_errors=True)
    new.rename(kept)
