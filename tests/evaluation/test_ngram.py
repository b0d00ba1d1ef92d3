import itertools

import numpy as np
import pytest

from lm_core.evaluation.ngram import KneserNey

SENTENCES = [[0, 1, 2, 3, 1, 2, 4], [0, 1, 2, 4, 4, 2], [0, 3, 3, 1, 2, 3], [0, 1, 1, 2]]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_sum_to_one_after_every_history(order):
    model = KneserNey(SENTENCES, vocab_size=6, order=order)
    for history in itertools.product(range(6), repeat=2):
        total = sum(2 ** -model.bits([0, *history, word])[-1] for word in range(6))
        assert total == pytest.approx(1.0)


def test_seen_text_is_cheaper_than_unseen():
    model = KneserNey(SENTENCES, vocab_size=6, order=3)
    assert model.bits([0, 1, 2, 4]).sum() < model.bits([0, 5, 5, 5]).sum()


def test_a_bigram_by_hand():
    model = KneserNey([[0, 1, 2], [0, 1, 2], [0, 1, 1]], vocab_size=3, order=2)
    # Bigrams 01 x3, 12 x2, 11 x1: discount 1 / (1 + 2 * 1) = 1/3. Left neighbours: 1 has {0, 1}, 2 has {1}: of 3 types.
    d1 = 1 / (1 + 2 * 1)
    unigram = {1: (2 - d1) / 3 + d1 * 2 / 3 / 3, 2: (1 - d1) / 3 + d1 * 2 / 3 / 3}
    after_one = (2 - 1 / 3) / 3 + (1 / 3) * 2 / 3 * unigram[2]
    assert 2 ** -model.bits([0, 1, 2])[-1] == pytest.approx(after_one)


def test_nothing_seen_gives_the_uniform_distribution():
    assert np.allclose(KneserNey([], vocab_size=8, order=3).bits([0, 1, 2]), 3.0)


def test_any_order_of_a_large_vocabulary_fits():
    model = KneserNey([[1, 2, 3, 4, 5, 199_999]] * 3, vocab_size=200_000, order=6)
    assert model.order == 6
    assert (
        model.bits([1, 2, 3, 4, 5, 199_999])[-1]
        < KneserNey([[5, 199_999], [4, 9]], vocab_size=200_000, order=2).bits([4, 199_999])[-1]
    )


def test_a_trigram_by_hand():
    """Of abc, abd and the beginning bc: after ab came c and d; c follows only b, which stands after a and nothing."""
    model = KneserNey([[0, 1, 2], [0, 1, 3], [1, 2]], vocab_size=4, order=3)
    d = 0.5  # no count of 2 beside one of 1 anywhere
    # Distinct left neighbours: of 1: {0}; of 2: {1}; of 3: {1}.
    unigram = (1 - d) / 3 + d * 3 / 3 / 4
    # Of the bigram 12 the left neighbours are {0}, of 13 {0}, of 01 none.
    bigram = (1 - d) / 2 + d * 2 / 2 * unigram
    trigram = (1 - d) / 2 + d * 2 / 2 * bigram
    assert 2 ** -model.bits([0, 1, 2])[-1] == pytest.approx(trigram)
