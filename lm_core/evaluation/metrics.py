"""Metrics of one answer against its references, each between 0 and 1; the best reference counts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

# Scripts that put no space between words, as the inside of a pattern's brackets: their characters stand alone.
SPACELESS = "぀-ヿ㐀-䶿一-鿿"
_WORDS = re.compile(rf"[{SPACELESS}]|[^\W_{SPACELESS}]+")

_NUMBERS = re.compile(r"-?\d+(?:\.\d+)?")


def words(text: str) -> list[str]:
    """Lower-case words of a text, without punctuation."""
    return _WORDS.findall(text.lower())


class _Words:
    """The tokenizer that rouge-score asks for; its own drops every script but Latin."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@lru_cache(maxsize=3)
def _rouge(name: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # loads nltk, over a second

    return RougeScorer([name], tokenizer=_Words())


@lru_cache(maxsize=1)
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def _rouge_score(name: str, answer: str, references: Sequence[str]) -> float:
    return max(float(_rouge(name).score(reference, answer)[name].fmeasure) for reference in references)


def rouge_1(answer: str, references: Sequence[str]) -> float:
    """F-measure of shared words (Lin 2004)."""
    return _rouge_score("rouge1", answer, references)


def rouge_2(answer: str, references: Sequence[str]) -> float:
    """F-measure of shared pairs of words (Lin 2004)."""
    return _rouge_score("rouge2", answer, references)


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of words (Lin 2004)."""
    return _rouge_score("rougeL", answer, references)


def chrf(answer: str, references: Sequence[str]) -> float:
    """Character n-gram F-score (Popovic 2015), of one sentence."""
    return float(_chrf().sentence_score(answer, list(references)).score) / 100


def token_f1(answer: str, references: Sequence[str]) -> float:
    """F-measure of the bags of words (Rajpurkar et al. 2016)."""
    best = 0.0
    given = Counter(words(answer))
    for reference in references:
        wanted = Counter(words(reference))
        shared = (given & wanted).total()
        if shared:
            best = max(best, 2 * shared / (given.total() + wanted.total()))
    return best


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 where the words of the answer are those of a reference."""
    return float(any(words(answer) == words(reference) for reference in references))


def same_text(answer: str, references: Sequence[str]) -> float:
    """1 where the answer is a reference to the letter, but for spaces: a shell command, say."""
    return float(any(answer.split() == reference.split() for reference in references))


def number_match(answer: str, references: Sequence[str]) -> float:
    """1 where the last number of the answer is that of a reference."""
    found = _NUMBERS.findall(answer.replace(",", ""))
    wanted = {number for reference in references for number in _NUMBERS.findall(reference.replace(",", ""))[-1:]}
    return float(bool(found) and found[-1] in wanted)


TEXT_METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "rouge_1": rouge_1,
    "rouge_2": rouge_2,
    "rouge_l": rouge_l,
    "chrf": chrf,
    "token_f1": token_f1,
    "exact_match": exact_match,
    "same_text": same_text,
    "number_match": number_match,
}
