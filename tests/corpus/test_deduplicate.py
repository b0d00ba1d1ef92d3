"""Copies are found as a brute-force search finds them, whatever the order; every removal is justified."""

import random
import re

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from lm_core.corpus.config import DeduplicateConfig
from lm_core.corpus.dedup import search as module
from lm_core.corpus.dedup import sketching
from lm_core.corpus.dedup.clusters import SPLITS, TRAIN, clusters_of, splits_of
from lm_core.corpus.dedup.greedy import Bounds
from lm_core.corpus.dedup.index import identities
from lm_core.corpus.dedup.means import Means
from lm_core.corpus.dedup.search import find_duplicates
from lm_core.corpus.dedup.shingles import shingle_sets
from lm_core.corpus.dedup.texts import TextsInMemory
from lm_core.corpus.deduplicate import check_canaries, deduplicate
from lm_core.errors import IntegrityError, UserError
from tests.corpus.builds import corpus_of, digest, new_build, nothing_dropped, rows, sample_documents
from tests.corpus.tiny_ledger import document, hex_id

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


def search(texts: list[str], config=CONFIG, **options):
    array = pa.array(texts, pa.large_string())
    return find_duplicates(TextsInMemory(array), np.arange(len(texts)), config, **options)


def dropped_by(found) -> dict[int, int]:
    return {row: keeper for row, keeper in enumerate(found.keepers.tolist()) if keeper >= 0}


@pytest.mark.parametrize("seed", range(3))
def test_near_copies_are_those_of_a_brute_force_search(seed):
    texts = planted(seed)
    found = search(texts)
    expected = brute_force(texts, CONFIG.threshold)
    assert not found.exact.any()
    assert dropped_by(found) == {row: keeper for row, (keeper, _) in expected.items()}
    assert np.allclose(found.figures[list(expected), 0], [score for _, score in expected.values()])
    assert len(expected) > 10


SQL = """
WITH tokens AS (SELECT row, regexp_extract_all(lower(text), '[\\pL\\pN\\pM]+') AS words FROM texts),
shingles AS (
    SELECT DISTINCT row, array_to_string(words[place : place + least({size}, len(words)) - 1], ' ') AS shingle
    FROM tokens, unnest(range(1, greatest(len(words) - {size} + 1, 1) + 1)) AS places(place) WHERE len(words) > 0
),
sizes AS (SELECT row, count(*) AS size FROM shingles GROUP BY row),
shared AS (
    SELECT a.row AS row, b.row AS other, count(*) AS shared
    FROM shingles AS a JOIN shingles AS b USING (shingle) WHERE b.row < a.row GROUP BY ALL
)
SELECT row, other, shared / (a.size + b.size - shared) AS jaccard
FROM shared JOIN sizes AS a USING (row) JOIN sizes AS b ON b.row = other WHERE jaccard >= {threshold}
ORDER BY row, jaccard DESC, other
"""


def test_plain_sql_over_all_pairs_finds_the_same():
    texts = planted(7)
    table = pa.table({"row": range(len(texts)), "text": texts})
    with duckdb.connect() as connection:
        connection.register("texts", table)
        query = SQL.format(size=CONFIG.shingle_tokens, threshold=CONFIG.threshold)
        pairs = connection.execute(query).fetchall()
    keepers: dict[int, int] = {}
    for row, other, _ in pairs:
        if other not in keepers:
            keepers.setdefault(row, other)
    # A row is compared with kept ones alone: whether `other` is kept was decided before, as it comes earlier.
    assert dropped_by(search(texts)) == keepers


def test_chinese_copies_are_found_character_by_character():
    generator = random.Random(1)
    text = "".join(chr(generator.randrange(0x4E00, 0x9000)) for _ in range(300))
    assert dropped_by(search([text, text[:-2] + "完了", text[::-1]])) == {1: 0}


def test_what_does_not_fit_into_memory_lies_in_files(tmp_path):
    texts = planted(0)
    found = search(texts, means=Means(num_threads=2, folder=tmp_path, memory_bytes=8))
    names = {path.stem for path in tmp_path.iterdir()}
    assert names == {"keys", "shingles", "keys-compared", "groups", "links"}
    assert dropped_by(found) == dropped_by(search(texts))


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
    with pytest.raises(UserError, match=r"prefer_sources names owl.*did you mean own"):
        run(tmp_path / "c", [own, longer], DeduplicateConfig(prefer_sources=("own", "owl")))


def test_a_source_that_would_be_wiped_out_stops_the_run(tmp_path):
    copies = [document(f"key-{n}", "one text for all of them, word for word the same") for n in range(120)]
    with pytest.raises(IntegrityError, match="max_source_loss_fraction") as alarm:
        run(tmp_path, copies)
    assert re.search(r"\n  119 copies of pages/key-\d+ \([0-9a-f]{8}\), such as pages/key-\d+", str(alarm.value))


def test_the_alarm_shows_the_ten_largest_clusters(tmp_path):
    clusters = [document(f"{n}-{copy}", f"text number {n} " * 30) for n in range(13) for copy in range(25 + n)]
    with pytest.raises(IntegrityError) as alarm:
        run(tmp_path, clusters)
    counts = [int(line.split()[0]) for line in str(alarm.value).splitlines()[1:]]
    assert counts == [36 - n for n in range(10)]


def test_canaries_notice_a_broken_search(monkeypatch):
    check_canaries(CONFIG)
    broken = module.greedy_pass

    def blind(*arguments, **options):
        return broken(*arguments, **(options | {"bounds": Bounds(2.0, 2.0)}))

    monkeypatch.setattr(module, "greedy_pass", blind)
    with pytest.raises(IntegrityError, match="canaries"):
        check_canaries(CONFIG)


def test_similar_documents_share_a_split_and_others_never_move():
    names = identities(pa.array([f"{n * 7919 % 400:032x}" for n in range(400)]))
    related = np.arange(400).reshape(200, 2)
    clusters = clusters_of(names, related)
    assert all(clusters[a] == clusters[b] == min(a, b, key=lambda row: tuple(names[row])) for a, b in related)
    splits = splits_of(names[clusters], CONFIG)
    assert set(splits.tolist()) == set(range(len(SPLITS)))
    fewer = splits_of(names[clusters_of(names[:100], related[:50])], CONFIG)
    assert fewer.tolist() == splits[:100].tolist()


def test_a_tiny_corpus_has_something_to_train_on():
    names = identities(pa.array([f"{n:032x}" for n in range(1000)]))
    held_out = np.flatnonzero(splits_of(names, CONFIG) != TRAIN)[:1]
    assert splits_of(names[held_out], CONFIG).tolist() == [TRAIN]


def test_a_corpus_of_a_few_documents_has_all_three_splits():
    generator = np.random.default_rng(0)
    for count in range(2, 12):
        names = generator.integers(0, 2**63, (count, 2), dtype=np.uint64)
        splits = splits_of(names, CONFIG)
        assert TRAIN in splits
        assert len(set(splits.tolist())) == min(count, 3)
        order = generator.permutation(count)
        assert splits_of(names[order], CONFIG).tolist() == splits[order].tolist()


def test_held_out_splits_have_their_share():
    names = identities(pa.array([hex_id(str(n)) for n in range(4000)]))
    share = np.unique(splits_of(names, CONFIG), return_counts=True)[1] / len(names)
    assert np.allclose(share, [0.9, 0.05, 0.05], atol=0.015)


@pytest.mark.parametrize("seed", range(3))
def test_an_incremental_run_equals_a_full_one_and_reads_little(tmp_path, monkeypatch, seed):
    texts = planted(seed)
    documents = [document(f"key-{n}", text) for n, text in enumerate(texts)]
    generator = random.Random(seed)
    before = generator.sample(documents, len(documents) - 5)
    del before[:3]  # some documents came, some are gone
    run(tmp_path / "earlier", before, workspace=tmp_path / "workspace")
    shingled = []
    monkeypatch.setattr(sketching, "shingle_sets", lambda *args: shingled.append(len(args[-1])) or shingle_sets(*args))
    again, _ = run(tmp_path / "later", documents, workspace=tmp_path / "workspace")
    assert sum(shingled) < len(documents) / 2
    full, _ = run(tmp_path / "full", documents)
    for name in ("decisions.parquet", "edges.parquet", "splits.parquet"):
        assert (again / name).read_bytes() == (full / name).read_bytes()


def test_a_damaged_index_is_rebuilt(tmp_path):
    documents = sample_documents()
    full, _ = run(tmp_path / "a", documents, workspace=tmp_path / "workspace")
    for path in (tmp_path / "workspace" / "cache" / "band-index").rglob("keys.bin"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    again, _ = run(tmp_path / "b", documents, workspace=tmp_path / "workspace")
    assert (again / "decisions.parquet").read_bytes() == (full / "decisions.parquet").read_bytes()


def test_damaged_shingles_are_read_from_the_text_instead(tmp_path):
    words = [" ".join(f"w{n * k * k % 4001}" for k in range(120)) for n in range(1, 61)]
    documents = [document(f"key-{n}", text) for n, text in enumerate(words)]
    copies = [document(f"copy-{n}", f"{text} changed") for n, text in enumerate(words[:3])]
    run(tmp_path / "a", documents, workspace=tmp_path / "workspace")
    (path,) = (tmp_path / "workspace" / "cache" / "band-index").rglob("shingles.bin")
    path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))
    again, statistics = run(tmp_path / "b", documents + copies, workspace=tmp_path / "workspace")
    assert statistics["near_duplicates"] == len(copies)
    full, _ = run(tmp_path / "c", documents + copies, workspace=tmp_path / "other")
    assert (again / "edges.parquet").read_bytes() == (full / "edges.parquet").read_bytes()


def test_an_empty_corpus_is_no_error(tmp_path):
    folder, statistics = run(tmp_path, [])
    assert statistics["kept"] == statistics["dropped"] == 0
    assert digest(folder, "decisions.parquet") == digest(folder, "edges.parquet")


def test_documents_without_a_word_are_not_copies_of_each_other(tmp_path):
    _, statistics = run(tmp_path, [document("a", "?!"), document("b", "***"), document("c", "...")])
    assert statistics["dropped"] == 0
