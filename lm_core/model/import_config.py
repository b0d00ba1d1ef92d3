"""Configuration of importing a model. Loads no torch."""

from __future__ import annotations

from pydantic import Field

from lm_core.config import Config, Incidental


class ImportConfig(Config):
    """Which checkpoint is brought in, and how much of its context is used."""

    folder: str = Incidental(
        ..., description="Folder with config.json, *.safetensors and tokenizer.json; it counts by content."
    )
    context_length: int = Field(
        0, ge=0, le=131_072, description="Longest input in tokens; 0: the checkpoint's own. Shorter needs less memory."
    )
