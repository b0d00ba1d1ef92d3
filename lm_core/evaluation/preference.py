"""Win rate of a preference-tuned model over its reference: whose answer to a held-out prompt breaks fewer rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lm_core.artifact import Checkpoint, DownstreamData
from lm_core.downstream.config import EvaluatePreferenceConfig
from lm_core.downstream.encoding import Row, answer_rows, prompt_rows
from lm_core.downstream.items import read_items
from lm_core.downstream.preference_rules import RULES, broken_rules
from lm_core.errors import UserError
from lm_core.evaluation.generation import BATCH_ROWS, answers
from lm_core.evaluation.likelihood import nats_by_row, target_bytes
from lm_core.evaluation.scored import MODEL, RANDOM, Floats, Scored, shared, summary_of, write_scored
from lm_core.evaluation.statistics import Resampling
from lm_core.model.generate import generate
from lm_core.model.language_model import LanguageModel
from lm_core.model.weights import load_model
from lm_core.store import Build
from lm_core.tokenizer import TextTokenizer, load_tokenizer

REFERENCE = "reference"
TEMPERATURE, TOP_K = 0.9, 50


def evaluate_preference(
    build: Build,
    config: EvaluatePreferenceConfig,
    *,
    finetuned: Checkpoint,
    reference: Checkpoint,
    from_random: Checkpoint,
    examples: DownstreamData,
) -> Mapping[str, Any]:
    """Write `scores.json` and `predictions.parquet`; a tie counts one half, so the reference itself stands at one half.

    Args:
        finetuned: tuned by pairs, from `reference`.
        from_random: the same from random weights.

    Raises:
        UserError: when no test item is left.
    """
    torch.set_num_threads(build.runtime.num_threads)
    items = read_items(examples, None, config.task, "test", build.runtime)[: config.max_items]
    if not items:
        raise UserError(f"the task {config.task} has no test items left")
    tokenizer = load_tokenizer(reference.file("tokenizer.json"))
    checkpoints = {MODEL: finetuned, REFERENCE: reference, RANDOM: from_random}
    models = {name: load_model(one.folder, device=build.runtime.device) for name, one in checkpoints.items()}
    prompts = [item["prompt"] for item in items]
    written = {
        name: answers(model, tokenizer, prompts, max_new_tokens=config.max_new_tokens) for name, model in models.items()
    }
    best = f"best_of_{config.best_of}"
    written[best] = best_of(models[REFERENCE], tokenizer, prompts, config)
    made = Written(written, *told_bits(models, tokenizer, items, written[MODEL]))
    summary, scored = score_preference(config, items, made)
    if forgetting := finetuned.statistics.get("forgetting"):
        # Both steps together: what the reference started from is the base itself.
        first = reference.statistics.get("forgetting") or forgetting
        summary["forgetting"] = dict(forgetting) | {"before": first["before"]}
    summary["secondary"]["pair_accuracy"] = finetuned.statistics.get("pair_accuracy")
    write_scored(build, config.task, scored, summary)
    return summary


@dataclass(frozen=True)
class Written:
    """What every system wrote, and what likelihoods say of it.

    Attributes:
        answers: system -> one for each item.
        wanted_bits: of the wanted answers, under the model and under its reference.
        num_bytes: of the wanted answers.
        own_bits: of the model's own answers, under the model and under its reference.
    """

    answers: Mapping[str, Sequence[str]]
    wanted_bits: Mapping[str, Floats]
    num_bytes: Floats
    own_bits: Mapping[str, Floats]


def score_preference(
    config: EvaluatePreferenceConfig, items: Sequence[Mapping[str, Any]], made: Written
) -> tuple[dict[str, Any], Scored]:
    """All figures of the answers; those within one conversation vary together."""
    prompts = [item["prompt"] for item in items]
    columns_of: dict[str, dict[str, Sequence[Any]]] = {
        name: {"bits": bits.tolist(), "num_bytes": made.num_bytes.astype(int).tolist()}
        for name, bits in made.wanted_bits.items()
    }
    columns_of[MODEL] |= {
        "answer_bits": made.own_bits[MODEL].tolist(),
        "answer_bits_of_reference": made.own_bits[REFERENCE].tolist(),
    }
    scored = Scored(
        [item["item_id"] for item in items],
        [item["target"] for item in items],
        made.answers,
        {name: win_scores(prompts, said, made.answers[REFERENCE]) for name, said in made.answers.items()},
        shared([item["group"] or item["item_id"] for item in items]),
        {"prompt": prompts},
        columns_of,
    )
    how = Resampling(config.num_resamples, config.confidence, config.seed)
    summary = summary_of(config.task, "win_rate", scored, how)
    summary["secondary"] = {
        "broken_rules": {name: rule_shares(prompts, said) for name, said in made.answers.items()},
        "drift_from_reference": drift(made),
    }
    return summary, scored


def win_scores(prompts: Sequence[str], made: Sequence[str], against: Sequence[str]) -> NDArray[np.float64]:
    """1 where an answer breaks fewer rules than the other, 0 where more, one half where as many."""
    pairs = zip(prompts, made, against, strict=True)
    gaps = np.array([len(broken_rules(p, other)) - len(broken_rules(p, own)) for p, own, other in pairs])
    return (np.sign(gaps) + 1) / 2


def rule_shares(prompts: Sequence[str], made: Sequence[str]) -> dict[str, float]:
    """Share of the answers that break each rule."""
    broken = [broken_rules(prompt, answer) for prompt, answer in zip(prompts, made, strict=True)]
    return {rule: round(float(np.mean([rule in found for found in broken])), 5) for rule in RULES}


def best_of(
    model: LanguageModel, tokenizer: TextTokenizer, prompts: Sequence[str], config: EvaluatePreferenceConfig
) -> list[str]:
    """Of several sampled answers the first that breaks fewest rules: what choosing gains without any tuning."""
    rows = prompt_rows(tokenizer, prompts, model.context_length)
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    best: list[tuple[int, str]] = [(len(RULES) + 1, "")] * len(rows)
    stops = (tokenizer.turn_end, tokenizer.end_of_text)
    for sample in range(config.best_of):
        for start in range(0, len(order), BATCH_ROWS):
            part = order[start : start + BATCH_ROWS]
            made = generate(
                model, [rows[i] for i in part], max_new_tokens=config.max_new_tokens, stop_ids=stops,
                temperature=TEMPERATURE, top_k=TOP_K, seed=config.seed * 1000 + sample * len(order) + start,
            )  # fmt: skip
            for index, ids in zip(part, made, strict=True):
                text = tokenizer.decode(ids).strip()
                best[index] = min(
                    best[index], (len(broken_rules(prompts[index], text)), text), key=lambda pair: pair[0]
                )
    return [text for _, text in best]


def told_bits(
    models: Mapping[str, LanguageModel],
    tokenizer: TextTokenizer,
    items: Sequence[Mapping[str, Any]],
    written: Sequence[str],
) -> tuple[dict[str, Floats], Floats, dict[str, Floats]]:
    """The likelihoods of `Written`: of the wanted answers, their bytes, and of the model's own answers."""
    prompts = [item["prompt"] for item in items]
    length = models[MODEL].context_length
    wanted = answer_rows(tokenizer, prompts, [item["target"] for item in items], length)
    own = answer_rows(tokenizer, prompts, written, length)

    def bits(rows: Sequence[Row]) -> dict[str, Floats]:
        return {name: nats_by_row(models[name], rows, tokenizer.pad) / math.log(2) for name in (MODEL, REFERENCE)}

    num_bytes = np.array([target_bytes(tokenizer, row) for row in wanted], np.float64)
    return bits(wanted), num_bytes, bits(own)


def drift(made: Written) -> dict[str, float]:
    """How far tuning has moved the model.

    Returns:
        bits_per_byte_before, bits_per_byte_after: of the wanted answers. bits_per_answer: how much likelier the model
        finds its own answers than its reference does, a sample of the divergence of the two.
    """
    moved = made.own_bits[REFERENCE] - made.own_bits[MODEL]
    num_bytes = float(made.num_bytes.sum())
    return {
        "bits_per_byte_before": round(float(made.wanted_bits[REFERENCE].sum()) / num_bytes, 5),
        "bits_per_byte_after": round(float(made.wanted_bits[MODEL].sum()) / num_bytes, 5),
        "bits_per_answer": round(float(moved.mean()), 5),
    }
