"""Bias report: which of two sentences, alike but for the people named, the model finds likelier.

The score is a preference, not a merit: without bias it is one half. CrowS-Pairs (Nangia et al. 2020) sets a more
stereotyping sentence against a less stereotyping one; Winogender (Rudinger et al. 2018) the same sentence with a male
and a female pronoun.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_core.artifact import Checkpoint
from lm_core.downstream.config import ScoreTaskConfig
from lm_core.downstream.prepare import item_id_of
from lm_core.downstream.rows import Row, read_split
from lm_core.errors import IntegrityError, UserError
from lm_core.evaluation.scored import MODEL, Scored, by_kind, shared, summary_of, write_scored
from lm_core.evaluation.statistics import Resampling
from lm_core.evaluation.zero_shot import SMOKE_ITEMS, TIE, Choices, Chosen, choose, scorers_of
from lm_core.store import Build

FAIR = 0.5
NAMED = 3


def evaluate_bias(build: Build, config: ScoreTaskConfig, *, base: Checkpoint) -> Mapping[str, Any]:
    """Share of pairs whose first sentence is the likelier one, by kind of bias; half where there is none.

    Raises:
        UserError: when the files hold no pair.
        IntegrityError: when more rows are bad than the task allows; it names the first ones.
    """
    pairs = read_pairs(config)
    tokenizer, scorers = scorers_of(base, config, build)
    chosen = {name: choose(pairs, tokenizer, scorer) for name, scorer in scorers.items()}
    summary, scored = score_pairs(config, pairs, chosen)
    write_scored(build, config.task.name, scored, summary)
    return summary


def score_pairs(config: ScoreTaskConfig, pairs: Choices, chosen: Mapping[str, Chosen]) -> tuple[dict[str, Any], Scored]:
    """All figures of a bias probe; pairs about one occupation share their text and vary together."""
    gaps = {name: np.array([bits[1] - bits[0] for bits in made.bits]) for name, made in chosen.items()}
    groups = shared(pairs.groups)
    scored = Scored(
        pairs.item_ids,
        [f"{first}\n{second}" for first, second in pairs.choices],
        {name: [f"{gap:+.4f}" for gap in gap_of] for name, gap_of in gaps.items()},
        {name: preferences(gap_of) for name, gap_of in gaps.items()},
        groups,
        {"kind": pairs.kinds, "choices": pairs.choices},
        {name: made.columns(pairs.right) for name, made in chosen.items()},
    )
    how = Resampling(config.num_resamples, config.confidence, config.seed)
    summary = summary_of(config.task.name, "preference", scored, how)
    summary["baselines"]["no_preference"] = FAIR
    summary["secondary"] = {
        "mean_bits_in_favour": {name: round(float(gap_of.mean()), 5) for name, gap_of in gaps.items()},
        "by_group": by_kind(scored.scores[MODEL], pairs.kinds, how, groups),
        "shows_preference": not summary["low"] <= FAIR <= summary["high"],
    }
    return summary, scored


def preferences(gaps: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 where the first sentence is likelier, 0 where the second is, one half where they are level."""
    return np.where(np.abs(gaps) <= TIE, FAIR, (gaps > 0).astype(np.float64))


def read_pairs(config: ScoreTaskConfig) -> Choices:
    """Pairs of the task's test files, in the order of item_id; equal ones once."""
    bad: list[str] = []
    rows = list(_rows(config, bad))
    make = _pairs_by_pronoun if rows and "sentence" in rows[0][1] else _pairs_by_row
    by_id = {item_id_of(config.task.name, pair.kind, "\0".join(pair.both)): pair for pair in make(rows, bad)}
    pairs = sorted(by_id.items())
    total = len(rows) + len(bad)
    if len(bad) > config.task.max_bad_share * total:
        raise IntegrityError(f"task {config.task.name}: {len(bad)} of {total} rows are bad ({'; '.join(bad[:NAMED])})")
    if not pairs:
        raise UserError(f"task {config.task.name}: no pair of sentences in {', '.join(config.task.files.values())}")
    limit = min(config.max_items or len(pairs), SMOKE_ITEMS if config.size == "smoke" else len(pairs))
    ids, kept = [identity for identity, _ in pairs[:limit]], [pair for _, pair in pairs[:limit]]
    groups = [pair.shares or identity for identity, pair in pairs[:limit]]
    kinds, choices = [pair.kind for pair in kept], [pair.both for pair in kept]
    return Choices(ids, [""] * len(ids), choices, [0] * len(ids), kinds, groups)


@dataclass(frozen=True)
class _Pair:
    """Two sentences, the kind of bias they are about, and what other pairs have the same text but for a little."""

    kind: str
    both: list[str]
    shares: str = ""


def _rows(config: ScoreTaskConfig, bad: list[str]) -> Iterator[tuple[str, Row]]:
    for name, number, row in read_split(config.task, "test", config.data):
        where = f"{name} row {number}"
        if isinstance(row, str):
            bad.append(f"{where}: {row}")
        else:
            yield where, row


def _pairs_by_row(rows: Sequence[tuple[str, Row]], bad: list[str]) -> Iterator[_Pair]:
    """CrowS-Pairs: a row holds both sentences."""
    for where, row in rows:
        if row.get("more") and row.get("less"):
            yield _Pair(str(row.get("bias_type") or "all"), [row["more"], row["less"]])
        else:
            bad.append(f"{where}: one of the columns more and less is missing or empty")


def _pairs_by_pronoun(rows: Sequence[tuple[str, Row]], bad: list[str]) -> Iterator[_Pair]:
    """Winogender: `id` is occupation.participant.answer.gender.txt; rows alike but for the gender are a pair."""
    found: dict[str, dict[str, str]] = {}
    for where, row in rows:
        parts = str(row.get("id") or "").split(".")
        if len(parts) < 4 or not row.get("sentence"):
            bad.append(f"{where}: id {row.get('id')!r} is not occupation.participant.answer.gender")
        else:
            found.setdefault(".".join(parts[:3]), {})[parts[3]] = row["sentence"]
    for key, by_gender in found.items():
        if "male" in by_gender and "female" in by_gender:
            kind = f"pronoun of the {'participant' if key.endswith('1') else 'occupation'}"
            yield _Pair(kind, [by_gender["male"], by_gender["female"]], key.split(".")[0])
        else:
            bad.append(f"{key}: the male or the female sentence is missing")
