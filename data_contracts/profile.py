"""Contracts as SQL: the profile row of a table, the rows that pass, the rows that step aside."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from data_contracts.contract import Column, Contract, ContractError, Rule

if TYPE_CHECKING:
    import duckdb

# Arrow's names, as `schemas.py` and the contracts use them -> DuckDB's.
_TYPES = {
    "string": "VARCHAR",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "double": "DOUBLE",
    "bool": "BOOLEAN",
    "list<string>": "VARCHAR[]",
    "list<int64>": "BIGINT[]",
    "list<double>": "DOUBLE[]",
}

Profile = dict[str, float | int | None]

# Rows that break any warning about rows (repeated values are seen by a window, not here).
PUT_ASIDE = "rule rows put aside"


# -------------------------------------------------------------------- columns to rules


def all_rules(contract: Contract) -> tuple[Rule, ...]:
    """The contract's rules, after one for each required column."""
    required = tuple(
        Rule(
            name=f"{column.name}_present",
            description=f"{column.name} is never missing",
            metric="nullValues",
            severity="critical",
            column=column.name,
        )
        for column in contract.columns
        if column.required
    )
    return required + contract.quality


def column_problems(connection: duckdb.DuckDBPyConnection, contract: Contract, relation: str) -> list[str]:
    """What is wrong with names and types of a relation's columns."""
    found = {row[0]: row[1] for row in connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()}
    wanted = {column.name: _duckdb_type(contract, column) for column in contract.columns}
    problems = [f"column {name} is missing" for name in wanted if name not in found]
    if contract.otherColumns == "refused":
        problems += [f"column {name} is not in the contract" for name in found if name not in wanted]
    problems += [
        f"column {name} is {found[name]}, not {kind}"
        for name, kind in wanted.items()
        if name in found and found[name] != kind
    ]
    return problems


def _duckdb_type(contract: Contract, column: Column) -> str:
    if column.physicalType not in _TYPES:
        raise ContractError(
            f"contract {contract.name}: column {column.name} has the unknown physicalType {column.physicalType}; "
            f"known are {', '.join(_TYPES)}"
        )
    return _TYPES[column.physicalType]


def empty_relation(contract: Contract) -> str:
    """SQL of a table of no rows with the contract's columns."""
    columns = (f"NULL::{_duckdb_type(contract, column)} AS {_identifier(column.name)}" for column in contract.columns)
    return f"SELECT {', '.join(columns)} WHERE false"


# -------------------------------------------------------------------- rules to SQL


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(value: str | int | float) -> str:
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


def _failing(rule: Rule, relation: str) -> str:
    """SQL condition that is true (never null) for the rows which break a row rule other than duplicateValues."""
    if rule.metric == "failingRows":
        return f"coalesce(({(rule.query or '').replace('{table}', relation)}), false)"
    column = _identifier(rule.column or "")
    if rule.metric == "nullValues":
        return f"{column} IS NULL"
    wrong = []
    if rule.validValues is not None:
        wrong.append(f"{column} NOT IN ({', '.join(_literal(value) for value in rule.validValues)})")
    if rule.pattern is not None:
        wrong.append(f"NOT regexp_full_match({column}, {_literal(rule.pattern)})")
    if rule.minimum is not None:
        wrong.append(f"{column} < {rule.minimum!r}")
    if rule.maximum is not None:
        wrong.append(f"{column} > {rule.maximum!r}")
    return f"coalesce({' OR '.join(wrong)}, false)"


def _metric(rule: Rule, relation: str) -> str:
    """SQL aggregate of a rule over the inner select of `profile`, where row conditions are columns."""
    if rule.metric == "duplicateValues":
        column = _identifier(rule.column or "")
        # Equal numbers of hashes and of rows prove that no value stands twice; if they differ `profile` counts exactly.
        return f"count({column}) - count(DISTINCT CASE WHEN {column} IS NOT NULL THEN hash({column}) END)"
    if rule.counts_rows:
        return f"count(*) FILTER ({_identifier('rule ' + rule.name)})"
    if rule.metric == "rowCount":
        return "count(*)"
    if rule.metric == "distinctValues":
        return f"count(DISTINCT {_identifier(rule.column or '')})"
    query = (rule.query or "").replace("{table}", relation)
    if rule.metric == "value":
        return f"({query})"
    share = f"100.0 * count(*) FILTER ({query}) / count(*)"
    groups = f"FROM {relation} GROUP BY {_identifier(rule.groupBy or '')} HAVING count(*) >= {rule.minimumRows or 1}"
    return f"(SELECT max(share) FROM (SELECT {share} AS share {groups}))"


def _statistics(contract: Contract) -> dict[str, str]:
    """Figures of the columns that drift is measured on: name -> SQL aggregate, the same for any number of threads."""
    figures = {}
    for column in contract.columns:
        name = _identifier(column.name)
        if not column.required:
            figures[f"{column.name} nulls"] = f"count(*) - count({name})"
        if column.physicalType == "string":
            figures[f"{column.name} bytes"] = f"sum(strlen({name}))"
            figures[f"{column.name} longest"] = f"max(strlen({name}))"
        elif column.physicalType in ("int32", "int64"):
            figures |= {
                f"{column.name} {word}": f"{word}({name})" for word in ("min", "max", "sum")
            }  # integers add up exactly in any order, doubles do not
        elif column.physicalType == "double":
            figures |= {f"{column.name} {word}": f"{word}({name})" for word in ("min", "max")}
            # Doubles do not add up alike in any order, their millionths do.
            figures[f"{column.name} sum"] = f"sum(try_cast({name} * 1000000 AS HUGEINT)) / 1000000"
    return figures


def profile(connection: duckdb.DuckDBPyConnection, contract: Contract, relation: str) -> Profile:
    """The profile row of a table: `rows`, `rule <name>` for every rule (rows or a number), figures of the columns.

    Raises:
        ContractError: a rule's query is not SQL over this table.
    """
    rules = all_rules(contract)
    conditions = [
        f"{_failing(rule, relation)} AS {_identifier('rule ' + rule.name)}"
        for rule in rules
        if rule.counts_rows and rule.metric != "duplicateValues"
    ]
    figures = {"rows": "count(*)"}
    figures |= {f"rule {rule.name}": _metric(rule, relation) for rule in rules} | _statistics(contract)
    gentle = [rule for rule in rules if rule.severity == "warning" and rule.counts_rows]
    flags = [_identifier("rule " + rule.name) for rule in gentle if rule.metric != "duplicateValues"]
    figures[PUT_ASIDE] = f"count(*) FILTER ({' OR '.join(flags) or 'false'})"
    select = ", ".join(f"{expression} AS {_identifier(name)}" for name, expression in figures.items())
    inner = f"SELECT *{''.join(', ' + condition for condition in conditions)} FROM {relation}"
    values = run(connection, contract, f"SELECT {select} FROM ({inner})").fetchone()
    row = dict(zip(figures, values or (), strict=True))
    for rule in rules:
        if rule.metric == "duplicateValues" and row[f"rule {rule.name}"]:
            column = _identifier(rule.column or "")
            exact = connection.execute(f"SELECT count({column}) - count(DISTINCT {column}) FROM {relation}").fetchone()
            row[f"rule {rule.name}"] = exact[0] if exact else None
    return {name: _number(value) for name, value in row.items()}


def _number(value: Any) -> float | int | None:
    """A JSON-ready number: DuckDB gives sums as large integers or decimals, and doubles that may be no number."""
    if value is None or isinstance(value, int):
        return value
    return float(value) if math.isfinite(float(value)) else None


def run(connection: duckdb.DuckDBPyConnection, contract: Contract, query: str) -> duckdb.DuckDBPyConnection:
    """Execute a query that holds the SQL of rules.

    Raises:
        ContractError: a rule's SQL does not fit the table.
    """
    import duckdb

    try:
        return connection.execute(query)
    except (duckdb.BinderException, duckdb.ParserException, duckdb.CatalogException) as error:
        message = str(error).split("\n")[0]
        raise ContractError(f"contract {contract.name}: a rule's query is not SQL over this table: {message}") from None


# -------------------------------------------------------------------- rows passed and rows put aside


def _flagged(contract: Contract, relation: str, rules: list[Rule]) -> str:
    """A select of the relation's rows with `broken`, the names of the rules each of them breaks."""
    windows, broken = [], []
    for rule in rules:
        condition = _failing(rule, relation) if rule.metric != "duplicateValues" else _identifier("seen " + rule.name)
        if rule.metric == "duplicateValues":
            column = _identifier(rule.column or "")
            order = ", ".join(_identifier(name.name) for name in contract.columns)
            windows.append(
                f"{column} IS NOT NULL AND row_number() OVER (PARTITION BY {column} ORDER BY {order}) > 1 "
                f"AS {_identifier('seen ' + rule.name)}"
            )
        broken.append(f"CASE WHEN {condition} THEN {_literal(rule.name)} END")
    source = f"(SELECT *, {', '.join(windows)} FROM {relation})" if windows else relation
    columns = ", ".join(_identifier(column.name) for column in contract.columns)
    names = f"list_filter([{', '.join(broken)}], lambda name: name IS NOT NULL)"
    return f"SELECT {columns}, {names} AS broken FROM {source}"


def passed_query(contract: Contract, relation: str, names: Collection[str]) -> str:
    """SQL of the rows that go on when the rows failing the named rules step aside."""
    aside = [rule for rule in contract.quality if rule.name in names]
    columns = ", ".join(_identifier(column.name) for column in contract.columns)
    if not aside:
        return f"SELECT {columns} FROM {relation}"
    if any(rule.metric == "duplicateValues" for rule in aside):
        return f"SELECT {columns} FROM ({_flagged(contract, relation, aside)}) WHERE len(broken) = 0"
    return f"SELECT {columns} FROM {relation} WHERE NOT ({' OR '.join(_failing(rule, relation) for rule in aside)})"


def quarantine_query(contract: Contract, relation: str, names: Collection[str]) -> str | None:
    """SQL of the rows that fail the named rules, with the columns of `gate.QUARANTINE`; None without rules."""
    aside = [rule for rule in contract.quality if rule.name in names]
    if not aside:
        return None
    key = next((column.name for column in contract.columns if column.primaryKey), None)
    return f"""
        SELECT {_literal(contract.name)} AS table_name,
               {f"{_identifier(key)}::VARCHAR" if key else "NULL::VARCHAR"} AS row_key,
               broken[1] AS rule, array_to_string(broken, ',') AS rules,
               to_json({{{", ".join(f"{_literal(c.name)}: {_identifier(c.name)}" for c in contract.columns)}}})::VARCHAR
                   AS row
        FROM ({_flagged(contract, relation, aside)}) WHERE len(broken) > 0
    """
