"""Drift: how the profile of each table differs from that of the last accepted run.

Both profiles are what the gate keeps of its results, so nothing is read again. Sums are compared per row: a corpus that
merely grew has not drifted, one that lost rows has. Extremes are left out: a single document moves them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SHARE = ", %"
# The mean of fewer rows moves by chance.
_MIN_ROWS = 100
_EXTREMES = (" min", " max", " longest")


@dataclass(frozen=True)
class Drift:
    """One figure that moved.

    Attributes:
        change: a share: of the larger of the two values, or for a share of rows its difference.
        severity: critical stops the run, warning is told.
    """

    table: str
    figure: str
    before: float
    now: float
    change: float
    severity: str

    def __str__(self) -> str:
        return f"{self.table}: {self.figure} was {self.before:.4g}, is {self.now:.4g}"


def drift(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Drift]:
    """Figures that moved beyond the bound of their table's contract, critical ones and the largest changes first.

    Args:
        before: results of the gate in the last accepted run, table -> `TableResult.to_json()`.
        now: the same of this run, whose contracts give the bounds.
    """
    found = []
    for table in before.keys() & now.keys():
        most, severity = now[table]["max_drift_percent"], now[table]["drift_severity"]
        old, new = _figures(before[table]), _figures(now[table])
        for figure in old.keys() & new.keys():
            if figure != "rows" and min(old["rows"], new["rows"]) < _MIN_ROWS:
                continue
            change = _change(figure, old[figure], new[figure])
            if change * 100 > most:
                found.append(Drift(table, figure, old[figure], new[figure], change, severity))
    return sorted(found, key=lambda item: (item.severity != "critical", -item.change, item.table, item.figure))


def _change(figure: str, before: float, now: float) -> float:
    if figure == "rows":
        return max(0.0, (before - now) / before) if before else 0.0
    if figure.endswith(_SHARE):
        return abs(now - before) / 100
    return abs(before - now) / (max(abs(before), abs(now)) or 1.0)


def _figures(result: Mapping[str, Any]) -> dict[str, float]:
    """The number of rows, means of the columns, shares of missing values, and the rules that give one number."""
    profile = result["profile"]
    rows = profile["rows"] or 1
    figures: dict[str, float] = {"rows": profile["rows"]}
    for name, value in profile.items():
        if value is None or name == "rows" or name.startswith("rule ") or name.endswith(_EXTREMES):
            continue
        column, _, word = name.rpartition(" ")
        if word == "nulls":
            figures[f"{column} missing{_SHARE}"] = 100 * value / rows
        else:
            figures[f"{column}, mean{' bytes' if word == 'bytes' else ''}"] = value / rows
    for rule in result["rules"]:
        # A bound of 0 is a promise about the run itself, not a figure of its data.
        if rule["metric"] in ("value", "groupShare") and rule["observed"] is not None and rule["upper"] != 0:
            is_share = rule["metric"] == "groupShare" or rule["unit"] == "percent"
            figures[f"{rule['name']}{_SHARE if is_share else ''}"] = rule["observed"]
    return figures
