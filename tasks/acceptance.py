"""What the contracts say for a person: the report of a run, and how it differs from the last accepted one.

A corpus is accepted when it has passed its contracts and no critical drift stopped the run. What the gate found then is
kept in the workspace as the measure of the next; that the corpus before was another is no part of what this one is, so
it stays out of the artifact.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data_contracts.drift import Drift, drift
from data_contracts.gate import TableResult
from data_contracts.report import Aside, Unreadable, html_report, markdown_report
from lm_core.artifact import Artifact, ValidCorpus
from lm_core.errors import IntegrityError
from lm_core.runtime import Runtime
from tasks.validation import RESULTS

SHOWN_ROWS = 5


@dataclass(frozen=True)
class ContractReport:
    """Both forms of the report of one artifact."""

    markdown: str
    html: str


def accepted_path(workspace: Path) -> Path:
    """Where the results of the last accepted corpus stand."""
    return workspace / "accepted" / RESULTS


def drift_of(corpus: ValidCorpus, runtime: Runtime) -> list[Drift]:
    """How the tables of a corpus differ from those of the last accepted one; nothing when there is none."""
    last = _last_accepted(runtime.workspace)
    if last is None or last["fingerprint"] == corpus.fingerprint:
        return []
    return drift(last["results"], _results(corpus))


def accept(corpus: ValidCorpus, runtime: Runtime, *, any_drift: bool = False) -> list[Drift]:
    """Make a corpus the measure of the next one.

    Args:
        any_drift: accept it however far it has moved.

    Returns:
        What has drifted since the last.

    Raises:
        IntegrityError: a table whose contract calls drift critical has moved beyond its bound.
    """
    found = drift_of(corpus, runtime)
    critical = [item for item in found if item.severity == "critical"]
    if critical and not any_drift:
        more = f" (and {len(critical) - 1} more figures)" if len(critical) > 1 else ""
        raise IntegrityError(
            f"drift against the last accepted run: {critical[0]}{more}; look at the report, then accept it with "
            "--set validation.accept_drift=true"
        )
    path = accepted_path(runtime.workspace)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps({"fingerprint": corpus.fingerprint, "results": _results(corpus)}))
    draft.replace(path)
    return found


def contract_report(artifact: Artifact, drifted: Sequence[Drift] = (), picture: str = "") -> ContractReport | None:
    """The report of an artifact whose tables met their contracts; None of one without.

    Args:
        picture: of the fates, as a data URI.
    """
    if not artifact.file(RESULTS).exists():
        return None
    results = [TableResult.from_json(values) for values in _results(artifact).values()]
    aside = _put_aside(artifact.file("quarantine.parquet"))
    unreadable = _unreadable(artifact.input_folder("corpus")) if isinstance(artifact, ValidCorpus) else []
    place = f"{artifact.stage}/{artifact.fingerprint}"
    return ContractReport(
        markdown_report(results, drifted, aside, unreadable),
        html_report(results, drifted, aside, unreadable, picture=picture, place=place),
    )


def _results(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(artifact.file(RESULTS).read_text())
    return found


def _last_accepted(workspace: Path) -> Mapping[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(accepted_path(workspace).read_text())
        return found if found.keys() >= {"fingerprint", "results"} else None
    except (OSError, ValueError):
        return None


def _unreadable(corpus: Path) -> list[Unreadable]:
    """The rows that collecting rejected, by reason, the most frequent first."""
    rows = pq.read_table(corpus / "rejected.parquet", columns=["key", "reason", "detail"]).to_pylist()
    first = {row["reason"]: row for row in reversed(rows)}
    counts = Counter(row["reason"] for row in rows)
    return [
        Unreadable(reason, number, first[reason]["key"], first[reason]["detail"] or "")
        for reason, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def _put_aside(path: Path) -> list[Aside]:
    """A few rows of each rule that rows were put aside for."""
    if not path.exists():
        return []
    shown: dict[tuple[str, str], list[Aside]] = {}
    for row in pq.read_table(path).to_pylist():
        rows = shown.setdefault((row["table_name"], row["rule"]), [])
        if len(rows) < SHOWN_ROWS:
            rows.append(Aside(row["table_name"], row["row_key"] or "", row["rules"], row["row"]))
    return [row for rows in shown.values() for row in rows]
