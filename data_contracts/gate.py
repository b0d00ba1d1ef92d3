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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from data_contracts.contract import Contract, ContractError, Rule
from data_contracts.profile import PUT_ASIDE, Profile, all_rules, column_problems, profile, quarantine_query, run

if TYPE_CHECKING:
    import duckdb

# Two threads that import the same packages in different orders can meet half-made modules.
_IMPORTING = threading.Lock()
# Its context belongs to the process: two threads that judge at once get each other's verdicts.
_JUDGING = threading.Lock()

PASSED, QUARANTINED, WARNED, FAILED = "passed", "quarantined", "warned", "failed"


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
    """How one table met its contract, and how far its contract lets it drift (see `drift.py`)."""

    table: str
    version: str
    rows_in: int
    rows_quarantined: int
    rules: tuple[RuleResult, ...]
    profile: Profile
    max_drift_percent: float = 25.0
    drift_severity: str = "warning"

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

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TableResult:
        """What `to_json` gave."""
        fields = {name: value for name, value in values.items() if name not in ("rows_passed", "rules")}
        return cls(rules=tuple(RuleResult(**rule) for rule in values["rules"]), **fields)


# -------------------------------------------------------------------- judging


def judge(profiles: Sequence[tuple[Contract, Profile]]) -> list[tuple[RuleResult, ...]]:
    """Great Expectations' verdict on profile rows, table by table and rule by rule.

    All at once: a validation costs it a tenth of a second, however few expectations there are.
    """
    gx, context = _great_expectations()
    import pandas

    rules = [(contract, rule) for contract, _ in profiles for rule in all_rules(contract)]
    observed = {
        f"{contract.name}.{rule.name}": _observed(rule, row)
        for contract, row in profiles
        for rule in all_rules(contract)
    }
    suite = gx.ExpectationSuite(
        name="contracts",
        expectations=[
            gx.expectations.ExpectColumnValuesToBeBetween(
                column=f"{contract.name}.{rule.name}",
                min_value=rule.lower,
                max_value=rule.upper,
                severity=rule.severity,
            )
            for contract, rule in rules
        ],
    )
    frame = pandas.DataFrame([observed], dtype="float64")
    with _JUDGING:
        batch = context.data_sources.pandas_default.read_dataframe(frame)
        verdicts = {result.expectation_config.kwargs["column"]: result for result in batch.validate(suite).results}
    for name, verdict in verdicts.items():
        if verdict.exception_info.get("raised_exception"):
            raise ContractError(f"contract {name}: {verdict.exception_info.get('exception_message')}")
    return [
        tuple(
            _result(rule, observed[name], row, bool(verdicts[name].success))
            for rule in all_rules(contract)
            for name in [f"{contract.name}.{rule.name}"]
        )
        for contract, row in profiles
    ]


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
    """Judge a table or view of a connection by its contract (see `check_all`)."""
    return check_all(connection, [(contract, relation)])[0]


def check_all(connection: duckdb.DuckDBPyConnection, tables: Sequence[tuple[Contract, str]]) -> list[TableResult]:
    """Judge tables or views of a connection by their contracts.

    Args:
        tables: contract and name (as SQL) of each.

    Raises:
        ContractError: a contract itself cannot be run.
    """
    results: dict[str, TableResult] = {}
    profiles: dict[str, Profile] = {}
    for contract, relation in tables:
        problems = column_problems(connection, contract, relation)
        if problems:
            counted = connection.execute(f"SELECT count(*) FROM {relation}").fetchone()
            results[contract.name] = _wrong_columns(contract, problems, counted[0] if counted else 0)
        else:
            profiles[contract.name] = profile(connection, contract, relation)
    sound = [(contract, relation) for contract, relation in tables if contract.name in profiles]
    verdicts = judge([(contract, profiles[contract.name]) for contract, _ in sound]) if sound else []
    for (contract, relation), rules in zip(sound, verdicts, strict=True):
        row = profiles[contract.name]
        results[contract.name] = TableResult(
            table=contract.name,
            version=contract.version,
            rows_in=int(row["rows"] or 0),
            rows_quarantined=_count_put_aside(connection, contract, relation, row, rules),
            rules=rules,
            profile=row,
            max_drift_percent=contract.drift.mustBeLessOrEqualTo,
            drift_severity=contract.drift.severity,
        )
    return [results[contract.name] for contract, _ in tables]


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
