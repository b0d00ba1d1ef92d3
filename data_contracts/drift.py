"""Drift: how the profile of each table differs from that of the last accepted run.

Both profiles are what `contracts.json` holds, so nothing is read again. Sums and counts are compared per row: a corpus
that merely grew has not drifted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Drift:
    """One figure that moved. `change` is relative to the larger of the two values: 0 is none, 1 is from or to zero."""

    table: str
    figure: str
    before: float
    now: float
    change: float

    def __str__(self) -> str:
        return f"{self.table}: {self.figure} was {self.before:.4g}, is {self.now:.4g}"


def drift(before: Mapping[str, Any], now: Mapping[str, Any], *, tolerance: float) -> list[Drift]:
    """Figures that moved by more than `tolerance` (a fraction), the largest change first.

    Args:
        before: contents of `contracts.json` of the last accepted run, table -> result.
        now: the same of this run.
    """
    found = []
    for table in before.keys() & now.keys():
        old, new = _per_row(before[table]["profile"]), _per_row(now[table]["profile"])
        for figure in old.keys() & new.keys():
            change = abs(old[figure] - new[figure]) / (max(abs(old[figure]), abs(new[figure])) or 1.0)
            if change > tolerance:
                found.append(Drift(table, figure, old[figure], new[figure], change))
    return sorted(found, key=lambda item: (-item.change, item.table, item.figure))


def _per_row(profile: Mapping[str, float | None]) -> dict[str, float]:
    """Figures of the columns, sums and counts divided by the number of rows."""
    rows = profile["rows"] or 1
    figures = {}
    for name, value in profile.items():
        if value is None or name == "rows" or name.startswith("rule "):
            continue
        additive = name.endswith((" bytes", " sum", " nulls"))
        figures[f"{name} per row" if additive else name] = value / rows if additive else value
    return figures
