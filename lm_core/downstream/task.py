"""How a downstream task is declared: data, prompt, answer, metric, baselines. Loads neither torch nor pyarrow.

A task of one's own is a TOML section with the same names, and a JSONL, CSV or Parquet file:

    [[task]]
    name = "tickets"
    kind = "label"
    files = { all = "tickets.jsonl" }
    prompt = "{text}"
    target = "{queue}"
    metric = "accuracy"
"""

from __future__ import annotations

import re
import string
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from lm_core.config import Added, Config
from lm_core.downstream.combinations import complaints
from lm_core.errors import UserError
from lm_core.nearest import nearest

Kind = Literal["label", "answer", "choice", "text", "visual", "preference"]
Rows = Literal["plain", "dialogue", "span", "passages", "options"]
Metric = Literal[
    "accuracy",
    "token_f1",
    "exact_match",
    "rouge_l",
    "chrf",
    "bits_per_byte",
    "same_text",
    "number_match",
    "preference",
    "win_rate",
]
Baseline = Literal[
    "majority",
    "chance",
    "tfidf_logistic_regression",
    "tfidf_with_threshold",
    "nearest_neighbour",
    "copy",
    "lead_sentence",
    "best_overlap_sentence",
    "dictionary",
    "kneser_ney_5_gram",
]
Guard = Literal[
    "macro_f1",
    "calibration_error",
    "out_of_scope_recall",
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "chrf",
    "token_f1",
    "exact_match",
    "same_text",
    "number_match",
    "bits_per_byte",
    "chrf_corpus",
    "bleu",
    "slot_f1",
    "copy_rate",
    "repeats_itself",
    "consistent_over_turns",
    "faithful_numbers_and_names",
    "placeholder_fidelity",
    "distinct_2",
    "repetition",
    "memorised_spans",
]
_PLACEHOLDER = re.compile(r"[A-Za-z_]\w*")


class Hub(Config):
    """The same data on the Hugging Face hub, for a machine with a network (`--data hub`)."""

    name: str = Field(..., min_length=1, description="Name of the data set, or a local builder such as parquet.")
    subset: str | None = Field(None, description="Configuration name of the data set; *: all there are.")
    splits: Mapping[str, str] = Field(
        default={"train": "train", "validation": "validation", "test": "test"},
        description="Our split (or all) to the split of the hub.",
    )
    rename: Mapping[str, str] = Field(
        default={},
        description='Column of the hub to the name the templates use; to several, by " + ". Of records a field: '
        '"answers.text". Of a text what follows its last mark: "answer|####".',
    )
    joined: tuple[str, ...] = Field((), description="Columns, renamed, whose lists of sentences are one text.")
    keep: Mapping[str, tuple[str, ...]] = Added(
        {}, description="Only rows whose column, renamed, has one of the values; the others are no part of the task."
    )


class Recipe(Config):
    """What of fine-tuning a task wants otherwise than the command's settings; None: as those say."""

    learning_rate: float | None = Field(None, gt=0, description="Peak rate of head, embeddings and norms.")
    muon_learning_rate: float | None = Field(None, gt=0, description="Peak rate of the block matrices.")
    dropout: float | None = Field(None, ge=0, lt=1, description="Dropout on residual branches and on pooled states.")
    token_dropout: float | None = Field(None, ge=0, lt=1, description="Share of a labelled text's tokens left out.")
    weight_decay: float | None = Field(None, ge=0, le=1, description="Decoupled L2.")
    label_smoothing: float | None = Field(None, ge=0, lt=1, description="Probability spread over all labels.")
    pooling: Literal["mean", "mean_max", "all_layers"] | None = Field(None, description="What a classifier reads.")
    num_buckets: int | None = Field(None, ge=0, le=1 << 22, description="Size of the bag of subwords; 0: none.")
    trunk_learns: Literal["labels", "residual"] | None = Added(None, description="What it learns beside the bag.")
    ema_decay: float | None = Field(None, ge=0, lt=1, description="Moving average of the weights.")


class OutOfScope(Config):
    """Texts that belong to none of the labels, and the answer wanted for them."""

    label: str = Field("out_of_scope", min_length=1, description="The answer wanted.")
    files: Mapping[str, str] = Field(..., description="Split to a file of such texts, relative to the data folder.")
    hub: Hub | None = Field(None, description="The same on the Hugging Face hub.")
    prompt: str = Field(..., description="Template over the columns of those files; of a list, its first entry.")
    share: float = Field(0.1, gt=0, le=1, description="So many of them for each item of the split.")


class Task(Config):
    """A downstream task. Templates name columns in braces: "{question}\\n{context}"; of a list the first entry counts.

    With rows=dialogue the templates may also name `history` and `reply`, made from `speakers` and `turns`.
    """

    name: str = Field(..., pattern=r"^[a-z][a-z0-9_]{0,40}$", description="Name on the command line and in reports.")
    kind: Kind = Field(
        ...,
        description="label: one of a closed set. answer: a text. choice: the likeliest of given texts. "
        "text: no prompt, every byte counts. visual: a picture beside the prompt. "
        "preference: the better of two answers.",
    )
    files: Mapping[str, str] = Field(
        ...,
        description="train, validation, test: files relative to the data folder; several by ' + '. "
        "all: one file, split by hash of the group. A missing validation split is taken from train.",
    )
    hub: Hub | None = Field(None, description="Where a user with a network finds the data.")
    rows: Rows = Field(
        "plain",
        description="plain: a row is an item. dialogue: every system turn is one (`history`, `reply`). span: the "
        "answer must stand in the context at answer_starts. passages: a text is cut into items of at most "
        'max_target_chars. options: the prompt lists its choices, as "(A) ..." or "- ...", and the target is one.',
    )
    keep: Mapping[str, tuple[str, ...]] = Field(
        default={}, description="Only rows whose column has one of the values (as text; lists joined by comma)."
    )
    prompt: str = Field("", description="Template of what the model is given.")
    target: str = Field("", description="Template of what it should answer; for choice the number of the right one.")
    labels: tuple[str, ...] = Field((), description="The closed set; empty: the labels of the training split.")
    label_names: Mapping[str, str] = Field(default={}, description="Value in the data to the label's name.")
    choices: tuple[str, ...] = Field((), description="Templates of the choices (kind choice).")
    references: str = Field("", description="Column with all accepted answers.")
    group: str = Field("", description="Template of what items share, an article say: splits and intervals go by it.")
    parallel: str = Added(
        "",
        description="Column that tells translations of one list apart: in a file, rows at the same place of each share "
        'a group, "value/place".',
    )
    focus: str = Field(
        "",
        description="Column of which only the sentences nearest to the rest of the prompt are kept, where the "
        "prompt is too long; without it a prompt loses its end.",
    )
    picture: str = Field("", description="Column that names the picture (kind visual).")
    answer_types: Mapping[str, tuple[str, ...]] = Field(
        default={}, description="Kind of answer to its labels, by which scores are given too (kind visual)."
    )
    out_of_scope: OutOfScope | None = Field(None, description="Texts that belong to none of the labels.")
    metric: Metric = Field(..., description="The score; of bits_per_byte less is better.")
    guards: tuple[Guard, ...] = Field((), description="Figures shown beside the score.")
    baselines: tuple[Baseline, ...] = Field((), description="Systems that are no neural model.")
    loss_on: Literal["target", "everything"] = Field("target", description="The tokens that the training loss counts.")
    language: Literal["en", "zh", "fr", "en-zh", "en-fr"] = Field("en", description="Of prompt and answer.")
    licence: str = Field("", description="As the source states it.")
    source: str = Field("", description="Who made the data, and where.")
    weakness: str = Field("", description="What is known to be wrong with the data.")
    max_prompt_chars: int = Field(600, ge=0, description="A longer prompt is cut.")
    max_target_chars: int = Field(400, ge=1, description="Examples with a longer answer are left out.")
    max_new_tokens: int = Field(32, ge=1, description="Longest generated answer in tokens.")
    max_train_items: int = Field(2000, ge=1, description="Most training items, chosen by hash.")
    max_validation_items: int = Field(200, ge=1, description="Most validation items.")
    max_test_items: int = Field(200, ge=1, description="Most test items.")
    num_epochs: float = Field(2.0, gt=0, le=100, description="Passes over the training items.")
    max_steps: int = Field(60, ge=1, description="Most optimizer steps.")
    batch_tokens: int = Field(4096, ge=64, description="Tokens of one optimizer step; short texts want fewer.")
    recipe: Recipe = Field(default_factory=Recipe, description="What it wants otherwise than other tasks.")
    max_bad_share: float = Field(0.02, ge=0, le=1, description="Bad rows of a split beyond which reading fails.")
    max_leak_share: float = Field(
        0.02, ge=0, le=1, description="Held-out items that training holds too (they leave training): the bound."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            problem = next(complaints(self), None)
        except UserError as error:
            problem = str(error)
        if problem:
            raise ValueError(problem)
        return self


def columns_of(template: str) -> list[str]:
    """The columns that a template names.

    Raises:
        UserError: when it is not a template.
    """
    try:
        fields = [field for field in string.Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        raise UserError(f"the template {template!r} is not valid: {error}") from None
    names = []
    for _, name, form, conversion in fields:
        if not _PLACEHOLDER.fullmatch(name or "") or form or conversion:
            raise UserError(f"the template {template!r} names {name!r}; only column names stand in braces")
        names.append(str(name))
    return names


def literals_around(template: str, column: str = "") -> tuple[str, str]:
    """What a template says right before and right after a column; without a name its last one."""
    parts = [(literal, name) for literal, name, _, _ in string.Formatter().parse(template)]
    named = [place for place, (_, name) in enumerate(parts) if name and name == (column or name)]
    if not named:
        return "", ""
    place = named[-1]
    before = parts[place][0]
    after = parts[place + 1][0] if place + 1 < len(parts) else ""
    # `fill` strips what it made.
    return before if place else before.lstrip(), after if any(
        name for _, name in parts[place + 1 :]
    ) else after.rstrip()


def text_between(prompt: str, before: str, after: str) -> str:
    """The part of a prompt that stands there, without title or instruction; empty literals mean its ends."""
    text = prompt.partition(before)[2] or prompt if before else prompt
    return text.rpartition(after)[0] or text if after else text


def fill(template: str, row: Mapping[str, Any]) -> str:
    """A template with the row's values; of a list its first entry, of what is missing nothing."""
    return template.format_map({name: as_text(_first(row.get(name))) for name in columns_of(template)}).strip()


def _first(value: Any) -> Any:
    return (value[0] if value else None) if isinstance(value, list | tuple) else value


def as_text(value: Any) -> str:
    """A cell as text; lists are joined by comma."""
    if value is None:
        return ""
    return ", ".join(as_text(part) for part in value) if isinstance(value, list | tuple) else str(value)


def load_tasks(path: Path) -> dict[str, Task]:
    """Tasks of one's own from a TOML file: its sections `[[task]]`.

    Raises:
        UserError: naming the file, the task and the first thing that is wrong.
    """
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8")).get("task", [])
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    if not isinstance(sections, list) or not sections:
        raise UserError(f"{path} declares no task; write a section [[task]]")
    tasks: dict[str, Task] = {}
    for section in sections:
        try:
            task = Task.model_validate(section)
        except ValidationError as error:
            name = section.get("name", "?") if isinstance(section, dict) else "?"
            raise UserError(f"{path}: task {name}: {_first_problem(error)}") from None
        tasks[task.name] = task
    return tasks


def _first_problem(error: ValidationError) -> str:
    """One line for a person: field, what is wrong with it, and the nearest name there is."""
    problem = error.errors()[0]
    where = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        nested: Mapping[str, type[Config]] = {"hub": Hub, "recipe": Recipe, "out_of_scope": OutOfScope}
        known: Iterable[str] = (nested.get(where[-2], Task) if len(where) > 1 else Task).model_fields
        return f"unknown key {'.'.join(where)}; did you mean {nearest(where[-1], known)}?"
    said = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "literal_error":
        near = nearest(str(problem["input"]), re.findall(r"'([^']*)'", problem["ctx"]["expected"]))
        said = f"there is no {problem['input']!r}; did you mean {near!r}?"
    return f"{'.'.join(where) or 'task'}: {said}"
