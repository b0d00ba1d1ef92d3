"""Each quality rule drops the document made to break it and none of the good ones."""

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from lm_core.corpus.clean import clean
from lm_core.corpus.config import CleanConfig
from lm_core.corpus.language import language_of
from lm_core.corpus.rules import rules
from lm_core.corpus.signals import OWN_SIGNALS, signals_of
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
    assert statistics == {"kept": 1, "dropped": 1, "reasons": {rule: 1}, "redactions": {}}
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


# The definitions of the signals in plain SQL: the oracle of the compiled pass.
SQL = {
    "num_words": "len(words) + num_ideographs",
    "mean_word_length": "CASE WHEN num_ideographs > len(words) THEN 1.0 "
    "ELSE coalesce(list_avg(list_transform(words, lambda w: length(w))), 0) END",
    "alphabetic_fraction": "(len(list_filter(words, lambda w: regexp_matches(w, '\\pL'))) + num_ideographs) "
    "/ greatest(len(words) + num_ideographs, 1)",
    # A run of '#' counts once: "###" is one heading.
    "symbol_fraction": "(len(regexp_extract_all(text, '#+')) "
    "+ (length(text) - length(replace(text, '...', ''))) / 3 + length(text) - length(replace(text, '…', ''))) "
    "/ greatest(len(words) + num_ideographs, 1)",
    "duplicate_line_fraction": "1 - coalesce(list_sum(list_transform(list_distinct(lines), lambda l: length(l))), 0) "
    "/ greatest(coalesce(list_sum(list_transform(lines, lambda l: length(l))), 0), 1)",
    "replacement_fraction": "(length(text) - length(replace(text, chr(65533), ''))) / greatest(length(text), 1)",
    "bullet_fraction": "len(list_filter(lines, lambda l: l[1] IN ('-', '*', '•', '‣'))) / greatest(len(lines), 1)",
    "ellipsis_fraction": "len(list_filter(lines, lambda l: suffix(l, '...') OR suffix(l, '…'))) "
    "/ greatest(len(lines), 1)",
}

# Lines that count as repeated must be long enough not to be closing brackets or table rules.
LINES = "list_filter(list_transform(string_split(text, chr(10)), lambda l: trim(l)), lambda l: length(l) > 3)"
WORDS = "list_filter(regexp_split_to_array(text, '\\s+'), lambda w: w <> '')"
IDEOGRAPHS = "len(regexp_extract_all(text, '[\\x{0E00}-\\x{0EFF}\\x{3040}-\\x{30FF}\\x{3400}-\\x{9FFF}]'))"

PIECES = ("word", "12", "#", "###", "...", "....", "…", " ", "  ", "\n", "\n\n", "- item", "* item", "• ", "漢字",
          "ไทย", "\ufffd", "é", "ß", "\t", "line of text\n", "😀", "𠀀")  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
def test_signals_are_those_of_plain_sql(seed):
    generator = np.random.default_rng(seed)
    texts = ["", " ", *("".join(generator.choice(PIECES, generator.integers(1, 60))) for _ in range(400))]
    with duckdb.connect() as connection:
        connection.register("documents", pa.table({"number": range(len(texts)), "text": texts}))
        columns = ", ".join(f"({SQL[name]})::DOUBLE" for name in OWN_SIGNALS)
        query = f"""
            WITH parts AS (SELECT *, {WORDS} AS words, {LINES} AS lines, {IDEOGRAPHS} AS num_ideographs FROM documents)
            SELECT {columns} FROM parts ORDER BY number
        """
        expected = np.array(connection.execute(query).fetchall())
    languages = pa.array(["en"] * len(texts))
    found = signals_of(pa.array(texts, pa.large_string()), languages)
    for column, name in enumerate(OWN_SIGNALS):
        wrong = np.flatnonzero(~np.isclose(found[:, column], expected[:, column]))
        assert not len(wrong), (name, texts[wrong[0]], found[wrong[0], column], expected[wrong[0], column])


@pytest.mark.parametrize("settings", [{"languages": ("english",)}, {"bounds_by_language": {"deutsch": {}}}])
def test_a_language_that_no_text_is_found_to_be_in_is_refused(settings):
    with pytest.raises(ValueError, match="is no language"):
        CleanConfig(**settings)
    CleanConfig(languages=("en", "zh", "und"))
