"""Contracts and the gate: a rule catches what breaks it, rows always add up, a mistaken contract is refused."""

import json
import re

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_contracts import schemas
from data_contracts.contract import Contract, ContractError, DriftBound, load_contract, load_contracts
from data_contracts.drift import Drift, drift
from data_contracts.gate import FAILED, PASSED, QUARANTINED, WARNED, TableResult, check, names_put_aside
from data_contracts.profile import column_problems, passed_query, quarantine_query
from data_contracts.report import Aside, html_report, markdown_report

COLUMNS = (
    {"name": "id", "physicalType": "string", "primaryKey": True, "description": "key"},
    {"name": "size", "physicalType": "int64", "description": "a number"},
    {"name": "kind", "physicalType": "string", "description": "a group"},
)


def contract(*rules: dict) -> Contract:
    filled = [
        {"name": f"rule_{n}", "description": "a promise", "severity": "critical"} | r for n, r in enumerate(rules)
    ]
    return Contract.model_validate(
        {"name": "things", "version": "1.0.0", "owner": "tests", "description": "things", "columns": COLUMNS,
         "quality": filled}
    )  # fmt: skip


def connection_with(rows) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    types = pa.schema([("id", pa.string()), ("size", pa.int64()), ("kind", pa.string())])
    things = pa.Table.from_pylist([dict(zip(("id", "size", "kind"), row, strict=True)) for row in rows], schema=types)
    connection.register("arrow_things", things)
    connection.execute("CREATE TABLE things AS SELECT * FROM arrow_things")
    return connection


ROWS = [("a", 1, "x"), ("b", 2, "x"), ("c", 3, "y"), ("d", 4, "y")]


@pytest.mark.parametrize(
    ("rule", "bad"),
    [
        ({"metric": "nullValues", "column": "id"}, (None, 1, "x")),
        ({"metric": "duplicateValues", "column": "id"}, ("a", 9, "x")),
        ({"metric": "invalidValues", "column": "kind", "validValues": ["x", "y"]}, ("e", 1, "z'")),
        ({"metric": "invalidValues", "column": "id", "pattern": "[a-z]"}, ("E", 1, "x")),
        ({"metric": "invalidValues", "column": "size", "minimum": 0}, ("e", -1, "x")),
        ({"metric": "invalidValues", "column": "size", "maximum": 10}, ("e", 11, "x")),
        ({"metric": "failingRows", "query": "id = kind"}, ("x", 1, "x")),
        ({"metric": "failingRows", "query": "size > 2 AND kind IN (SELECT kind FROM {table} WHERE size = 1)"}, ("e", 3, "x")),  # noqa: E501
    ],
)  # fmt: skip
def test_each_metric_of_rows_catches_its_row_and_moves_it_aside(rule, bad):
    with connection_with(ROWS) as connection:
        assert check(connection, contract(rule), "things").rules[0].status == PASSED
    with connection_with([*ROWS, bad]) as connection:
        (failed,) = check(connection, contract(rule), "things").rules
        assert (failed.status, failed.num_failing) == (FAILED, 1)
        gentle = contract(rule | {"severity": "warning", "mustBeLessOrEqualTo": 20, "unit": "percent"})
        result = check(connection, gentle, "things")
        assert (result.rules[0].status, result.rows_passed, result.rows_quarantined) == (QUARANTINED, 4, 1)
        names = names_put_aside(result.rules)
        aside = connection.execute(quarantine_query(gentle, "things", names)).fetchall()
        assert [(row[0], row[1], row[2]) for row in aside] == [("things", bad[0], "rule_0")]
        assert sorted(connection.execute(passed_query(gentle, "things", names)).fetchall()) == ROWS
        strict = contract(rule | {"severity": "warning", "mustBeLessOrEqualTo": 19, "unit": "percent"})
        assert check(connection, strict, "things").rules[0].status == FAILED


@pytest.mark.parametrize(
    ("rule", "status"),
    [
        ({"metric": "rowCount", "mustBeGreaterOrEqualTo": 4}, PASSED),
        ({"metric": "rowCount", "mustBeGreaterOrEqualTo": 5}, FAILED),
        ({"metric": "rowCount", "mustBeLessOrEqualTo": 3, "severity": "warning"}, WARNED),
        ({"metric": "distinctValues", "column": "kind", "mustBeGreaterOrEqualTo": 3}, FAILED),
        ({"metric": "value", "query": "avg(size)", "mustBeLessOrEqualTo": 2.5}, PASSED),
        ({"metric": "value", "query": "avg(size)", "mustBeLessOrEqualTo": 2.4}, FAILED),
        ({"metric": "groupShare", "groupBy": "kind", "query": "size <= 2", "mustBeLessOrEqualTo": 99}, FAILED),
        ({"metric": "groupShare", "groupBy": "kind", "minimumRows": 3, "query": "size <= 2", "mustBeLessOrEqualTo": 99}, PASSED),  # noqa: E501
    ],
)  # fmt: skip
def test_each_metric_of_a_table_keeps_to_its_bound(rule, status):
    with connection_with(ROWS) as connection:
        assert check(connection, contract(rule), "things").rules[0].status == status


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.text("ab'\"\n", max_size=2)),
            st.one_of(st.none(), st.integers(-3, 3)),
            st.one_of(st.none(), st.sampled_from("xyz")),
        ),
        max_size=12,
    )
)
def test_rows_in_are_rows_passed_and_rows_put_aside(rows):
    gentle = {"severity": "warning", "mustBeLessOrEqualTo": 100, "unit": "percent"}
    promise = contract(
        {"metric": "nullValues", "column": "id"} | gentle,
        {"metric": "duplicateValues", "column": "id"} | gentle,
        {"metric": "invalidValues", "column": "size", "minimum": 0} | gentle,
        {"metric": "failingRows", "query": "kind = 'z' OR size > 2"} | gentle,
    )
    with connection_with(rows) as connection:
        result = check(connection, promise, "things")
        names = names_put_aside(result.rules)
        passed = connection.execute(passed_query(promise, "things", names)).fetchall()
        query = quarantine_query(promise, "things", names)
        aside = connection.execute(query).fetchall() if query else []
    assert len(passed) + len(aside) == len(rows) == result.rows_in
    assert (len(passed), len(aside)) == (result.rows_passed, result.rows_quarantined)
    assert all(key is not None and (size is None or size >= 0) for key, size, _ in passed)
    assert len({key for key, _, _ in passed}) == len(passed)


def test_a_table_with_other_columns_fails_before_any_rule():
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE things AS SELECT 'a' AS id, 'text' AS size, 1 AS extra")
        (failure,) = check(connection, contract(), "things").failures
    for words in ("kind is missing", "extra is not in the contract", "size is VARCHAR, not BIGINT"):
        assert words in failure


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("colour: red", "colour"),
        ("quality: [{name: r, description: d, metric: meanValue, severity: critical}]", "quality.0.metric (r)"),
        ("quality: [{name: r, description: d, metric: nullValues, severity: critical}]", "needs column"),
        ("quality: [{name: r, description: d, metric: nullValues, column: id, pattern: x, severity: critical}]", "does not use pattern"),  # noqa: E501
        ("quality: [{name: r, description: d, metric: nullValues, column: nowhere, severity: critical}]", "nowhere"),
        ("quality: [{name: r, description: d, metric: nullValues, column: id, severity: warning}]", "a warning says"),
        ("quality: [{name: r, description: d, metric: value, query: max(id), severity: critical}]", "a bound is missing"),  # noqa: E501
        ("quality: [{name: r, description: d, metric: invalidValues, column: id, severity: critical}]", "needs one of"),
        ("quality: [unclosed", "not valid YAML"),
    ],
)  # fmt: skip
def test_a_mistaken_contract_is_refused_in_one_line(tmp_path, content, words):
    path = tmp_path / "things.yaml"
    path.write_text(
        "name: things\nversion: 1.0.0\nowner: me\ndescription: d\n"
        f"columns: [{{name: id, physicalType: string, description: key}}]\n{content}\n"
    )
    with pytest.raises(ContractError) as caught:
        load_contract(path)
    assert words in str(caught.value) and "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_query_that_is_not_sql_is_refused_in_one_line():
    with connection_with(ROWS) as connection, pytest.raises(ContractError, match="not SQL over this table"):
        check(connection, contract({"metric": "failingRows", "query": "no_such_column = 1"}), "things")


def test_contracts_and_schemas_say_the_same():
    renamed = {"splits": schemas.SPLIT_OF_DOCUMENT, "held_out": schemas.HELD_OUT_TEXTS}
    tables = renamed | {name: getattr(schemas, name.upper()) for name in load_contracts() if name not in renamed}
    for name, promise in load_contracts().items():
        found = [(c.name, c.physicalType, c.required, c.description) for c in promise.columns]
        wanted = [
            (f.name, str(f.type).replace("element: ", "").replace("item: ", ""), not f.nullable,
             f.metadata[b"description"].decode())
            for f in tables[name]
        ]  # fmt: skip
        assert found == wanted, f"contracts/{name}.yaml and schemas.py differ"
        with duckdb.connect() as connection:
            connection.register("nothing", pa.schema(list(tables[name])).empty_table())
            assert column_problems(connection, promise, "nothing") == [], name


def test_reports_show_what_needs_a_look_first():
    promise = contract({"metric": "rowCount", "mustBeGreaterOrEqualTo": 9}, {"metric": "nullValues", "column": "id"})
    with connection_with(ROWS) as connection:
        result = check(connection, promise, "things")
    moved = [Drift("things", "size, mean", 1.0, 2.0, 0.5, "critical")]
    aside = [Aside("things", "a", "rule_0,rule_1", '{"id": "<script>|x"}')]
    markdown = markdown_report([result], moved, aside)
    page = html_report([result], moved, aside, picture="data:image/png;base64,AA==", place="validate/f")
    assert "❌" in markdown and markdown.index("rule_0") < markdown.index("rule_1")
    assert (
        "4 rows in = 4 passed + 0 put aside" in markdown and "size, mean" in markdown and "rule_0, rule_1" in markdown
    )
    assert "\\|x" in markdown and "<script" not in markdown + page
    assert page.index("A contract is broken") < page.index("rule_0") and "data:image/png" in page
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)", page), "the page loads nothing from elsewhere"
    assert TableResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def results_of(promise, rows):
    with connection_with(rows) as connection:
        return {"things": check(connection, promise, "things").to_json()}


MANY = [(f"id{n:04}", n % 7, "x" if n % 2 else None) for n in range(400)]


MORE = [(key, size + 1, kind) for key, size, kind in MANY]


def test_drift_names_the_figures_that_moved():
    share = {
        "metric": "value",
        "query": "100.0 * count(*) FILTER (size < 2) / count(*)",
        "mustBeLessOrEqualTo": 90,
        "unit": "percent",
    }
    promise = contract(share)
    before = results_of(promise, MANY)
    assert drift(before, before) == []
    more = results_of(promise, [*MANY, *((f"more{n}", n % 7, "x" if n % 2 else None) for n in range(400))])
    assert drift(before, more) == [], "a corpus that grew has not drifted"
    after = results_of(promise, [(key, size * 10, None) for key, size, _ in MANY[:250]])
    moved = {(item.figure, item.severity) for item in drift(before, after)}
    assert moved == {(name, "warning") for name in ("size, mean", "kind missing, %", "rows")}
    assert "size, mean was 2.9" in str(next(d for d in drift(before, after) if d.figure == "size, mean"))


def test_a_contract_says_how_much_drift_and_how_bad_it_is():
    promise = contract()
    before, after = results_of(promise, MANY), results_of(promise, MORE)
    assert [item.figure for item in drift(before, after)] == ["size, mean"]
    tolerant = promise.model_copy(update={"drift": DriftBound(mustBeLessOrEqualTo=50)})
    assert drift(before, results_of(tolerant, MORE)) == []
    strict = promise.model_copy(update={"drift": DriftBound(mustBeLessOrEqualTo=5, severity="critical")})
    assert [item.severity for item in drift(before, results_of(strict, MORE))] == ["critical"]


def test_columns_that_a_contract_does_not_name_may_be_allowed():
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE things AS SELECT 'a' AS id, 1::BIGINT AS size, 'x' AS kind, 2 AS extra")
        assert check(connection, contract(), "things").failures
        assert not check(connection, contract().model_copy(update={"otherColumns": "allowed"}), "things").failures
