import pytest

from lm_core.evaluation import baselines, metrics


def test_each_metric_is_one_for_the_reference_and_zero_for_nothing():
    for metric in metrics.TEXT_METRICS.values():
        assert metric("Return the sum of 3.", ["Return the sum of 3."]) == pytest.approx(1.0)
        assert metric("", ["Return the sum."]) == 0.0


def test_the_best_reference_counts():
    assert metrics.token_f1("the king", ["a queen", "king the"]) == 1.0
    assert metrics.rouge_l("a b c d", ["x", "a c"]) == pytest.approx(2 / 3)


def test_token_f1_counts_words_not_their_order():
    assert metrics.token_f1("a b b", ["b c"]) == pytest.approx(0.4)


def test_chinese_is_compared_by_character():
    assert metrics.words("返回 sum 值") == ["返", "回", "sum", "值"]
    assert metrics.rouge_l("返回值", ["返回总值"]) == pytest.approx(6 / 7)


def test_baselines_answer_every_item():
    known, targets = ["red apple pie", "blue sky above", "red berry tart"], ["food", "air", "food"]
    assert baselines.majority(targets, 2) == ["food", "food"]
    labels, sure = baselines.tfidf_logistic_regression(known, targets, ["red cake", "blue air sky"])
    assert labels == ["food", "air"] and (sure > 0.5).all()
    assert baselines.tfidf_logistic_regression(known, ["one"] * 3, ["x"])[0] == ["one"]
