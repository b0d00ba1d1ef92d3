"""The last step of every reader: text that was found becomes a document, or the reason why it is none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lm_core.corpus.sources.encodings import mend
from lm_core.corpus.sources.gutenberg import without_licence
from lm_core.corpus.sources.html import page_of
from lm_core.corpus.text import Document, Item, Rejected, Tally, canonical

# A row or a text file that is a whole page, such as a chapter in XHTML: with its markup it resembles nothing.
_PAGE = re.compile(r"\s*(?:<\?xml[^>]{0,200}\?>\s*)?(?:<!DOCTYPE\s+html[^>]{0,300}>\s*)?<html[\s>]", re.IGNORECASE)


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
    """Take a page out of its markup, mend, cut and spell the text canonically, and count what was done.

    Args:
        place: where in the file it stands, for the detail of a rejection.
    """
    where = f"{place}: " if place else ""
    if len(text) > max_bytes:
        yield Rejected(origin.source, origin.key, "too_long", f"{where}more than {max_bytes} bytes")
        return
    title = origin.title
    if is_page := _PAGE.match(text) is not None:
        try:
            page = page_of(text.encode("utf-8", "replace"), label="utf-8", main_content=False)
        except ValueError as error:
            yield Rejected(origin.source, origin.key, "bomb", f"{where}{error}")
            return
        text, title = page.text, title or page.title
    text, num_mended = mend(text)
    text = canonical(text)
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
    if is_page:
        yield Tally("mended", "markup_of_a_page")
    if num_mended:
        yield Tally("mended", "mojibake")
    if book:
        yield Tally("mended", "gutenberg_licence_cut")


def _line(value: str | None) -> str | None:
    """A short value on one line."""
    return canonical(value)[:500].replace("\n", " ") or None if value else None
