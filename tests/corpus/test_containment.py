"""Quotations and chapters go when a kept document holds them; what only shares a part of its text stays."""

import random

import numpy as np
import pyarrow as pa
import pytest

from lm_core.corpus.config import DeduplicateConfig
from lm_core.corpus.dedup.containment import Samples, proposals
from lm_core.corpus.dedup.search import find_duplicates
from lm_core.corpus.dedup.sketch import sketch
from lm_core.corpus.dedup.texts import TextsInMemory
from lm_core.corpus.deduplicate import deduplicate
from tests.corpus.builds import corpus_of, new_build, nothing_dropped, rows
from tests.corpus.test_deduplicate import shingles
from tests.corpus.tiny_ledger import document

CONFIG = DeduplicateConfig()


def library(seed: int) -> list[str]:
    """Books, chapters of them with a few words changed, and essays that quote them, longest first."""
    generator = random.Random(seed)
    vocabulary = [f"w{n}" for n in range(5000)]
    texts = []
    for _ in range(6):
        book = generator.choices(vocabulary, k=generator.randint(2000, 5000))
        texts.append(book)
        for _ in range(6):
            start = generator.randrange(1500)
            chapter = book[start : start + generator.choice([60, 150, 400])]
            for _ in range(generator.randint(0, 4)):
                chapter[generator.randrange(len(chapter))] = generator.choice(vocabulary)
            texts.append(chapter)
        texts.append(book[:400] + generator.choices(vocabulary, k=generator.choice([20, 300])))
    return sorted((" ".join(words) for words in texts), key=len, reverse=True)


def brute_force(texts: list[str], config: DeduplicateConfig = CONFIG) -> dict[int, int]:
    """Copies among texts in the order of preference, by comparing all pairs."""
    sets = [shingles(text, config.shingle_tokens) for text in texts]
    kept: list[int] = []
    found = {}
    for row, own in enumerate(sets):
        reasons = []
        for other in kept:
            shared = len(own & sets[other])
            similarity, containment = shared / len(own | sets[other]), shared / len(own)
            if similarity >= config.threshold:
                reasons.append((2, similarity, -other))
            elif containment >= config.containment_threshold and len(own) >= config.min_contained_shingles:
                reasons.append((1, containment, -other))
        if reasons:
            found[row] = -max(reasons)[2]
        else:
            kept.append(row)
    return found


def search(texts: list[str], config: DeduplicateConfig = CONFIG) -> dict[int, int]:
    found = find_duplicates(TextsInMemory(pa.array(texts, pa.large_string())), np.arange(len(texts)), config)
    return {row: keeper for row, keeper in enumerate(found.keepers.tolist()) if keeper >= 0}


@pytest.mark.parametrize("seed", range(4))
def test_contained_texts_are_those_of_a_brute_force_search(seed):
    texts = library(seed)
    expected = brute_force(texts)
    assert search(texts) == expected
    assert 8 < len(expected) < len(texts) / 2
    assert len(search(texts, DeduplicateConfig(containment_threshold=None))) <= 1


def documents_of(texts: list[str]) -> list[dict]:
    return [document(f"key-{n}", text) for n, text in enumerate(texts)]


def run(root, documents, config=CONFIG, **options):
    build = new_build(root, "out", **options)
    statistics = deduplicate(build, config, corpus=corpus_of(root, documents), cleaning=nothing_dropped(root))
    return build.folder, statistics


def test_edges_tell_which_figure_justified_a_removal(tmp_path):
    documents = documents_of(library(1))
    folder, statistics = run(tmp_path, documents)
    edges, decisions = rows(folder, "edges.parquet"), {row["doc_id"]: row for row in rows(folder)}
    assert statistics["contained"] == len(edges) == len(decisions)
    text = {d["doc_id"]: shingles(d["text"], CONFIG.shingle_tokens) for d in documents}
    for edge in edges:
        decision, own, keeper = decisions[edge["doc_id"]], text[edge["doc_id"]], text[edge["keeper"]]
        assert (decision["reason"], decision["figure"]) == (edge["reason"], edge["containment"])
        assert edge["reason"] == "containment"
        assert edge["containment"] == pytest.approx(len(own & keeper) / len(own))
        assert edge["jaccard"] == pytest.approx(len(own & keeper) / len(own | keeper))


@pytest.mark.parametrize("seed", range(2))
def test_incremental_order_and_threads_change_nothing(tmp_path, seed):
    documents = documents_of(library(seed))
    generator = random.Random(seed)
    before = generator.sample(documents, len(documents) - 4)[2:]
    run(tmp_path / "earlier", before, workspace=tmp_path / "workspace")
    again, _ = run(tmp_path / "later", documents, workspace=tmp_path / "workspace", num_threads=3)
    full, _ = run(tmp_path / "full", generator.sample(documents, len(documents)))
    for name in ("decisions.parquet", "edges.parquet", "splits.parquet", "cuts.parquet"):
        assert (again / name).read_bytes() == (full / name).read_bytes()


def test_a_removal_is_undone_when_its_keeper_is_taken_down(tmp_path):
    texts = library(2)
    documents = documents_of(texts)
    folder, _ = run(tmp_path / "before", documents, workspace=tmp_path / "workspace")
    keeper = rows(folder, "edges.parquet")[0]["keeper"]
    copies = {row["doc_id"] for row in rows(folder, "edges.parquet") if row["keeper"] == keeper}
    left = [d for d in documents if d["doc_id"] != keeper]
    folder, _ = run(tmp_path / "after", left, workspace=tmp_path / "workspace")
    kept = {row["doc_id"] for row in rows(folder, "splits.parquet")}
    still_justified = {row["doc_id"]: row["keeper"] for row in rows(folder)}
    assert copies & kept
    assert all(doc_id in kept or still_justified[doc_id] in kept for doc_id in copies)
    fresh, _ = run(tmp_path / "fresh", left)
    assert (folder / "decisions.parquet").read_bytes() == (fresh / "decisions.parquet").read_bytes()


def test_a_form_that_hundreds_share_proposes_nothing():
    form = np.arange(40, dtype=np.uint64) << np.uint64(8)
    for owners, expected in ((100, 99), (200, 0)):
        values, members = np.repeat(form, owners), np.tile(np.arange(owners), len(form))
        found = proposals(Samples(values, members), np.arange(owners), 0.9)
        assert len(np.unique(found.pairs[:, 0])) == expected


def test_samples_of_a_long_text_are_its_distinct_shingles_that_end_in_zeros():
    generator = random.Random(4)
    texts = [" ".join(generator.choices([f"w{n}" for n in range(9000)], k=30_000)) for _ in range(3)]
    texts[1] += " " + texts[1]
    array = pa.array(texts, pa.large_string())
    found = sketch(array, shingle_tokens=5, num_bands=2, band_rows=2, min_sampled_shingles=100, most_kept=1 << 40)
    begins = np.cumsum([0, *found.num_kept])
    expected = [np.unique(own[own & np.uint64(15) == 0]) for own in np.split(found.shingles, begins[1:-1])]
    assert found.num_samples.tolist() == [len(own) for own in expected]
    assert found.num_samples.min() > 512  # sorted by radix
    assert found.samples.tolist() == np.concatenate(expected).tolist()
