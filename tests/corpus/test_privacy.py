"""Personal data: measured precision and recall on labelled texts; redaction happens where the text is read."""

from collections import Counter

import pyarrow as pa
import pytest

from lm_core.corpus.clean import clean
from lm_core.corpus.config import CleanConfig
from lm_core.corpus.privacy import PLACEHOLDERS, find_in_texts, find_personal, redacted
from tests.corpus.builds import corpus_of, new_build, rows
from tests.corpus.personal_data import HARD, NEGATIVE, POSITIVE, labelled
from tests.corpus.tiny_ledger import document


def test_precision_and_recall_on_labelled_texts():
    text, truth = labelled(POSITIVE)
    found = {(r.kind, text[r.start : r.start + r.length]) for r in find_personal(text, PLACEHOLDERS)}
    wrong = [NEGATIVE[r.start : r.start + r.length] for r in find_personal(NEGATIVE, PLACEHOLDERS)]
    precision = len(found & truth) / (len(found) + len(wrong))
    recall = len(found & truth) / len(truth)
    print(f"precision {precision:.3f}, recall {recall:.3f} of {len(truth)} labels; false: {found - truth} {wrong}; "
          f"missed: {truth - found}")  # fmt: skip
    assert precision >= 0.95
    assert recall >= 0.95
    assert {kind for kind, _ in truth} == set(PLACEHOLDERS)


@pytest.mark.parametrize("kind", PLACEHOLDERS)
def test_each_kind_can_be_switched_off(kind):
    text, _ = labelled(POSITIVE)
    others = set(PLACEHOLDERS) - {kind}
    assert kind in {r.kind for r in find_personal(text, {kind})}
    assert {r.kind for r in find_personal(text, others)} <= others


def test_the_quick_pass_misses_nothing():
    texts = (labelled(POSITIVE)[0], labelled(HARD)[0], NEGATIVE)
    lines = [line for text in texts for line in text.splitlines() if line]
    lines += ["é" * 50 + line + " ß" * 400 for line in lines]
    quick = list(find_in_texts(pa.array(lines, pa.large_string()), PLACEHOLDERS))
    assert quick == [(n, found) for n, line in enumerate(lines) for found in find_personal(line, PLACEHOLDERS)]


def test_places_in_a_long_text_count_characters_and_not_bytes():
    text = "".join(f"{'жук ' * 300}anna{number}@posteo.de " for number in range(40))
    found = [place for _, place in find_in_texts(pa.array([text], pa.large_string()), PLACEHOLDERS)]
    assert [text[p.start : p.start + p.length] for p in found] == [f"anna{n}@posteo.de" for n in range(40)]


def test_placeholders_stand_in_the_place_of_what_was_found():
    text = "mail anna@posteo.de, then 81.2.69.160 é"
    assert redacted(text, find_personal(text, PLACEHOLDERS)) == "mail [EMAIL], then [IP_ADDRESS] é"


def test_cleaning_counts_places_and_keeps_no_content(tmp_path):
    text, truth = labelled(POSITIVE)
    corpus = corpus_of(tmp_path, [document("a", text), document("b", NEGATIVE)])
    build = new_build(tmp_path, "out")
    statistics = clean(build, CleanConfig(), corpus=corpus)
    places = rows(build.folder, "redactions.parquet")
    counts = Counter(row["kind"] for row in places)
    assert statistics["redactions"] == dict(sorted(counts.items()))
    assert sum(counts.values()) >= 0.95 * len(truth)
    content = (build.folder / "redactions.parquet").read_bytes()
    assert not any(secret.encode() in content for _, secret in truth)
    nothing = new_build(tmp_path, "nothing")
    clean(nothing, CleanConfig(redact=()), corpus=corpus)
    assert rows(nothing.folder, "redactions.parquet") == []
