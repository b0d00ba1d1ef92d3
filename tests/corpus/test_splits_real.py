"""Documents like each other share a split: on real text, judged by the exact Jaccard similarity of Python sets."""

import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from lm_core.corpus.config import DeduplicateConfig
from lm_core.corpus.deduplicate import deduplicate
from tests.corpus.builds import corpus_of, new_build, nothing_dropped, rows
from tests.corpus.tiny_ledger import document

SOURCES = ("docs_powershell", "docs_guides", "docs_proposals", "news_government")
# Pairs of 0.7 share none of 24 bands of 4 with a chance of 0.0014; below, clusters may miss a pair by design.
ALIKE = 0.7


def shingles(text: str) -> set[int]:
    tokens = re.findall(r"[^\W_]+", text.lower())
    return {hash(tuple(tokens[n : n + 5])) for n in range(max(1, len(tokens) - 4))}


def similar_pairs(texts: list[str], least: float) -> np.ndarray:
    """(p, 2) all pairs of texts whose sets of shingles have at least this Jaccard similarity."""
    sets = [shingles(text) for text in texts]
    columns: dict[int, int] = {}
    indices = [columns.setdefault(value, len(columns)) for own in sets for value in own]
    starts = np.concatenate([[0], np.cumsum([len(own) for own in sets])])
    matrix = sparse.csr_matrix((np.ones(len(indices), np.int32), indices, starts), (len(sets), len(columns)))
    shared = sparse.triu(matrix @ matrix.T, k=1).tocoo()
    sizes = np.diff(starts)
    similarity = shared.data / (sizes[shared.row] + sizes[shared.col] - shared.data)
    alike = similarity >= least
    return np.stack([shared.row[alike], shared.col[alike]], axis=1)


@pytest.mark.slow
def test_documents_alike_never_straddle_splits(data_bundle, tmp_path):
    documents = [
        document(f"{source}-{number}", text, source)
        for source in SOURCES
        for number, text in enumerate(pq.read_table(data_bundle / "pretrain" / f"{source}.parquet")["text"].to_pylist())
    ]
    build = new_build(tmp_path, "deduplicate")
    config = DeduplicateConfig(validation_fraction=0.25, test_fraction=0.25)
    deduplicate(build, config, corpus=corpus_of(tmp_path, documents), cleaning=nothing_dropped(tmp_path))
    split = {row["doc_id"]: row["split"] for row in rows(build.folder, "splits.parquet")}
    kept = [one for one in documents if one["doc_id"] in split]
    pairs = similar_pairs([one["text"] for one in kept], ALIKE)
    assert len(pairs) > 20
    keys = [one["key"] for one in kept]
    names = [split[one["doc_id"]] for one in kept]
    assert not [(keys[a], keys[b]) for a, b in pairs.tolist() if names[a] != names[b]]
    # A copy that was dropped lies with its keeper, so it cannot be held out beside it either.
    assert len(set(names)) == 3
