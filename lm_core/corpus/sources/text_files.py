"""Plain text: one file, one document."""

from __future__ import annotations

from collections.abc import Iterator

from lm_core.corpus.config import LocalFiles
from lm_core.corpus.sources.encodings import Decoded, decode
from lm_core.corpus.sources.found import Origin, found
from lm_core.corpus.sources.local_files import LocalFile
from lm_core.corpus.sources.streams import BROKEN_STREAM, BombError
from lm_core.corpus.text import Item, Rejected, Tally


def read(file: LocalFile, config: LocalFiles) -> Iterator[Item]:
    """The file as one document."""
    content = whole(file, config.max_document_bytes)
    if isinstance(content, Rejected):
        yield content
        return
    decoded = decode_whole(content, file, config.encoding)
    if isinstance(decoded, Rejected):
        yield decoded
        return
    yield Tally("encodings", decoded.encoding)
    origin = Origin(file.source, file.name, title=file.name.rpartition("/")[2])
    yield from found(decoded.text, origin, max_bytes=config.max_document_bytes)


def whole(file: LocalFile, max_bytes: int) -> bytes | Rejected:
    """All bytes of a file that is one document, or why it is none."""
    content = bytearray()
    try:
        with file.open() as stream:
            while len(content) <= max_bytes and (part := stream.read(min(1 << 20, max_bytes + 1 - len(content)))):
                content += part
    except BombError as error:
        return Rejected(file.source, file.name, "bomb", str(error))
    except BROKEN_STREAM as error:
        detail = f"after {len(content)} readable bytes: {type(error).__name__}: {error}"
        return Rejected(file.source, file.name, "unreadable_file", detail[:300])
    if len(content) > max_bytes:
        return Rejected(file.source, file.name, "too_long", f"more than {max_bytes} bytes")
    return bytes(content)


def decode_whole(content: bytes, file: LocalFile, label: str | None) -> Decoded | Rejected:
    """The text of a whole file, or that it is none."""
    try:
        return decode(content, label)
    except ValueError as error:
        return Rejected(file.source, file.name, "binary", str(error))
