"""The ablation table: variants of one fine-tune on the same held-out items, each against the plain one.

Differences are paired item by item; their p-values are adjusted for the number of rows (Holm 1979). Rows that help
nothing, or harm, stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lm_core.artifact import Checkpoint, DownstreamData
from lm_core.downstream.config import AblateConfig
from lm_core.downstream.items import read_items
from lm_core.downstream.variants import FROM_RANDOM, PLAIN
from lm_core.errors import UserError
from lm_core.evaluation.downstream import Scores, item_scores, scheme_of, write_evaluation
from lm_core.evaluation.outcome import Outcome, ask
from lm_core.evaluation.scored import MODEL, RANDOM, interval_of
from lm_core.evaluation.statistics import (
    Resampling,
    holm,
    mcnemar,
    paired_difference,
    paired_p_value,
    smallest_detectable_difference,
)
from lm_core.store import Build

PREFIX = "variant_"


def ablate(
    build: Build, config: AblateConfig, *, examples: DownstreamData, **variants: Checkpoint
) -> Mapping[str, Any]:
    """Write `scores.json`, and `predictions.parquet` with the answers of every variant.

    Args:
        variants: fine-tunes by PREFIX and name; `plain` among them.

    Raises:
        UserError: when no test item is left.
    """
    torch.set_num_threads(build.runtime.num_threads)
    items = read_items(examples, None, config.task, "test", build.runtime)[: config.max_items]
    if not items:
        raise UserError(f"the task {config.task} has no test items left")
    scheme = scheme_of(config)
    outcomes: dict[str, Outcome] = {}
    for name, checkpoint in sorted(variants.items(), key=lambda pair: pair[0] != PREFIX + PLAIN):
        outcomes[name.removeprefix(PREFIX)] = ask(checkpoint, items, scheme, build.runtime, lambda done: None)
        build.progress(len(outcomes), len(variants), "variants")
    sign = -1.0 if scheme.less_is_better else 1.0
    by_item = {name: item_scores(scheme.metric, items, outcome) for name, outcome in outcomes.items()}
    groups = [item["group"] or item["item_id"] for item in items]
    summary = _summary(config, scheme.metric, by_item, groups, sign)
    summary["better"] = "lower" if scheme.less_is_better else "higher"
    summary["train_items"] = {n.removeprefix(PREFIX): c.statistics.get("train_items") for n, c in variants.items()}
    shown = {MODEL if name == PLAIN else name: outcome for name, outcome in outcomes.items()}
    write_evaluation(
        build, config.task, items, shown, Scores(summary, {MODEL if n == PLAIN else n: v for n, v in by_item.items()})
    )
    return summary


def _summary(
    config: AblateConfig,
    metric: str,
    by_item: Mapping[str, NDArray[np.float64]],
    groups: Sequence[str],
    sign: float,
) -> dict[str, Any]:
    how = Resampling(config.num_resamples, config.confidence, config.seed)
    plain = by_item[PLAIN]
    clustered = groups if len(set(groups)) < len(groups) else None
    others = [name for name in by_item if name != PLAIN]
    p_values = [_p_value(metric, by_item[name], plain, how, clustered) for name in others]
    adjusted = dict(zip(others, holm(p_values), strict=True))
    rows: dict[str, dict[str, Any]] = {PLAIN: interval_of(plain, how, clustered).as_dict()}
    for name, p_value in zip(others, p_values, strict=True):
        own = by_item[name]
        rows[name] = interval_of(own, how, clustered).as_dict() | {
            "gain_over_plain": paired_difference(sign * own, sign * plain, how, clustered).as_dict("mean"),
            "p_value": round(p_value, 5),
            "p_value_adjusted": round(adjusted[name], 5),
            "smallest_detectable_difference": round(smallest_detectable_difference(own - plain), 5),
        }
    gain = (
        paired_difference(sign * plain, sign * by_item[FROM_RANDOM], how, clustered) if FROM_RANDOM in by_item else None
    )
    return {
        "task": config.task,
        "metric": metric,
        **rows[PLAIN],
        "items": len(plain),
        "baselines": {RANDOM if n == FROM_RANDOM else n: rows[n]["score"] for n in others},
        "gain_over_random_weights": gain.as_dict("mean") if gain else None,
        "variants": rows,
    }


def _p_value(
    metric: str, own: NDArray[np.float64], plain: NDArray[np.float64], how: Resampling, groups: Sequence[str] | None
) -> float:
    """McNemar's exact test of right against wrong, else the paired bootstrap's."""
    if metric == "accuracy" and groups is None:
        return mcnemar([bool(v) for v in own], [bool(v) for v in plain])
    return paired_p_value(own, plain, how, groups)
