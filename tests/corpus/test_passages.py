"""What repeats across documents is cut where the text is read for learning, and nothing else is."""

import random
from collections import defaultdict

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_contracts.schemas import REDACTIONS
from lm_core.corpus.config import DeduplicateConfig
from lm_core.corpus.dedup import passages
from lm_core.corpus.deduplicate import deduplicate
from lm_core.corpus.ledger import register_redactions
from lm_core.corpus.privacy import Redaction, redacted
from tests.corpus.builds import corpus_of, new_build, nothing_dropped, rows
from tests.corpus.tiny_ledger import document

FOOTER = "This page was made by the generator of pages, version seven."
NOTICE = "\n".join(f"The notice goes on for a while, and this is line {n} of it, about nothing." for n in range(4))
LONG = "A single line of great length, " * 8 + "and here it ends."


def own_text(generator: random.Random, lines: int = 12) -> str:
    return "\n".join(" ".join(generator.choices([f"mot{n}ß" for n in range(500)], k=9)) for _ in range(lines))


def pages(number: int, source: str = "pages") -> list[dict]:
    """Pages with a footer and a text of their own; the first five have a notice and a long line besides."""
    generator = random.Random(number)
    found = []
    for n in range(number):
        shared = (["", NOTICE, ""], [LONG]) if n < 5 else ([], [])
        lines = [own_text(generator), *shared[0], own_text(generator), *shared[1], FOOTER]
        found.append(document(f"page-{n}", "\n".join(lines), source))
    return found


def cut(root, documents, **options) -> tuple[dict[str, str], list[dict], dict]:
    """The texts as they will be read, the places that were cut, and the statistics."""
    build = new_build(root, "out")
    config = DeduplicateConfig(**options)
    statistics = deduplicate(build, config, corpus=corpus_of(root, documents), cleaning=nothing_dropped(root))
    places = rows(build.folder, "cuts.parquet")
    of = defaultdict(list)
    for row in places:
        of[row["doc_id"]].append(Redaction(row["kind"], row["start"], row["length"]))
    return {d["key"]: redacted(d["text"], of[d["doc_id"]]) for d in documents}, places, statistics


def test_boilerplate_goes_from_all_and_a_passage_stays_in_one(tmp_path):
    texts, _, statistics = cut(tmp_path, pages(30))
    assert not any(FOOTER in text for text in texts.values())
    assert sum(NOTICE in text for text in texts.values()) == 1
    assert sum(LONG in text for text in texts.values()) == 1
    assert statistics["dropped"] == 0
    assert set(statistics["cuts"]) == {"boilerplate", "repeated"}
    originals = {d["key"]: d["text"] for d in pages(30)}
    for key, text in texts.items():
        own = [line for line in originals[key].split("\n") if line.startswith("mot")]
        assert [line for line in text.split("\n") if line.startswith("mot")] == own


def test_few_documents_make_no_boilerplate(tmp_path):
    texts, _, _ = cut(tmp_path, pages(19))
    assert all(FOOTER in text for text in texts.values())


def test_a_line_is_boilerplate_within_its_source_alone(tmp_path):
    texts = [own_text(random.Random(-n)) + "\n" + FOOTER * (n < 3) for n in range(60)]
    others = [document(f"other-{n}", text, "others") for n, text in enumerate(texts)]
    texts, _, _ = cut(tmp_path, pages(30) + others)
    assert sum(FOOTER in text for text in texts.values()) == 3


def test_it_can_be_turned_off(tmp_path):
    texts, places, _ = cut(tmp_path / "a", pages(30), boilerplate_fraction=None)
    assert all(FOOTER in text for text in texts.values()) and {row["kind"] for row in places} == {"repeated"}
    texts, places, _ = cut(tmp_path / "b", pages(30), max_passage_documents=None)
    assert sum(NOTICE in text for text in texts.values()) == 5 and {row["kind"] for row in places} == {"boilerplate"}


def test_a_refrain_stays_in_its_poem_and_short_pages_keep_most_of_their_text(tmp_path):
    generator = random.Random(3)
    refrain = "and the wheel goes round, and the wheel goes round again"
    poem = document("poem", "\n\n".join(f"{own_text(generator, 3)}\n{refrain}" for _ in range(20)), "poems")
    form = "A form of which nearly all of a page consists, so that the page would lose its text"
    stubs = [document(f"stub-{n}", f"{form}\nnumber {n * 7919} of its kind {n}", "stubs") for n in range(40)]
    texts, places, _ = cut(tmp_path, [poem, *stubs], threshold=1.0, cluster_threshold=1.0)
    assert texts["poem"] == poem["text"]
    assert not places


def expected_passages(documents: list[dict], least: int, most: int) -> set[tuple[str, str]]:
    """(doc_id, passage) to cut, by the definition; documents in the order of preference."""
    owners = defaultdict(list)
    for d in documents:
        blocks = [[]]
        for line in d["text"].split("\n"):
            if line.strip(" "):
                blocks[-1].append(line.strip(" "))
            else:
                blocks.append([])
        units = {line for block in blocks for line in block if len(line) >= least}
        units |= {"\n".join(block) for block in blocks if len(block) > 1 and sum(map(len, block)) >= least}
        for unit in units:
            owners[unit].append(d["doc_id"])
    return {(doc_id, unit) for unit, ids in owners.items() if len(ids) > most for doc_id in ids[1:]}


@pytest.mark.parametrize("seed", range(3))
def test_passages_are_those_of_the_definition(tmp_path, seed):
    generator = random.Random(seed)
    common = [own_text(generator, generator.randint(1, 4)) for _ in range(12)]
    documents = []
    for n in range(40):
        parts = [own_text(generator, 8), *generator.sample(common, generator.randint(0, 3)), own_text(generator, 8)]
        documents.append(document(f"key-{n}", "\n\n".join(parts)))
    documents.sort(key=lambda d: (-d["num_bytes"], d["doc_id"]))
    _, places, _ = cut(tmp_path, documents, min_passage_characters=50, boilerplate_fraction=None)
    text = {d["doc_id"]: d["text"] for d in documents}
    # Lines that are cut beside each other are one place; both sides are compared as lines.
    passages = [(row["doc_id"], text[row["doc_id"]][row["start"] : row["start"] + row["length"]]) for row in places]
    found = {(doc_id, line) for doc_id, passage in passages for line in passage.split("\n") if line}
    expected = expected_passages(documents, 50, 2)
    assert found == {(doc_id, line) for doc_id, unit in expected for line in unit.split("\n")}
    assert len(expected) > 10


def test_a_cut_covers_what_lies_within_and_gives_way_to_what_it_touches(tmp_path):
    def write(folder, name, *places):
        (tmp_path / folder).mkdir()
        table = [dict(zip(REDACTIONS.names, place, strict=True)) for place in places]
        pq.write_table(pa.Table.from_pylist(table, REDACTIONS), tmp_path / folder / name)

    write("clean", "redactions.parquet", ("a", "email", 5, 3), ("a", "key", 40, 20), ("b", "ip", 5, 9))
    write("copies", "cuts.parquet", ("a", "boilerplate", 0, 20), ("a", "boilerplate", 50, 30), ("a", "repeated", 90, 5))
    with duckdb.connect() as connection:
        register_redactions(connection, tmp_path / "clean", tmp_path / "copies")
        found = connection.execute("SELECT * FROM redactions ORDER BY ALL").fetchall()
    assert found == [("a", "boilerplate", 0, 20), ("a", "key", 40, 20), ("a", "repeated", 90, 5), ("b", "ip", 5, 9)]


def test_what_was_read_before_is_not_read_again_and_changes_nothing(tmp_path, monkeypatch):
    documents = pages(40) + pages(25, "others")
    read = []
    units = passages._units
    monkeypatch.setattr(passages, "_units", lambda *args: read.append(len(args[5])) or units(*args))

    def run(name: str, own: list[dict], workspace: str) -> bytes:
        build = new_build(tmp_path / name, "out", workspace=tmp_path / workspace)
        root = tmp_path / name
        deduplicate(build, DeduplicateConfig(), corpus=corpus_of(root, own), cleaning=nothing_dropped(root))
        return (build.folder / "cuts.parquet").read_bytes()

    run("first", documents[:30], "kept")
    run("second", documents[10:63], "kept")
    read.clear()
    third = run("third", documents, "kept")
    assert sum(read) == 2
    assert third == run("full", documents, "another")
    for path in (tmp_path / "kept" / "cache" / "passages").rglob("hashes.bin"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    assert third == run("damaged", documents, "kept")
