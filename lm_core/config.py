"""The base of every configuration, and what of it counts as identity.

Each room of `lm_core` owns its configuration in a `config.py` that loads neither torch nor Prefect. All classes are
frozen pydantic models: unknown keys are refused, every field has a title (its name), a description and bounds, so that
one class is the command line, the TOML file and the form in Prefect's UI.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo


class Config(BaseModel):
    """A frozen configuration. Subclasses declare fields with `Field(default, description=...)` and bounds."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


def Incidental(default: Any, *, description: str, **bounds: Any) -> Any:  # noqa: N802, it stands where Field stands
    """A field that changes nothing in the result (a path, an interval): no part of an artifact's identity."""
    return Field(default, description=description, json_schema_extra={"incidental": True}, **bounds)


def Added(default: Any, *, description: str, **bounds: Any) -> Any:  # noqa: N802, it stands where Field stands
    """A field of a later release whose default is what was done before it.

    It counts as identity only where it is set, so that what was made without it stays valid.
    """
    return Field(default, description=description, json_schema_extra={"added": True}, **bounds)


def _counts(field: FieldInfo, value: Any) -> bool:
    extra = field.json_schema_extra
    return not is_incidental(field) and not (isinstance(extra, dict) and extra.get("added") and value == field.default)


def is_incidental(field: FieldInfo) -> bool:
    """Whether the field was declared with `Incidental`."""
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("incidental"))


def identity_of(value: Any) -> Any:
    """A configuration as JSON-ready values, without the fields that change nothing in the result."""
    if isinstance(value, BaseModel):
        dumped = value.model_dump(mode="json")
        nested = (BaseModel, tuple, list)
        identity = {}
        for name, field in type(value).model_fields.items():
            part = getattr(value, name)
            if _counts(field, part):
                identity[name] = identity_of(part) if isinstance(part, nested) else dumped[name]
        return identity
    if isinstance(value, tuple | list):
        return [identity_of(item) for item in value]
    return value
