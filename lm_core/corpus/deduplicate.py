"""Deduplicate: exact and near copies, and the splits.

LSH over MinHash sketches only *proposes* pairs; the true Jaccard similarity of their shingle sets disposes. A sample of
shingles proposes texts that lie within another (quotations, chapters beside their book), and the true containment
disposes. Documents are visited in the order of preference (preferred sources, then the longest, then the smallest
doc_id); a document is dropped when a document that was *kept before it* is similar enough or holds it, so every removal
is justified by something that is still there. The result does not depend on the order of the corpus, on the number of
threads, or on what the band index of earlier runs already knew.

Files: decisions.parquet; edges.parquet (each dropped copy, its keeper, both figures and which of them justified it);
splits.parquet; cuts.parquet (boilerplate lines and repeated passages of what is left, to be cut where text is read for
learning); canaries.parquet (planted texts, what was found and what is true: their contract is checked with the others).
When a keeper is taken down, the next run without it weighs its copies anew.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_contracts.schemas import CANARIES, DECISIONS, EDGES, REDACTIONS, SPLIT_OF_DOCUMENT
from lm_core.artifact import Corpus, Decisions
from lm_core.corpus.config import DeduplicateConfig
from lm_core.corpus.dedup.index import BandIndex, identities
from lm_core.corpus.dedup.passages import Kept, find_passages
from lm_core.corpus.dedup.search import Findings, Known, Means, find_duplicates
from lm_core.corpus.dedup.shingles import mix
from lm_core.corpus.dedup.texts import RowGroup, TextsInMemory, TextsOfShards
from lm_core.errors import IntegrityError
from lm_core.store import Build

MIN_SOURCE_DOCUMENTS = 100
# Raised when sketches or similarities of the same text come out otherwise: an older band index is then of no use.
INDEX_VERSION, PASSAGES_VERSION = 2, 1


def deduplicate(build: Build, config: DeduplicateConfig, *, corpus: Corpus, cleaning: Decisions) -> dict[str, Any]:
    """Write decisions on copies, the edges that justify them, and the splits of what is left.

    Raises:
        IntegrityError: the canaries were not found, or a source would be wiped out.
    """
    pq.write_table(check_canaries(config), build.folder / "canaries.parquet", compression="zstd")
    documents, texts = _load(corpus, cleaning)
    doc_ids = identities(documents["doc_id"])
    folder = build.runtime.workspace / "cache" / "band-index" / _index_name(config)
    index = BandIndex.load(folder, config.num_bands)
    known = Known(index, index.rows_of(doc_ids))
    runtime = build.runtime
    means = Means(runtime.num_threads, build.work, runtime.memory_limit_bytes, build.progress, build.mapper)
    preference = _preference(documents, doc_ids, config)
    findings = find_duplicates(texts, preference, config, known=known, means=means)
    _check_sources(documents, findings, config)
    _write_decisions(build.folder, findings, documents["doc_id"], config)
    splits = _splits(findings, documents["doc_id"], doc_ids, config)
    pq.write_table(splits, build.folder / "splits.parquet", compression="zstd")
    cuts = _cuts(build, texts, documents, doc_ids, findings, preference, config, means)
    pq.write_table(cuts, build.folder / "cuts.parquet", compression="zstd")
    if (known.rows < 0).any() or len(index.doc_ids) > len(doc_ids):
        _save_index(folder, findings, doc_ids)
    return {
        "kept": splits.num_rows,
        "dropped": len(texts) - splits.num_rows,
        "exact_duplicates": int(findings.exact.sum()),
        "near_duplicates": int((findings.keepers >= 0).sum() - findings.exact.sum()),
        "contained": int(((findings.keepers >= 0) & (findings.figures[:, 0] < config.threshold)).sum()),
        "candidate_pairs": len(findings.pairs),
        "verified_pairs": int((findings.similarities >= config.threshold).sum()),
        "clusters": len(splits["cluster"].unique()),
        "cuts": {row["values"]: row["counts"] for row in cuts["kind"].value_counts().to_pylist()},
        "splits": {row["values"]: row["counts"] for row in splits["split"].value_counts().to_pylist()},
    }


def _index_name(config: DeduplicateConfig) -> str:
    """Indexes of different definitions lie side by side."""
    containment = None if config.containment_threshold is None else config.min_contained_shingles
    # Without a search for contained texts, what is out of the question by its size is not counted out.
    least = config.cluster_threshold if containment is None else None
    return _name_of(INDEX_VERSION, config.shingle_tokens, config.num_bands, config.band_rows, containment, least)


def _name_of(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _save_index(folder: Path, findings: Findings, doc_ids: np.ndarray) -> None:
    order = np.lexsort((doc_ids[:, 1], doc_ids[:, 0]))
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    sketches = findings.sketches
    samples = sketches.samples.renumbered(places)
    BandIndex(
        doc_ids[order], sketches.content[order], sketches.keys[order], sketches.num_shingles[order],
        samples.values, samples.rows, places[findings.pairs], findings.overlaps,
    ).save(folder)  # fmt: skip


_COLUMNS = pa.schema([(name, pa.string()) for name in ("doc_id", "source", "key")] + [("num_bytes", pa.int64())])


def _load(corpus: Corpus, cleaning: Decisions) -> tuple[pa.Table, TextsOfShards]:
    """The documents that cleaning has left: doc_id, source, key, num_bytes, and the means to read their texts."""
    dropped = pq.read_table(cleaning.file("decisions.parquet"), columns=["doc_id"])["doc_id"].combine_chunks()
    tables, groups, first = [_COLUMNS.empty_table()], [], 0
    for shard in corpus.document_shards():
        file = pq.ParquetFile(shard)
        for number in range(file.num_row_groups):
            table = file.read_row_group(number, columns=_COLUMNS.names).select(_COLUMNS.names).cast(_COLUMNS)
            left = pc.invert(pc.is_in(table["doc_id"], value_set=dropped)).to_numpy()
            tables.append(table.filter(pa.array(left)))
            groups.append(RowGroup(shard, number, first, np.flatnonzero(left)))
            first += tables[-1].num_rows
    return pa.concat_tables(tables).combine_chunks(), TextsOfShards(groups)


def _preference(documents: pa.Table, doc_ids: np.ndarray, config: DeduplicateConfig) -> np.ndarray:
    """All rows: preferred sources first, then the longest, then the smallest doc_id."""
    preferred = pa.array(config.prefer_sources, pa.string())
    ranks = pc.fill_null(pc.index_in(documents["source"], value_set=preferred), len(preferred)).to_numpy()
    return np.lexsort((doc_ids[:, 1], doc_ids[:, 0], -documents["num_bytes"].to_numpy(), ranks))


def _write_decisions(folder: Path, findings: Findings, doc_ids: pa.ChunkedArray, config: DeduplicateConfig) -> None:
    rows = np.flatnonzero(findings.keepers >= 0)
    exact, figures = findings.exact[rows], findings.figures[rows]
    by_similarity = figures[:, 0] >= config.threshold
    columns = {
        "doc_id": doc_ids.take(pa.array(rows)),
        "stage": np.full(len(rows), "deduplicate"),
        "fate": np.where(exact, "exact_duplicate", "near_duplicate"),
        "reason": np.where(exact, "same_text", np.where(by_similarity, "jaccard", "containment")),
        "keeper": doc_ids.take(pa.array(findings.keepers[rows])),
        "figure": np.where(by_similarity, figures[:, 0], figures[:, 1]),
        "jaccard": figures[:, 0],
        "containment": figures[:, 1],
    }
    table = pa.table(columns).sort_by("doc_id")
    for name, schema in (("decisions", DECISIONS), ("edges", EDGES)):
        pq.write_table(table.select(schema.names).cast(schema), folder / f"{name}.parquet", compression="zstd")


def _cuts(
    build: Build, texts: TextsOfShards, documents: pa.Table, doc_ids: np.ndarray, findings: Findings,
    preference: np.ndarray, config: DeduplicateConfig, means: Means,
) -> pa.Table:  # fmt: skip
    """Places to cut from the documents that are left, in the order of doc_id and start."""
    mask = findings.keepers < 0
    if (config.boilerplate_fraction is None and config.max_passage_documents is None) or not mask.any():
        return REDACTIONS.empty_table()
    ranks = np.empty(len(preference), np.int64)
    ranks[preference] = np.arange(len(preference))
    kept = Kept(mask, ranks, doc_ids, documents["source"].combine_chunks().dictionary_encode())
    least = (
        config.boilerplate_fraction is not None and config.min_boilerplate_characters,
        config.max_passage_documents is not None and config.min_passage_characters,
    )
    store = build.runtime.workspace / "cache" / "passages" / _name_of(PASSAGES_VERSION, *least)
    num_bytes = int(documents["num_bytes"].to_numpy()[mask].sum())
    found = find_passages(texts, kept, num_bytes, config, means, store=store, work=build.work / "passages")
    columns = [documents["doc_id"].take(found["row"]), found["kind"], found["start"], found["length"]]
    table = pa.table(columns, names=REDACTIONS.names).cast(REDACTIONS)
    return table.sort_by([("doc_id", "ascending"), ("start", "ascending")])


def _check_sources(documents: pa.Table, findings: Findings, config: DeduplicateConfig) -> None:
    """The wipe-out alarm: a source that loses nearly everything is a defect until a person has said otherwise."""
    gone = pa.array(findings.keepers >= 0)
    total = {row["values"]: row["counts"] for row in documents["source"].value_counts().to_pylist()}
    lost = {row["values"]: row["counts"] for row in documents["source"].filter(gone).value_counts().to_pylist()}
    for source, number in sorted(total.items()):
        share = lost.get(source, 0) / number
        if number >= MIN_SOURCE_DOCUMENTS and share > config.max_source_loss_fraction:
            own = pc.and_(gone, pc.equal(documents["source"], source)).combine_chunks().to_numpy(zero_copy_only=False)
            raise IntegrityError(
                f"deduplication would drop {share:.0%} of source {source} (bound: deduplicate.max_source_loss_fraction "
                f"= {config.max_source_loss_fraction}); its largest clusters:\n"
                + "\n".join(_clusters_told(documents, findings, np.flatnonzero(own)))
            )


def _clusters_told(documents: pa.Table, findings: Findings, rows: np.ndarray) -> list[str]:
    """A line for each of the ten documents that most of the rows were dropped for, with one of the copies."""
    keepers, firsts, counts = np.unique(findings.keepers[rows], return_index=True, return_counts=True)
    lines = []
    for place in np.argsort(-counts, kind="stable")[:10].tolist():
        kept, copy = (documents.slice(int(row), 1).to_pylist()[0] for row in (keepers[place], rows[firsts[place]]))
        similarity, containment = findings.figures[rows[firsts[place]]]
        lines.append(
            f"  {counts[place]} copies of {kept['source']}/{kept['key']} ({kept['doc_id'][:8]}), such as "
            f"{copy['source']}/{copy['key']} ({copy['doc_id'][:8]}, Jaccard {similarity:.2f}, {containment:.0%} of it)"
        )
    return lines


# ---------------------------------------------------------------- splits


def _splits(findings: Findings, names: pa.ChunkedArray, doc_ids: np.ndarray, config: DeduplicateConfig) -> pa.Table:
    """Cluster and split of each document that is left, in the order of doc_id."""
    clusters = clusters_of(doc_ids, findings.related)
    kept = np.flatnonzero(findings.keepers < 0)
    kept = kept[np.lexsort((doc_ids[kept, 1], doc_ids[kept, 0]))]
    splits = splits_of(doc_ids[clusters[kept]], config)
    rows = {"doc_id": names.take(pa.array(kept)), "cluster": names.take(pa.array(clusters[kept])), "split": splits}
    return pa.table(rows).cast(SPLIT_OF_DOCUMENT)


def clusters_of(doc_ids: np.ndarray, related: np.ndarray) -> np.ndarray:
    """(n,) int64, for each document that of the smallest identity in its cluster; similar documents share one."""
    order = np.lexsort((doc_ids[:, 1], doc_ids[:, 0]))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    parents = np.arange(len(order))

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = int(parents[row])
        return row

    for a, b in related.tolist():
        low, high = sorted((root(a), root(b)), key=ranks.__getitem__)
        parents[high] = low
    for row in np.unique(related).tolist():
        parents[row] = root(row)
    return parents


def splits_of(clusters: np.ndarray, config: DeduplicateConfig) -> np.ndarray:
    """Split of each cluster (n, 2): a pure function of its identity, so that adding documents never moves others."""
    # Mixed once more: the identity of a cluster is the smallest of its members', so it is no even draw.
    places = (mix.py_func(clusters[:, 0] ^ clusters[:, 1]) >> np.uint64(11)) / 2.0**53
    held_out = config.validation_fraction + config.test_fraction
    splits = np.where(places < config.validation_fraction, "validation", np.where(places < held_out, "test", "train"))
    return _without_empty_split(splits, places, config)


def _without_empty_split(splits: np.ndarray, places: np.ndarray, config: DeduplicateConfig) -> np.ndarray:
    """A split that the draw left empty, in a corpus of a few documents, gets one cluster of the fullest split.

    Training comes first: a single cluster is trained on, of two one is held out.
    """
    wanted = {"train": 1.0, "validation": config.validation_fraction, "test": config.test_fraction}
    for empty in [name for name, fraction in wanted.items() if fraction and not (splits == name).any()]:
        fullest = max((np.unique(places[splits == name]) for name in wanted), key=len)
        if len(fullest) > 1 or (empty == "train" and len(fullest)):
            splits = np.where(places == fullest[0], empty, splits)
    return splits


# ---------------------------------------------------------------- canaries


def canaries() -> tuple[list[str], list[str], list[int]]:
    """Names, texts, and for each the number of the canary it is a copy of (-1: of none)."""
    words = [f"word{number * 7919 % 2000}" for number in range(1900)]
    signs = [chr(0x4E00 + number * 7919 % 9000) for number in range(300)]
    planted = {
        "original": (" ".join(words[:300]), -1),
        "one word changed": (" ".join([*words[:299], "changed"]), 0),
        "equal": (" ".join(words[:300]), 0),
        "half quoted": (" ".join(words[150:450]), -1),
        "other words": (" ".join(words[600:900]), -1),
        "a book": (" ".join(words[900:]), -1),
        "its chapter": (" ".join(words[1200:1500]), 5),
        "a chapter of its own and a quotation": (" ".join(words[850:1000]), -1),
        "Chinese": ("".join(signs), -1),
        "Chinese, one sign changed": ("".join([*signs[:299], "\u4dff"]), 8),
        "Chinese, other signs": ("".join(signs[::-1]), -1),
    }
    return list(planted), [text for text, _ in planted.values()], [keeper for _, keeper in planted.values()]


def check_canaries(config: DeduplicateConfig) -> pa.Table:
    """Planted texts of known truth must come out right, in every run: a wrong cast in a kernel crashes nothing.

    Returns:
        A row of `schemas.CANARIES` for each.

    Raises:
        IntegrityError: a planted copy was missed, or different texts were taken for copies.
    """
    names, texts, expected = canaries()
    # The truth is that of the usual definition; with longer shingles or a higher threshold an edit is no copy.
    config = DeduplicateConfig(
        threshold=min(config.threshold, 0.9), cluster_threshold=min(config.cluster_threshold, 0.9),
        num_bands=max(config.num_bands, 8), band_rows=config.band_rows,
    )  # fmt: skip
    found = find_duplicates(TextsInMemory(pa.array(texts, pa.large_string())), np.arange(len(texts)), config)
    told = [[names[keeper] if keeper >= 0 else "kept" for keeper in keepers] for keepers in (expected, found.keepers)]
    if told[0] != told[1]:
        wrong = next(n for n in range(len(names)) if told[0][n] != told[1][n])
        raise IntegrityError(
            f"the canaries of deduplication came out wrong ({names[wrong]!r}: {told[1][wrong]!r} instead of "
            f"{told[0][wrong]!r}); nothing is dropped"
        )
    return pa.Table.from_arrays([pa.array(names), *map(pa.array, told)], schema=CANARIES)
