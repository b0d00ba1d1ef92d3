"""One spelling for each text, and the identity of a document."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass

# NUL and the other control characters, byte-order marks and lone surrogates; tab and newline stay.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f\x80-\x84\x86-\x9f\ufeff]")
_ODD_ASCII = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_NEWLINE = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")


def canonical(text: str) -> str:
    """NFC, newlines as \\n, no control characters, no blanks at line ends, no blank lines around.

    A lone surrogate, which UTF-8 cannot hold, becomes U+FFFD.
    """
    is_ascii = text.isascii()
    # Most texts need nothing of this, and one look tells so.
    if not is_ascii or _ODD_ASCII.search(text):
        text = _CONTROL.sub("", _NEWLINE.sub("\n", text))
    if not is_ascii:
        text = unicodedata.normalize("NFC", _SURROGATE.sub("\ufffd", text))
    if is_ascii and " \n" not in text and "\t\n" not in text:
        return text.rstrip(" \t\n").lstrip("\n")
    # Line by line: a regular expression for trailing blanks is quadratic in a long run of them.
    return "\n".join([line.rstrip() for line in text.split("\n")]).strip("\n")


def _short_sha256(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Document:
    """A document as a reader found it; `text` is canonical.

    Attributes:
        url: address it was fetched from, when it has one.
        time: when it was written or published as the source states it, ISO 8601; never the time of reading.
    """

    source: str
    key: str
    kind: str
    text: str
    title: str | None = None
    licence: str | None = None
    version: str | None = None
    url: str | None = None
    time: str | None = None

    @property
    def doc_id(self) -> str:
        """32 hex digits: SHA-256 over source, key and text, cut short."""
        return _short_sha256(self.source, self.key, self.text)

    @property
    def content_hash(self) -> str:
        """32 hex digits: SHA-256 over the text alone, cut short."""
        return _short_sha256(self.text)


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something a reader found but could not use, with its place."""

    source: str
    key: str
    reason: str
    detail: str | None = None

    @property
    def doc_id(self) -> str:
        """32 hex digits over source and key."""
        return _short_sha256(self.source, self.key)


@dataclass(frozen=True, slots=True)
class Tally:
    """Something worth counting in the statistics: an encoding found, a mended text, a file left alone."""

    what: str
    which: str
    count: int = 1


Item = Document | Rejected | Tally
