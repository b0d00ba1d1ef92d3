"""What a system answers to the items of a task: a fine-tuned model, or a classical baseline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_core.artifact import Checkpoint
from lm_core.downstream.classifier import PooledClassifier, load_finetuned
from lm_core.downstream.encoding import Row, prompt_rows
from lm_core.downstream.finetune import rows_of
from lm_core.downstream.task import text_between
from lm_core.errors import UserError
from lm_core.evaluation import baselines
from lm_core.evaluation.dictionary import dictionary
from lm_core.evaluation.generation import answers, continuations
from lm_core.evaluation.likelihood import as_trained, label_probabilities, nats_by_row, target_bytes
from lm_core.evaluation.metrics import TEXT_METRICS, chrf
from lm_core.evaluation.ngram import KneserNey
from lm_core.evaluation.spans import span_answers
from lm_core.evaluation.values import ValueFinder, learn_names
from lm_core.model.losses import IGNORE
from lm_core.runtime import Runtime
from lm_core.tokenizer import TextTokenizer, load_tokenizer

# So many texts are gone on with, from so many tokens: what is repeated and what is memorised shows in a few.
CONTINUED_TEXTS, CONTINUED_FROM = 24, 48
# Training items by which a baseline settles what it leaves open.
JUDGED_ITEMS = 400

Items = Sequence[Mapping[str, Any]]
Floats = NDArray[np.float64]


def _none() -> Floats:
    return np.empty(0)


@dataclass
class Outcome:
    """What one system answered.

    Attributes:
        predictions: one for each item; empty text where the system only has a likelihood.
        bits: of each item's target; empty for systems that have no likelihood.
        num_bytes: of each item's target, as the model's tokens count them.
        confidences: probability of the predicted label; empty without labels.
    """

    predictions: list[str]
    bits: Floats = field(default_factory=_none)
    num_bytes: Floats = field(default_factory=_none)
    confidences: Floats = field(default_factory=_none)


@dataclass(frozen=True)
class Scheme:
    """How a task is scored: metric, figures beside it, baselines, and how long answers may be.

    Attributes:
        text_between: what stands in the prompt before and after the text that it is about; empty: its end.
        extractive: whether an answer can only be a span of that text.
    """

    metric: str
    guards: tuple[str, ...]
    baselines: tuple[str, ...]
    max_new_tokens: int
    language: str = "en"
    loss_on: str = "target"
    outside: str | None = None
    text_between: tuple[str, str] = ("", "")
    extractive: bool = False

    @property
    def less_is_better(self) -> bool:
        """Whether a lower score is the better one."""
        return self.metric == "bits_per_byte"

    def text_of(self, prompt: str) -> str:
        """The text that a prompt is about."""
        return text_between(prompt, *self.text_between)

    def can_score(self, outcome: Outcome) -> bool:
        """Whether the metric can be computed of what a system answered; its other figures can all the same."""
        return not self.less_is_better or len(outcome.bits) > 0

    @property
    def alike(self) -> Callable[[str, str], float] | None:
        """How alike two answers are in the metric; None of labels and where it asks for a likelihood."""
        score = TEXT_METRICS.get(self.metric)
        return (lambda answer, other: score(answer, [other])) if score else None

    def mean(self, predictions: Sequence[str], items: Items) -> float:
        """The mean of the metric over answers; where that asks for a likelihood, chrF."""
        score = TEXT_METRICS.get("exact_match" if self.metric == "accuracy" else self.metric, chrf)
        pairs = zip(predictions, items, strict=True)
        return float(np.mean([score(made, item["references"] or [item["target"]]) for made, item in pairs]))


@dataclass(frozen=True)
class Data:
    """Items of a task by split."""

    train: Items
    validation: Items
    test: Items

    @cached_property
    def values(self) -> ValueFinder:
        """Finds numbers and names, those without a capital as the training replies have them."""
        return ValueFinder(learn_names(self.train))


def ask(
    checkpoint: Checkpoint, items: Items, scheme: Scheme, runtime: Runtime, on_done: Callable[[int], None]
) -> Outcome:
    """A fine-tuned model's answers to all items."""
    model = load_finetuned(checkpoint.folder, device=runtime.device)
    tokenizer = load_tokenizer(checkpoint.file("tokenizer.json"))
    if isinstance(model, PooledClassifier):
        with as_trained(model, checkpoint):
            return _classify(model, tokenizer, items)
    rows = rows_of(items, model, tokenizer, scheme.loss_on)
    with as_trained(model, checkpoint):
        bits = nats_by_row(model, rows, tokenizer.pad) / math.log(2)
    num_bytes = np.array([target_bytes(tokenizer, row) for row in rows], np.float64)
    if scheme.loss_on == "everything":
        starts = [row.tokens[:CONTINUED_FROM] for row in rows[:CONTINUED_TEXTS]]
        made = continuations(model, tokenizer, starts, max_new_tokens=scheme.max_new_tokens)
        return Outcome(made + [""] * (len(items) - len(made)), bits, num_bytes)
    prompts = [item["prompt"] for item in items]
    longest = scheme.max_new_tokens
    if scheme.extractive:
        texts = [scheme.text_of(prompt) for prompt in prompts]
        predictions = span_answers(model, tokenizer, prompts, texts, max_new_tokens=longest, on_done=on_done)
    else:
        predictions = answers(model, tokenizer, prompts, max_new_tokens=longest, on_done=on_done)
    return Outcome(predictions, bits, num_bytes)


def _classify(model: PooledClassifier, tokenizer: TextTokenizer, items: Items) -> Outcome:
    prompts = prompt_rows(tokenizer, [item["prompt"] for item in items], model.context_length)
    probabilities = label_probabilities(model, prompts, tokenizer.pad)
    best = probabilities.argmax(1)
    number = {label: index for index, label in enumerate(model.labels)}
    unknown = sorted({item["target"] for item in items} - set(number))
    if unknown:
        raise UserError(f"the model was tuned for other labels than the task's: it does not know {unknown[0]!r}")
    wanted = probabilities[np.arange(len(items)), [number[item["target"]] for item in items]]
    return Outcome(
        [model.labels[i] for i in best],
        -np.log2(np.maximum(wanted, 1e-12)),
        np.ones(len(items)),
        probabilities.max(1),
    )


def ask_baseline(name: str, data: Data, scheme: Scheme, checkpoint: Checkpoint) -> tuple[str, Outcome]:
    """A classical system's answers, and the name it goes by.

    Args:
        checkpoint: lends its tokenizer to the n-gram, so that both are charged for the same bytes.
    """
    known, targets = [item["prompt"] for item in data.train], [item["target"] for item in data.train]
    prompts = [item["prompt"] for item in data.test]
    if name == "kneser_ney_5_gram":
        return _ngram(data, scheme, checkpoint)
    if name == "tfidf_logistic_regression":
        labels, sure = baselines.tfidf_logistic_regression(known, targets, prompts)
        return name, Outcome(labels, confidences=sure)
    train = list(zip(known, targets, strict=True))
    if name == "tfidf_with_threshold":
        pairs = [(item["prompt"], item["target"]) for item in data.validation]
        return name, Outcome(baselines.tfidf_with_threshold(train, pairs, prompts, scheme.outside or ""))
    texts = [scheme.text_of(prompt) for prompt in prompts]
    held_out = [item["prompt"] for item in data.validation]
    judged = data.train[:JUDGED_ITEMS]
    makers: dict[str, Callable[[], list[str]]] = {
        "majority": lambda: baselines.majority(targets, len(prompts), scheme.alike),
        "lead_sentence": lambda: baselines.lead_sentences(
            [scheme.text_of(item["prompt"]) for item in judged], lambda made: scheme.mean(made, judged), texts
        ),
        "nearest_neighbour": lambda: baselines.nearest_neighbour(
            train, held_out, lambda made: scheme.mean(made, data.validation), prompts
        ),
        "copy": lambda: baselines.copy(prompts),
        "best_overlap_sentence": lambda: baselines.best_overlap_sentence(prompts),
        "dictionary": lambda: dictionary(known, targets, prompts),
    }
    return name, Outcome(makers[name]())


def _ngram(data: Data, scheme: Scheme, checkpoint: Checkpoint) -> tuple[str, Outcome]:
    """Kneser-Ney over the training items; bits of the tokens that the models are scored on, cut as theirs are."""
    model = load_finetuned(checkpoint.folder)
    tokenizer = load_tokenizer(checkpoint.file("tokenizer.json"))
    known, rows = (rows_of(items, model, tokenizer, scheme.loss_on) for items in (data.train, data.test))
    ngram = KneserNey([_whole(row) for row in known], vocab_size=tokenizer.vocab_size, order=5)
    bits = [float(ngram.bits(_whole(row))[[t != IGNORE for t in row.targets]].sum()) for row in rows]
    num_bytes = [target_bytes(tokenizer, row) for row in rows]
    outcome = Outcome([""] * len(bits), np.array(bits), np.array(num_bytes, np.float64))
    return f"kneser_ney_{ngram.order}_gram", outcome


def _whole(row: Row) -> list[int]:
    """The tokens of a row and the last target, which stands in no input."""
    return [*row.tokens, row.targets[-1]]
