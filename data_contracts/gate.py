"""The gate: one DuckDB pass makes a profile row of a table, Great Expectations judges it, failing rows step aside.

Giving Great Expectations the rows themselves costs 8 times the time and 3 times the memory (it goes through pandas), so
it is given the one row of figures that its expectations are about. Its import costs seconds and hundreds of megabytes:
it happens inside `judge` alone, once per process.

    profile   what the rules count, and what drift is measured on      one SELECT
    judge     profile against bounds                                  Great Expectations
    passed_query, quarantine_query                                    rows in = rows passed + rows quarantined, always
"""

from __future__ import annotations

import os
import threading
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from data_contracts.contract import Contract, ContractError, Rule
from data_contracts.profile import PUT_ASIDE, Profile, all_rules, column_problems, profile, quarantine_query, run

if TYPE_CHECKING:
    import duckdb

# Two threads that import the same packages in different orders can meet half-made modules.
_IMPORTING = threading.Lock()

PASSED, QUARANTINED, WARNED, FAILED = "passed", "quarantined", "warned", "failed"

QUARANTINE = pa.schema(
    [
        pa.field("table_name", pa.string(), False, {"description": "contract the row broke"}),
        pa.field("row_key", pa.string(), True, {"description": "primary key of the row"}),
        pa.field("rule", pa.string(), False, {"description": "first rule it broke, in the contract's order"}),
        pa.field("rules", pa.string(), False, {"description": "all rules it broke, joined by commas"}),
        pa.field("row", pa.string(), False, {"description": "the whole row as JSON"}),
    ]
)


@dataclass(frozen=True)
class RuleResult:
    """How one rule went.

    Attributes:
        observed: the metric in the rule's unit; None when the table gives none (the share of no rows).
        num_failing: failing rows; None for a metric that counts none.
        status: passed; quarantined (a warning's failing rows, within its bound); warned (a warning about the table);
            failed (stops the run).
    """

    name: str
    description: str
    metric: str
    severity: str
    observed: float | None
    lower: float | None
    upper: float | None
    unit: str
    num_failing: int | None
    status: str

    @property
    def bound(self) -> str:
        """The bound in words."""
        unit = " %" if self.unit == "percent" else ""
        if self.lower is not None and self.upper is not None:
            return f"{self.lower:g} to {self.upper:g}{unit}"
        return f"at least {self.lower:g}{unit}" if self.lower is not None else f"at most {self.upper:g}{unit}"


@dataclass(frozen=True)
class TableResult:
    """How one table met its contract."""

    table: str
    version: str
    rows_in: int
    rows_quarantined: int
    rules: tuple[RuleResult, ...]
    profile: Profile

    @property
    def rows_passed(self) -> int:
        """Rows that go on."""
        return self.rows_in - self.rows_quarantined

    @property
    def failures(self) -> list[str]:
        """One clause for each rule that stops the run."""
        return [
            f"{self.table}.{rule.name}: {rule.description}; found "
            + (f"{rule.num_failing} of {self.rows_in} rows" if rule.num_failing is not None else f"{rule.observed:g}")
            + f", allowed {rule.bound}"
            for rule in self.rules
            if rule.status == FAILED
        ]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values of all of it."""
        return asdict(self) | {"rows_passed": self.rows_passed}


# -------------------------------------------------------------------- judging


def judge(contract: Contract, row: Profile) -> tuple[RuleResult, ...]:
    """Great Expectations' verdict on a profile row, rule by rule."""
    gx, context = _great_expectations()
    import pandas

    rules = all_rules(contract)
    observed = {rule.name: _observed(rule, row) for rule in rules}
    suite = gx.ExpectationSuite(
        name=contract.name,
        expectations=[
            gx.expectations.ExpectColumnValuesToBeBetween(
                column=rule.name, min_value=rule.lower, max_value=rule.upper, severity=rule.severity
            )
            for rule in rules
        ],
    )
    frame = pandas.DataFrame([observed], dtype="float64")
    batch = context.data_sources.pandas_default.read_dataframe(frame)
    verdicts = {result.expectation_config.kwargs["column"]: result for result in batch.validate(suite).results}
    broken = next((v for v in verdicts.values() if v.exception_info.get("raised_exception")), None)
    if broken is not None:
        raise ContractError(f"contract {contract.name}: {broken.exception_info.get('exception_message')}")
    return tuple(_result(rule, observed[rule.name], row, bool(verdicts[rule.name].success)) for rule in rules)


def _observed(rule: Rule, row: Profile) -> float | None:
    value, num_rows = row[f"rule {rule.name}"], row["rows"]
    if value is None:
        return None
    return 100.0 * value / (num_rows or 1) if rule.unit == "percent" and rule.counts_rows else float(value)


def _result(rule: Rule, observed: float | None, row: Profile, success: bool) -> RuleResult:
    num_failing = int(row[f"rule {rule.name}"] or 0) if rule.counts_rows else None
    if rule.severity == "critical" or (rule.counts_rows and not success):
        status = PASSED if success else FAILED
    elif rule.counts_rows:
        status = QUARANTINED if num_failing else PASSED
    else:
        status = PASSED if success else WARNED
    return RuleResult(
        name=rule.name,
        description=rule.description,
        metric=rule.metric,
        severity=rule.severity,
        observed=observed,
        lower=rule.lower,
        upper=rule.upper,
        unit=rule.unit,
        num_failing=num_failing,
        status=status,
    )


def warm_up() -> None:
    """Import the library ahead of the first judgement; safe to call in a thread."""
    _great_expectations()


def _great_expectations() -> tuple[Any, Any]:
    """The library, quiet and offline, with a context that writes nothing."""
    with _IMPORTING:
        return _quiet_context()


@lru_cache(maxsize=1)
def _quiet_context() -> tuple[Any, Any]:
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}  # type: ignore[assignment]
    return gx, context


def names_put_aside(rules: tuple[RuleResult, ...]) -> list[str]:
    """Names of the rules whose failing rows step aside."""
    return [rule.name for rule in rules if rule.status == QUARANTINED]


def check(connection: duckdb.DuckDBPyConnection, contract: Contract, relation: str) -> TableResult:
    """Judge a table or view of a connection by its contract.

    Args:
        relation: its name, as SQL.

    Raises:
        ContractError: the contract itself cannot be run.
    """
    problems = column_problems(connection, contract, relation)
    if problems:
        counted = connection.execute(f"SELECT count(*) FROM {relation}").fetchone()
        return _wrong_columns(contract, problems, counted[0] if counted else 0)
    row = profile(connection, contract, relation)
    rules = judge(contract, row)
    return TableResult(
        table=contract.name,
        version=contract.version,
        rows_in=int(row["rows"] or 0),
        rows_quarantined=_count_put_aside(connection, contract, relation, row, rules),
        rules=rules,
        profile=row,
    )


def _count_put_aside(
    connection: duckdb.DuckDBPyConnection,
    contract: Contract,
    relation: str,
    row: Profile,
    rules: tuple[RuleResult, ...],
) -> int:
    """Rows that step aside. The profile has counted them already, unless repeated values or a failed rule interfere."""
    names = names_put_aside(rules)
    aside = quarantine_query(contract, relation, names)
    if not aside:
        return 0
    by_profile = all(rule.metric != "duplicateValues" for rule in rules if rule.name in names)
    if by_profile and all(rule.name in names or not rule.num_failing for rule in rules if rule.severity == "warning"):
        return int(row[PUT_ASIDE] or 0)
    counted = run(connection, contract, f"SELECT count(*) FROM ({aside})").fetchone()
    return int(counted[0]) if counted else 0


def _wrong_columns(contract: Contract, problems: list[str], num_rows: int) -> TableResult:
    result = RuleResult(
        name="columns",
        description="; ".join(problems),
        metric="columns",
        severity="critical",
        observed=float(len(problems)),
        lower=None,
        upper=0,
        unit="rows",
        num_failing=None,
        status=FAILED,
    )
    return TableResult(contract.name, contract.version, num_rows, 0, (result,), {"rows": num_rows})
