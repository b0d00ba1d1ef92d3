"""Each quality rule drops the document made to break it and none of the good ones."""

import pytest

from lm_core.corpus.clean import clean
from lm_core.corpus.config import CleanConfig
from lm_core.corpus.language import language_of
from lm_core.corpus.rules import rules
from tests.corpus.builds import corpus_of, new_build, rows
from tests.corpus.tiny_ledger import document

GOOD = "The mill stands by the river, and its wheel has turned there for a hundred years without a single rest."
LINES = "\n".join(f"line number {n} says something of its own" for n in range(10))
BREAKING = {
    "too_few_words": "only four words here",
    "too_many_words": GOOD * 4,
    "broken_characters": GOOD + "\ufffd\ufffd",
    "long_words": "abcdefghijklmnopqrstuvwxyzabc " * 25,
    "few_alphabetic_words": "12 34 = 56 word " * 10,
    "symbols": "a # b # c # d # e # " * 5,
    "repeated_lines": LINES + "\nthe same line once more" * 20,
    "bullets": "\n".join(f"- entry {n} of a list" for n in range(20)),
    "ellipses": "\n".join(f"line number {n} of the text breaks off before its end..." for n in range(20)),
}


def decide(root, documents, **bounds):
    build = new_build(root, "out")
    statistics = clean(build, CleanConfig(**bounds), corpus=corpus_of(root, documents))
    return rows(build.folder), statistics, rows(build.folder, "signals.parquet")


@pytest.mark.parametrize("rule", BREAKING)
def test_a_rule_drops_what_breaks_it(tmp_path, rule):
    bounds = {"max_words": 60} if rule == "too_many_words" else {}
    good, bad = document("good", GOOD), document("bad", BREAKING[rule])
    decisions, statistics, signals = decide(tmp_path, [good, bad], **bounds)
    assert [(row["doc_id"], row["fate"], row["reason"]) for row in decisions] == [(bad["doc_id"], "quality", rule)]
    assert statistics == {"kept": 1, "dropped": 1, "reasons": {rule: 1}}
    assert [row["doc_id"] for row in signals] == [good["doc_id"], bad["doc_id"]]


def test_every_rule_has_a_document_that_breaks_it():
    assert {rule.name for rule in rules(CleanConfig())} == set(BREAKING)


def test_chinese_is_measured_in_characters(tmp_path):
    text = document("zh", "水车在河边转动了一百年，从来没有停过。磨坊的主人每天清晨都会去看它。")
    decisions, _, signals = decide(tmp_path, [text])
    assert not decisions
    assert signals[0]["language"] == "zh"
    assert signals[0]["num_words"] >= 30


def test_a_docstring_may_be_short(tmp_path):
    decisions, _, _ = decide(tmp_path, [document("d", "Return the wheel.") | {"kind": "docstring"}])
    assert not decisions


def test_languages_that_are_not_wanted_go(tmp_path):
    german = (
        "Die Mühle steht an dem Fluss, und das Rad dreht sich dort seit hundert Jahren, ohne ein einziges Mal zu ruhn."
    )
    de = document("de", german)
    decisions, _, _ = decide(tmp_path, [document("en", GOOD), de], languages=("en",))
    assert [(row["doc_id"], row["reason"]) for row in decisions] == [(de["doc_id"], "language")]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (GOOD, "en"),
        ("これは水車です。川のそばで回っています。", "ja"),
        ("Мельница стоит у реки уже сто лет.", "ru"),
        ("La roue tourne dans le moulin depuis cent ans et ne se repose pas.", "fr"),
        ("xyzzy 123", "und"),
        ("", "und"),
    ],
)
def test_language(text, language):
    assert language_of(text) == language


def test_an_empty_corpus_is_no_error(tmp_path):
    build = new_build(tmp_path, "out")
    assert clean(build, CleanConfig(), corpus=corpus_of(tmp_path, []))["kept"] == 0
    assert (build.folder / "signals.parquet").exists()
