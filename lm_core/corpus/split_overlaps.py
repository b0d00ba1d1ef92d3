"""Overlaps between the official splits of downstream data: equal texts and near copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from lm_core.corpus.config import DeduplicateConfig
from lm_core.corpus.dedup.search import equal_texts, find_duplicates
from lm_core.corpus.dedup.texts import TextsInMemory

OVERLAPS = pa.schema([("item_id", pa.string()), ("split", pa.string()), ("held_out_id", pa.string()),
                      ("held_out_split", pa.string()), ("jaccard", pa.float64())])  # fmt: skip
_SPLIT_RANK = {"test": 0, "validation": 1, "train": 2}
# Items are short: an edited word costs three shingles of a sentence, not five.
_SHINGLE_TOKENS, _NUM_BANDS, _BAND_ROWS = 3, 24, 4


def split_overlaps(items: pa.Table, *, threshold: float = 0.8) -> pa.Table:
    """Find the items of a split that a more protected split (test, then validation, then train) also holds.

    Official splits leak too. Two items overlap when their texts have the same words in the same order, or shingles of
    three words whose Jaccard similarity reaches the threshold; texts of one or two words only when they are equal.
    Copies within a split stand for each other: of those a held-out text has, one is named.

    Args:
        items: item_id, split (test, validation or train) and text of each item.

    Returns:
        A row of `OVERLAPS` for each item, with the one most like it, in the order of item_id: drop those item_ids and
        the splits are disjoint.
    """
    texts = items["text"].cast(pa.large_string()).combine_chunks()
    ranks = np.array([_SPLIT_RANK[split] for split in items["split"].to_pylist()], np.int64)
    preference = np.argsort(ranks, kind="stable")
    config = DeduplicateConfig(
        shingle_tokens=_SHINGLE_TOKENS, num_bands=_NUM_BANDS, band_rows=_BAND_ROWS, containment_threshold=None,
        threshold=threshold, cluster_threshold=threshold,
    )  # fmt: skip
    found = find_duplicates(TextsInMemory(texts), preference, config)
    equal = equal_texts(found.sketched.content, preference)
    alike = np.where(equal >= 0, equal, np.arange(len(ranks)))
    nearest, figures = _nearest(found.found.pairs, found.similarities, ranks, threshold)
    across = ranks[alike] < ranks
    nearest, figures = np.where(across, alike, nearest[alike]), np.where(across, 1.0, figures[alike])
    rows = np.flatnonzero((nearest >= 0) & (found.sketched.num_shingles > 0))
    columns = [items[name].take(pa.array(of)) for of in (rows, nearest[rows]) for name in ("item_id", "split")]
    return pa.table([*columns, figures[rows]], names=OVERLAPS.names).cast(OVERLAPS).sort_by("item_id")


def _nearest(
    pairs: np.ndarray, similarities: np.ndarray, ranks: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """For each row the one most like it in a more protected split, -1 for none, and their similarity."""
    turned = ranks[pairs[:, 0]] < ranks[pairs[:, 1]]
    low, high = np.where(turned, pairs[:, 1], pairs[:, 0]), np.where(turned, pairs[:, 0], pairs[:, 1])
    likely = np.flatnonzero((similarities >= threshold) & (ranks[low] > ranks[high]))
    order = likely[np.lexsort((high[likely], -similarities[likely], low[likely]))]
    rows, firsts = np.unique(low[order], return_index=True)
    nearest, figures = np.full(len(ranks), -1, np.int64), np.zeros(len(ranks))
    nearest[rows], figures[rows] = high[order[firsts]], similarities[order[firsts]]
    return nearest, figures


def num_near_overlaps(items: Mapping[str, Sequence[tuple[str, str]]]) -> dict[str, int]:
    """How many items of each split nearly stand in a more protected one.

    Args:
        items: split -> item_id and text of its items. What all texts begin and end with is the task's wording, and
            says nothing of what two of them share.
    """
    texts = [text for own in items.values() for _, text in own]
    opening = _same_beginning(texts)
    closing = _same_beginning([text[opening:][::-1] for text in texts])
    table = pa.table({
        "item_id": [item_id for own in items.values() for item_id, _ in own],
        "split": [split for split, own in items.items() for _ in own],
        "text": [text[opening : len(text) - closing] for text in texts],
    }, schema=pa.schema([(name, pa.string()) for name in ("item_id", "split", "text")]))  # fmt: skip
    counts = split_overlaps(table)["split"].value_counts().to_pylist()
    return {row["values"]: row["counts"] for row in sorted(counts, key=lambda row: row["values"])}


def _same_beginning(texts: list[str]) -> int:
    """How many characters all texts begin with."""
    first, last = min(texts, default=""), max(texts, default="")
    pairs = enumerate(zip(first, last, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(last)))
