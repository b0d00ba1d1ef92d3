"""Contracts: what a table between two stages promises, in YAML.

Field names follow the Open Data Contract Standard.

    name: examples                      # the table
    version: 1.0.0
    owner: downstream
    columns:
      - {name: item_id, physicalType: string, required: true, description: 32 hex digits ...}
    quality:
      - name: item_id_unique
        description: two examples never share an id
        metric: duplicateValues         # what is counted
        column: item_id
        severity: critical              # critical stops the run, warning puts the failing rows aside
        mustBeLessOrEqualTo: 0          # the bound; 0 when left out
        unit: rows                      # or percent

Metrics that count failing rows, which can be put aside:
    nullValues       the column is null
    duplicateValues  the value has been seen before
    invalidValues    the value is not in `validValues`, does not match `pattern`, or lies outside `minimum`..`maximum`
    failingRows      `query`, an SQL condition over the row, is true ({table} stands for the table itself)
Metrics that give one number for the table:
    rowCount         number of rows
    distinctValues   number of different values of the column
    value            `query`, an SQL aggregate
    groupShare       the largest percentage of rows with `query` true in a group of `groupBy` (of `minimumRows` or more)

Beside the rules a contract may say how far its table may drift from that of the last accepted run:

    drift: {mustBeLessOrEqualTo: 25, severity: critical}    # percent; a warning when left out (`drift.py`)
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

BUILT_IN = Path(__file__).parent / "contracts"

ROW_METRICS = ("nullValues", "duplicateValues", "invalidValues", "failingRows")
Metric = Literal[
    "nullValues",
    "duplicateValues",
    "invalidValues",
    "failingRows",
    "rowCount",
    "distinctValues",
    "value",
    "groupShare",
]

# What each metric needs beside its name; other fields of this list are refused.
_NEEDS: dict[str, frozenset[str]] = {
    "nullValues": frozenset({"column"}),
    "duplicateValues": frozenset({"column"}),
    "invalidValues": frozenset({"column"}),
    "failingRows": frozenset({"query"}),
    "rowCount": frozenset(),
    "distinctValues": frozenset({"column"}),
    "value": frozenset({"query"}),
    "groupShare": frozenset({"query", "groupBy"}),
}
_INVALID = frozenset({"validValues", "pattern", "minimum", "maximum"})


class ContractError(ValueError):
    """A contract file is missing, unreadable, or says something that contracts cannot say."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(_Strict):
    """A column the table must have."""

    name: str
    physicalType: str  # noqa: N815, the standard's word
    required: bool = False
    primaryKey: bool = False  # noqa: N815
    description: str


class Rule(_Strict):
    """One promise: a metric over the table and the bound it keeps to."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    description: str
    metric: Metric
    severity: Literal["critical", "warning"]
    column: str | None = None
    query: str | None = None
    groupBy: str | None = None  # noqa: N815
    minimumRows: int | None = Field(None, ge=1)  # noqa: N815
    validValues: tuple[str | int | float, ...] | None = None  # noqa: N815
    pattern: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    mustBeGreaterOrEqualTo: float | None = None  # noqa: N815
    mustBeLessOrEqualTo: float | None = None  # noqa: N815
    unit: Literal["rows", "percent"] = "rows"

    @property
    def counts_rows(self) -> bool:
        """Whether the metric counts failing rows, rather than giving one number for the table."""
        return self.metric in ROW_METRICS

    @property
    def lower(self) -> float | None:
        """Smallest value of the metric that keeps the promise."""
        return self.mustBeGreaterOrEqualTo

    @property
    def upper(self) -> float | None:
        """Largest value of the metric that keeps the promise; failing rows are not accepted unless said."""
        return 0 if self.counts_rows and self.mustBeLessOrEqualTo is None else self.mustBeLessOrEqualTo

    @model_validator(mode="after")
    def _fits_its_metric(self) -> Rule:
        given = {name for name in ("column", "query", "groupBy", "minimumRows", *_INVALID)
                 if getattr(self, name) is not None}  # fmt: skip
        needed = _NEEDS[self.metric]
        allowed = needed | (_INVALID if self.metric == "invalidValues" else frozenset())
        allowed |= {"minimumRows"} if self.metric == "groupShare" else frozenset()
        if missing := sorted(needed - given):
            raise ValueError(f"metric {self.metric} needs {' and '.join(missing)}")
        if extra := sorted(given - allowed):
            raise ValueError(f"metric {self.metric} does not use {' and '.join(extra)}")
        if self.metric == "invalidValues" and not given & _INVALID:
            raise ValueError("metric invalidValues needs one of validValues, pattern, minimum, maximum")
        if self.counts_rows and self.severity == "warning" and self.mustBeLessOrEqualTo is None:
            raise ValueError("a warning says how many rows may be put aside: mustBeLessOrEqualTo, unit rows or percent")
        if self.lower is None and self.upper is None:
            raise ValueError("a bound is missing: mustBeGreaterOrEqualTo or mustBeLessOrEqualTo")
        return self


class DriftBound(_Strict):
    """How far figures may move between two accepted runs, in percent of the larger value."""

    mustBeLessOrEqualTo: float = Field(25.0, gt=0, le=100)  # noqa: N815
    severity: Literal["critical", "warning"] = "warning"


class Contract(_Strict):
    """What one table promises.

    Attributes:
        otherColumns: whether the table may have columns that the contract does not name.
    """

    name: str
    version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    owner: str
    description: str
    otherColumns: Literal["refused", "allowed"] = "refused"  # noqa: N815
    columns: tuple[Column, ...] = Field(min_length=1)
    drift: DriftBound = DriftBound()
    quality: tuple[Rule, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Contract:
        columns = {column.name for column in self.columns}
        names = [rule.name for rule in self.quality]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"rule {twice[0]} stands twice")
        for rule in self.quality:
            if unknown := {rule.column, rule.groupBy} - columns - {None}:
                raise ValueError(f"rule {rule.name} names the column {unknown.pop()}, which the contract does not have")
        return self


def load_contract(path: Path) -> Contract:
    """Read one contract.

    Raises:
        ContractError: one line naming the file, the place in it, and what is wrong.
    """
    import yaml

    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Contract.model_validate(content)
    except OSError as error:
        raise ContractError(f"contract {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ContractError(f"contract {path} is not valid YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the contract"
        rule = _rule_at(content, first["loc"])
        raise ContractError(f"contract {path}: {place}{rule}: {first['msg']}") from None


def _rule_at(content: Any, place: tuple[int | str, ...]) -> str:
    """The name of the rule an error lies in, for the message."""
    if len(place) < 2 or place[0] != "quality" or not isinstance(place[1], int):
        return ""
    rule = content["quality"][place[1]]
    return f" ({rule['name']})" if isinstance(rule, dict) and "name" in rule else ""


def contract_paths(folder: str | Path | None = None) -> dict[str, Path]:
    """Files of all contracts by table; those of `folder` stand in for the built-in ones of the same name.

    Raises:
        ContractError: `folder` is no folder, or holds a contract of a table that does not exist.
    """
    paths = {path.stem: path for path in sorted(BUILT_IN.glob("*.yaml"))}
    if folder is None:
        return paths
    own = Path(folder)
    if not own.is_dir():
        raise ContractError(f"contracts_folder {own} is not a folder")
    for path in sorted(own.glob("*.yaml")):
        if path.stem not in paths:
            raise ContractError(f"contract {path} is of no table; the tables are {', '.join(paths)}")
        paths[path.stem] = path
    return paths


def load_contracts(folder: str | Path | None = None) -> dict[str, Contract]:
    """All contracts by table.

    Raises:
        ContractError: see `load_contract` and `contract_paths`.
    """
    contracts = {name: load_contract(path) for name, path in contract_paths(folder).items()}
    for name, contract in contracts.items():
        if contract.name != name:
            raise ContractError(f"contract {name}.yaml names itself {contract.name}; file and name must agree")
    return contracts


def contracts_digest(folder: str | Path | None = None) -> str:
    """SHA-256 over the bytes of all contracts: what makes an edited contract run the gate again.

    Raises:
        ContractError: see `contract_paths`.
    """
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in contract_paths(folder).items()}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
