"""The ablation table: as Markdown, as HTML and on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.downstream_report import page, table_of
from tasks.markdown import table

HEADINGS = ("variant", "score", "95 % interval", "gain over plain, paired", "p", "p adjusted", "verdict", "what it is")


def rows_of(scores: Mapping[str, Any], meaning: Mapping[str, str]) -> list[tuple[str, ...]]:
    """One row of words for each variant, the plain one first, the others from best to worst."""
    variants = scores["variants"]
    others = sorted((n for n in variants if n != "plain"), key=lambda n: -variants[n]["gain_over_plain"]["mean"])
    return [_row(name, variants[name], meaning.get(name, "")) for name in ("plain", *others)]


def _row(name: str, made: Mapping[str, Any], meaning: str) -> tuple[str, ...]:
    gain = made.get("gain_over_plain")
    return (
        name.replace("_", " "),
        f"{made['score']:.3f}",
        f"{made['low']:.3f} to {made['high']:.3f}",
        f"{gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})" if gain else "",
        f"{made['p_value']:.3f}" if gain else "",
        f"{made['p_value_adjusted']:.3f}" if gain else "",
        _verdict(made) if gain else "",
        meaning,
    )


def _verdict(made: Mapping[str, Any]) -> str:
    """In words, by the interval and the adjusted p-value together."""
    gain = made["gain_over_plain"]
    if gain["low"] > 0 or gain["high"] < 0:
        word = "better" if gain["low"] > 0 else "worse"
        return word if made["p_value_adjusted"] < 0.05 else f"{word}, not among so many rows"
    least = made["smallest_detectable_difference"]
    return "no difference found" + (f" (one of {least:.3f} would be)" if least is not None else "")


def _heading(task: str, scores: Mapping[str, Any]) -> str:
    counts = scores["train_items"]["plain"]
    return f"{task.replace('_', ' ')}: {scores['metric']}, {counts} training items, {scores['items']:,} test items"


def ablation_as_markdown(card: Mapping[str, Any]) -> str:
    """The tables for Prefect."""
    parts = [f"# Ablation of {card['model']}"]
    for task, scores in card["ablation"].items():
        parts += [f"## {_heading(task, scores)}", table(HEADINGS, rows_of(scores, card["meaning"]))]
    return "\n\n".join(parts)


def ablation_as_html(card: Mapping[str, Any]) -> str:
    """The tables as one page without any other file."""
    tables = [
        table_of(HEADINGS, rows_of(scores, card["meaning"]), _heading(task, scores))
        for task, scores in card["ablation"].items()
    ]
    return page(f"Ablation of {card['model']}", "".join(tables))


def show_ablation(card: Mapping[str, Any], console: Console) -> None:
    """The tables as a person reads them on a terminal."""
    for task, scores in card["ablation"].items():
        shown = Table(title=_heading(task, scores), title_justify="left")
        for heading in HEADINGS[:-1]:
            shown.add_column(heading)
        for row in rows_of(scores, card["meaning"]):
            shown.add_row(*row[:-1])
        console.print(shown)
