"""The last step of every reader: text that was found becomes a document, or the reason why it is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lm_core.corpus.sources.encodings import mend
from lm_core.corpus.sources.gutenberg import without_licence
from lm_core.corpus.text import Document, Item, Rejected, Tally, canonical


@dataclass(frozen=True)
class Origin:
    """Where a text comes from, and what the source says about it."""

    source: str
    key: str
    title: str | None = None
    licence: str | None = None
    version: str | None = None
    url: str | None = None
    time: str | None = None


def found(text: str, origin: Origin, *, max_bytes: int, place: str = "") -> Iterator[Item]:
    """Mend, cut and spell the text canonically, and count what was done.

    Args:
        place: where in the file it stands, for the detail of a rejection.
    """
    where = f"{place}: " if place else ""
    if len(text) > max_bytes:
        yield Rejected(origin.source, origin.key, "too_long", f"{where}more than {max_bytes} bytes")
        return
    text, num_mended = mend(text)
    text = canonical(text)
    title = origin.title
    book = without_licence(text)
    if book:
        text, title = book.text, book.title or title
    if not text:
        yield Rejected(origin.source, origin.key, "empty", f"{where}no text")
        return
    yield Document(
        origin.source,
        origin.key,
        "text",
        text,
        title=_line(title),
        licence=_line(origin.licence),
        version=_line(origin.version),
        url=_line(origin.url),
        time=_line(origin.time),
    )
    if num_mended:
        yield Tally("mended", "mojibake")
    if book:
        yield Tally("mended", "gutenberg_licence_cut")


def _line(value: str | None) -> str | None:
    """A short value on one line."""
    return canonical(value)[:500].replace("\n", " ") or None if value else None
