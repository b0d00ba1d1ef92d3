"""The configuration of a run: one frozen pydantic class that is the command line, the TOML file and Prefect's form.

A configuration is a preset, changed by a TOML file, changed by `--data`, changed by `--set section.field=value`.
Unknown names are refused with the nearest valid one; a value out of bounds is refused with the field's name.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from lm_core.config import Config, Incidental
from lm_core.corpus.config import (
    SOURCE_KINDS,
    CleanConfig,
    CollectConfig,
    DecontaminateConfig,
    DeduplicateConfig,
    source_of,
)
from lm_core.corpus.ledger_config import ValidateConfig
from lm_core.downstream.config import EvaluateConfig, EvaluateTaskConfig, FinetuneConfig, HoldOutConfig, PrepareConfig
from lm_core.errors import UserError
from lm_core.nearest import nearest
from lm_core.training.config import PretrainConfig, TokenizeConfig, TokenizerConfig


class RegistryConfig(Config):
    """How the model is registered and when it is promoted."""

    model_name: str = Field(
        "millrace",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,60}$",
        description="Name of the model in the MLflow registry; fine-tunes are registered as NAME-TASK.",
    )
    promote: bool = Field(
        True, description="Make the new version champion when it passes the gate; otherwise it stays challenger."
    )


class DeclaredTasksConfig(Config):
    """Declared downstream tasks (`millrace tasks`) that fan out from the base, beside those made from the corpus."""

    data: str = Incidental("", description="Folder with the data of declared tasks, or hub; empty: none are tried.")
    tasks: tuple[str, ...] = Field((), description="Their names; none: every task whose data lie in the folder.")
    tasks_file: str = Incidental("", description="TOML file that declares tasks of your own.")
    chosen: tuple[str, ...] = Field(
        (),
        description="Settings of finetune, max_steps say, that hold for declared tasks against their own budget and "
        "recipe. What --set and a TOML file set under finetune is among them by itself.",
    )

    @field_validator("chosen")
    @classmethod
    def _chosen_are_settings(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = field_names(FinetuneConfig)
        for name in names:
            if name not in known:
                raise ValueError(f"{name} is no setting of finetune; did you mean {nearest(name, known)}?")
        return names

    @model_validator(mode="after")
    def _tasks_have_data(self) -> DeclaredTasksConfig:
        if (self.tasks or self.tasks_file) and not self.data:
            raise ValueError("tasks and tasks_file have no effect without data, the folder of the tasks' files")
        return self


class PipelineConfig(Config):
    """Everything that decides what a run produces, section by stage."""

    collect: CollectConfig = Field(default_factory=CollectConfig, description="Where documents come from.")
    clean: CleanConfig = Field(default_factory=CleanConfig, description="Quality rules.")
    deduplicate: DeduplicateConfig = Field(default_factory=DeduplicateConfig, description="Exact and near duplicates.")
    prepare: PrepareConfig = Field(default_factory=PrepareConfig, description="Examples of the downstream tasks.")
    hold_out: HoldOutConfig = Field(
        default_factory=HoldOutConfig, description="Items of declared tasks that training text may not hold."
    )
    decontaminate: DecontaminateConfig = Field(
        default_factory=DecontaminateConfig, description="Training text that holds evaluation items."
    )
    validation: ValidateConfig = Field(default_factory=ValidateConfig, description="The gate of the stage validate.")
    train_tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig, description="The tokenizer.")
    tokenize: TokenizeConfig = Field(default_factory=TokenizeConfig, description="Token shards and packing.")
    pretrain: PretrainConfig = Field(default_factory=PretrainConfig, description="Model, optimizer and budget.")
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig, description="Fine-tuning, for each task alike.")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="Language-model evaluation.")
    evaluate_task: EvaluateTaskConfig = Field(default_factory=EvaluateTaskConfig, description="Downstream evaluation.")
    declared: DeclaredTasksConfig = Field(
        default_factory=DeclaredTasksConfig, description="Declared downstream tasks that the base is tried on too."
    )
    registry: RegistryConfig = Field(default_factory=RegistryConfig, description="Registration and promotion.")

    def holding_out(self) -> HoldOutConfig:
        """What is held out: the items in the folder that hold_out names, or else of the tasks that are tried."""
        if self.hold_out.data or not self.declared.data or self.declared.data == "hub":
            return self.hold_out
        return HoldOutConfig(data=self.declared.data, tasks_file=self.declared.tasks_file or None)


def load_config(
    base: PipelineConfig,
    *,
    toml: Path | None = None,
    data: str | None = None,
    text_column: str | None = None,
    settings: Sequence[str] = (),
) -> PipelineConfig:
    """A preset, changed by a TOML file, by a data folder and by `section.field=value` settings, in this order.

    Raises:
        UserError: unknown name (the nearest valid one is offered), impossible value, unreadable file.
    """
    values = base.model_dump()
    values["pretrain"]["model"] = base.pretrain.model.model_dump(exclude_unset=True)  # the rest follows from its kind
    chosen: set[str] = set()
    if toml is not None:
        change = _read_toml(toml)
        values, chosen = _merged(values, change), _chosen(change)
    if text_column is not None and data is None:
        raise UserError("--text-column has no effect without --data; a source in a TOML file has its own text_column")
    if data is not None:
        values = _merged(values, {"collect": {"sources": [_source(data, text_column)]}})
        if values["hold_out"]["data"] is None and _is_folder(data):
            values = _merged(values, {"hold_out": {"data": data}})
    for setting in settings:
        change = _parse_setting(setting)
        values, chosen = _merged(values, change), chosen | _chosen(change)
    if chosen and isinstance(values["declared"], Mapping) and isinstance(values["declared"]["chosen"], list | tuple):
        together = sorted({*values["declared"]["chosen"], *chosen})
        values = _merged(values, {"declared": {"chosen": together}})
    try:
        return PipelineConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(_first_problem(error)) from None


def _source(data: str, text_column: str | None) -> dict[str, Any]:
    try:
        return source_of(data).model_dump() | ({} if text_column is None else {"text_column": text_column})
    except ValidationError as error:
        raise UserError(f"--data {data}: {_first_problem(error)}") from None
    except ValueError as error:
        raise UserError(f"--data: {error}") from None


def _is_folder(data: str) -> bool:
    try:
        return Path(data).is_dir()
    except OSError:  # a name too long for any file, a folder that may not be entered: the reader will say so
        return False


def _chosen(change: Mapping[str, Any]) -> set[str]:
    """The settings of fine-tuning that a change names: those are wishes, what a preset sets is none."""
    known, named = set(field_names(FinetuneConfig)), change.get("finetune", {})
    nested = {f"optimization.{name}" for name in _mapping(_mapping(named).get("optimization"))}
    return known & ({*_mapping(named)} | nested)  # what is no setting is refused with the whole


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"configuration file {path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"configuration file {path} is not valid TOML: {error}") from None


def _parse_setting(setting: str) -> dict[str, Any]:
    path, equals, text = setting.partition("=")
    if not equals:
        raise UserError(f"--set {setting}: write it as section.field=value")
    try:
        value: Any = json.loads(text)
    except ValueError:
        value = text
    for name in reversed(path.strip().split(".")):
        indexed = _INDEXED.fullmatch(name)
        value = {indexed[1]: _Places({int(indexed[2]): value})} if indexed else {name: value}
    return dict(value)


_INDEXED = re.compile(r"(\w+)\[(\d{1,6})\]")


class _Places(dict[int, Any]):
    """What changes at some places of a list."""


def _merged(values: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Deep merge of mappings; anything else is replaced."""
    result = dict(values)
    for name, value in change.items():
        old = result.get(name)
        if isinstance(value, _Places):
            result[name] = _with_places(name, old, value)
        else:
            result[name] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _with_places(name: str, old: Any, places: _Places) -> list[Any]:
    if not isinstance(old, list | tuple):
        raise UserError(f"configuration key {name} is no list: it has no places in brackets")
    items = list(old)
    for place, value in places.items():
        if place >= len(items):
            raise UserError(f"there is no {name}[{place}]: {name} has {len(items)}, and the first is {name}[0]")
        both = isinstance(items[place], Mapping) and isinstance(value, Mapping)
        items[place] = _merged(items[place], value) if both else value
    return items


def _first_problem(error: ValidationError) -> str:
    """One line for a person: field, value, what would be right."""
    problem = error.errors()[0]
    name, names = _place(problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown configuration key {name}; did you mean {nearest(name, names)}?"
    said = problem["msg"].removeprefix("Value error, ")
    found = "" if isinstance(problem["input"], Mapping) else f", not {problem['input']!r}"
    return f"configuration key {name}: {said[0].lower()}{said[1:]}{found}"


def _place(path: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """A path of pydantic's as `--set` takes it, and the names that would be right."""
    if path[:2] == ("collect", "sources") and len(path) > 4:
        # Pydantic names the kind of the source between its place and its field.
        start = f"collect.sources[{path[2]}]."
        return start + ".".join(map(str, path[4:])), [
            f"{start}{name}" for name in SOURCE_KINDS[str(path[3])].model_fields
        ]
    return ".".join(map(str, path)), field_names(PipelineConfig)


def field_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All settable names, as `--set` takes them."""
    names = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += field_names(kind, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def describe(config: BaseModel, prefix: str = "") -> list[str]:
    """One line for each settable value: name, value, meaning."""
    lines = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            lines += describe(value, f"{prefix}{name}.")
        else:
            shown = (
                [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in value]
                if isinstance(value, tuple)
                else value
            )
            lines.append(f"{prefix + name:<46} {json.dumps(shown)!s:<24} {field.description}")
    return lines
