"""Plain text: one file, one document."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from lm_core.corpus.config import LocalFiles
from lm_core.corpus.sources.local_files import LocalFile
from lm_core.corpus.sources.streams import BROKEN_STREAM, open_bytes
from lm_core.corpus.text import Document, Rejected, canonical

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode(content: bytes) -> str:
    """UTF-8, or what the byte-order mark says.

    Raises:
        UnicodeDecodeError: with the offset of the first byte that does not fit.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return content.decode(encoding)
    return content.decode("utf-8")


def read(file: LocalFile, config: LocalFiles) -> Iterator[Document | Rejected]:
    """The file as one document."""
    try:
        with open_bytes(file.path, file.compression) as stream:
            content = stream.read(config.max_document_bytes + 1)
    except BROKEN_STREAM as error:
        yield Rejected(file.source, file.name, "unreadable_file", str(error)[:300])
        return
    if len(content) > config.max_document_bytes:
        yield Rejected(file.source, file.name, "too_long", f"more than {config.max_document_bytes} bytes")
        return
    try:
        text = canonical(decode(content))
    except UnicodeDecodeError as error:
        yield Rejected(file.source, file.name, "not_utf8", f"byte {error.start}: {error.reason}")
        return
    if not text:
        yield Rejected(file.source, file.name, "empty", "no text")
        return
    yield Document(file.source, file.name, "text", text, title=file.name.rpartition("/")[2])
