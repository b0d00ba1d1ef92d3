"""What the report of a visual task shows beside its score: controls by type of question, both fusions, retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.markdown import table
from tasks.wording import with_interval

# Systems by column, those that expose a model which does not look first.
CONTROLS = ("question_only", "shuffled_image", "majority", "text_only")
OTHERS = ("cross_attention", "random_weights", "cnn_mlp", "nearest_neighbour")


def visual_sections(scores: Mapping[str, Any]) -> list[str]:
    """Markdown sections; none for a task without pictures."""
    if "fusions" not in scores:
        return []
    return [*_controls(scores), *_fusions(scores), *_retrieval(scores)]


def _controls(scores: Mapping[str, Any]) -> list[str]:
    """The model beside its controls, overall and by type of question, and its paired gain over each control."""
    overall = scores["baselines"] | {"cross_attention": scores["fusions"]["cross_attention"]["score"]}
    systems = [name for name in (*CONTROLS, *OTHERS) if name in overall]
    rows = [("all", scores["items"], with_interval(scores), *(f"{overall[name]:.3f}" for name in systems))]
    for kind, part in scores.get("by_type", {}).items():
        others = (f"{part[name]:.3f}" if name in part else "" for name in systems)
        rows.append((kind, part["items"], with_interval(part["model"]), *others))
    gains = [(name.replace("_", " "), with_interval(g, "mean")) for name, g in scores["gain_over_controls"].items()]
    return [
        "## Controls by type of question",
        table(("type", "items", "model", *(name.replace("_", " ") for name in systems)), rows),
        "A model that answers without looking is no better than what never sees the picture, or sees another one.",
        table(("control", "paired gain of the model"), gains),
    ]


def _fusions(scores: Mapping[str, Any]) -> list[str]:
    found = scores["fusions"]
    rows = [
        ("prefix tokens", with_interval(found["prefix"]), with_interval(found["prefix_over_cross_attention"], "mean")),
        ("cross-attention", with_interval(found["cross_attention"]), ""),
    ]
    return ["## Fusions", table(("fusion", str(scores["metric"]), "paired gain over the other"), rows)]


def _retrieval(scores: Mapping[str, Any]) -> list[str]:
    """How often the right caption is among the first, of each system that ranks captions."""
    found = scores.get("retrieval")
    if not found:
        return []
    systems = {name: part for name, part in found.items() if isinstance(part, Mapping) and "at_1" in part}
    columns = [name for name in next(iter(systems.values())) if name.startswith("at_")] + ["mean_reciprocal_rank"]
    rows = [
        (name.replace("_", " "), *(with_interval(part[c]) if "low" in part.get(c, {}) else "" for c in columns))
        for name, part in systems.items()
    ]
    heading = f"## The right caption among {found['candidates']}"
    return [heading, table(("system", *(name.replace("_", " ") for name in columns)), rows)]
