"""What of a configuration counts as identity."""

import pytest
from pydantic import Field, ValidationError

from lm_core.config import Added, Config, Incidental, identity_of
from lm_core.training.config import ModelConfig, PretrainConfig


class Inner(Config):
    width: int = Field(2, description="Width.")
    newer: bool = Added(False, description="Of a later release.")


class Outer(Config):
    inner: Inner = Field(default_factory=Inner, description="Inner.")
    parts: tuple[Inner, ...] = Field((Inner(newer=True),), description="Parts.")
    interval: float = Incidental(1.0, description="Changes nothing.")
    newer: int = Added(0, ge=0, description="Of a later release.")


def test_what_changes_nothing_and_what_a_later_release_added_unset_are_no_identity():
    assert identity_of(Outer()) == {"inner": {"width": 2}, "parts": [{"width": 2, "newer": True}]}


def test_an_added_field_that_is_set_is_identity():
    found = identity_of(Outer(newer=3, inner=Inner(newer=True), interval=7.0))
    assert (found["newer"], found["inner"]) == (3, {"width": 2, "newer": True})


def test_attention_within_documents_retrains_nothing_until_it_is_set():
    assert "attention_within_documents" not in identity_of(PretrainConfig())
    assert identity_of(PretrainConfig(attention_within_documents=True))["attention_within_documents"] is True
    vanilla = ModelConfig(kind="vanilla", activation="gelu")
    with pytest.raises(ValidationError, match="attention_within_documents needs model"):
        PretrainConfig(model=vanilla, attention_within_documents=True)
