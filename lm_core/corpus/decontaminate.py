"""Decontaminate: drop training documents that give away a held-out example.

A score is only worth something when the model has not read the answers. Every validation and test example is cut into
n-grams of tokens; a training document that holds at least a set share of the n-grams of one example is dropped, with
the example named. Containment and not a single shared n-gram: in documentation *any* shared 13-gram flags half of all
documents. Examples too short for one n-gram must be contained whole.

Method: hashes of all n-grams of the examples form a sorted table; one pass over the training text keeps the n-grams
found in it, and counts the distinct ones for each pair of document and example.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.schemas import DECISIONS
from lm_core.artifact import Corpus, Decisions, DownstreamData
from lm_core.corpus.characters import character_table
from lm_core.corpus.config import DecontaminateConfig
from lm_core.corpus.dedup.shingles import shingle_hashes, token_hashes
from lm_core.store import Build

BATCH_ROWS = 2048


class ItemIndex:
    """N-gram hashes of the held-out examples, sorted, with the example each belongs to."""

    def __init__(self, examples: pa.Table, config: DecontaminateConfig) -> None:
        self.items = examples.to_pylist()
        self.sizes: dict[int, np.ndarray] = {}
        self.owners: dict[int, np.ndarray] = {}
        self.num_grams = np.zeros(len(self.items), np.int64)
        hashes: dict[int, list[np.ndarray]] = {}
        owners: dict[int, list[np.ndarray]] = {}
        # The prompt alone may be common knowledge; an example is given away by prompt and target together.
        texts = pa.array([f"{item['prompt']}\n{item['target']}" for item in self.items], pa.large_string())
        for row, tokens in enumerate(_tokens_of(texts)):
            if len(tokens) < config.min_item_tokens:
                continue
            size = min(config.ngram_tokens, len(tokens))
            grams = np.unique(_grams(tokens, size))
            self.num_grams[row] = len(grams)
            hashes.setdefault(size, []).append(grams)
            owners.setdefault(size, []).append(np.full(len(grams), row))
        for size, parts in hashes.items():
            flat = np.concatenate(parts)
            order = np.argsort(flat, kind="stable")
            self.sizes[size] = flat[order]
            self.owners[size] = np.concatenate(owners[size])[order]

    def containments(self, tokens: np.ndarray) -> dict[int, float]:
        """Share of each example's n-grams that a document holds, for the examples it shares any with."""
        found: Counter[int] = Counter()
        for size, table in self.sizes.items():
            if len(tokens) < size:
                continue
            grams = np.unique(_grams(tokens, size))
            first = np.searchsorted(table, grams, side="left")
            last = np.searchsorted(table, grams, side="right")
            for begin, end in zip(first[last > first], last[last > first], strict=True):
                found.update(self.owners[size][begin:end].tolist())
        return {row: count / float(self.num_grams[row]) for row, count in found.items()}


def _tokens_of(texts: pa.LargeStringArray) -> Iterator[np.ndarray]:
    """Token hashes (uint64) of each text."""
    table = character_table()
    for text in texts:
        data = np.frombuffer(text.as_buffer(), np.uint8)
        tokens = np.empty(len(data) + 1, np.uint64)
        yield tokens[: token_hashes(data, 0, len(data), table, tokens)]


def _grams(tokens: np.ndarray, size: int) -> np.ndarray:
    """Hashes of all runs of `size` tokens."""
    out = np.empty(len(tokens) + 1, np.uint64)
    return out[: shingle_hashes(tokens, len(tokens), size, out)]


def decontaminate(
    build: Build,
    config: DecontaminateConfig,
    *,
    corpus: Corpus,
    cleaning: Decisions,
    duplicates: Decisions,
    examples: DownstreamData,
) -> dict[str, Any]:
    """Write the decisions on training documents that hold a validation or test example of another document."""
    held_out = pq.read_table(
        examples.file("examples.parquet"), filters=[("split", "in", ["validation", "test"])]
    ).sort_by("item_id")
    index = ItemIndex(held_out, config)
    splits = pq.read_table(duplicates.file("splits.parquet"), filters=[("split", "=", "train")])
    train = set(splits["doc_id"].to_pylist())
    decisions: list[dict[str, Any]] = []
    for done, (doc_id, text) in enumerate(_documents(corpus.document_shards(), train), 1):
        decision = _judge(doc_id, text, index, config)
        if decision:
            decisions.append(decision)
        if done % BATCH_ROWS == 0:
            build.progress(done, len(train), "documents", contaminated=len(decisions))
    decisions.sort(key=lambda row: row["doc_id"])
    pq.write_table(pa.Table.from_pylist(decisions, DECISIONS), build.folder / "decisions.parquet", compression="zstd")
    reasons = Counter(decision["reason"] for decision in decisions)
    return {"dropped": len(decisions), "searched_items": int((index.num_grams > 0).sum()), "reasons": dict(reasons)}


def _documents(shards: list[Path], wanted: set[str]) -> Iterator[tuple[str, pa.Scalar]]:
    for shard in shards:
        for batch in pq.ParquetFile(shard).iter_batches(BATCH_ROWS, columns=["doc_id", "text"]):
            for doc_id, text in zip(batch["doc_id"].to_pylist(), batch["text"], strict=True):
                if doc_id in wanted:
                    yield doc_id, text


def _judge(doc_id: str, text: pa.Scalar, index: ItemIndex, config: DecontaminateConfig) -> dict[str, Any] | None:
    """The decision on one document: the example it holds most of, if that is enough."""
    tokens = next(_tokens_of([text]))  # type: ignore[arg-type]
    shares = {
        row: share
        for row, share in index.containments(tokens).items()
        if share >= config.min_containment and index.items[row]["doc_id"] != doc_id
    }
    if not shares:
        return None
    row = max(shares, key=lambda candidate: (shares[candidate], -candidate))
    item = index.items[row]
    return {
        "doc_id": doc_id,
        "stage": "decontaminate",
        "fate": "contaminated",
        "reason": item["task"],
        "keeper": item["item_id"],
        "figure": shares[row],
    }
