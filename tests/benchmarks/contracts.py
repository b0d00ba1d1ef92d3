"""How fast the gate is: rows validated against 14 rules, failing rows put aside.

The pipeline writes no copy of the rows that passed; `--copy` tells how long that would take besides.

    python tests/benchmarks/contracts.py [--rows 1000000] [--copy]

The last line is one JSON object. Great Expectations' import is timed on its own: a run pays it once, beside DuckDB.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import duckdb

from data_contracts.contract import Contract, Rule, load_contracts
from data_contracts.gate import check, names_put_aside, warm_up
from data_contracts.profile import passed_query, quarantine_query
from lm_core.database import connect
from lm_core.runtime import Runtime

ROWS_SQL = """
COPY (SELECT md5(i::VARCHAR) AS doc_id, 'source ' || (i % 50) AS source, 'key ' || i AS key,
             CASE WHEN i % 1000 = 7 THEN 'poem' ELSE 'text' END AS kind, 'title ' || (i % 1000) AS title,
             'CC0-1.0' AS licence, '1.' || (i % 9) AS version,
             NULL::VARCHAR AS url, NULL::VARCHAR AS time, md5(i::VARCHAR) AS content_hash, i % 4096 AS num_bytes,
             CASE WHEN i % 5000 = 0 THEN ' ' ELSE md5((i * 7)::VARCHAR) || ' ' || md5((i * 11)::VARCHAR) END AS text
      FROM range({rows}) AS t(i)) TO '{path}' (FORMAT parquet, COMPRESSION zstd)
"""


def contract_of_14_rules() -> Contract:
    """The documents' contract with rules that let synthetic rows through, two of them with rows to put aside."""
    documents = load_contracts()["documents"]
    kept = [
        rule for rule in documents.quality if rule.name not in ("doc_id_of_content", "num_bytes_true", "kind_known")
    ]
    bounded = {"mustBeLessOrEqualTo": 5, "unit": "percent", "severity": "warning"}
    extra = Rule(name="kind_text", description="kind is text", metric="invalidValues", column="kind",
                 validValues=("text",), **bounded)  # fmt: skip
    return documents.model_copy(update={"quality": (*kept, extra)})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--copy", action="store_true", help="write a copy of what passed too, and time it apart")
    options = parser.parse_args()
    rows = options.rows
    contract = contract_of_14_rules()
    num_rules = len(contract.quality) + sum(column.required for column in contract.columns)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with duckdb.connect() as connection:
            connection.execute(ROWS_SQL.format(rows=rows, path=folder / "rows.parquet"))
        started = time.perf_counter()
        warm_up()
        import_seconds = time.perf_counter() - started
        limit = 700_000_000 if rows > 2_000_000 else 250_000_000
        with connect(Runtime(workspace=folder, memory_limit_bytes=limit), folders=[folder]) as connection:
            connection.execute(f"CREATE VIEW rows AS SELECT * FROM read_parquet('{folder / 'rows.parquet'}')")
            started = time.perf_counter()
            result = check(connection, contract, "rows")
            names = names_put_aside(result.rules)
            _write(connection, quarantine_query(contract, "rows", names), folder / "aside.parquet")
            seconds = time.perf_counter() - started
            peak_mb = _peak_mb()
            copied = {}
            if options.copy:
                _write(connection, passed_query(contract, "rows", names), folder / "passed.parquet")
                copied = {"seconds_with_copy": round(time.perf_counter() - started, 2), "peak_mb_with_copy": _peak_mb()}
    figures = {
        "rows": rows,
        "rules": num_rules,
        "passed": result.rows_passed,
        "quarantined": result.rows_quarantined,
        "failures": len(result.failures),
        "seconds": round(seconds, 2),
        "peak_mb": peak_mb,
        "import_seconds": round(import_seconds, 2),
        **copied,
    }
    print(json.dumps({"benchmark": "contracts"} | figures))


def _write(connection: duckdb.DuckDBPyConnection, query: str | None, path: Path) -> None:
    connection.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet, COMPRESSION zstd)")


def _peak_mb() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)


if __name__ == "__main__":
    main()
