"""Pictures for people: loss curves, the corpus funnel, score bars. PNG bytes, small enough for a data URI."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, ACCENT, QUIET, GOOD = "#1f2933", "#0f6cbd", "#9fb3c8", "#2f855a"
POINTS_OF_A_CURVE = 4
FATE_COLOURS = {
    "kept": GOOD,
    "quality": "#dd8452",
    "exact_duplicate": "#8172b3",
    "near_duplicate": "#b39ddb",
    "contaminated": "#c44e52",
    "quarantined": "#e6b800",
    "removed": INK,
}


def _figure(width: float, height: float) -> tuple[Any, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def data_uri(picture: bytes) -> str:
    """A PNG as a data URI: Prefect's Markdown renders these, and strips SVG."""
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def loss_curve(journal: Path) -> bytes | None:
    """Training and validation loss over the steps of a training journal; None where so few losses make no curve."""
    lines = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    train = [(line["step"], line["train_loss"]) for line in lines if "train_loss" in line]
    validation = [(line["step"], line["val_loss"]) for line in lines if "val_loss" in line]
    if len(train) < POINTS_OF_A_CURVE:
        return None
    figure, axes = _figure(6.4, 3.2)
    axes.plot(*zip(*train, strict=True), color=QUIET, linewidth=1.2, label="training")
    if validation:
        axes.plot(*zip(*validation, strict=True), color=ACCENT, marker="o", markersize=3, label="validation")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.legend(frameon=False)
    return _png(figure)


def funnel(by_source: Mapping[str, Mapping[str, Any]], limit: int = 20) -> bytes:
    """Fates by source as shares of its documents, the biggest sources first; the rest is summed up."""
    ranked = sorted(by_source.items(), key=lambda item: -item[1]["collected"])
    rows = [(name, dict(counts["fates"])) for name, counts in ranked[:limit]]
    rest = ranked[limit:]
    if rest:
        fates = {fate: sum(counts["fates"].get(fate, 0) for _, counts in rest) for fate in FATE_COLOURS}
        rows.append((f"{len(rest)} more sources", fates))
    figure, axes = _figure(7.2, 1.0 + 0.26 * len(rows))
    left = [0.0] * len(rows)
    totals = [max(sum(fates.values()), 1) for _, fates in rows]
    names = [f"{_shown(name)}  {total:,}" for (name, _), total in zip(rows, totals, strict=True)]
    for fate, colour in FATE_COLOURS.items():
        widths = [100 * fates.get(fate, 0) / total for (_, fates), total in zip(rows, totals, strict=True)]
        if any(widths):
            axes.barh(names, widths, left=left, color=colour, label=fate.replace("_", " "), height=0.72)
            left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the documents collected, in percent")
    figure.legend(frameon=False, loc="outside upper center", ncols=4, fontsize=9)
    return _png(figure)


def _shown(name: str) -> str:
    """A name as matplotlib draws it: what stands between dollar signs would be read as a formula, and fail as one."""
    return "".join(letter if letter.isprintable() else "?" for letter in name).replace("$", r"\$")


def score_bars(scores: Sequence[tuple[str, float]], metric: str, low: float, high: float) -> bytes:
    """Systems side by side; the first is ours and carries its interval."""
    figure, axes = _figure(6.0, 0.8 + 0.34 * len(scores))
    names = [name.replace("_", " ") for name, _ in scores]
    values = [value for _, value in scores]
    axes.barh(names, values, color=[ACCENT] + [QUIET] * (len(scores) - 1), height=0.66)
    axes.errorbar([values[0]], [0], xerr=[[max(values[0] - low, 0)], [max(high - values[0], 0)]], color=INK, capsize=3)
    for place, value in enumerate(values):
        end = max(high, value) if place == 0 else value
        axes.text(end, place, f"  {value:.3f}", va="center", color=INK, fontsize=9)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set_xlabel(metric.replace("_", " "))
    return _png(figure)


def tasks_at_a_glance(scores: Mapping[str, Mapping[str, Any]]) -> bytes | None:
    """Tasks below each other: the model with its interval, beside it random weights and the best other baseline.

    Only tasks scored from 0 to 1, the more the better, can share an axis; None when there is none.
    """
    shown = {name: made for name, made in scores.items() if made.get("better") != "lower" and 0 <= made["score"] <= 1}
    if not shown:
        return None
    figure, axes = _figure(7.6, 1.1 + 0.3 * len(shown))
    for place, made in enumerate(shown.values()):
        random = made["baselines"].get("random_weights")
        others = [v for name, v in made["baselines"].items() if name != "random_weights"]
        axes.plot([made["low"], made["high"]], [place, place], color=ACCENT, linewidth=5, alpha=0.35)
        axes.scatter([made["score"]], [place], color=ACCENT, zorder=3)
        if random is not None:
            axes.scatter([random], [place], facecolors="none", edgecolors=INK)
        if others:
            axes.scatter([max(others)], [place], color="#dd8452", marker="|", s=140, linewidths=2.5)
    axes.scatter([], [], color=ACCENT, label="this model, 95 % interval")
    axes.scatter([], [], facecolors="none", edgecolors=INK, label="the same from random weights")
    axes.scatter([], [], color="#dd8452", marker="|", s=140, linewidths=2.5, label="best other baseline")
    names = [f"{name}, {made['metric']}".replace("_", " ") for name, made in shown.items()]
    axes.set_yticks(range(len(shown)), names)
    axes.invert_yaxis()
    axes.set_xlim(-0.02, 1.02)
    axes.grid(axis="x", color=QUIET, alpha=0.35)
    figure.legend(frameon=False, loc="outside upper center", ncols=3, fontsize=9)
    return _png(figure)
