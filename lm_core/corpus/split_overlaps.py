"""Overlaps between the official splits of downstream data: equal texts and near copies."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from lm_core.corpus.characters import character_table
from lm_core.corpus.dedup.shingles import shingle_hashes, token_hashes
from lm_core.corpus.dedup.sketch import sketch

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


def _tokens(text: pa.Scalar) -> np.ndarray:
    """Token hashes (uint64) of a text."""
    data = np.frombuffer(text.as_buffer(), np.uint8)
    tokens = np.empty(len(data) + 1, np.uint64)
    return tokens[: token_hashes(data, 0, len(data), character_table(), tokens)]


def _grams(tokens: np.ndarray, size: int) -> np.ndarray:
    """Hashes of all runs of `size` tokens."""
    out = np.empty(len(tokens) + 1, np.uint64)
    return out[: shingle_hashes(tokens, len(tokens), size, out)]
