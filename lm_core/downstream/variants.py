"""The generalisation toolbox as variants of one fine-tune, each a change of its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lm_core.downstream.config import FinetuneConfig

PLAIN, FROM_RANDOM = "plain", "without_pretraining"
NUM_MEMBERS = 3


@dataclass(frozen=True)
class Variant:
    """A change of a fine-tune's configuration.

    Attributes:
        settings: fields of FinetuneConfig.
        optimization: fields of its OptimizationConfig.
    """

    name: str
    meaning: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    optimization: Mapping[str, Any] = field(default_factory=dict)

    def applied(self, config: FinetuneConfig) -> FinetuneConfig:
        """The configuration with the change, checked as a whole."""
        values = config.model_dump()
        values["optimization"] = values["optimization"] | dict(self.optimization)
        return FinetuneConfig.model_validate(values | dict(self.settings))


VARIANTS = (
    Variant(PLAIN, "the task's own recipe, that every other row is compared with"),
    Variant(FROM_RANDOM, "the same from random weights: what pretraining itself is worth", {"from_random": True}),
    Variant("dropout", "dropout of 0.2 on residual branches and pooled states", {"dropout": 0.2}),
    Variant("l1", "L1 penalty of 1e-5 on all matrices", {}, {"l1": 1e-5}),
    Variant("l2", "decoupled weight decay of 0.1", {}, {"weight_decay": 0.1}),
    Variant("label_smoothing", "0.1 of the probability spread over all labels", {}, {"label_smoothing": 0.1}),
    Variant(
        "tokens_swapped",
        "augmentation: 15 % of the tokens become near neighbours in the base's embedding; back-off for synonyms (no "
        "lexicon here) and for translation there and back (no translators here)",
        {"token_swap": 0.15},
    ),
    Variant(
        "tokens_left_out",
        "augmentation: 15 % of the tokens left out, anew each step; the last back-off, which needs nothing",
        {"token_dropout": 0.15},
    ),
    Variant(
        "ensemble",
        f"mean of the logits of {NUM_MEMBERS} fine-tunes of other seeds",
        {"members": NUM_MEMBERS, "combine": "logits"},
    ),
    Variant(
        "averaged_members",
        f"mean of the weights of the same {NUM_MEMBERS} fine-tunes",
        {"members": NUM_MEMBERS, "combine": "weights"},
    ),
    Variant("moving_average", "exponential moving average of the weights, decay 0.95", {}, {"ema_decay": 0.95}),
    Variant(
        "early_stopping",
        "stops after 2 of 10 looks at the validation items without gain, takes the best",
        {"num_evaluations": 10},
        {"patience": 2},
    ),
    Variant("frozen_trunk", "only the head learns", {"strategy": "head"}),
    Variant("low_rank", "low-rank updates (LoRA) of rank 8", {"strategy": "lora"}),
    Variant("gradual_unfreezing", "blocks join from the top down, lower ones learn slower", {"strategy": "gradual"}),
    Variant("replay", "a quarter of the targets from the base's own text", {"replay_fraction": 0.25}),
    Variant("max_pooling", "the head reads the maximum of the states beside their mean", {"pooling": "mean_max"}),
    Variant("without_subwords", "no bag of subwords beside the trunk", {"num_buckets": 0, "trunk_learns": "labels"}),
    Variant("with_subwords", "a bag of subwords beside the trunk", {"num_buckets": 1 << 15}),
)


def variants_of(config: FinetuneConfig, *, labels: bool) -> dict[str, tuple[Variant, FinetuneConfig]]:
    """The variants that change something in this configuration, by name.

    Args:
        labels: whether the task has a closed set of them: some variants are of classifiers only.
    """
    of_classifiers = {"num_buckets", "pooling", "token_swap", "token_dropout"}
    found: dict[str, tuple[Variant, FinetuneConfig]] = {}
    for variant in VARIANTS:
        needs_labels = of_classifiers & set(variant.settings) or variant.name in ("ensemble", "frozen_trunk")
        if needs_labels and not labels:
            continue
        made = variant.applied(config)
        if made != config or variant.name == PLAIN:
            found[variant.name] = (variant, made)
    both = {"without_subwords", "with_subwords"} & set(found)
    if len(both) == 2:  # the recipe has a bag of another size: only leaving it out says something
        del found["with_subwords"]
    return found
