"""What an XML file is: its name ends in .xml whatever it holds, and its first element says."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import BinaryIO

from lm_core.corpus.sources.encodings import decode
from lm_core.corpus.sources.formats import xml_compression
from lm_core.corpus.sources.streams import BROKEN_STREAM

HEAD_BYTES = 65_536
_NAME = re.compile(r"<(?:[\w.-]+:)?([\w.-]+)")
_RSS_1 = ("purl.org/rss/", "my.netscape.com/rdf/simple/")


def format_of_xml(head: bytes) -> str | None:
    """The format that reads it: ".rss" for a feed of any kind, ".html" for a page; None for all others."""
    try:
        text = decode(head).text
    except ValueError:
        return None
    root, place = _root(text)
    if root in ("rss", "feed") or (root == "rdf" and any(name in text[place : place + 4_000] for name in _RSS_1)):
        return ".rss"
    return ".html" if root == "html" else None


def format_within(name: str, unpacked: Callable[[str], BinaryIO]) -> tuple[str, str] | None:
    """Format and compression of a file whose name says only that it is XML; None for one that is not read.

    Args:
        unpacked: opens it, given its compression.
    """
    compression = xml_compression(name)
    if compression is None:
        return None
    try:
        with unpacked(compression) as stream:
            found = format_of_xml(stream.read(HEAD_BYTES))
    except BROKEN_STREAM:
        return None
    return (found, compression) if found else None


def root_of_xml(head: bytes) -> str:
    """Name of the first element, for a person."""
    try:
        return _root(decode(head).text)[0] or "no element"
    except ValueError:
        return "no text"


def _root(text: str) -> tuple[str, int]:
    """Name of the first element, in lower case and without its prefix, and its place."""
    place = 0
    while (place := text.find("<", place)) >= 0:
        if text.startswith("<!--", place):
            end = text.find("-->", place)
        elif text.startswith("<?", place):
            end = text.find("?>", place)
        elif text.startswith("<!", place):
            end = text.find(">", place)
            if 0 <= text.find("[", place) < end:  # a document type with declarations of its own
                end = text.find("]", place)
        else:
            found = _NAME.match(text, place)
            return (found[1].lower(), place) if found else ("", place)
        if end < 0:
            break
        place = end
    return "", 0
