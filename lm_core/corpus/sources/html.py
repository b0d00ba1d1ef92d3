"""Text of HTML by resiliparse: of a page its main part, of a book's chapter all."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lm_core.corpus.sources.encodings import decode
from lm_core.corpus.sources.formats import missing_extra

# What a page says of its own encoding, in the first kilobytes: <meta charset>, <meta http-equiv>, <?xml encoding?>.
_CHARSET = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_.:-]{2,40})""", re.IGNORECASE)
_XML_HEAD = re.compile(r"\A\s*<\?xml[^>]*\?>")
# A tree takes some 250 bytes for each tag: this keeps it within the memory of a reader.
MAX_TAGS = 1_000_000
_LICENCES = ('a[rel~="license"]', 'link[rel~="license"]')
_TIMES = (
    'meta[property="article:published_time"]', 'meta[name="date"]', 'meta[name="dcterms.date"]',
    'meta[itemprop="datePublished"]', "time[datetime]",
)  # fmt: skip


class TooManyTagsError(ValueError):
    """A page that was made to fill the memory."""


@dataclass(frozen=True)
class Page:
    """What a page says.

    Attributes:
        encoding: what its bytes turned out to be in.
    """

    text: str
    encoding: str
    title: str | None = None
    licence: str | None = None
    time: str | None = None


def page_of(content: bytes, *, label: str | None = None, main_content: bool = True) -> Page:
    """The text of a page.

    Args:
        label: encoding that the server stated; what the page states comes after it.
        main_content: leave out navigation, headers and footers; all text when nothing would be left.

    Raises:
        ValueError: the bytes are no text.
        TooManyTagsError: more of them than a tree has room for.
        MachineError: the extra `sources` is not installed.
    """
    if content.count(b"<") > MAX_TAGS:
        raise TooManyTagsError(f"more than {MAX_TAGS} tags")
    try:
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.html import HTMLTree
    except ImportError as error:
        raise missing_extra("HTML", error) from None
    if label is None and (stated := _CHARSET.search(content[:4096])):
        label = stated[1].decode("ascii")
    decoded = decode(content, label)
    tree = HTMLTree.parse(_XML_HEAD.sub("", decoded.text.replace("\0", "")))
    if tree.body is None:
        return Page("", decoded.encoding)
    text = extract_plain_text(tree, main_content=main_content, alt_texts=False, comments=False)
    if main_content and not text.strip():
        text = extract_plain_text(tree, main_content=False, alt_texts=False)
    title = " ".join((tree.title or "").split()) or None
    return Page(text, decoded.encoding, title, _first(tree, _LICENCES), _first(tree, _TIMES))


def _first(tree, selectors: tuple[str, ...]) -> str | None:  # type: ignore[no-untyped-def]
    """Value of the first element that one of the selectors finds."""
    for selector in selectors:
        if element := tree.document.query_selector(selector):
            for attribute in ("href", "content", "datetime"):
                if value := element.getattr(attribute):
                    return str(value)
    return None
