"""Copies are found as a brute-force search finds them, whatever the order; every removal is justified."""

import random
import re

import numpy as np
import pyarrow as pa
import pytest

from lm_core.corpus import deduplicate as module
from lm_core.corpus.config import DeduplicateConfig
from lm_core.corpus.deduplicate import assign_splits, check_canaries, deduplicate, find_duplicates, split_of
from lm_core.errors import IntegrityError
from tests.corpus.builds import corpus_of, digest, new_build, nothing_dropped, rows, sample_documents
from tests.corpus.tiny_ledger import document

CONFIG = DeduplicateConfig()


def shingles(text: str, size: int) -> set[tuple[str, ...]]:
    """The definition, without hashes."""
    words = re.findall(r"[^\W_]+", text.lower())
    width = min(size, len(words))
    return {tuple(words[i : i + width]) for i in range(len(words) - width + 1)} if words else set()


def jaccard(a: str, b: str, size: int = CONFIG.shingle_tokens) -> float:
    x, y = shingles(a, size), shingles(b, size)
    return len(x & y) / len(x | y) if x and y else 0.0


def brute_force(texts: list[str], threshold: float) -> dict[int, tuple[int, float]]:
    """Near copies among distinct texts in the order of preference, by comparing all pairs."""
    kept: list[int] = []
    found = {}
    for row, text in enumerate(texts):
        scored = [(jaccard(text, texts[other]), -other) for other in kept]
        best, other = max(scored, default=(0.0, 0))
        if best >= threshold:
            found[row] = (-other, best)
        else:
            kept.append(row)
    return found


def planted(seed: int) -> list[str]:
    """Texts of all lengths and copies of them with one to thirty words changed, in random order."""
    generator = random.Random(seed)
    vocabulary = [f"w{n}" for n in range(3000)]
    originals = [generator.choices(vocabulary, k=generator.choice([3, 8, 40, 200, 800])) for _ in range(40)]
    texts = {" ".join(words): None for words in originals}
    for words in originals:
        for _ in range(4):
            copy = list(words)
            for _ in range(generator.randint(1, 30)):
                copy[generator.randrange(len(copy))] = generator.choice(vocabulary)
            texts[" ".join(copy)] = None
    found = list(texts)
    generator.shuffle(found)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_near_copies_are_those_of_a_brute_force_search(seed):
    texts = planted(seed)
    found = find_duplicates(pa.array(texts, pa.large_string()), range(len(texts)), CONFIG)
    expected = brute_force(texts, CONFIG.threshold)
    assert not found.exact
    assert {row: keeper for row, (keeper, _) in found.near.items()} == {r: k for r, (k, _) in expected.items()}
    assert np.allclose([found.near[row][1] for row in expected], [expected[row][1] for row in expected])
    assert len(expected) > 10


def test_chinese_copies_are_found_character_by_character():
    generator = random.Random(1)
    text = "".join(chr(generator.randrange(0x4E00, 0x9000)) for _ in range(300))
    texts = [text, text[:-2] + "完了", text[::-1]]
    found = find_duplicates(pa.array(texts, pa.large_string()), range(3), CONFIG)
    assert list(found.near) == [1]


def run(root, documents, config=CONFIG, **options):
    build = new_build(root, "out", **options)
    statistics = deduplicate(build, config, corpus=corpus_of(root, documents), cleaning=nothing_dropped(root))
    return build.folder, statistics


def test_the_result_depends_neither_on_order_nor_on_threads(tmp_path):
    documents = sample_documents()
    first, _ = run(tmp_path / "a", documents)
    shuffled = random.Random(5).sample(documents, len(documents))
    second, _ = run(tmp_path / "b", shuffled, num_threads=4)
    for name in ("decisions.parquet", "edges.parquet", "splits.parquet"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_every_removal_is_justified_by_a_kept_document(tmp_path):
    documents = sample_documents()
    folder, statistics = run(tmp_path, documents)
    text = {d["doc_id"]: d["text"] for d in documents}
    dropped, kept = rows(folder), {row["doc_id"] for row in rows(folder, "splits.parquet")}
    assert statistics["dropped"] == len(dropped) == len(documents) - len(kept)
    assert statistics["exact_duplicates"] and statistics["near_duplicates"]
    for row in dropped:
        assert row["keeper"] in kept
        assert row["figure"] == pytest.approx(jaccard(text[row["doc_id"]], text[row["keeper"]]))
        assert row["figure"] >= CONFIG.threshold


def test_a_preferred_source_keeps_its_copy(tmp_path):
    words = [f"word{n}" for n in range(60)]
    own = document("own", " ".join(words), source="own")
    longer = document("longer", " ".join([*words, "more"]), source="other")
    folder, _ = run(tmp_path / "a", [own, longer])
    assert [row["doc_id"] for row in rows(folder)] == [own["doc_id"]]
    folder, _ = run(tmp_path / "b", [own, longer], DeduplicateConfig(prefer_sources=("own",)))
    assert [row["doc_id"] for row in rows(folder)] == [longer["doc_id"]]


def test_a_source_that_would_be_wiped_out_stops_the_run(tmp_path):
    copies = [document(f"key-{n}", "one text for all of them, word for word the same") for n in range(120)]
    with pytest.raises(IntegrityError, match="max_source_loss_fraction"):
        run(tmp_path, copies)


def test_canaries_notice_a_broken_search(monkeypatch):
    check_canaries(CONFIG)
    broken = module.greedy_pass

    def blind(*arguments, **options):
        return broken(*arguments, **(options | {"threshold": 2.0}))

    monkeypatch.setattr(module, "greedy_pass", blind)
    with pytest.raises(IntegrityError, match="canaries"):
        check_canaries(CONFIG)


def test_similar_documents_share_a_split_and_others_never_move():
    names = [f"{n:032x}" for n in range(400)]
    related = [(names[n], names[n + 1]) for n in range(0, 400, 2)]
    splits = {row["doc_id"]: row for row in assign_splits(names, related, CONFIG)}
    assert all(splits[a]["split"] == splits[b]["split"] and splits[a]["cluster"] == a for a, b in related)
    assert {row["split"] for row in splits.values()} == {"train", "validation", "test"}
    fewer = assign_splits(names[:100], related[:50], CONFIG)
    assert fewer == [splits[name] for name in names[:100]]


def test_a_tiny_corpus_has_something_to_train_on():
    held_out = next(name for n in range(1000) if split_of(name := f"{n:032x}", CONFIG) != "train")
    assert [row["split"] for row in assign_splits([held_out], [], CONFIG)] == ["train"]


def test_an_empty_corpus_is_no_error(tmp_path):
    folder, statistics = run(tmp_path, [])
    assert statistics["kept"] == statistics["dropped"] == 0
    assert digest(folder, "decisions.parquet") == digest(folder, "edges.parquet")


def test_documents_without_a_word_are_not_copies_of_each_other(tmp_path):
    _, statistics = run(tmp_path, [document("a", "?!"), document("b", "***"), document("c", "...")])
    assert statistics["dropped"] == 0
