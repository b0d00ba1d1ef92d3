"""Deduplicate: exact and near copies, and the splits.

LSH over MinHash sketches only *proposes* pairs; the true Jaccard similarity of their shingle sets disposes. Documents
are visited in the order of preference (preferred sources, then the longest, then the smallest doc_id); a document is
dropped when a document that was *kept before it* is similar enough, so every removal is justified by something that is
still there. The result does not depend on the order of the corpus or on the number of threads.

Files: decisions.parquet; edges.parquet (each dropped near copy, its keeper, their Jaccard similarity); splits.parquet.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.schemas import DECISIONS, SPLIT_OF_DOCUMENT
from lm_core.artifact import Corpus, Decisions
from lm_core.corpus.config import DeduplicateConfig
from lm_core.corpus.dedup.greedy import greedy_pass
from lm_core.corpus.dedup.sketch import content_hashes, sketch
from lm_core.errors import IntegrityError
from lm_core.store import Build, Progress, silent

EDGES = pa.schema([("doc_id", pa.string()), ("keeper", pa.string()), ("jaccard", pa.float64())])
MIN_SOURCE_DOCUMENTS = 100


@dataclass
class Findings:
    """What was found among some documents; numbers are rows.

    Attributes:
        exact: dropped row -> row kept instead, equal byte for byte.
        near: dropped row -> (row kept instead, Jaccard similarity).
        related: pairs of kept rows that share a cluster.
        num_candidates: pairs that the index proposed; the similarity of each was computed.
        num_verified: those of them that are copies.
    """

    exact: dict[int, int] = field(default_factory=dict)
    near: dict[int, tuple[int, float]] = field(default_factory=dict)
    related: list[tuple[int, int]] = field(default_factory=list)
    num_candidates: int = 0
    num_verified: int = 0


def find_duplicates(
    texts: pa.Array, preference: Sequence[int], config: DeduplicateConfig, progress: Progress = silent
) -> Findings:
    """Find the copies among texts.

    Args:
        texts: string array.
        preference: rows in the order in which they may become keepers.
    """
    findings = Findings()
    survivors = _drop_exact(texts, preference, findings)
    sketches = sketch(
        texts, shingle_tokens=config.shingle_tokens, num_bands=config.num_bands, band_rows=config.band_rows
    )
    crowded = _rows_with_company(sketches.keys, sketches.num_shingles, np.array(survivors, np.int64))
    rows = np.array([row for row in survivors if crowded[row]], np.int64)
    found = greedy_pass(
        texts,
        rows,
        sketches.keys[rows],
        sketches.num_shingles[rows],
        shingle_tokens=config.shingle_tokens,
        threshold=config.threshold,
        cluster_threshold=config.cluster_threshold,
        progress=lambda done, total: progress(done, total, "candidates"),
    )
    for place in np.flatnonzero(found.keepers >= 0):
        findings.near[int(rows[place])] = (int(rows[found.keepers[place]]), float(found.scores[place]))
    # A copy of a document that was itself dropped is justified by what that document was dropped for.
    for row, keeper in list(findings.exact.items()):
        if keeper in findings.near:
            findings.near[row] = findings.near[keeper]
            del findings.exact[row]
    findings.related = [(int(a), int(b)) for a, b in rows[found.joins]]
    findings.num_candidates, findings.num_verified = found.num_candidates, found.num_verified
    return findings


def _drop_exact(texts: pa.Array, preference: Sequence[int], findings: Findings) -> list[int]:
    """Collapse equal texts; returns the rows that are left, in the order of preference."""
    hashes = content_hashes(texts)
    first: dict[tuple[int, int], int] = {}
    survivors = []
    for row in preference:
        keeper = first.setdefault((int(hashes[row, 0]), int(hashes[row, 1])), row)
        if keeper == row:
            survivors.append(row)
        else:
            findings.exact[row] = keeper
    return survivors


def _rows_with_company(keys: np.ndarray, num_shingles: np.ndarray, survivors: np.ndarray) -> np.ndarray:
    """Mask of the rows that share a band with another survivor: only these can have copies."""
    mask = np.zeros(len(keys), bool)
    rows = survivors[num_shingles[survivors] > 0]
    for band in range(keys.shape[1]):
        _, inverse, counts = np.unique(keys[rows, band], return_inverse=True, return_counts=True)
        mask[rows[counts[inverse] > 1]] = True
    return mask


# ---------------------------------------------------------------- the stage


def deduplicate(build: Build, config: DeduplicateConfig, *, corpus: Corpus, cleaning: Decisions) -> dict[str, Any]:
    """Write decisions on copies, the edges that justify them, and the splits of what is left.

    Raises:
        IntegrityError: the canaries were not found, or a source would be wiped out.
    """
    check_canaries(config)
    documents = _load(corpus, cleaning)
    doc_ids, sources = documents["doc_id"].to_pylist(), documents["source"].to_pylist()
    texts = documents["text"].combine_chunks() if documents.num_rows else pa.array([], pa.string())
    preference = _preference(doc_ids, sources, documents["num_bytes"].to_pylist(), config.prefer_sources)
    findings = find_duplicates(texts, preference, config, build.progress)
    _check_sources(sources, findings, doc_ids, config)
    _write(build, findings, doc_ids)
    dropped = set(findings.exact) | set(findings.near)
    splits = assign_splits(
        [i for row, i in enumerate(doc_ids) if row not in dropped], _pairs(findings, doc_ids), config
    )
    pq.write_table(pa.Table.from_pylist(splits, SPLIT_OF_DOCUMENT), build.folder / "splits.parquet", compression="zstd")
    return {
        "kept": len(splits),
        "dropped": len(dropped),
        "exact_duplicates": len(findings.exact),
        "near_duplicates": len(findings.near),
        "candidate_pairs": findings.num_candidates,
        "verified_pairs": findings.num_verified,
        "clusters": len({row["cluster"] for row in splits}),
        "splits": dict(Counter(row["split"] for row in splits)),
    }


def _load(corpus: Corpus, cleaning: Decisions) -> pa.Table:
    """The documents that cleaning has left."""
    dropped = pq.read_table(cleaning.file("decisions.parquet"), columns=["doc_id"])["doc_id"]
    columns = ["doc_id", "source", "num_bytes", "text"]
    schema = pa.schema([("doc_id", pa.string()), ("source", pa.string()), ("num_bytes", pa.int64()),
                        ("text", pa.large_string())])  # fmt: skip
    tables = [pq.read_table(shard, columns=columns).cast(schema) for shard in corpus.document_shards()]
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    return table.filter(pa.compute.invert(pa.compute.is_in(table["doc_id"], value_set=dropped.combine_chunks())))


def _preference(doc_ids: list[str], sources: list[str], sizes: list[int], preferred: Sequence[str]) -> list[int]:
    ranks: Mapping[str, int] = {source: rank for rank, source in enumerate(preferred)}
    last = len(ranks)
    return sorted(range(len(doc_ids)), key=lambda row: (ranks.get(sources[row], last), -sizes[row], doc_ids[row]))


def _write(build: Build, findings: Findings, doc_ids: list[str]) -> None:
    rows: list[dict[str, Any]] = [
        {"doc_id": doc_ids[row], "stage": "deduplicate", "fate": "exact_duplicate", "reason": "same_text",
         "keeper": doc_ids[keeper], "figure": 1.0}
        for row, keeper in findings.exact.items()
    ] + [
        {"doc_id": doc_ids[row], "stage": "deduplicate", "fate": "near_duplicate", "reason": "jaccard",
         "keeper": doc_ids[keeper], "figure": score}
        for row, (keeper, score) in findings.near.items()
    ]  # fmt: skip
    rows.sort(key=lambda row: row["doc_id"])
    pq.write_table(pa.Table.from_pylist(rows, DECISIONS), build.folder / "decisions.parquet", compression="zstd")
    edges = [{"doc_id": r["doc_id"], "keeper": r["keeper"], "jaccard": r["figure"]} for r in rows]
    pq.write_table(pa.Table.from_pylist(edges, EDGES), build.folder / "edges.parquet", compression="zstd")


def _check_sources(sources: list[str], findings: Findings, doc_ids: list[str], config: DeduplicateConfig) -> None:
    """The wipe-out alarm: a source that loses nearly everything is a defect until a person has said otherwise."""
    total = Counter(sources)
    lost = Counter(sources[row] for row in [*findings.exact, *findings.near])
    for source, number in sorted(total.items()):
        share = lost[source] / number
        if number >= MIN_SOURCE_DOCUMENTS and share > config.max_source_loss_fraction:
            keepers = Counter(keeper for row, keeper in _keepers(findings) if sources[row] == source)
            largest = ", ".join(f"{doc_ids[keeper]} ({count} copies)" for keeper, count in keepers.most_common(10))
            raise IntegrityError(
                f"deduplication would drop {share:.0%} of source {source} (bound: deduplicate.max_source_loss_fraction "
                f"= {config.max_source_loss_fraction}); its largest clusters: {largest}"
            )


def _keepers(findings: Findings) -> Iterator[tuple[int, int]]:
    yield from findings.exact.items()
    for row, (keeper, _) in findings.near.items():
        yield row, keeper


# ---------------------------------------------------------------- splits


def _pairs(findings: Findings, doc_ids: list[str]) -> list[tuple[str, str]]:
    return [(doc_ids[a], doc_ids[b]) for a, b in findings.related]


def assign_splits(
    doc_ids: Sequence[str], related: Sequence[tuple[str, str]], config: DeduplicateConfig
) -> list[dict[str, str]]:
    """Cluster and split of each document. Similar documents share a cluster, a cluster lies in one split."""
    parent = {doc_id: doc_id for doc_id in doc_ids}

    def root(doc_id: str) -> str:
        while parent[doc_id] != doc_id:
            parent[doc_id] = parent[parent[doc_id]]
            doc_id = parent[doc_id]
        return doc_id

    for a, b in related:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    rows = []
    for doc_id in sorted(doc_ids):
        cluster = root(doc_id)
        rows.append({"doc_id": doc_id, "cluster": cluster, "split": split_of(cluster, config)})
    if rows and all(row["split"] != "train" for row in rows):
        # Only a corpus of a few documents: there is nothing to hold out when nothing is left to learn from.
        rows = [row | {"split": "train"} for row in rows]
    return rows


def split_of(cluster: str, config: DeduplicateConfig) -> str:
    """A pure function of the cluster's name: adding documents never moves others between splits."""
    place = int(hashlib.sha256(cluster.encode()).hexdigest()[:12], 16) / 16**12
    if place < config.validation_fraction:
        return "validation"
    return "test" if place < config.validation_fraction + config.test_fraction else "train"


# ---------------------------------------------------------------- canaries


def check_canaries(config: DeduplicateConfig) -> None:
    """Planted texts of known truth must come out right, in every run: a wrong cast in a kernel crashes nothing.

    Raises:
        IntegrityError: a planted copy was missed, or different texts were taken for copies.
    """
    words = [f"word{number * 7919 % 1000}" for number in range(900)]
    original = " ".join(words[:300])
    edited = " ".join([*words[:299], "changed"])
    texts = pa.array([original, edited, original, " ".join(words[300:600]), " ".join(words[600:])], pa.large_string())
    findings = find_duplicates(texts, range(5), config)
    expected_near = {1: 0} if config.threshold <= 0.96 else {}
    found_near = {row: keeper for row, (keeper, _) in findings.near.items()}
    if findings.exact != {2: 0} or found_near != expected_near:
        raise IntegrityError(
            f"the canaries of deduplication were not found: exact {findings.exact}, "
            f"near {found_near}; nothing is dropped"
        )
