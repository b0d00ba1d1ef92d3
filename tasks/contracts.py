"""The contracts as an input of the stage `validate`: editing one runs the gate again."""

from __future__ import annotations

from pathlib import Path

from data_contracts.contract import ContractError, contract_paths, contracts_digest
from lm_core.corpus.ledger_config import ValidateConfig
from lm_core.errors import UserError
from lm_core.runtime import Runtime

# In the order of the pipeline; a table's rules may name the tables before it.
TABLES = (
    "documents", "rejected", "signals", "decisions", "redactions", "edges", "canaries", "splits", "cuts", "examples",
    "hits", "fates", "quarantine",
)  # fmt: skip


def contract_digests(config: ValidateConfig, runtime: Runtime) -> dict[str, str]:
    """Digest of all contracts, those of `contracts_folder` included.

    Raises:
        UserError: the folder is missing or holds a contract of no table.
    """
    try:
        _refuse_those_of_other_gates(config)
        return {"contracts": contracts_digest(config.contracts_folder)}
    except (ContractError, OSError) as error:
        raise UserError(str(error)) from None


def _refuse_those_of_other_gates(config: ValidateConfig) -> None:
    """A contract that stands in for one which `validate` does not hold would have no effect."""
    if config.contracts_folder is None:
        return
    folder = Path(config.contracts_folder)
    own = {name for name, path in contract_paths(folder).items() if path.parent == folder}
    if without_effect := sorted(own - set(TABLES)):
        raise UserError(
            f"contract {folder / without_effect[0]}.yaml has no effect: the stage validate holds {', '.join(TABLES)}"
        )
