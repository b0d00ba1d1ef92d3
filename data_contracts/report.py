"""Contract results for a person: Markdown (Prefect's artifacts) and one self-contained HTML page (MLflow, e-mail)."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from data_contracts.drift import Drift
from data_contracts.gate import FAILED, PASSED, QUARANTINED, WARNED, RuleResult, TableResult

ICONS = {PASSED: "✅", QUARANTINED: "📦", WARNED: "⚠️", FAILED: "❌"}
# Not every machine that shows the page has a font with pictures.
_SIGNS = {PASSED: "✓", QUARANTINED: "→", WARNED: "!", FAILED: "✗"}
_WORDS = {PASSED: "kept", QUARANTINED: "put rows aside", WARNED: "warned", FAILED: "failed"}
_RULE_HEADER = ("", "rule", "promise", "severity", "found", "allowed")
_TABLE_HEADER = ("", "table", "version", "rows in", "passed", "put aside", "rules kept")
_DRIFT_HEADER = ("", "table", "figure", "last accepted run", "this run", "change")
_ASIDE_HEADER = ("table", "rules broken", "key", "row")
_UNREADABLE_HEADER = ("reason", "rows", "for example", "what was wrong")
_SHOWN_DRIFTS = 40
_ROW_CHARACTERS = 300

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --quiet: #5a6675; --line: #e3e7ee; --ground: #fff; --good: #2f855a;
  --failed: #fdecec; --warned: #fff6df; --quarantined: #eef4ff }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --quiet: #9aa7b8; --line: #303a48; --ground: #151a21;
  --good: #68c08f; --failed: #4a2226; --warned: #453a1c; --quarantined: #1f2f4a } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
  background: var(--ground) }
h1 { margin-bottom: .2rem } h2 { margin: 2.2rem 0 .2rem; border-top: 1px solid var(--line); padding-top: 1rem }
p.verdict { font-size: 1.15rem; margin: .2rem 0 1rem } p.quiet, summary, small { color: var(--quiet) }
table { border-collapse: collapse; width: 100%; margin: .6rem 0 }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top }
th { font-weight: 600; color: var(--quiet) } th.number, td.number { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums }
tr.failed td { background: var(--failed) } tr.warned td { background: var(--warned) }
tr.quarantined td { background: var(--quarantined) } td.sign { font-weight: 700; width: 1.2rem; color: var(--good) }
tr.failed td.sign { color: #c53030 } tr.warned td.sign { color: #b7791f } tr.quarantined td.sign { color: #2b6cb0 }
td.code { font: 12px/1.45 ui-monospace, monospace;
  overflow-wrap: anywhere }
a { color: inherit } img { max-width: 100%; background: #fff; border-radius: 6px } details { margin: .4rem 0 }
"""


@dataclass(frozen=True)
class Aside:
    """A row that was put aside: its table, its key, the rules it broke, the row itself as JSON."""

    table: str
    key: str
    rules: str
    row: str


@dataclass(frozen=True)
class Unreadable:
    """What could not be read for one reason: how many rows, and the first of them."""

    reason: str
    num_rows: int
    key: str
    detail: str


# -------------------------------------------------------------------- in words


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _headline(results: Sequence[TableResult]) -> str:
    rules = [rule for result in results for rule in result.rules]
    counts = {status: sum(rule.status == status for rule in rules) for status in ICONS}
    told = ", ".join(f"{number} {_WORDS[status]}" for status, number in counts.items() if number)
    return f"{_number(len(rules), 'rule')} in {_number(len(results), 'contract')}: {told}"


def _verdict(results: Sequence[TableResult], drifted: Sequence[Drift]) -> str:
    if any(result.failures for result in results):
        return "A contract is broken: nothing may learn from this."
    aside = sum(result.rows_quarantined for result in results)
    were = "was" if aside == 1 else "were"
    told = f"All contracts hold; {_number(aside, 'row')} {were} put aside." if aside else "All contracts hold."
    num_critical = sum(item.severity == "critical" for item in drifted)
    critical = f", {num_critical} beyond what may go on" if num_critical else ""
    moved = f" Since the last accepted run {_number(len(drifted), 'figure')} moved{critical}." if drifted else ""
    return told + moved


def _worst(result: TableResult) -> str:
    statuses = {rule.status for rule in result.rules}
    return next((status for status in (FAILED, WARNED, QUARANTINED) if status in statuses), PASSED)


def _rows_of(result: TableResult) -> str:
    return (
        f"{_number(result.rows_in, 'row')} in = {result.rows_passed:,} passed + {result.rows_quarantined:,} put aside"
    )


def _found(rule: RuleResult) -> str:
    if rule.num_failing is not None:
        return _number(rule.num_failing, "row") + (f" ({rule.observed:.3g} %)" if rule.unit == "percent" else "")
    if rule.observed is None:
        return "nothing to measure"
    return f"{rule.observed:,.4g}" + (" %" if rule.metric == "groupShare" or rule.unit == "percent" else "")


def _rule_cells(rule: RuleResult) -> tuple[str, ...]:
    return ICONS[rule.status], rule.name, rule.description, rule.severity, _found(rule), rule.bound


def _table_cells(result: TableResult) -> tuple[str, ...]:
    kept = sum(rule.status == PASSED for rule in result.rules)
    counts = (f"{number:,}" for number in (result.rows_in, result.rows_passed, result.rows_quarantined))
    return ICONS[_worst(result)], result.table, result.version, *counts, f"{kept} of {len(result.rules)}"


def _drift_cells(item: Drift) -> tuple[str, ...]:
    icon = ICONS[FAILED if item.severity == "critical" else WARNED]
    return icon, item.table, item.figure, f"{item.before:,.4g}", f"{item.now:,.4g}", f"{item.change:.0%}"


def _unreadable_cells(item: Unreadable) -> tuple[str, ...]:
    return item.reason.replace("_", " "), f"{item.num_rows:,}", item.key, item.detail


def _aside_cells(row: Aside) -> tuple[str, ...]:
    shown = row.row if len(row.row) <= _ROW_CHARACTERS else row.row[:_ROW_CHARACTERS] + " …"
    return row.table, row.rules.replace(",", ", "), row.key, shown


# -------------------------------------------------------------------- Markdown


def markdown_report(
    results: Sequence[TableResult],
    drifted: Sequence[Drift] = (),
    aside: Sequence[Aside] = (),
    unreadable: Sequence[Unreadable] = (),
) -> str:
    """All tables; rules that were kept are folded away, so that what needs a look stands first."""
    parts = ["## Contracts", _verdict(results, drifted), _headline(results)]
    parts.append(_markdown_table(_TABLE_HEADER, [_table_cells(result) for result in results]))
    if drifted:
        parts += ["### Drift", _markdown_table(_DRIFT_HEADER, [_drift_cells(item) for item in drifted[:_SHOWN_DRIFTS]])]
    for result in results:
        loud = [rule for rule in result.rules if rule.status != PASSED]
        quiet = [rule for rule in result.rules if rule.status == PASSED]
        parts.append(f"### {result.table} {result.version}\n\n{_rows_of(result)}")
        if loud:
            parts.append(_markdown_table(_RULE_HEADER, [_rule_cells(rule) for rule in loud]))
        if quiet:
            kept = _markdown_table(_RULE_HEADER, [_rule_cells(rule) for rule in quiet])
            parts.append(f"<details><summary>{len(quiet)} rules kept</summary>\n\n{kept}\n\n</details>")
    if unreadable:
        cells = [_unreadable_cells(item) for item in unreadable]
        parts += ["### What could not be read", _markdown_table(_UNREADABLE_HEADER, cells)]
    if aside:
        parts += [
            "### Some of the rows put aside",
            _markdown_table(_ASIDE_HEADER, [_aside_cells(row) for row in aside]),
        ]
    return "\n\n".join(parts) + "\n"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        # Data may hold markup: what a cell shows is what it holds.
        safe = (html.escape(cell, quote=False).replace("|", "\\|").replace("\n", " ") for cell in cells)
        return "| " + " | ".join(safe) + " |"

    return "\n".join([line(header), "|" + " --- |" * len(header), *(line(row) for row in rows)])


# -------------------------------------------------------------------- HTML


def html_report(
    results: Sequence[TableResult],
    drifted: Sequence[Drift] = (),
    aside: Sequence[Aside] = (),
    unreadable: Sequence[Unreadable] = (),
    *,
    picture: str = "",
    place: str = "",
) -> str:
    """One page without scripts or anything to load from elsewhere.

    Args:
        picture: data URI of what is shown at the top.
        place: the artifact it is about.
    """
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>Contracts</title><style>{_STYLE}</style><h1>Contracts</h1>",
        f'<p class="verdict">{_verdict(results, drifted)}</p><p>{_headline(results)}</p>',
        f'<p class="quiet">{html.escape(place)}</p>' if place else "",
        _html_table(_TABLE_HEADER, [(_worst(r), _table_cells(r)) for r in results], numbers=(3, 4, 5, 6), link=1),
        f'<img alt="fates by source" src="{html.escape(picture)}">' if picture else "",
    ]
    if drifted:
        rows = [(FAILED if d.severity == "critical" else WARNED, _drift_cells(d)) for d in drifted[:_SHOWN_DRIFTS]]
        parts += ["<h2>Drift</h2>", _html_table(_DRIFT_HEADER, rows, numbers=(3, 4, 5))]
    if unreadable:
        rows = [("", _unreadable_cells(item)) for item in unreadable]
        parts += ["<h2>What could not be read</h2>", _html_table(_UNREADABLE_HEADER, rows, numbers=(1,), code=(2,))]
    if aside:
        rows = [("", _aside_cells(row)) for row in aside]
        parts += ["<h2>Some of the rows put aside</h2>", _html_table(_ASIDE_HEADER, rows, code=(2, 3))]
    parts += [_html_of(result) for result in results]
    return "\n".join(part for part in parts if part) + "\n"


def _html_of(result: TableResult) -> str:
    name = html.escape(result.table)
    loud = [(rule.status, _rule_cells(rule)) for rule in result.rules if rule.status != PASSED]
    quiet = [(rule.status, _rule_cells(rule)) for rule in result.rules if rule.status == PASSED]
    parts = [f'<h2 id="{name}">{name} <small>{html.escape(result.version)}</small></h2>', f"<p>{_rows_of(result)}</p>"]
    if loud:
        parts.append(_html_table(_RULE_HEADER, loud, numbers=(4, 5)))
    if quiet:
        table = _html_table(_RULE_HEADER, quiet, numbers=(4, 5))
        parts.append(f"<details><summary>{len(quiet)} rules kept</summary>{table}</details>")
    return "\n".join(parts)


def _html_table(
    header: Sequence[str],
    rows: Sequence[tuple[str, Sequence[str]]],
    *,
    numbers: Sequence[int] = (),
    code: Sequence[int] = (),
    link: int = -1,
) -> str:
    """A table of (class of the row, cells); `link` is the column whose cells lead to the place of that name."""

    def attribute(column: int) -> str:
        if header[column] == "":
            return ' class="sign"'
        return ' class="number"' if column in numbers else ' class="code"' if column in code else ""

    signs = dict(zip(ICONS.values(), _SIGNS.values(), strict=True))

    def cell(column: int, text: str) -> str:
        shown = html.escape(signs.get(text, text))
        return f'<a href="#{shown}">{shown}</a>' if column == link else shown

    head = "".join(f"<th{attribute(column)}>{name}</th>" for column, name in enumerate(header))
    body = "".join(
        f'<tr class="{status}">' + "".join(f"<td{attribute(n)}>{cell(n, text)}</td>" for n, text in enumerate(cells))
        + "</tr>"
        for status, cells in rows
    )  # fmt: skip
    return f"<table><tr>{head}</tr>{body}</table>"
