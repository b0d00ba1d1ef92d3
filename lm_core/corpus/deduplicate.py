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
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_contracts.schemas import CANARIES, CUTS, DECISIONS, EDGES, SPLIT_OF_DOCUMENT
from lm_core.artifact import Corpus, Decisions
from lm_core.corpus.config import DeduplicateConfig
from lm_core.corpus.dedup.clusters import SPLITS, order_of, splits_of
from lm_core.corpus.dedup.index import Index, identities
from lm_core.corpus.dedup.means import Means
from lm_core.corpus.dedup.passages import Named, Passages, find_passages
from lm_core.corpus.dedup.search import Findings, find_duplicates
from lm_core.corpus.dedup.texts import RowGroup, TextsInMemory, TextsOfShards
from lm_core.errors import IntegrityError, UserError
from lm_core.mapping import in_threads
from lm_core.nearest import hint
from lm_core.store import Build, silent

MIN_SOURCE_DOCUMENTS = 100
# With fewer new documents than this share their passages are read before it is known which of them stay.
_FEW = 0.05
# Raised when sketches or similarities of the same text come out otherwise: an older band index is then of no use.
INDEX_VERSION, PASSAGES_VERSION = 5, 2


def deduplicate(build: Build, config: DeduplicateConfig, *, corpus: Corpus, cleaning: Decisions) -> dict[str, Any]:
    """Write decisions on copies, the edges that justify them, and the splits of what is left.

    Raises:
        IntegrityError: the canaries were not found, or a source would be wiped out.
        UserError: a source that is to be preferred has no document.
    """
    pq.write_table(check_canaries(config), build.folder / "canaries.parquet", compression="zstd")
    documents, texts = _load(corpus, cleaning, build.runtime.num_threads)
    _refuse_unknown_sources(documents, config)
    doc_ids = identities(documents["doc_id"])
    runtime = build.runtime
    preference = _preference(documents, doc_ids, config)
    means = Means(runtime.num_threads, build.work, runtime.memory_limit_bytes, build.progress, build.mapper)
    named = Named(doc_ids, documents["source"].combine_chunks().dictionary_encode())
    store = runtime.workspace / "cache" / "passages" / _name_of(PASSAGES_VERSION, *_least_characters(config))
    # With few new documents much of the work is to read and to write what is kept: it is done aside.
    with ThreadPoolExecutor(2) as aside:
        opened = aside.submit(Passages, texts, named, config, store, build.work / "passages")
        folder = runtime.workspace / "cache" / "band-index" / _index_name(config)
        index = Index.open(folder, config.num_bands, doc_ids, _definition(config), runtime.num_threads)
        ahead = aside.submit(_read_ahead, opened, index, config, means)
        findings = find_duplicates(texts, preference, config, index=index, means=means)
        _check_sources(documents, findings, config, corpus)
        written = aside.submit(_write, build.folder, findings, documents["doc_id"], doc_ids, config)
        saved = aside.submit(_save, index, findings)
        cuts = _cuts(documents, findings, preference, config, means, ahead.result())
        pq.write_table(cuts, build.folder / "cuts.parquet", compression="zstd")
        saved.result()
        return _statistics(findings, written.result(), cuts, config)


def _save(index: Index, findings: Findings) -> None:
    sketched = findings.sketched
    if sketched.segments is not None and sketched.rows is not None:
        index.save(sketched.segments, sketched.new, sketched.rows, findings.found)


def _statistics(findings: Findings, splits: pa.Table, cuts: pa.Table, config: DeduplicateConfig) -> dict[str, Any]:
    has_documents = np.zeros(len(findings.exact), bool)
    has_documents[findings.found.clusters[findings.keepers < 0]] = True
    return {
        "kept": splits.num_rows,
        "dropped": len(findings.exact) - splits.num_rows,
        "exact_duplicates": int(findings.exact.sum()),
        "near_duplicates": int((findings.keepers >= 0).sum() - findings.exact.sum()),
        "contained": int(((findings.keepers >= 0) & (findings.figures[:, 0] < config.threshold)).sum()),
        "candidate_pairs": len(findings.found.pairs),
        "verified_pairs": int((findings.similarities >= config.threshold).sum()),
        "clusters": int(has_documents.sum()),
        "cuts": {row["values"]: row["counts"] for row in cuts["kind"].value_counts().to_pylist()},
        "splits": {row["values"]: row["counts"] for row in splits["split"].value_counts().to_pylist()},
    }


def _index_name(config: DeduplicateConfig) -> str:
    """Indexes of different definitions lie side by side."""
    containment = None if config.containment_threshold is None else config.min_contained_shingles
    # Without a search for contained texts, what is out of the question by its size is not counted out.
    least = config.cluster_threshold if containment is None else None
    return _name_of(INDEX_VERSION, config.shingle_tokens, config.num_bands, config.band_rows, containment, least)


def _definition(config: DeduplicateConfig) -> str:
    """What decides about documents that share something."""
    return repr((config.threshold, config.cluster_threshold, config.containment_threshold, config.prefer_sources))


def _name_of(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


_COLUMNS = pa.schema([("doc_id", pa.string()), ("source", pa.string()), ("num_bytes", pa.int64())])


def _load(corpus: Corpus, cleaning: Decisions, num_threads: int) -> tuple[pa.Table, TextsOfShards]:
    """The documents that cleaning has left: doc_id, source, num_bytes, and the means to read their texts."""
    dropped = pq.read_table(cleaning.file("decisions.parquet"), columns=["doc_id"])["doc_id"].combine_chunks()
    tables, groups, first = [_COLUMNS.empty_table()], [], 0
    shards = corpus.document_shards()
    for shard, (table, sizes) in zip(shards, in_threads(num_threads)(_described, shards), strict=True):
        left = pc.invert(pc.is_in(table["doc_id"], value_set=dropped)) if len(dropped) else None
        places = np.arange(table.num_rows) if left is None else np.flatnonzero(left.to_numpy())
        tables.append(table if left is None else table.filter(left))
        begin = 0
        for number, size in enumerate(sizes):
            end = begin + size
            own = places[np.searchsorted(places, begin) : np.searchsorted(places, end)] - begin
            groups.append(RowGroup(shard, number, first, own))
            first, begin = first + len(own), end
    return pa.concat_tables(tables).combine_chunks(), TextsOfShards(groups)


def _described(shard: Path) -> tuple[pa.Table, list[int]]:
    """What is needed of all documents of a shard, and how many there are in each of its row groups."""
    file = pq.ParquetFile(shard, pre_buffer=False)
    table = file.read(columns=_COLUMNS.names, use_threads=False).select(_COLUMNS.names).cast(_COLUMNS)
    return table, [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]


def _refuse_unknown_sources(documents: pa.Table, config: DeduplicateConfig) -> None:
    if not config.prefer_sources:
        return
    known = documents["source"].unique().to_pylist()
    for name in config.prefer_sources:
        if name not in known:
            likely = hint(name, known)
            raise UserError(f"deduplicate.prefer_sources names {name}, of which there is no document{likely}")


def _preference(documents: pa.Table, doc_ids: np.ndarray, config: DeduplicateConfig) -> np.ndarray:
    """All rows: preferred sources first, then the longest, then the smallest doc_id."""
    preferred = pa.array(config.prefer_sources, pa.string())
    ranks = pc.fill_null(pc.index_in(documents["source"], value_set=preferred), len(preferred)).to_numpy()
    sizes = documents["num_bytes"].to_numpy()
    if len(preferred) > 255 or sizes.max(initial=0) >> 40:
        return np.lexsort((doc_ids[:, 1], doc_ids[:, 0], -sizes, ranks))
    # One word tells nearly all apart, and is sorted ten times as fast as four.
    words = (ranks.astype(np.uint64) << np.uint64(56)) | ((2**40 - 1 - sizes).astype(np.uint64) << np.uint64(16))
    words |= doc_ids[:, 0] >> np.uint64(48)
    order = np.argsort(words)
    same = words[order[1:]] == words[order[:-1]]
    ties = np.flatnonzero(np.append(same, False) | np.append(False, same))
    rows = order[ties]
    order[ties] = rows[np.lexsort((doc_ids[rows, 1], doc_ids[rows, 0], words[rows]))]
    return order


def _write(
    folder: Path, findings: Findings, names: pa.ChunkedArray, doc_ids: np.ndarray, config: DeduplicateConfig
) -> pa.Table:
    """Write what was decided, and which split each document that is left has; returns the splits."""
    _write_decisions(folder, findings, names, config)
    splits = _splits(findings, names, doc_ids, config)
    # A dictionary of names that stand there once is of no use.
    pq.write_table(splits, folder / "splits.parquet", compression="zstd", use_dictionary=["split"])
    return splits


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


def _least_characters(config: DeduplicateConfig) -> tuple[int | bool, int | bool]:
    """From how many characters on a line and a passage are looked at; False when they are not."""
    return (
        config.boilerplate_fraction is not None and config.min_boilerplate_characters,
        config.max_passage_documents is not None and config.min_passage_characters,
    )


def _read_ahead(opened: Future[Passages], index: Index, config: DeduplicateConfig, means: Means) -> Passages:
    """Passages, those of documents that are new among them when these are few: most of them will be kept."""
    passages, new = opened.result(), index.rows < 0
    if any(_least_characters(config)) and new.sum() < _FEW * len(new):
        passages.read(new, replace(means, num_threads=1, progress=silent))
    return passages


def _cuts(
    documents: pa.Table, findings: Findings, preference: np.ndarray, config: DeduplicateConfig, means: Means,
    passages: Passages,
) -> pa.Table:  # fmt: skip
    """Places to cut from the documents that are left, in the order of doc_id and start."""
    kept = findings.keepers < 0
    if not any(_least_characters(config)) or not kept.any():
        return CUTS.empty_table()
    ranks = np.empty(len(preference), np.int64)
    ranks[preference] = np.arange(len(preference))
    num_bytes = int(documents["num_bytes"].to_numpy()[kept].sum())
    found = find_passages(passages, kept, ranks, num_bytes, config, means)
    columns = [documents["doc_id"].take(found["row"]), found["kind"], found["start"], found["length"]]
    table = pa.table(columns, names=CUTS.names).cast(CUTS)
    return table.sort_by([("doc_id", "ascending"), ("start", "ascending")])


def _check_sources(documents: pa.Table, findings: Findings, config: DeduplicateConfig, corpus: Corpus) -> None:
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
                + "\n".join(_clusters_told(documents, findings, np.flatnonzero(own), corpus))
            )


def _clusters_told(documents: pa.Table, findings: Findings, rows: np.ndarray, corpus: Corpus) -> list[str]:
    """A line for each of the ten documents that most of the rows were dropped for, with one of the copies."""
    named = pa.concat_tables(pq.read_table(shard, columns=["doc_id", "key"]) for shard in corpus.document_shards())
    keys = dict(zip(*(named[name].to_pylist() for name in ("doc_id", "key")), strict=True))
    keepers, firsts, counts = np.unique(findings.keepers[rows], return_index=True, return_counts=True)
    lines = []
    for place in np.argsort(-counts, kind="stable")[:10].tolist():
        kept, copy = (documents.slice(int(row), 1).to_pylist()[0] for row in (keepers[place], rows[firsts[place]]))
        similarity, containment = findings.figures[rows[firsts[place]]]
        lines.append(
            f"  {counts[place]} copies of {kept['source']}/{keys[kept['doc_id']]} ({kept['doc_id'][:8]}), such as "
            f"{copy['source']}/{keys[copy['doc_id']]} ({copy['doc_id'][:8]}, Jaccard {similarity:.2f}, "
            f"{containment:.0%} of it)"
        )
    return lines


# ---------------------------------------------------------------- splits


def _splits(findings: Findings, names: pa.ChunkedArray, doc_ids: np.ndarray, config: DeduplicateConfig) -> pa.Table:
    """Cluster and split of each document that is left, in the order of doc_id."""
    clusters = findings.found.clusters
    kept = np.flatnonzero(findings.keepers < 0)
    kept = kept[order_of(doc_ids[kept])]
    splits = pa.array(SPLITS).take(pa.array(splits_of(doc_ids[clusters[kept]], config)))
    named = [names.take(pa.array(rows)) for rows in (kept, clusters[kept])]
    return pa.table({"doc_id": named[0], "cluster": named[1], "split": splits}).cast(SPLIT_OF_DOCUMENT)


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
