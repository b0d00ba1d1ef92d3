"""Project Gutenberg: the header and the licence around a book are no part of it."""

from __future__ import annotations

import re
from typing import NamedTuple

# "*** START OF THIS PROJECT GUTENBERG EBOOK ... ***" since 2003; "*END*THE SMALL PRINT" ends the header before.
_START = re.compile(
    r"^[ \t]*\*{3}[ \t]*START OF (?:THE|THIS) PROJECT GUTENBERG E(?:BOOK|TEXT)[^\n]*\n(?:[^\n*]*\*{3}[ \t]*\n)?"
    r"|^[ \t]*\*END\*? ?THE SMALL PRINT![^\n]*\n",
    re.IGNORECASE | re.MULTILINE,
)
_END = re.compile(
    r"^[ \t]*(?:\*{3}[ \t]*END OF (?:THE|THIS) PROJECT GUTENBERG E(?:BOOK|TEXT)"
    r"|End of (?:the |this )?Project Gutenberg(?:'s|’s)? )",
    re.IGNORECASE | re.MULTILINE,
)
_TITLE = re.compile(r"^Title:[ \t]*(.+)$", re.MULTILINE)
_HEADER_CHARACTERS, _LICENCE_CHARACTERS = 30_000, 40_000


class Book(NamedTuple):
    """The text of a book without what surrounds it, and its title as the header states it."""

    text: str
    title: str | None


def without_licence(text: str) -> Book | None:
    """The book itself; None when the text is none of Project Gutenberg's."""
    if "gutenberg" not in text[:_HEADER_CHARACTERS].lower():
        return None
    # The small print may come after a first marker: the last one ends the header.
    starts = list(_START.finditer(text[:_HEADER_CHARACTERS]))
    if not starts:
        return None
    start = starts[-1]
    tail = max(start.end(), len(text) - _LICENCE_CHARACTERS)
    end = _END.search(text, tail)
    title = _TITLE.search(text, 0, start.start())
    return Book(text[start.end() : end.start() if end else len(text)].strip("\n"), title and title[1].strip()[:500])
