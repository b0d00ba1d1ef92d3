"""Figures beside a task's score: what a single metric does not see, for every system that allows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from lm_core.evaluation.dictionary import PLACEHOLDERS
from lm_core.evaluation.metrics import TEXT_METRICS, words
from lm_core.evaluation.outcome import Data, Outcome, Scheme
from lm_core.evaluation.statistics import calibration_error
from lm_core.evaluation.values import kept_and_contradicted

MEMORISED_WORDS = 8


@dataclass(frozen=True)
class Answered:
    """One system's outcome with what it is measured against."""

    data: Data
    outcome: Outcome
    scheme: Scheme

    @property
    def pairs(self) -> list[tuple[str, list[str]]]:
        """Each answer with its references."""
        items = zip(self.outcome.predictions, self.data.test, strict=True)
        return [(made, item.get("references") or [item["target"]]) for made, item in items]

    @property
    def with_prompts(self) -> list[tuple[str, str]]:
        """Each answer that is not empty with its prompt."""
        items = zip(self.outcome.predictions, self.data.test, strict=True)
        return [(made, item["prompt"]) for made, item in items if made]


def guard_figures(data: Data, outcome: Outcome, scheme: Scheme) -> dict[str, float]:
    """The scheme's figures that this outcome allows, by name."""
    answered = Answered(data, outcome, scheme)
    figures = {name: _figure(name, answered) for name in scheme.guards}
    return {name: round(float(value), 5) for name, value in figures.items() if value is not None}


def _figure(name: str, answered: Answered) -> float | None:
    if name in TEXT_METRICS:
        if not any(answered.outcome.predictions):
            return None
        score = TEXT_METRICS[name]
        return float(np.mean([score(made, wanted) for made, wanted in answered.pairs]))
    return GUARDS[name](answered)


def _macro_f1(answered: Answered) -> float:
    from sklearn.metrics import f1_score

    targets = [item["target"] for item in answered.data.test]
    return float(f1_score(targets, answered.outcome.predictions, average="macro", zero_division=0.0))


def _right(answered: Answered) -> list[bool]:
    return [made == wanted[0] for made, wanted in answered.pairs]


def _calibration(answered: Answered) -> float | None:
    sure = answered.outcome.confidences
    return calibration_error(sure, _right(answered)) if len(sure) else None


def _out_of_scope_recall(answered: Answered) -> float | None:
    pairs = zip(_right(answered), answered.data.test, strict=True)
    found = [right for right, item in pairs if item["target"] == answered.scheme.outside]
    return float(np.mean(found)) if found else None


def _bits_per_byte(answered: Answered) -> float | None:
    outcome = answered.outcome
    return float(outcome.bits.sum() / outcome.num_bytes.sum()) if len(outcome.bits) else None


def _chrf_corpus(answered: Answered) -> float | None:
    return corpus_score("chrf", answered)[0]


def _bleu(answered: Answered) -> float | None:
    return corpus_score("bleu", answered)[0]


def corpus_score(name: str, answered: Answered) -> tuple[float | None, str]:
    """chrF or BLEU of the whole test set (0 to 1), and sacrebleu's signature."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    if not any(answered.outcome.predictions):
        return None, ""
    chinese = answered.scheme.language.endswith("zh")
    metric: Any = CHRF() if name == "chrf" else BLEU(tokenize="zh" if chinese else "13a")
    made = [answer for answer, _ in answered.pairs]
    score = metric.corpus_score(made, [[wanted[0] for _, wanted in answered.pairs]])
    return float(score.score) / 100, str(metric.get_signature())


def _slot_f1(answered: Answered) -> float | None:
    """F-measure of values (numbers, times, names) over all answers, against the first reference."""
    values = answered.data.values
    shared = given = wanted = 0
    for made, references in answered.pairs:
        found, needed = set(values.find(made)), set(values.find(references[0]))
        shared, given, wanted = shared + len(found & needed), given + len(found), wanted + len(needed)
    return 2 * shared / (given + wanted) if given + wanted else None


def _share(pairs: Sequence[tuple[str, str]], holds: Callable[[str, str], bool]) -> float | None:
    return float(np.mean([holds(made, prompt) for made, prompt in pairs])) if pairs else None


def _copy_rate(answered: Answered) -> float | None:
    """Answers that stand in the prompt as they are."""
    return _share(answered.with_prompts, lambda made, prompt: made in prompt)


def _repeats_itself(answered: Answered) -> float | None:
    """Answers that the agent has given in this conversation before."""
    return _share(answered.with_prompts, lambda made, prompt: f"Agent: {made}\n" in prompt + "\n")


def _consistent_over_turns(answered: Answered) -> float | None:
    """Of the values in the answers that take up what the conversation has said, those that do not contradict it."""
    counts = [kept_and_contradicted(answered.data.values, prompt, made) for made, prompt in answered.with_prompts]
    kept, contradicted = (sum(count[place] for count in counts) for place in (0, 1))
    return kept / (kept + contradicted) if kept + contradicted else None


def _faithful(answered: Answered) -> float | None:
    """Of the numbers and names in the answers, those that the prompt holds too: the rest is made up."""
    values = answered.data.values
    kept = [value in prompt for made, prompt in answered.with_prompts for value in values.find(made)]
    return float(np.mean(kept)) if kept else None


def _placeholder_fidelity(answered: Answered) -> float | None:
    """Of the placeholders in the sources, those that the translation carries over."""
    items = zip(answered.outcome.predictions, answered.data.test, strict=True)
    kept = [mark in made for made, item in items for mark in PLACEHOLDERS.findall(item["prompt"])]
    return float(np.mean(kept)) if kept and any(answered.outcome.predictions) else None


def _written(answered: Answered) -> list[list[str]]:
    return [words(made) for made in answered.outcome.predictions if made]


def _distinct_2(answered: Answered) -> float | None:
    """Different pairs of words among all pairs written (Li et al. 2016)."""
    pairs = [pair for text in _written(answered) for pair in pairwise(text)]
    return len(set(pairs)) / len(pairs) if pairs else None


def _repetition(answered: Answered) -> float | None:
    """Words within a text that repeat a run of four it has written before."""
    shares = []
    for text in _written(answered):
        runs = [tuple(text[i : i + 4]) for i in range(len(text) - 3)]
        if runs:
            shares.append(1 - len(set(runs)) / len(runs))
    return float(np.mean(shares)) if shares else None


def _memorised_spans(answered: Answered) -> float | None:
    """Of the runs of eight words written, those that stand in a training text."""
    known = {run for item in answered.data.train for run in _runs(words(item["target"]))}
    runs = [run for text in _written(answered) for run in _runs(text)]
    return float(np.mean([run in known for run in runs])) if runs else None


def _runs(text: list[str]) -> list[tuple[str, ...]]:
    return [tuple(text[i : i + MEMORISED_WORDS]) for i in range(len(text) - MEMORISED_WORDS + 1)]


GUARDS: dict[str, Callable[[Answered], float | None]] = {
    "macro_f1": _macro_f1,
    "calibration_error": _calibration,
    "out_of_scope_recall": _out_of_scope_recall,
    "bits_per_byte": _bits_per_byte,
    "chrf_corpus": _chrf_corpus,
    "bleu": _bleu,
    "slot_f1": _slot_f1,
    "copy_rate": _copy_rate,
    "repeats_itself": _repeats_itself,
    "consistent_over_turns": _consistent_over_turns,
    "faithful_numbers_and_names": _faithful,
    "placeholder_fidelity": _placeholder_fidelity,
    "distinct_2": _distinct_2,
    "repetition": _repetition,
    "memorised_spans": _memorised_spans,
}
