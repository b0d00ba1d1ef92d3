"""What a row must be like to become items: its columns, their types, and what the kinds of rows ask beside."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from lm_core.downstream.rows import Row
from lm_core.downstream.task import Task, columns_of

_OPTION = re.compile(r"^(?:(\([A-Z]\))|- (.+))", re.MULTILINE)
_NUMBER = re.compile(r"[0-9]{1,9}")
_NEEDED_BY_ROWS = {"dialogue": {"speakers", "turns"}, "span": {"context", "answers", "answer_starts"}}
_MADE_BY_ROWS = {"dialogue": {"history", "reply"}}


class BadRow(Exception):  # noqa: N818, a row's fate, counted by the reader
    """A row that cannot become an item: `reason` is a short name, the text says what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def needed_columns(task: Task) -> list[str]:
    """The columns that the declaration names or that its kind of rows is made of; without those of `keep`."""
    templates = (task.prompt, task.target, task.group, *task.choices)
    named = {name for template in templates for name in columns_of(template)}
    named |= {name for name in (task.references, task.focus, task.picture, task.parallel) if name}
    return sorted((named - _MADE_BY_ROWS.get(task.rows, set())) | _NEEDED_BY_ROWS.get(task.rows, set()))


def check_columns(row: Row, columns: Iterable[str]) -> None:
    """Look at the columns that a row is read for.

    Raises:
        BadRow: one is missing, or holds what is no text.
    """
    for column in columns:
        if column not in row:
            raise BadRow("missing_column", f"it has no {column}")
        value = row[column]
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, dict | list | tuple | bytes):
                raise BadRow("wrong_type", f"{column} holds a {type(part).__name__}, which is no text")


def check_row(task: Task, row: Row, columns: Iterable[str]) -> None:
    """Look at a row before items are made from it.

    Raises:
        BadRow: as `check_columns`; turns without speakers, a span that stands elsewhere.
    """
    check_columns(row, columns)
    if task.rows == "dialogue":
        _check_turns(row)
    if task.rows == "span":
        _check_span(row)


def _check_turns(row: Row) -> None:
    speakers = _list_of(row, "speakers", (str, int), "names")
    turns = _list_of(row, "turns", (str,), "texts")
    if len(speakers) != len(turns):
        raise BadRow("turns_without_speaker", f"{len(speakers)} speakers, {len(turns)} turns")
    if not turns:
        raise BadRow("empty", "the dialogue has no turns")


def _check_span(row: Row) -> None:
    """Every answer must stand in the context where it is said to."""
    context = row["context"]
    if not isinstance(context, str):
        raise BadRow("wrong_type", f"context holds {_shown(context)}, not a text")
    answers = _list_of(row, "answers", (str,), "texts")
    starts = _list_of(row, "answer_starts", (int,), "numbers")
    if len(answers) != len(starts):
        raise BadRow("span_does_not_match", f"{len(answers)} answers, {len(starts)} answer_starts")
    for answer, start in zip(answers, starts, strict=True):
        found = context[start : start + len(answer)] if start >= 0 else ""
        if found != answer:
            raise BadRow("span_does_not_match", f"{answer!r} should stand at {start}, where {found!r} stands")


def _list_of(row: Row, column: str, kinds: tuple[type, ...], what: str) -> Sequence[Any]:
    value = row[column]
    if not isinstance(value, list | tuple):
        raise BadRow("wrong_type", f"{column} holds {_shown(value)}, not a list of {what}")
    for part in value:
        if not isinstance(part, kinds) or isinstance(part, bool):
            raise BadRow("wrong_type", f"{column} holds {_shown(part)} among {what}")
    return value


def _shown(value: Any) -> str:
    return repr(value)[:60]


def options_in(prompt: str) -> list[str]:
    """The choices that a prompt lists: "(A)" of lines such as "(A) a word", the text of lines such as "- a word"."""
    return [(mark or text).strip() for mark, text in _OPTION.findall(prompt)]


def named_choice(choices: Sequence[str], target: str) -> str:
    """A target that is one of the choices.

    Raises:
        BadRow: it is not.
    """
    if target not in choices:
        raise BadRow("label_outside_the_set", f"{target!r} is none of {len(choices)} options")
    return target


def numbered_choice(choices: Sequence[str], number: str) -> str:
    """The choice of a number, from 0.

    Raises:
        BadRow: there is none of that number, or a choice has no text: it would be the likeliest of all.
    """
    if not _NUMBER.fullmatch(number) or int(number) >= len(choices):
        raise BadRow("label_outside_the_set", f"{number!r} of {len(choices)} choices")
    if not all(choices):
        raise BadRow("empty", "a choice is empty")
    return choices[int(number)]
