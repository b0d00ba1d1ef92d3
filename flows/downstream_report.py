"""The score card of the downstream tasks: one table, as Markdown, as HTML and on the terminal."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tasks import pictures
from tasks.markdown import table
from tasks.reports import picture_shown
from tasks.wording import with_interval

HEADINGS = ("task", "metric", "score", "95 % interval", "items", "gain over random weights", "over best other",
            "baselines", "beside it")  # fmt: skip
SIGNIFICANT = 0.05
_INTERVAL = re.compile(r"[+-][\d.]+ \(([+-])(?!0\.000)[\d.]+ to ([+-])(?!0\.000)[\d.]+\)")
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem;color:#222}table{border-collapse:collapse}"
    "caption{text-align:left;font-weight:600;padding:.7rem 0}"
    ".better{color:#2f855a}.worse{color:#c44e52}"
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
        _gain(gain),
        _over_best(scores),
        _figures(scores.get("baselines", {})),
        "; ".join(part for part in (_secondary(scores), _fusions(scores), _forgotten(scores)) if part),
    )


def _gain(gain: Mapping[str, Any]) -> str:
    return with_interval(gain, "mean") if gain else ""


def _over_best(scores: Mapping[str, Any]) -> str:
    """The paired gain over the best system that is not the same model; no word where a score is not to be high."""
    if scores["metric"] == "preference":
        return ""
    best, gain = scores.get("best_classical_baseline"), scores.get("gain_over_best_classical_baseline")
    if not best and (gains := scores.get("gain_over_baselines")):
        best = max(gains, key=lambda name: scores["baselines"][name])
        gain = gains[best]
    return f"{_gain(gain)} {best.replace('_', ' ')}" if best and gain else ""


def _secondary(scores: Mapping[str, Any]) -> str:
    """The figures beside the score, with their intervals where they have one."""
    known = scores.get("secondary_intervals", {})
    figures = _beside(scores.get("secondary", {}))
    words = {n: with_interval(known[n]) if n in known else _number(value) for n, value in figures.items()}
    return ", ".join(f"{name.replace('_', ' ')} {word}" for name, word in words.items() if word)


def _fusions(scores: Mapping[str, Any]) -> str:
    """The other way in which a picture reaches the decoder, and what the shown one gains over it."""
    found = scores.get("fusions")
    if not found:
        return ""
    gain = with_interval(found["prefix_over_cross_attention"], "mean")
    return f"cross-attention {with_interval(found['cross_attention'])}, prefix tokens over it {gain}"


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _forgotten(scores: Mapping[str, Any]) -> str:
    """What the fine-tune has forgotten of the base's own text."""
    found = scores.get("forgetting")
    if not found:
        return ""
    mixed_in = f", {found['share_of_base']:.0%} of the base mixed back in" if found["share_of_base"] else ""
    return f"own text {found['before']:.3f} to {found['after']:.3f} bits per byte{mixed_in}"


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
    if any(scores.get("forgetting") for scores in card["downstream"].values()):
        notes.append(
            "Own text: what the base's own validation text costs before and after tuning. Beyond the bound of "
            "finetune.max_forgetting the base is mixed back in."
        )
    adjusted = card.get("gains_adjusted_for_many_tasks", {})
    found = [name.replace("_", " ") for name, p_value in adjusted.items() if p_value < SIGNIFICANT]
    if adjusted:
        notes.append(
            f"Adjusted for {len(adjusted)} tasks (Holm) a difference to random weights is found on {len(found)}: "
            f"{', '.join(found) or 'none'}."
        )
    notes.append(
        "A gain above zero means better: than the same model trained from random weights with the same budget, and "
        "than the best system that is not the model. Intervals are paired, 95 %."
    )
    return notes


def as_markdown(card: Mapping[str, Any]) -> str:
    """The card for Prefect."""
    picture = pictures.tasks_at_a_glance(card["downstream"])
    shown = [picture_shown("scores", picture)] if picture else []
    lines = [f"# Downstream tasks of {card['model']}", *shown, table(HEADINGS, rows_of(card))]
    return "\n\n".join([*lines, *(f"- {note}" for note in _notes(card))])


def as_html(card: Mapping[str, Any]) -> str:
    """The card as one page without any other file."""
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in _notes(card))
    picture = pictures.tasks_at_a_glance(card["downstream"])
    shown = f'<p><img alt="scores" src="{pictures.data_uri(picture)}"></p>' if picture else ""
    body = f"{shown}{table_of(HEADINGS, rows_of(card))}<ul>{notes}</ul>"
    return page(f"Downstream tasks of {card['model']}", body)


def table_of(headings: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """An HTML table of words; gains whose interval is clear of zero are coloured."""

    def cells(values: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}{_colour(value)}>{html.escape(value)}</{tag}>" for value in values) + "</tr>"

    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{title}{cells(headings, 'th')}{''.join(cells(row, 'td') for row in rows)}</table>"


def _colour(cell: str) -> str:
    found = _INTERVAL.match(cell)
    if not found or found[1] != found[2]:
        return ""
    return ' class="better"' if found[1] == "+" else ' class="worse"'


def page(title: str, body: str) -> str:
    """An HTML page that needs no other file."""
    title = html.escape(title)
    return f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>{body}"


def show(card: Mapping[str, Any], console: Console) -> None:
    """The card as a person reads it on a terminal."""
    shown = Table(title=f"Downstream tasks of {card['model']}", title_justify="left")
    for heading in HEADINGS[:-2]:
        shown.add_column(heading)
    for row in rows_of(card):
        shown.add_row(*row[:-2])
    console.print(shown)
    for note in _notes(card):
        console.print(f"  {note}", highlight=False)
