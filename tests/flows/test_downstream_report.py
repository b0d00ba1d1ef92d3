"""The table of the downstream tasks: a row for each, figures beside it, what many tasks at once mean."""

from flows.downstream_report import HEADINGS, as_html, as_markdown, rows_of

GAIN = {"mean": 0.1, "low": 0.05, "high": 0.15}
CARD = {
    "model": "m version 1",
    "downstream": {
        "sentiment": {
            "metric": "accuracy", "better": "higher", "score": 0.8, "low": 0.7, "high": 0.9, "items": 1821,
            "baselines": {"random_weights": 0.7, "majority": 0.5}, "gain_over_random_weights": GAIN,
            "secondary": {"model": {"macro_f1": 0.79}, "majority": {"macro_f1": 0.33}},
            "forgetting": {"before": 1.858, "after": 2.01, "share_of_base": 0.0},
        },
        "blimp": {
            "metric": "accuracy", "score": 0.6, "low": 0.59, "high": 0.61, "items": 6700, "baselines": {"chance": 0.5},
            "gain_over_random_weights": GAIN,
            "secondary": {"accuracy_per_byte": {"model": 0.61, "random_weights": 0.5}, "bad_rows": {},
                          "by_group": {"ellipsis": {"score": 0.5, "items": 40}}},
        },
        "translation": {
            "metric": "chrf", "score": 0.2, "low": 0.1, "high": 0.3, "items": 300, "baselines": {"copy": 0.1},
            "gain_over_random_weights": GAIN, "signatures": {"bleu": "nrefs:1|tok:zh", "chrf_corpus": "nrefs:1"},
        },
    },
    "gains_adjusted_for_many_tasks": {"sentiment": 0.001, "translation": 0.2},
    "left_out": {"poetry": "misses poems.jsonl"},
}  # fmt: skip


def test_every_task_has_a_row_with_its_figures():
    rows = {row[0]: dict(zip(HEADINGS, row, strict=True)) for row in rows_of(CARD)}
    assert set(rows) == set(CARD["downstream"])
    assert rows["sentiment"]["gain over random weights"] == "+0.100 (+0.050 to +0.150)"
    assert rows["sentiment"]["beside it"] == "macro f1 0.790; own text 1.858 to 2.010 bits per byte"
    assert rows["blimp"]["beside it"].startswith("accuracy per byte 0.610")
    assert "copy 0.100" in rows["translation"]["baselines"]


def test_what_is_left_out_and_how_many_were_tested_is_said():
    for text in (as_markdown(CARD), as_html(CARD)):
        assert "poetry is left out: misses poems.jsonl" in text and "nrefs:1|tok:zh" in text
        assert "Adjusted for 2 tasks (Holm) a difference to random weights is found on 1: sentiment" in text
