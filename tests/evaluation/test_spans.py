"""Answers that can only be spans of a text."""

import pytest
import torch

from lm_core.downstream.encoding import prompt_rows
from lm_core.evaluation.spans import MAX_PIECES, span_answers, spans_of
from lm_core.model.weights import load_model
from lm_core.tokenizer import load_tokenizer

TEXTS = ["The mill stands by the river, since 1871.", "returns the number of rows", "水车在河边。", "one"]


@pytest.fixture(scope="module")
def model(world):
    return load_model(world.base.folder)


@pytest.fixture(scope="module")
def tokenizer(world):
    return load_tokenizer(world.base.file("tokenizer.json"))


def one_by_one(model, tokenizer, prompt, text, max_new_tokens):
    """Each token the likeliest of the spans that begin as the answer does."""
    (row,) = prompt_rows(tokenizer, [prompt], model.context_length)
    ways = [[*tokenizer.encode(span), tokenizer.turn_end] for span in spans_of(text)]
    ways = [way for way in ways if len(way) <= max_new_tokens]
    made: list[int] = []
    while not made or made[-1] != tokenizer.turn_end:
        following = {way[len(made)] for way in ways if way[: len(made)] == made}
        with torch.no_grad():
            logits = model(torch.tensor([[*row, *made]]))[0, -1]
        made.append(max(following, key=lambda token: float(logits[token])))
    return tokenizer.decode(made[:-1]).strip()


def test_spans_are_runs_of_words_and_marks_that_begin_with_a_word():
    assert list(spans_of("A mill, old.")) == [
        "A", "A mill", "A mill,", "A mill, old", "A mill, old.",
        "mill", "mill,", "mill, old", "mill, old.", "old", "old.",
    ]  # fmt: skip
    assert list(spans_of("水车。")) == ["水", "水车", "水车。", "车", "车。"]
    assert list(spans_of(" ... ")) == []
    assert max(span.count("w") for span in spans_of("w " * 40)) == MAX_PIECES


def test_every_token_is_the_likeliest_that_leads_to_a_span(model, tokenizer):
    prompts = [f"What is it?\n{text}" for text in TEXTS]
    found = span_answers(model, tokenizer, prompts, TEXTS, max_new_tokens=12)
    assert found == [one_by_one(model, tokenizer, *pair, 12) for pair in zip(prompts, TEXTS, strict=True)]
    assert all(answer and answer in text for answer, text in zip(found, TEXTS, strict=True))


def test_answers_are_no_longer_than_allowed_and_empty_where_there_is_no_word(model, tokenizer):
    done = []
    found = span_answers(
        model, tokenizer, ["a", "b", "c"], ["...", TEXTS[0], ""], max_new_tokens=3, on_done=done.append
    )
    assert found[0] == found[2] == ""
    assert 0 < len(tokenizer.encode(found[1])) < 3
    assert done
