"""The score card of the downstream tasks: one table, as Markdown, as HTML and on the terminal."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tasks.reports import table

HEADINGS = ("task", "metric", "score", "95 % interval", "items", "gain over random weights", "baselines", "beside it")
SIGNIFICANT = 0.05
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem;color:#222}table{border-collapse:collapse}"
    "caption{text-align:left;font-weight:600;padding:.7rem 0}"
    "td,th{border-bottom:1px solid #ddd;padding:.35rem .7rem;text-align:left;vertical-align:top}"
)


def rows_of(card: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row of words for each task."""
    return [_row(name, scores) for name, scores in card["downstream"].items()]


def _row(name: str, scores: Mapping[str, Any]) -> tuple[str, ...]:
    gain = scores.get("gain_over_random_weights") or {}
    metric = scores["metric"].replace("_", " ") + (" (lower is better)" if scores.get("better") == "lower" else "")
    return (
        name.replace("_", " "),
        metric,
        f"{scores['score']:.3f}",
        f"{scores['low']:.3f} to {scores['high']:.3f}",
        f"{scores['items']:,}",
        f"{gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})" if gain else "",
        _figures(scores.get("baselines", {})),
        "; ".join(part for part in (_figures(_beside(scores.get("secondary", {}))), _forgotten(scores)) if part),
    )


def _forgotten(scores: Mapping[str, Any]) -> str:
    """What the fine-tune has forgotten of the base's own text."""
    found = scores.get("forgetting")
    return f"own text {found['before']:.3f} to {found['after']:.3f} bits per byte" if found else ""


def _beside(secondary: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of the model itself; those of groups of items stand in the task's own report."""
    if "model" in secondary:
        return dict(secondary["model"])
    found: dict[str, Any] = {}
    for name, value in secondary.items():
        own = value.get("model", value) if isinstance(value, Mapping) else value
        if isinstance(own, Mapping):
            found |= {f"{name} {part}": v for part, v in own.items() if name != "bad_rows"}
        elif not isinstance(own, bool):
            found[name] = own
    return found


def _figures(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{n.replace('_', ' ')} {v:.3f}" for n, v in values.items() if isinstance(v, int | float))


def _notes(card: Mapping[str, Any]) -> list[str]:
    signatures = {s for scores in card["downstream"].values() for s in scores.get("signatures", {}).values() if s}
    notes = [f"{name} is left out: {reason}" for name, reason in card["left_out"].items()]
    notes += [f"{n} is refused: {s['refused']}" for n, s in card["downstream"].items() if s.get("refused")]
    if signatures:
        notes.append("sacrebleu: " + "; ".join(sorted(signatures)))
    adjusted = card.get("gains_adjusted_for_many_tasks", {})
    found = [name.replace("_", " ") for name, p_value in adjusted.items() if p_value < SIGNIFICANT]
    if adjusted:
        notes.append(
            f"Adjusted for {len(adjusted)} tasks (Holm) a difference to random weights is found on {len(found)}: "
            f"{', '.join(found) or 'none'}."
        )
    notes.append("A gain above zero means better than the same model trained from random weights with the same budget.")
    return notes


def as_markdown(card: Mapping[str, Any]) -> str:
    """The card for Prefect."""
    lines = [f"# Downstream tasks of {card['model']}", table(HEADINGS, rows_of(card))]
    return "\n\n".join([*lines, *(f"- {note}" for note in _notes(card))])


def as_html(card: Mapping[str, Any]) -> str:
    """The card as one page without any other file."""
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in _notes(card))
    return page(f"Downstream tasks of {card['model']}", f"{table_of(HEADINGS, rows_of(card))}<ul>{notes}</ul>")


def table_of(headings: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """An HTML table of words."""

    def cells(values: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in values) + "</tr>"

    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{title}{cells(headings, 'th')}{''.join(cells(row, 'td') for row in rows)}</table>"


def page(title: str, body: str) -> str:
    """An HTML page that needs no other file."""
    title = html.escape(title)
    return f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>{body}"


def show(card: Mapping[str, Any], console: Console) -> None:
    """The card as a person reads it on a terminal."""
    shown = Table(title=f"Downstream tasks of {card['model']}", title_justify="left")
    for heading in HEADINGS[:-1]:
        shown.add_column(heading)
    for row in rows_of(card):
        shown.add_row(*row[:-1])
    console.print(shown)
    for note in _notes(card):
        console.print(f"  {note}", highlight=False)
