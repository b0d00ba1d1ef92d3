"""Scores from the predictions alone: what a report says can be counted again from the answers that were kept.

In SQL, of one task's `predictions.parquet`:

    SELECT system, avg(score) FROM 'predictions.parquet' GROUP BY system;                       -- every metric but
    SELECT system, sum(bits) / sum(num_bytes) FROM 'predictions.parquet' GROUP BY system;       -- bits_per_byte
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq

from lm_core.errors import UserError
from lm_core.evaluation.metrics import TEXT_METRICS

RATIO = "bits_per_byte"
SQL = {
    RATIO: "SELECT system, sum(bits) / sum(num_bytes) AS score FROM predictions GROUP BY system",
    "mean": "SELECT system, avg(score) AS score FROM predictions GROUP BY system",
}


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
