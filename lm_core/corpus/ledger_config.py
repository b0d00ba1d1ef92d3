"""Configuration of the stage `validate`."""

from __future__ import annotations

from pydantic import Field

from lm_core.config import Config, Incidental


class ValidateConfig(Config):
    """What a corpus must be before a model may be trained on it."""

    contracts_folder: str | None = Incidental(
        None,
        description="Folder of contracts (documents.yaml, fates.yaml, ...) that stand in for the built-in ones of the "
        "same name; their content counts as an input of the stage.",
    )
    accept_drift: bool = Incidental(
        False,
        description="Go on although a table has moved further from the last accepted run than a contract that calls "
        "drift critical allows.",
    )
    min_train_documents: int = Field(
        1, ge=1, le=1_000_000_000, description="Fewest kept documents that split train may have, in documents."
    )
