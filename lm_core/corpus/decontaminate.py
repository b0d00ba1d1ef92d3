# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.
"""Decontaminate: drop training documents that give away a held-out example.

A score is only worth something when the model has not read the answers. Every validation and test example is cut into
n-grams of tokens; a training document that holds at least a set share of the n-grams of one example is dropped, with
the example named. Containment and not a single shared n-gram: in documentation *any* shared 13-gram flags half of all
documents. Examples too short for one n-gram must be contained whole.

Method: hashes of all n-grams of the examples form a sorted table and a bitmap. One compiled pass over the training
text finds the documents that touch the bitmap; only for these the distinct n-grams of each example are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numba import njit

from data_contracts.schemas import DECISIONS
from lm_core.artifact import Corpus, Decisions, DownstreamData
from lm_core.corpus.characters import character_table
from lm_core.corpus.config import DecontaminateConfig
from lm_core.corpus.dedup.shingles import shingle_hashes, token_hashes
from lm_core.corpus.dedup.sketch import sketch, text_buffers
from lm_core.store import Build

BATCH_ROWS = 2048
_BITMAP_SIZE = 1 << 24


@njit(nogil=True, cache=True)
def _shares_gram(offsets, data, table, widths, members, mask):
    """Mark the texts with an n-gram, of one of the widths, whose lowest bits are set in `members`."""
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    tokens = np.empty(longest + 1, np.uint64)
    grams = np.empty(longest + 1, np.uint64)
    bits = np.uint64(len(members) - 1)
    for row in range(len(mask)):
        count = token_hashes(data, offsets[row], offsets[row + 1], table, tokens)
        for width in widths:
            if mask[row] or count < width:
                break
            for gram in grams[: shingle_hashes(tokens, count, width, grams)]:
                if members[gram & bits]:
                    mask[row] = True
                    break


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
        for row, tokens in enumerate(map(_tokens, texts)):
            if len(tokens) < config.min_item_tokens:
                continue
            size = min(config.ngram_tokens, len(tokens))
            grams = np.unique(_grams(tokens, size))
            hashes.setdefault(size, []).append(grams)
            owners.setdefault(size, []).append(np.full(len(grams), row))
        for size, parts in hashes.items():
            self._add(size, np.concatenate(parts), np.concatenate(owners[size]), config.max_items_per_ngram)
        self._widths = np.array(sorted(self.sizes), np.int64)
        self._bitmap = np.zeros(_BITMAP_SIZE, np.bool_)
        for table in self.sizes.values():
            self._bitmap[table & np.uint64(_BITMAP_SIZE - 1)] = True

    def _add(self, size: int, grams: np.ndarray, owners: np.ndarray, max_items: int) -> None:
        """Index the n-grams of one length, except those that stand in more than `max_items` examples."""
        _, inverse, counts = np.unique(grams, return_inverse=True, return_counts=True)
        telling = counts[inverse] <= max_items
        grams, owners = grams[telling], owners[telling]
        self.num_grams += np.bincount(owners, minlength=len(self.items))
        order = np.argsort(grams, kind="stable")
        self.sizes[size], self.owners[size] = grams[order], owners[order]

    def suspects(self, texts: pa.Array) -> np.ndarray:
        """Mask of the texts that may share an n-gram with an example: all that do, and few others."""
        offsets, data = text_buffers(texts)
        mask = np.zeros(len(texts), np.bool_)
        _shares_gram(offsets, data, character_table(), self._widths, self._bitmap, mask)
        return mask

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


def _tokens(text: pa.Scalar) -> np.ndarray:
    """Token hashes (uint64) of a text."""
    data = np.frombuffer(text.as_buffer(), np.uint8)
    tokens = np.empty(len(data) + 1, np.uint64)
    return tokens[: token_hashes(data, 0, len(data), character_table(), tokens)]


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
    shares: dict[str, dict[int, float]] = {}
    done = 0
    for doc_ids, texts in _documents(corpus.document_shards(), splits["doc_id"].combine_chunks()):
        for place in np.flatnonzero(index.suspects(texts)):
            doc_id = doc_ids[place].as_py()
            if found := _shares(doc_id, texts[place], index, config):
                shares[doc_id] = found
        done += len(doc_ids)
        build.progress(done, splits.num_rows, "documents", suspected=len(shares))
    forms = _forms(shares, config)
    leaks = {doc_id: {row: found[row] for row in found if row not in forms} for doc_id, found in shares.items()}
    decisions = [_decision(doc_id, found, index) for doc_id, found in sorted(leaks.items()) if found]
    pq.write_table(pa.Table.from_pylist(decisions, DECISIONS), build.folder / "decisions.parquet", compression="zstd")
    return {
        "dropped": len(decisions),
        "searched_items": int((index.num_grams > 0).sum()),
        "items_ignored_as_forms": len(forms),
        "reasons": dict(sorted(Counter(decision["reason"] for decision in decisions).items())),
    }


def _documents(shards: list[Path], wanted: pa.Array) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Identities and texts of the wanted documents, in batches."""
    for shard in shards:
        for batch in pq.ParquetFile(shard).iter_batches(BATCH_ROWS, columns=["doc_id", "text"]):
            chosen = batch.filter(pc.is_in(batch["doc_id"], value_set=wanted))
            yield chosen["doc_id"], chosen["text"]


def _shares(doc_id: str, text: pa.Scalar, index: ItemIndex, config: DecontaminateConfig) -> dict[int, float]:
    """The examples of other documents that a document holds enough of, with the share it holds."""
    return {
        row: share
        for row, share in index.containments(_tokens(text)).items()
        if share >= config.min_containment and index.items[row]["doc_id"] != doc_id
    }


def _forms(shares: dict[str, dict[int, float]], config: DecontaminateConfig) -> set[int]:
    """Examples that stand in too many documents to be anything but a form of words that these share."""
    num_documents = Counter(row for found in shares.values() for row in found)
    return {row for row, count in num_documents.items() if count > config.max_documents_per_item}


def _decision(doc_id: str, shares: dict[int, float], index: ItemIndex) -> dict[str, Any]:
    """The decision on a contaminated document; it names the example that the document holds most of."""
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


# ---------------------------------------------------------------- between the splits of downstream data

OVERLAPS = pa.schema([("item_id", pa.string()), ("split", pa.string()), ("held_out_id", pa.string()),
                      ("held_out_split", pa.string()), ("jaccard", pa.float64())])  # fmt: skip
_SPLIT_RANK = {"test": 0, "validation": 1, "train": 2}
_SHINGLE_TOKENS, _NUM_BANDS, _BAND_ROWS = 3, 24, 4


def split_overlaps(items: pa.Table, *, threshold: float = 0.8) -> pa.Table:
    """Find the items of a split that a more protected split (test, then validation, then train) also holds.

    Official splits leak too. Two items overlap when their texts have the same words in the same order, or shingles of
    three words whose Jaccard similarity reaches the threshold; texts of one or two words only when they are equal.

    Args:
        items: item_id, split (test, validation or train) and text of each item.

    Returns:
        A row of `OVERLAPS` for each pair, in the order of item_id: drop those item_ids and the splits are disjoint.
    """
    texts = items["text"].cast(pa.large_string()).combine_chunks()
    ids, splits = items["item_id"].to_pylist(), items["split"].to_pylist()
    ranks = np.array([_SPLIT_RANK[split] for split in splits], np.int64)
    sketches = sketch(texts, shingle_tokens=_SHINGLE_TOKENS, num_bands=_NUM_BANDS, band_rows=_BAND_ROWS)
    sets = [np.unique(_grams(tokens, _SHINGLE_TOKENS)) if len(tokens) else tokens for tokens in map(_tokens, texts)]
    found = []
    for first, second in sorted(_pairs_across(sketches.keys, ranks, np.flatnonzero(sketches.num_shingles))):
        low, high = (first, second) if ranks[first] > ranks[second] else (second, first)
        shared = len(np.intersect1d(sets[low], sets[high], assume_unique=True))
        jaccard = shared / (len(sets[low]) + len(sets[high]) - shared)
        if jaccard >= threshold:
            found.append({"item_id": ids[low], "split": splits[low], "held_out_id": ids[high],
                          "held_out_split": splits[high], "jaccard": jaccard})  # fmt: skip
    return pa.Table.from_pylist(sorted(found, key=lambda row: (row["item_id"], row["held_out_id"])), OVERLAPS)


def _pairs_across(keys: np.ndarray, ranks: np.ndarray, rows: np.ndarray) -> set[tuple[int, int]]:
    """Pairs of rows of different splits that share a band."""
    pairs: set[tuple[int, int]] = set()
    for band in range(keys.shape[1]):
        order = rows[np.argsort(keys[rows, band], kind="stable")]
        ends = np.flatnonzero(np.diff(keys[order, band])) + 1
        for bucket in np.split(order, ends):
            if len(bucket) > 1 and len(set(ranks[bucket].tolist())) > 1:
                members = bucket.tolist()
                pairs.update((a, b) for n, a in enumerate(members) for b in members[n + 1 :] if ranks[a] != ranks[b])
    return pairs
