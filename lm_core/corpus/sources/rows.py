"""A row of any table as a document: which columns mean what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any

from lm_core.corpus.sources.encodings import decode
from lm_core.corpus.sources.found import Origin, found
from lm_core.corpus.text import Item, Rejected, canonical
from lm_core.errors import UserError

TEXT_COLUMNS = ("text", "content", "body", "document", "article", "story", "raw_content", "markdown", "passage")
_TITLE_COLUMNS = ("title", "name", "headline", "path")
_KEY_COLUMNS = ("doc_id", "id", "url")
_LICENCE_COLUMNS = ("licence", "license")
_VERSION_COLUMNS = ("version", "revision", "commit")
_URL_COLUMNS = ("url", "link", "source_url")
_TIME_COLUMNS = ("time", "date", "published", "timestamp", "created")
_DESCRIBING = {
    *_TITLE_COLUMNS, *_KEY_COLUMNS, *_LICENCE_COLUMNS, *_VERSION_COLUMNS, *_URL_COLUMNS, *_TIME_COLUMNS, "source",
}  # fmt: skip


def text_column(columns: Sequence[str], wanted: str | None, where: str) -> str:
    """The column that holds the text: the one named, else the first with a usual name, else the only one.

    Raises:
        UserError: naming the columns there are.
    """
    if wanted is not None:
        if wanted not in columns:
            raise UserError(f"{where} has no column {wanted!r}; it has {', '.join(columns)[:300]}")
        return wanted
    by_lower = {column.lower(): column for column in reversed(columns)}
    for name in TEXT_COLUMNS:
        if name in by_lower:
            return by_lower[name]
    if len(columns) == 1:
        return columns[0]
    raise UserError(
        f"{where} has no column with a usual name for text; set text_column (--text-column) to one of "
        f"{', '.join(columns)[:300]}"
    )


def columns_to_read(columns: Sequence[str], text: str) -> list[str]:
    """The text and what describes it; nothing else need be read."""
    return [column for column in columns if column == text or column in _DESCRIBING]


class TextKey:
    """Which key of a row holds its text, where each row may have keys of its own.

    The one named, else the one of the rows before, else the first with a usual name that is not null; a lone key of
    any name, as long as no row had a usual one.
    """

    def __init__(self, wanted: str | None) -> None:
        self._wanted = wanted
        self._last: str | None = None
        self._usual_met = False

    def of(self, row: Mapping[str, Any]) -> str | None:
        if self._wanted is not None:
            return self._wanted if self._wanted in row else None
        if self._last is not None and row.get(self._last) is not None:
            return self._last
        by_lower = {name.lower(): name for name in reversed(list(row))}
        there = [name for name in TEXT_COLUMNS if name in row] or [
            by_lower[name] for name in TEXT_COLUMNS if name in by_lower
        ]
        if there:
            self._usual_met = True
            self._last = next((name for name in there if row[name] is not None), there[0])
            return self._last
        if self._usual_met or len(row) != 1:
            return None
        name = next(iter(row))
        self._last = name if name not in _DESCRIBING and isinstance(row[name], str) else None
        return self._last

    def missing(self, row: Mapping[str, Any]) -> str:
        """Why `of` found none, and what to do."""
        keys = ", ".join(row)[:150] or "nothing"
        if self._wanted is not None:
            return f"no text: it has no {self._wanted!r} (text_column); it has {keys}"
        return f"no text: no key has a usual name for it; it has {keys}; set text_column (--text-column) to one of them"


def document_of_row(
    row: Mapping[str, Any],
    *,
    text: str | None,
    place: str,
    number: int,
    source: str,
    max_bytes: int,
    where: str = "",
    missing: str = "no text",
) -> Iterator[Item]:
    """A row as a document, or the reason why it is none.

    Args:
        text: name of the column with the text; None where the row has none.
        place: file the row stands in, relative to the root; becomes part of the key.
        number: of the row within the file, from 1.
        source: what it counts under, unless the row has a column `source`.
        where: the row's place for a person, when its number says too little.
        missing: what to say of a row without text.
    """
    source = _word(row, ("source",)) or source
    key = f"{place}#{_word(row, _KEY_COLUMNS) or number}"
    where = where or f"row {number}"
    value = None if text is None else row.get(text)
    if isinstance(value, bytes):  # a Parquet file whose writer left out that its bytes are text
        try:
            value = decode(value).text
        except ValueError as error:
            yield Rejected(source, key, "binary", f"{where}: {error}")
            return
    if not isinstance(value, str):
        kind = missing if value is None else f"text is of type {type(value).__name__}"
        yield Rejected(source, key, "no_text", f"{where}: {kind}"[:300])
        return
    origin = Origin(
        source,
        key,
        title=_word(row, _TITLE_COLUMNS),
        licence=_word(row, _LICENCE_COLUMNS),
        version=_word(row, _VERSION_COLUMNS),
        url=_word(row, _URL_COLUMNS),
        time=_word(row, _TIME_COLUMNS),
    )
    yield from found(value, origin, max_bytes=max_bytes, place=where)


def _word(row: Mapping[str, Any], columns: tuple[str, ...]) -> str | None:
    """First of the columns that holds a short value."""
    for column in columns:
        value = row.get(column)
        if isinstance(value, date):
            return value.isoformat()
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return canonical(str(value))[:500].replace("\n", " ") or None
    return None
