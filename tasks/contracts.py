"""The contracts as an input of the stage `validate`: editing one runs the gate again."""

from __future__ import annotations

from data_contracts.contract import ContractError, contracts_digest
from lm_core.corpus.ledger_config import ValidateConfig
from lm_core.errors import UserError
from lm_core.runtime import Runtime


def contract_digests(config: ValidateConfig, runtime: Runtime) -> dict[str, str]:
    """Digest of all contracts, those of `contracts_folder` included.

    Raises:
        UserError: the folder is missing or holds a contract of no table.
    """
    try:
        return {"contracts": contracts_digest(config.contracts_folder)}
    except (ContractError, OSError) as error:
        raise UserError(str(error)) from None
