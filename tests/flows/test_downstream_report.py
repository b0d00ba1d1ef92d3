"""The table of the downstream tasks: a row for each, figures beside it, what many tasks at once mean."""

from flows.downstream_report import HEADINGS, as_html, as_markdown, rows_of

GAIN = {"mean": 0.1, "low": 0.05, "high": 0.15}
CARD = {
    "model": "m version 1",
    "downstream": {
        "sentiment": {
            "metric": "accuracy", "better": "higher", "score": 0.8, "low": 0.7, "high": 0.9, "items": 1821,
            "baselines": {"random_weights": 0.7, "majority": 0.5}, "gain_over_random_weights": GAIN,
            "best_classical_baseline": "majority",
            "gain_over_best_classical_baseline": {"mean": -0.3, "low": -0.35, "high": -0.25},
            "secondary": {"model": {"macro_f1": 0.79}, "majority": {"macro_f1": 0.33}},
            "secondary_intervals": {"macro_f1": {"score": 0.79, "low": 0.77, "high": 0.81}},
            "forgetting": {"before": 1.858, "after": 2.01, "share_of_base": 0.0},
        },
        "blimp": {
            "metric": "accuracy", "score": 0.6, "low": 0.59, "high": 0.61, "items": 6700,
            "baselines": {"chance": 0.5, "n_gram": 0.55}, "gain_over_baselines": {"n_gram": GAIN | {"low": -0.01}},
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
    assert rows["sentiment"]["beside it"] == "macro f1 0.790 (0.770 to 0.810); own text 1.858 to 2.010 bits per byte"
    assert rows["blimp"]["beside it"].startswith("accuracy per byte 0.610")
    assert "copy 0.100" in rows["translation"]["baselines"]


def test_the_best_other_system_stands_beside_the_model():
    rows = {row[0]: dict(zip(HEADINGS, row, strict=True)) for row in rows_of(CARD)}
    assert rows["sentiment"]["over best other"] == "-0.300 (-0.350 to -0.250) majority"
    assert rows["blimp"]["over best other"] == "+0.100 (-0.010 to +0.150) n gram"
    page = as_html(CARD)
    assert '<td class="worse">-0.300' in page and '<td class="better">+0.100 (+0.050' in page
    assert "<td>+0.100 (-0.010" in page


def test_what_was_forgotten_is_said_and_how_it_is_bounded():
    mixed = CARD["downstream"]["sentiment"] | {"forgetting": {"before": 1.9, "after": 2.0, "share_of_base": 0.5}}
    card = CARD | {"downstream": {"sentiment": mixed}}
    beside = dict(zip(HEADINGS, rows_of(card)[0], strict=True))["beside it"]
    assert beside.endswith("own text 1.900 to 2.000 bits per byte, 50% of the base mixed back in")
    for text in (as_markdown, as_html):
        assert "finetune.max_forgetting" in text(card)
        assert "finetune.max_forgetting" not in text(CARD | {"downstream": {"blimp": CARD["downstream"]["blimp"]}})


def test_what_is_left_out_and_how_many_were_tested_is_said():
    for text in (as_markdown(CARD), as_html(CARD)):
        assert "poetry is left out: misses poems.jsonl" in text and "nrefs:1|tok:zh" in text
        assert "Adjusted for 2 tasks (Holm) a difference to random weights is found on 1: sentiment" in text


def test_the_card_begins_with_a_picture_of_the_tasks_that_share_a_scale():
    bits = CARD["downstream"]["translation"] | {"metric": "bits_per_byte", "better": "lower", "score": 1.9}
    for text in (as_markdown, as_html):
        assert "data:image/png" in text(CARD)
        assert "data:image/png" not in text(CARD | {"downstream": {"story": bits}})
