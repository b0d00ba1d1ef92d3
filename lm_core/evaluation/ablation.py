"""The ablation table: variants of one fine-tune on the same held-out items, each against the plain one.

Differences are paired item by item; their p-values are adjusted for the number of rows (Holm 1979). Rows that help
nothing, or harm, stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lm_core.artifact import Checkpoint, DownstreamData
from lm_core.downstream.config import AblateConfig
from lm_core.downstream.items import read_items
from lm_core.downstream.variants import FROM_RANDOM, PLAIN
from lm_core.errors import UserError
from lm_core.evaluation.downstream import (
    Scores,
    comparison,
    groups_of,
    item_scores,
    scheme_of,
    write_evaluation,
)
from lm_core.evaluation.outcome import Items, Outcome, Scheme, ask
from lm_core.evaluation.scored import MODEL, RANDOM
from lm_core.evaluation.statistics import Resampling, holm
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
    scores = score_variants(config, scheme, items, outcomes)
    scores.summary["train_items"] = {
        n.removeprefix(PREFIX): c.statistics.get("train_items") for n, c in variants.items()
    }
    shown = {shown_as(name): outcome for name, outcome in outcomes.items()}
    write_evaluation(build, config.task, items, shown, scores)
    return scores.summary


def shown_as(name: str) -> str:
    """What a variant is called among the systems of the predictions."""
    return MODEL if name == PLAIN else name


def score_variants(config: AblateConfig, scheme: Scheme, items: Items, outcomes: Mapping[str, Outcome]) -> Scores:
    """All figures of the table; the metric of every variant on every item under the name it is shown as."""
    how = Resampling(config.num_resamples, config.confidence, config.seed)
    by_item = {name: item_scores(scheme.metric, items, outcome) for name, outcome in outcomes.items()}
    compared = comparison(scheme, by_item, outcomes, how, groups_of(items))
    others = [name for name in by_item if name != PLAIN]
    p_values = [compared.p_value(PLAIN, name) for name in others]
    rows: dict[str, dict[str, Any]] = {PLAIN: compared.score(PLAIN).as_dict()}
    for name, p_value, adjusted in zip(others, p_values, holm(p_values), strict=True):
        rows[name] = compared.score(name).as_dict() | {
            "gain_over_plain": compared.gain(PLAIN, name).as_dict("mean"),
            "p_value": round(p_value, 5),
            "p_value_adjusted": round(adjusted, 5),
            "smallest_detectable_difference": compared.detectable(PLAIN, name),
        }
    gain = compared.gain(FROM_RANDOM, PLAIN).as_dict("mean") if FROM_RANDOM in by_item else None
    summary = {
        "task": config.task,
        "metric": scheme.metric,
        "better": "lower" if scheme.less_is_better else "higher",
        **rows[PLAIN],
        "items": len(items),
        "baselines": {RANDOM if n == FROM_RANDOM else n: rows[n]["score"] for n in others},
        "gain_over_random_weights": gain,
        "variants": rows,
    }
    return Scores(summary, {shown_as(name): values for name, values in by_item.items()})
