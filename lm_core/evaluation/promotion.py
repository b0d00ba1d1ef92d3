"""The gate between challenger and champion: a decision with its evidence.

Rule: the challenger must be better on the validation text (fewer bits per byte, both models measured on the
challenger's validation text) and not worse on any downstream task both were scored on: its score must reach the worse
end of the champion's interval, which is the lower one, or the upper one where less is better. Without a champion the
challenger is promoted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_core.artifact import Checkpoint


def labels_of(checkpoint: Checkpoint) -> list[str] | None:
    """The labels a classifier chooses among; None for a model that writes."""
    path = checkpoint.file("labels.json")
    return list(json.loads(path.read_text())) if path.exists() else None


@dataclass(frozen=True)
class Decision:
    """Whether to promote, and one line of evidence for each thing that was looked at."""

    promote: bool
    evidence: tuple[str, ...]


def decide(
    challenger: Mapping[str, Any],
    champion: Mapping[str, Any] | None,
    challenger_tasks: Mapping[str, Mapping[str, Any]],
    champion_tasks: Mapping[str, Mapping[str, Any]],
) -> Decision:
    """Compare two models measured on the same text and items.

    Args:
        challenger: its language-model scores; `val_bits_per_byte` counts.
        champion: those of the model in service; None when there is none.
        challenger_tasks: task -> {"metric", "score", "low", "high"}, and "better" ("lower" or "higher", the default).
        champion_tasks: the same for the model in service, where the two can be compared.
    """
    new = float(challenger["val_bits_per_byte"])
    if champion is None:
        return Decision(True, (f"there is no champion yet; {new:.4f} bits per byte on the validation text",))
    old = float(champion["val_bits_per_byte"])
    better = new < old
    evidence = [f"validation text: {new:.4f} bits per byte against {old:.4f}: {'better' if better else 'not better'}"]
    worse = False
    for task in sorted(set(challenger_tasks) & set(champion_tasks)):
        own, other = challenger_tasks[task], champion_tasks[task]
        less_is_better = own.get("better") == "lower"
        bound = other["high"] if less_is_better else other["low"]
        holds = own["score"] <= bound if less_is_better else own["score"] >= bound
        worse = worse or not holds
        evidence.append(
            f"{task}: {own['metric']} {own['score']:.3f} against {other['score']:.3f} "
            f"(at {'most' if less_is_better else 'least'} {bound:.3f} wanted): {'not worse' if holds else 'worse'}"
        )
    return Decision(better and not worse, tuple(evidence))
