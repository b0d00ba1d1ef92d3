"""Zero-shot evaluation: of several texts, the one that the model finds likeliest. Nothing is trained for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from lm_core.artifact import Artifact, Checkpoint, TokenDataset
from lm_core.downstream.config import ReadTaskConfig, ScoreTaskConfig
from lm_core.downstream.encoding import Row
from lm_core.downstream.read_task import read_task
from lm_core.downstream.tuned import own_text
from lm_core.evaluation.likelihood import as_trained, document_rows, nats_by_row
from lm_core.evaluation.ngram import KneserNey
from lm_core.evaluation.scored import (
    MODEL,
    RANDOM,
    Scored,
    by_kind,
    interval_of,
    shared,
    summary_of,
    write_scored,
)
from lm_core.evaluation.statistics import Resampling, paired_difference
from lm_core.model.build import build_model
from lm_core.model.language_model import LanguageModel
from lm_core.model.losses import IGNORE
from lm_core.model.weights import load_model
from lm_core.store import Build
from lm_core.tokenizer import TextTokenizer, load_tokenizer
from lm_core.tokens import Windows

SMOKE_ITEMS = 40
NGRAM_ORDER, NGRAM_TOKENS, SMOKE_NGRAM_TOKENS = 5, 4_000_000, 50_000
# Two likelihoods nearer than this (bits) are a tie: half right, whichever stands first.
TIE = 1e-6
FIRST_WIDE_CHARACTER = "\u2e80"

Floats = NDArray[np.float64]
Scorer = Callable[[Sequence["Candidate"]], Floats]


@dataclass(frozen=True)
class Candidate:
    """A text and what stands before it, as token ids without marks."""

    prompt: list[int]
    text: list[int]


def candidates_of(tokenizer: TextTokenizer, prompts: Sequence[str], texts: Sequence[str]) -> list[Candidate]:
    """Texts after their prompts, a space between them where the script has spaces."""
    joined = [
        " " + text if prompt and prompt[-1] < FIRST_WIDE_CHARACTER else text
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    pairs = zip(tokenizer.encode_batch(prompts), tokenizer.encode_batch(joined), strict=True)
    return [Candidate(prompt, text) for prompt, text in pairs]


def model_scorer(
    model: LanguageModel, tokenizer: TextTokenizer, base: Artifact, on_done: Callable[[int], None] = lambda _: None
) -> Scorer:
    """Bits of each candidate's text given its prompt; one longer than the context is scored window by window.

    Args:
        base: says in which precision.
    """

    def bits(candidates: Sequence[Candidate]) -> Floats:
        rows: list[Row] = []
        owner: list[int] = []
        for number, candidate in enumerate(candidates):
            skipped = len(candidate.prompt)
            for row in document_rows(candidate.prompt + candidate.text, tokenizer.end_of_text, model.context_length):
                hidden = min(skipped, len(row.targets))
                skipped -= hidden
                if hidden < len(row.targets):
                    rows.append(Row(row.tokens, [IGNORE] * hidden + row.targets[hidden:]))
                    owner.append(number)
        with as_trained(model, base):
            nats = nats_by_row(model, rows, tokenizer.pad, on_done)
        return np.bincount(owner, weights=nats, minlength=len(candidates)).astype(np.float64) / math.log(2)

    return bits


def ngram_scorer(tokens: TokenDataset, tokenizer: TextTokenizer, num_tokens: int) -> tuple[str, Scorer]:
    """The name and the bits of a Kneser-Ney n-gram over the text that the model was trained on.

    Texts are one sequence, each opened by as many marks as a history is long: no n-gram reaches over a border.
    """
    ngram, marks = _ngram_of(tokens.folder, tokenizer.end_of_text, num_tokens), NGRAM_ORDER - 1

    def bits(candidates: Sequence[Candidate]) -> Floats:
        whole: list[int] = []
        owner: list[int] = []
        for number, candidate in enumerate(candidates):
            whole += [tokenizer.end_of_text] * marks + candidate.prompt + candidate.text
            owner += [len(candidates)] * (marks + len(candidate.prompt)) + [number] * len(candidate.text)
        found = np.bincount(owner[1:], weights=ngram.bits(whole), minlength=len(candidates) + 1)
        return found[: len(candidates)].astype(np.float64)

    return f"kneser_ney_{ngram.order}_gram", bits


@lru_cache(maxsize=1)
def _ngram_of(folder: Path, end_of_text: int, num_tokens: int) -> KneserNey:
    """Counted once for all tasks of a process."""
    windows = Windows(folder, "train")
    longest = max(1, num_tokens // windows.context_length)
    ids = windows.read(np.arange(min(len(windows), longest))).ravel()
    ids = ids[ids != windows.pad]
    sequence = np.repeat(ids, np.where(ids == end_of_text, NGRAM_ORDER - 1, 1))
    return KneserNey([sequence.tolist()], vocab_size=windows.vocab_size, order=NGRAM_ORDER)


def random_twin(model: LanguageModel, seed: int) -> LanguageModel:
    """The same architecture before any training."""
    fresh = build_model(model.config, vocab_size=model.vocab_size, context_length=model.context_length, seed=seed)
    return fresh.to(next(model.parameters()).device).eval()


def scorers_of(base: Checkpoint, config: ScoreTaskConfig, build: Build) -> tuple[TextTokenizer, dict[str, Scorer]]:
    """The model, the same from random weights, and the n-gram where the model's training tokens are known."""
    torch.set_num_threads(build.runtime.num_threads)
    tokenizer = load_tokenizer(base.file("tokenizer.json"))
    model = load_model(base.folder, device=build.runtime.device)

    def tell(done: int) -> None:
        build.progress(done, None, "texts")

    scorers = {
        MODEL: model_scorer(model, tokenizer, base, tell),
        RANDOM: model_scorer(random_twin(model, config.seed), tokenizer, base, tell),
    }
    tokens = training_tokens(base)
    if tokens is not None:
        counted = NGRAM_TOKENS if config.size == "full" else SMOKE_NGRAM_TOKENS
        name, scorer = ngram_scorer(tokens, tokenizer, counted)
        scorers[name] = scorer
    return tokenizer, scorers


def training_tokens(base: Artifact) -> TokenDataset | None:
    """The token shards that a model, or its base, was trained on; None for a model from elsewhere."""
    folder = own_text(base)
    return TokenDataset(folder, "tokenize", folder.name, "") if folder else None


@dataclass(frozen=True)
class Choices:
    """Items of one choice each.

    Attributes:
        prompts: what stands before the choices; may be empty.
        choices: the texts of each item, two at least.
        right: place of the right one.
        kinds: by which scores are given too: a phenomenon, a language, a kind of bias.
        groups: what items share (a paradigm, a premise): intervals are clustered by it.
    """

    item_ids: list[str]
    prompts: list[str]
    choices: list[list[str]]
    right: list[int]
    kinds: list[str]
    groups: list[str]


@dataclass(frozen=True)
class Chosen:
    """What a system made of the choices: bits of each choice of each item, and their lengths in UTF-8 bytes."""

    bits: list[Floats]
    num_bytes: list[Floats]

    def correct(self, right: Sequence[int], *, per_byte: bool) -> Floats:
        """1 where the right choice is the likeliest, 0 where another is, 1/n where n are level."""
        values = []
        for bits, num_bytes, place in zip(self.bits, self.num_bytes, right, strict=True):
            cost = bits / num_bytes if per_byte else bits
            level = np.abs(cost - cost.min()) <= TIE
            values.append(float(level[place]) / level.sum())
        return np.array(values)

    def columns(self, right: Sequence[int]) -> dict[str, list[Any]]:
        """What is kept of it item by item (schemas.PREDICTIONS); bits and bytes are those of the right choice."""
        return {
            "bits": [float(bits[place]) for bits, place in zip(self.bits, right, strict=True)],
            "num_bytes": [int(sizes[place]) for sizes, place in zip(self.num_bytes, right, strict=True)],
            "choice_bits": [bits.tolist() for bits in self.bits],
            "choice_bytes": [sizes.astype(int).tolist() for sizes in self.num_bytes],
        }

    def picks(self) -> list[int]:
        """Place of the likeliest choice."""
        return [int(bits.argmin()) for bits in self.bits]


def choose(items: Choices, tokenizer: TextTokenizer, scorer: Scorer) -> Chosen:
    """Score every choice of every item."""
    prompts = [prompt for prompt, choices in zip(items.prompts, items.choices, strict=True) for _ in choices]
    texts = [text for choices in items.choices for text in choices]
    bits = scorer(candidates_of(tokenizer, prompts, texts))
    lengths = np.array([max(1, len(text.encode())) for text in texts], np.float64)
    ends = np.cumsum([len(choices) for choices in items.choices])[:-1]
    return Chosen(np.split(bits, ends), np.split(lengths, ends))


def evaluate_choice(build: Build, config: ScoreTaskConfig, *, base: Checkpoint) -> Mapping[str, Any]:
    """Accuracy by likelihood beside chance, an n-gram and random weights; `scores.json`, `predictions.parquet`.

    `examples.parquet` and `bad_rows.parquet` stand beside them, as the stage read_task writes them.

    Raises:
        UserError, IntegrityError: as `read_task`.
    """
    read = read_task(build, _reading(config))
    items = read_choices(build.folder / "examples.parquet")
    tokenizer, scorers = scorers_of(base, config, build)
    chosen = {name: choose(items, tokenizer, scorer) for name, scorer in scorers.items()}
    summary, scored = score_choices(config, items, chosen)
    summary["secondary"]["bad_rows"] = read["bad_rows"]
    write_scored(build, config.task.name, scored, summary)
    return summary


def score_choices(
    config: ScoreTaskConfig, items: Choices, chosen: Mapping[str, Chosen]
) -> tuple[dict[str, Any], Scored]:
    """All figures of a task of choices; what items share varies together."""
    groups = shared(items.groups)
    scored = Scored(
        items.item_ids,
        [choices[place] for choices, place in zip(items.choices, items.right, strict=True)],
        {name: _texts(items, made.picks()) for name, made in chosen.items()},
        {name: made.correct(items.right, per_byte=False) for name, made in chosen.items()},
        groups,
        {"prompt": [prompt or None for prompt in items.prompts], "kind": items.kinds, "choices": items.choices},
        {name: made.columns(items.right) for name, made in chosen.items()},
    )
    how = Resampling(config.num_resamples, config.confidence, config.seed)
    summary = summary_of(config.task.name, "accuracy", scored, how)
    summary["baselines"]["chance"] = round(float(np.mean([1 / len(choices) for choices in items.choices])), 5)
    per_byte = {name: made.correct(items.right, per_byte=True) for name, made in chosen.items()}
    summary["secondary"] = {
        "accuracy_per_byte": {name: round(float(values.mean()), 5) for name, values in per_byte.items()},
        "by_group": by_kind(scored.scores[MODEL], items.kinds, how, groups),
    }
    summary["secondary_intervals"] = {"accuracy_per_byte": interval_of(per_byte[MODEL], how, groups).as_dict()}
    gain = paired_difference(per_byte[MODEL], per_byte[RANDOM], how, groups)
    summary["accuracy_per_byte_over_random_weights"] = gain.as_dict("mean")
    return summary, scored


def _reading(config: ScoreTaskConfig) -> ReadTaskConfig:
    whole = ReadTaskConfig(task=config.task, data=config.data, max_items=config.max_items)
    if config.size == "full":
        return whole
    return whole.model_copy(update={"max_items": min(SMOKE_ITEMS, config.max_items or SMOKE_ITEMS), "skim": True})


def read_choices(path: Path) -> Choices:
    """Test items of an examples.parquet whose labels are the choices.

    A group may say two things: "kind/what items share"; one without a slash is both. Where there is none, items share
    their prompt.
    """
    rows = [row for row in pq.read_table(path).to_pylist() if row["split"] == "test"]
    named = [(row["group"] or "").partition("/") for row in rows]
    return Choices(
        [row["item_id"] for row in rows],
        [row["prompt"] for row in rows],
        [row["labels"] for row in rows],
        [row["labels"].index(row["target"]) for row in rows],
        [kind or "all" for kind, _, _ in named],
        [own or kind or row["prompt"] or row["item_id"] for (kind, _, own), row in zip(named, rows, strict=True)],
    )


def _texts(items: Choices, picks: Sequence[int]) -> list[str]:
    return [choices[pick] for choices, pick in zip(items.choices, picks, strict=True)]
