"""Published rules: golden documents pin what each means, a plain reading of the papers pins every signal."""

import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from lm_core.corpus import clean as module
from lm_core.corpus.clean import clean
from lm_core.corpus.config import CleanConfig
from lm_core.corpus.language import language_of, languages_of
from lm_core.corpus.published_signals import PUBLISHED_SIGNALS
from lm_core.corpus.rules import PUBLISHED, rules
from lm_core.corpus.signals import signals_of
from lm_core.corpus.stop_words import STOP_WORDS
from tests.corpus.builds import corpus_of, new_build, rows
from tests.corpus.tiny_ledger import document

WORDS = [
    "mill", "river", "wheel", "stone", "grain", "flour", "bridge", "miller", "water", "morning", "evening", "winter",
    "summer", "harvest", "village", "market", "donkey", "basket", "window", "garden", "kitchen", "ladder", "barrel",
    "hammer", "carpenter", "the", "of", "and", "with", "that", "have", "to", "be",
]  # fmt: skip


def sentences(number: int, seed: int = 0) -> str:
    """Sentences of fifteen words on lines of their own, to which no rule objects."""
    generator = np.random.default_rng(seed)
    return "\n".join(" ".join(["The", *generator.permutation(WORDS)[:14]]) + "." for _ in range(number))


GOOD = sentences(8)
BREAKING = {
    "gopher_few_words": sentences(2),
    "gopher_many_words": sentences(20),
    "gopher_short_words": "I am to be in it as he is of us, and to go by. " * 4,
    "gopher_long_words": " ".join(w + "otherwise" * (2 if n % 3 else 0) for n, w in enumerate(GOOD.split())),
    "gopher_hashes": GOOD + " ######" * 4,
    "gopher_ellipses": GOOD + " ..." * 20,
    "gopher_bullets": "\n".join("- " + line for line in GOOD.split("\n")),
    "gopher_ellipsis_lines": GOOD.replace(".", "..."),
    "gopher_alphabetic_words": GOOD + " 1" * 50,
    "gopher_stop_words": " ".join(np.random.default_rng(1).choice(WORDS[:25], 60)),
    "gopher_duplicate_lines": GOOD + ("\nOh." * 6),
    "gopher_duplicate_line_characters": GOOD + "\n" + "\n".join(GOOD.split("\n")[:3]),
    "gopher_duplicate_paragraphs": GOOD.replace("\n", "\n\n") + "\n\nOh." * 6,
    "gopher_duplicate_paragraph_characters": GOOD.replace("\n", "\n\n") + "\n\n" + "\n\n".join(GOOD.split("\n")[:3]),
    "gopher_top_2_gram": GOOD + " wheel river." * 30,
    "gopher_top_3_gram": GOOD + " the wheel river" * 30,
    "gopher_top_4_gram": GOOD + " over wheel under river" * 30,
    "c4_few_sentences": sentences(4) + "\nA last line without an end",
    "c4_curly_brackets": GOOD + " {}",
    "c4_lorem_ipsum": GOOD + " Lorem Ipsum dolor.",
    "fineweb_language": "def f(x): return x",
    "fineweb_unpunctuated_lines": GOOD.replace(".", ""),
    "fineweb_short_lines": GOOD + "".join(f"\nShort line {n}." for n in range(20)),
    "fineweb_duplicate_line_characters": GOOD + "\n" + GOOD.split("\n")[0],
    "fineweb_newlines": GOOD.replace(" ", "\n", 60),
}
MOVED = {"gopher_many_words": {"gopher_many_words": 200}}


def judged(root, texts: dict[str, str], config: CleanConfig) -> dict[str, str]:
    """The first rule that each text breaks."""
    documents = {name: document(name, text) for name, text in texts.items()}
    build = new_build(root, "out")
    clean(build, config, corpus=corpus_of(root, list(documents.values())))
    names = {d["doc_id"]: name for name, d in documents.items()}
    return {names[row["doc_id"]]: row["reason"] for row in rows(build.folder)}


def broken(text: str, config: CleanConfig, name: str) -> dict[str, float]:
    """Signals of the rules of a set that a text breaks, by an SQL of one rule."""
    import duckdb

    texts = pa.array([text], pa.large_string())
    languages, confidence = languages_of(texts)
    values = signals_of(texts, languages)
    columns = [pa.array(["text"]), languages, *values.T, confidence]
    table = pa.table(columns, names=["kind", "language", *module.SIGNALS, "language_confidence"])
    with duckdb.connect() as connection:
        connection.register("signals", table)
        return {
            rule.name: connection.execute(f"SELECT {rule.signal} FROM signals").fetchall()[0][0]
            for rule in PUBLISHED[name]
            if connection.execute(f"SELECT {rule.condition(config)} FROM signals").fetchall()[0][0]
        }


SETS = {rule.name: name for name, own in PUBLISHED.items() for rule in own}


def test_every_published_rule_has_a_golden_document():
    assert {*BREAKING, *(f"gopher_duplicate_{size}_grams" for size in range(5, 11))} == set(SETS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_good_document_breaks_no_rule(name):
    assert broken(GOOD, CleanConfig(published=(name,)), name) == {}


@pytest.mark.parametrize("rule", BREAKING)
def test_a_published_rule_is_broken_by_its_golden_document(rule):
    config = CleanConfig(published=(SETS[rule],), bounds=MOVED.get(rule, {}))
    assert rule in broken(BREAKING[rule], config, SETS[rule])


@pytest.mark.parametrize("size", range(5, 11))
def test_n_grams_count_from_their_size_on(size):
    repeated = " ".join(sentences(1, 9).split()[:size])
    text = f"{GOOD}\n{repeated} between {repeated}"
    values, before = (dict(zip(PUBLISHED_SIGNALS, signals(t)[0], strict=True)) for t in (text, GOOD))
    share = len(repeated.replace(" ", "")) / sum(map(len, text.split()))
    assert before[f"duplicate_{size}_grams"] == 0
    assert values[f"duplicate_{size}_grams"] == pytest.approx(share)
    rule = f"gopher_duplicate_{size}_grams"
    bounds = {rule: share - 0.01}
    assert rule in broken(text, CleanConfig(published=("gopher_repetition",), bounds=bounds), "gopher_repetition")


def signals(*texts: str, language: str = "en") -> np.ndarray:
    array = pa.array(list(texts), pa.large_string())
    return signals_of(array, pa.array([language] * len(texts)))[:, -len(PUBLISHED_SIGNALS) :]


IDEOGRAPH = "[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]"


def words_of(text: str) -> list[str]:
    return re.findall(f"{IDEOGRAPH}|[^ \t\n\f\r\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]+", text)


def top(words: list[str], size: int) -> float:
    grams = Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))
    most = max(grams.values(), default=0)
    longest = max((sum(map(len, gram)) for gram, count in grams.items() if count == most), default=0)
    return min(most * longest / max(sum(map(len, words)), 1), 1.0) if most > 1 else 0.0


def duplicates(words: list[str], size: int) -> float:
    seen, covered = set(), set()
    for i in range(len(words) - size + 1):
        gram = tuple(words[i : i + size])
        if gram in seen:
            covered |= set(range(i, i + size))
        seen.add(gram)
    return sum(len(words[i]) for i in covered) / max(sum(map(len, words)), 1)


def again(parts: list[str]) -> tuple[float, int]:
    """Share of the parts that stood before, and their characters."""
    before = [part for number, part in enumerate(parts) if part in parts[:number]]
    return len(before) / max(len(parts), 1), sum(len(part.replace("\n", "")) for part in before)


def reference(text: str, language: str = "en") -> dict[str, float]:
    """The signals by a plain reading of their definitions."""
    lines = [line.strip(" ") for line in text.split("\n")]
    paragraphs = [p.strip("\n") for p in re.split("\n\n+", "\n".join(lines)) if p.strip("\n")]
    lines = [line for line in lines if line]
    num_words = max(len(re.findall(r"[^ \t\n\f\r]+", text)) + len(re.findall(IDEOGRAPH, text)), 1)
    characters = max(sum(map(len, lines)), 1)
    share, repeated = again(lines)
    paragraph_share, paragraph_repeated = again(paragraphs)
    closing = "[\"'”’»」』)）\\]]"
    ended = [line for line in lines if re.search(f"[.!?。！？]{closing}*$", line) and not line.endswith("...")]
    ended = [li for li in ended if len(re.findall(r"[^ \t\f\r]+", li)) + len(re.findall(IDEOGRAPH, li)) >= 3]
    runs = [
        m for line in ended for m in re.finditer(f"[.!?。！？](?:[.!?。！？]|{closing})*(?:(?=[ \t\f\r])|$|())", line)
    ]
    ends = [m for m in runs if m.group(1) is None or re.findall("[.!?。！？]", m.group())[-1] in "。！？"]
    tokens = re.findall(r"[^\W_]+", re.sub(IDEOGRAPH, " ", text.lower()))
    words = words_of(text)
    return {
        "hashes_per_word": text.count("#") / num_words,
        "ellipses_per_word": (text.count("...") + text.count("…")) / num_words,
        "num_stop_words": len(set(tokens) & set(STOP_WORDS[language].split())),
        "num_sentences": len(ends),
        "curly_brackets": text.count("{"),
        "lorem_ipsum": float("lorem ipsum" in text.lower()),
        "punctuated_line_fraction": sum(bool(re.search(f"[.!?。！？…]$|{closing}$", li)) for li in lines)
        / max(len(lines), 1),
        "short_line_fraction": sum(len(line) <= 30 for line in lines) / max(len(lines), 1),
        "newlines_per_word": text.count("\n") / num_words,
        "duplicate_lines": share,
        "duplicate_line_characters": repeated / characters,
        "duplicate_paragraphs": paragraph_share,
        "duplicate_paragraph_characters": paragraph_repeated / characters,
        **{f"top_{n}_gram": top(words, n) for n in (2, 3, 4)},
        **{f"duplicate_{n}_grams": duplicates(words, n) for n in range(5, 11)},
    }


PIECES = ("word", "the", "of", "12", "#", "###", "...", "…", " ", " ", " ", "\n", "\n\n", ".", "!", "? ", ". ",
          '"', "{", "漢字", "。", "Lorem ipsum", "é", "line of text\n", "end of the line.\n", "😀", "ไทย")  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_signals_are_those_of_a_plain_reading(seed):
    generator = np.random.default_rng(seed)
    texts = ["", " ", GOOD, *("".join(generator.choice(PIECES, generator.integers(1, 80))) for _ in range(300))]
    texts = ["\n".join(line.rstrip() for line in text.split("\n")).strip("\n") for text in texts]
    found = signals(*texts)
    for text, values in zip(texts, found, strict=True):
        expected = reference(text)
        wrong = {n: (v, expected[n]) for n, v in zip(PUBLISHED_SIGNALS, values, strict=True)
                 if not np.isclose(v, expected[n])}  # fmt: skip
        assert not wrong, repr(text)


def test_a_language_without_a_list_is_not_judged_by_stop_words():
    assert np.isnan(signals("mill wheel", language="fi")[0, PUBLISHED_SIGNALS.index("num_stop_words")])
    finnish = (
        "Mylly seisoo joen rannalla ja sen ratas on pyörinyt siellä sata vuotta ilman ainoatakaan lepohetkeä. " * 9
    )
    assert language_of(finnish) == "fi"
    assert "gopher_stop_words" not in broken(finnish, CleanConfig(published=("gopher",)), "gopher")


def test_bounds_can_be_moved_for_a_language(tmp_path):
    chinese = "水车在河边转动了一百年，从来没有停过。磨坊的主人每天清晨都会去看它。" * 2
    config = CleanConfig(published=("gopher",), bounds_by_language={"zh": {"gopher_few_words": 500}})
    found = judged(tmp_path, {"zh": chinese, "en": GOOD}, config)
    assert found == {"zh": "gopher_few_words"}


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"gopher_few_word": 3}, "gopher_few_words"),
        ({"c4_few_sentences": 3}, "no rule"),
        ({"bullets": float("nan")}, ""),
    ],
)
def test_a_bound_without_effect_is_refused(bounds, words):
    with pytest.raises(ValidationError, match=words):
        CleanConfig(published=("gopher",), bounds=bounds)


def test_names_are_unique_and_signals_exist():
    every = rules(CleanConfig(published=tuple(PUBLISHED)))
    assert len({rule.name for rule in every}) == len(every)
    assert {rule.signal for rule in every} <= {*module.SIGNALS, "language_confidence"}
    assert all(rule.source for rule in every)


def test_other_bounds_read_no_text(tmp_path, monkeypatch):
    documents = [document("good", GOOD), document("short", "only four words here")]
    corpus = corpus_of(tmp_path, documents)
    workspace = tmp_path / "workspace"
    first = new_build(tmp_path, "first", workspace=workspace)
    clean(first, CleanConfig(), corpus=corpus)
    monkeypatch.setattr(module, "_measured", None)
    second = new_build(tmp_path, "second", workspace=workspace)
    clean(second, CleanConfig(min_text_words=2), corpus=corpus)
    assert len(rows(first.folder)) == 1 and not rows(second.folder)
    assert pq.read_table(first.folder / "signals.parquet").equals(pq.read_table(second.folder / "signals.parquet"))


def test_languages_are_those_of_the_library():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    library = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    texts = [
        GOOD, "LA ROUE TOURNE DANS LE MOULIN", "Мельница стоит у реки", "水车在河边转动", "これは水車です。", "x", "",
        "Kolo se otáčí ve mlýně už sto let.", "def f(x): return x + 1", "ตลาดน้ำ", "Воденица стоји крај реке годинама.",
    ]  # fmt: skip
    codes, confidence = languages_of(pa.array(texts, pa.large_string()))
    for text, code, share in zip(texts, codes.to_pylist(), confidence, strict=True):
        language, expected = library.classify(text)
        assert share == pytest.approx(expected, abs=1e-4)
        assert code == (language if expected >= 0.3 else "und")
