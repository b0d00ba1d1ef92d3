"""Contract results for a person: Markdown (Prefect's artifacts) and one self-contained HTML page (MLflow, e-mail)."""

from __future__ import annotations

import html
from collections.abc import Sequence

from data_contracts.gate import FAILED, PASSED, QUARANTINED, WARNED, RuleResult, TableResult

ICONS = {PASSED: "✅", QUARANTINED: "📦", WARNED: "⚠️", FAILED: "❌"}
_HEADER = ("", "rule", "promise", "severity", "found", "allowed")

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430 }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 2rem }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #e3e7ee; vertical-align: top }
th { font-weight: 600; color: #5a6675 } tr.failed td { background: #fdecec } tr.warned td { background: #fff6df }
tr.quarantined td { background: #eef4ff } td.number { text-align: right; font-variant-numeric: tabular-nums }
"""


def _headline(results: Sequence[TableResult]) -> str:
    rules = [rule for result in results for rule in result.rules]
    counts = {status: sum(rule.status == status for rule in rules) for status in ICONS}
    words = {PASSED: "kept", QUARANTINED: "put rows aside", WARNED: "warned", FAILED: "failed"}
    return ", ".join(f"{ICONS[status]} {number} {words[status]}" for status, number in counts.items() if number)


def _rows_of(result: TableResult) -> str:
    return f"{result.rows_in:,} rows in = {result.rows_passed:,} passed + {result.rows_quarantined:,} put aside"


def _found(rule: RuleResult) -> str:
    if rule.num_failing is not None:
        return f"{rule.num_failing:,} rows" + (f" ({rule.observed:.3g} %)" if rule.unit == "percent" else "")
    if rule.observed is None:
        return "nothing to measure"
    return f"{rule.observed:.4g}" + (" %" if rule.metric == "groupShare" else "")


def _cells(rule: RuleResult) -> tuple[str, ...]:
    return ICONS[rule.status], rule.name, rule.description, rule.severity, _found(rule), rule.bound


def markdown_report(results: Sequence[TableResult]) -> str:
    """All tables; rules that were kept are folded away, so that what needs a look stands first."""
    parts = ["## Contracts", _headline(results)]
    for result in results:
        loud = [rule for rule in result.rules if rule.status != PASSED]
        quiet = [rule for rule in result.rules if rule.status == PASSED]
        parts.append(f"### {result.table} {result.version}\n\n{_rows_of(result)}")
        if loud:
            parts.append(_markdown_table(loud))
        if quiet:
            parts.append(
                f"<details><summary>{len(quiet)} rules kept</summary>\n\n{_markdown_table(quiet)}\n\n</details>"
            )
    return "\n\n".join(parts) + "\n"


def _markdown_table(rules: Sequence[RuleResult]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(_HEADER), "|" + " --- |" * len(_HEADER), *(line(_cells(rule)) for rule in rules)])


def html_report(results: Sequence[TableResult]) -> str:
    """One page without scripts or anything to load from elsewhere."""
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Contracts</title><style>{_STYLE}</style>',
        f"<h1>Contracts</h1><p>{_headline(results)}</p>",
    ]
    for result in results:
        head = "".join(f"<th>{name}</th>" for name in _HEADER)
        body = "".join(
            f'<tr class="{rule.status}">' + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(rule)) + "</tr>"
            for rule in sorted(result.rules, key=lambda rule: rule.status == PASSED)
        )
        parts.append(f"<h2>{html.escape(result.table)} {result.version}</h2><p>{_rows_of(result)}</p>")
        parts.append(f"<table><tr>{head}</tr>{body}</table>")
    return "\n".join(parts) + "\n"
