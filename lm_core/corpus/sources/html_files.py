"""Saved pages and books in HTML: one file, one document."""

from __future__ import annotations

from collections.abc import Iterator

from lm_core.corpus.config import LocalFiles
from lm_core.corpus.sources.found import Origin, found
from lm_core.corpus.sources.html import TooManyTagsError, page_of
from lm_core.corpus.sources.local_files import LocalFile
from lm_core.corpus.sources.text_files import whole
from lm_core.corpus.text import Item, Rejected, Tally


def read(file: LocalFile, config: LocalFiles) -> Iterator[Item]:
    """The main text of the page."""
    content = whole(file, config.max_document_bytes)
    if isinstance(content, Rejected):
        yield content
        return
    try:
        page = page_of(content, label=config.encoding)
    except ValueError as error:
        reason = "bomb" if isinstance(error, TooManyTagsError) else "binary"
        yield Rejected(file.source, file.name, reason, str(error))
        return
    yield Tally("encodings", page.encoding)
    title = page.title or file.name.rpartition("/")[2]
    origin = Origin(file.source, file.name, title=title, licence=page.licence, time=page.time)
    yield from found(page.text, origin, max_bytes=config.max_document_bytes)
