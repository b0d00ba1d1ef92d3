"""Scores from the predictions alone: what a report says can be counted again from the answers that were kept.

In SQL, of one task's `predictions.parquet`:

    SELECT system, avg(score) FROM 'predictions.parquet' GROUP BY system;                       -- every metric but
    SELECT system, sum(bits) / sum(num_bytes) FROM 'predictions.parquet' GROUP BY system;       -- bits_per_byte

`recomputed` makes all figures of `scores.json` again, intervals, gains and p-values included. What is no figure of
answers is not among them: bad rows, and what a checkpoint itself tells (forgetting, accuracy on training pairs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq

from lm_core.config import Config
from lm_core.downstream.config import AblateConfig, EvaluatePreferenceConfig, EvaluateTaskConfig, ScoreTaskConfig
from lm_core.downstream.variants import PLAIN
from lm_core.errors import UserError
from lm_core.evaluation.ablation import score_variants
from lm_core.evaluation.bias import score_pairs
from lm_core.evaluation.downstream import scheme_of, score_outcomes
from lm_core.evaluation.metrics import TEXT_METRICS
from lm_core.evaluation.outcome import Data, Items, Outcome
from lm_core.evaluation.preference import REFERENCE, Written, score_preference
from lm_core.evaluation.scored import MODEL, PREFERENCE, Floats
from lm_core.evaluation.visual import score_answers
from lm_core.evaluation.visual_captions import score_captions
from lm_core.evaluation.zero_shot import Choices, Chosen, score_choices
from lm_core.store import read_manifest
from lm_core.vision.config import EvaluateVisualConfig

RATIO = "bits_per_byte"
SQL = {
    RATIO: "SELECT system, sum(bits) / sum(num_bytes) AS score FROM predictions WHERE bits IS NOT NULL GROUP BY system",
    "mean": "SELECT system, avg(score) AS score FROM predictions GROUP BY system",
}

Rows = list[dict[str, Any]]
Figures = dict[str, Any]


def scores_by_sql(path: Path, metric: str) -> dict[str, float]:
    """The score of every system, from the figures that stand beside its answers."""
    predictions = pq.read_table(path)
    with duckdb.connect() as connection:
        connection.register("predictions", predictions)
        return dict(connection.execute(SQL.get(metric, SQL["mean"])).fetchall())


def scores_from_answers(path: Path, metric: str) -> dict[str, float]:
    """The score of every system, from the words it wrote and those that were wanted.

    Raises:
        UserError: the metric needs more than the answers: likelihoods, or the answers of another system.
    """
    if metric != "accuracy" and metric not in TEXT_METRICS:
        raise UserError(f"{metric} is no metric of an answer and its references; take scores_by_sql")
    found: dict[str, list[float]] = {}
    for row in pq.read_table(path).to_pylist():
        found.setdefault(row["system"], []).append(_score(metric, row))
    return {system: float(np.mean(values)) for system, values in found.items()}


def _score(metric: str, row: Mapping[str, Any]) -> float:
    if metric == "accuracy":
        return float(row["prediction"] == row["target"])
    wanted: Sequence[str] = row["references"] or [row["target"]]
    return TEXT_METRICS[metric](row["prediction"], wanted)


def recomputed(path: Path, config: Config, train: Items = ()) -> Figures:
    """The figures of an evaluation from its `predictions.parquet`.

    Args:
        config: that of the stage: it names metric, guards and how intervals are made.
        train: the task's training items, for figures that compare answers with what was learnt from.

    Raises:
        UserError: the configuration is of no stage that scores a task.
    """
    by_system: dict[str, Rows] = {}
    for row in pq.read_table(path).to_pylist():
        by_system.setdefault(row["system"], []).append(row)
    for kind, recompute in _KINDS.items():
        if isinstance(config, kind):
            return recompute(by_system, config, train)
    raise UserError(f"{type(config).__name__} is no configuration of a stage that scores a task")


def recomputed_in_store(folder: Path) -> Figures:
    """The same for an evaluation in a store, whose manifest knows the rest.

    Raises:
        UserError: the folder holds no evaluation of a task.
        IntegrityError: its manifest cannot be read.
    """
    manifest = read_manifest(folder)
    kind = _STAGES.get(manifest["stage"])
    if kind is None:
        raise UserError(f"{folder} holds no evaluation of a task, but what the stage {manifest['stage']} made")
    values = manifest["config"] | ({"data": ""} if kind is ScoreTaskConfig else {})
    config = kind.model_validate(values)
    train: Items = ()
    if isinstance(config, EvaluateTaskConfig):
        examples = folder.parents[1] / manifest["inputs"]["examples"]["folder"] / "examples.parquet"
        rows = pq.read_table(examples).to_pylist() if examples.exists() else []
        train = [row for row in rows if row["task"] == config.task and row["split"] == "train"]
    return recomputed(folder / "predictions.parquet", config, train)


def _items(by_system: Mapping[str, Rows]) -> Rows:
    return [row | {"prompt": row["prompt"] or ""} for row in next(iter(by_system.values()))]


def _numbers(rows: Rows, column: str) -> Floats:
    """A column of numbers; empty where the system has none."""
    return np.array([row[column] for row in rows if row[column] is not None], np.float64)


def _answers(rows: Rows) -> list[str]:
    return [row["prediction"] for row in rows]


def _outcomes(by_system: Mapping[str, Rows]) -> dict[str, Outcome]:
    return {
        name: Outcome(_answers(rows), *(_numbers(rows, column) for column in ("bits", "num_bytes", "confidence")))
        for name, rows in by_system.items()
    }


def _task(by_system: Mapping[str, Rows], config: EvaluateTaskConfig, train: Items) -> Figures:
    data = Data(train, (), _items(by_system))
    return score_outcomes(config, scheme_of(config), data, _outcomes(by_system)).summary


def _ablation(by_system: Mapping[str, Rows], config: AblateConfig, train: Items) -> Figures:
    outcomes = {PLAIN if name == MODEL else name: outcome for name, outcome in _outcomes(by_system).items()}
    return score_variants(config, scheme_of(config), _items(by_system), outcomes).summary


def _choices(by_system: Mapping[str, Rows], config: ScoreTaskConfig, train: Items) -> Figures:
    items, bias = _items(by_system), config.task.metric == PREFERENCE
    choices = Choices(
        [item["item_id"] for item in items],
        [item["prompt"] for item in items],
        [item["choices"] for item in items],
        [0 if bias else item["choices"].index(item["target"]) for item in items],
        [item["kind"] for item in items],
        [item["group"] or item["item_id"] for item in items],
    )
    chosen = {
        name: Chosen(
            [np.array(row["choice_bits"], np.float64) for row in rows],
            [np.array(row["choice_bytes"], np.float64) for row in rows],
        )
        for name, rows in by_system.items()
    }
    return (score_pairs if bias else score_choices)(config, choices, chosen)[0]


def _preference(by_system: Mapping[str, Rows], config: EvaluatePreferenceConfig, train: Items) -> Figures:
    own = by_system[MODEL]
    made = Written(
        {name: _answers(rows) for name, rows in by_system.items()},
        {name: _numbers(by_system[name], "bits") for name in (MODEL, REFERENCE)},
        _numbers(own, "num_bytes"),
        {MODEL: _numbers(own, "answer_bits"), REFERENCE: _numbers(own, "answer_bits_of_reference")},
    )
    return score_preference(config, _items(by_system), made)[0]


def _visual(by_system: Mapping[str, Rows], config: EvaluateVisualConfig, train: Items) -> Figures:
    items = _items(by_system)
    ranks = {name: found for name, rows in by_system.items() if len(found := _numbers(rows, "rank"))}
    answers = {name: (_answers(rows), _numbers(rows, "confidence")) for name, rows in by_system.items()}
    if ranks:
        return score_captions(config, items, dict(answers), ranks)[0]
    return score_answers(config, items, dict(answers))[0]


# The more particular kind of configuration first.
_KINDS: dict[type[Config], Callable[[Mapping[str, Rows], Any, Items], Figures]] = {
    AblateConfig: _ablation,
    EvaluateTaskConfig: _task,
    ScoreTaskConfig: _choices,
    EvaluatePreferenceConfig: _preference,
    EvaluateVisualConfig: _visual,
}
_STAGES: dict[str, type[Config]] = {
    "evaluate_task": EvaluateTaskConfig,
    "ablate": AblateConfig,
    "choose": ScoreTaskConfig,
    "probe_bias": ScoreTaskConfig,
    "evaluate_preference": EvaluatePreferenceConfig,
    "evaluate_visual": EvaluateVisualConfig,
    "evaluate_captions": EvaluateVisualConfig,
}
