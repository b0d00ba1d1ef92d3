"""Counts, durations, scores and progress as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def amount(value: float) -> str:
    """A count as people read it: 950, 12.3k, 4.56M."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (limit if suffix != 'k' else 1e3):.3g}{suffix}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds as people read them: 8 s, 2 min 05 s, 3 h 10 min."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def with_interval(figure: Mapping[str, Any], name: str = "score") -> str:
    """A figure and its bounds; with a sign where it is a difference."""
    sign = "" if name == "score" else "+"
    return f"{figure[name]:{sign}.3f} ({figure['low']:{sign}.3f} to {figure['high']:{sign}.3f})"


def describe(done: float, total: float | None, unit: str, seconds: float, figures: Mapping[str, float]) -> str:
    """One line on the progress of a stage."""
    parts = [f"{amount(done)}{f' of {amount(total)}' if total else ''} {unit}"]
    if seconds > 0.5 and done > 0:
        parts.append(f"{amount(done / seconds)}/s")
        if total and done < total:
            parts.append(f"{duration(seconds * (total - done) / done)} left")
    parts += [f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items()]
    return ", ".join(parts)
