"""WARC and ARC: each page that was answered with success is a document."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator
from email.message import Message
from email.parser import HeaderParser
from io import BytesIO
from typing import BinaryIO

import zstandard

from lm_core.corpus.config import LocalFiles
from lm_core.corpus.sources.encodings import decode
from lm_core.corpus.sources.found import Origin, found
from lm_core.corpus.sources.html import page_of
from lm_core.corpus.sources.local_files import LocalFile
from lm_core.corpus.sources.records import Damage, Record, gzip_members, read_records
from lm_core.corpus.sources.streams import BROKEN_STREAM, GRACE_BYTES, MAX_RATIO, BombError, decompressed
from lm_core.corpus.text import Item, Rejected, Tally

_HTML = {"text/html", "application/xhtml+xml"}
_PAGES = {"response", "resource", "conversion"}
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def read(file: LocalFile, config: LocalFiles) -> Iterator[Item]:
    """Documents of an archive; what is no page (requests, pictures, redirections) is counted by its kind."""
    others = Counter[str]()
    try:
        with _open(file) as stream:
            for record in read_records(stream, arc=file.format == ".arc", max_bytes=config.max_document_bytes):
                if isinstance(record, Damage):
                    detail = f"at byte {record.offset}: {record.detail}"[:300]
                    yield Rejected(file.source, f"{file.name}#{record.offset}", record.reason, detail)
                    continue
                kind = _kind_of_other(record)
                if kind:
                    others[kind] += 1
                else:
                    yield from _page(record, file, config, others)
    except BROKEN_STREAM as error:
        reason = "bomb" if isinstance(error, BombError) else "unreadable_rows"
        yield Rejected(file.source, file.name, reason, f"{type(error).__name__}: {error}"[:300])
    for kind, count in sorted(others.items()):
        yield Tally("web_records", kind, count)


def _open(file: LocalFile) -> BinaryIO:
    if file.compression == ".gz" and file.member is None:
        size = file.path.stat().st_size
        return gzip_members(open(file.path, "rb"), max(GRACE_BYTES, MAX_RATIO * size))
    return file.open()


def _kind_of_other(record: Record) -> str | None:
    kind = record.headers.get("warc-type", "without type")
    return None if kind in _PAGES else kind[:40]


def _page(record: Record, file: LocalFile, config: LocalFiles, others: Counter[str]) -> Iterator[Item]:
    url = record.headers.get("warc-target-uri", "").strip("<>") or f"{file.name}#{record.offset}"
    where = f"record at byte {record.offset}"
    try:
        content, kind, charset = _payload(record, config.max_document_bytes)
        if kind not in _HTML and kind != "text/plain":
            others[kind[:40]] += 1
            return
        if kind == "text/plain":
            decoded = decode(content, charset or config.encoding)
            text, encoding, title, licence, time = decoded.text, decoded.encoding, None, None, None
        else:
            page = page_of(content, label=charset or config.encoding)
            text, encoding, title, licence, time = page.text, page.encoding, page.title, page.licence, page.time
    except (ValueError, EOFError, zlib.error, zstandard.ZstdError) as error:
        yield Rejected(file.source, url, "bad_page", f"{where}: {error}"[:300])
        return
    yield Tally("encodings", encoding)
    if "warc-truncated" in record.headers:
        others["pages cut by the crawler"] += 1
    time = time or record.headers.get("warc-date")
    origin = Origin(file.source, url, title=title, licence=licence, url=url, time=time)
    yield from found(text, origin, max_bytes=config.max_document_bytes, place=where)


def _payload(record: Record, max_bytes: int) -> tuple[bytes, str, str | None]:
    """Bytes of the page itself, media type, charset; a status that is no success stands in place of the type.

    Raises:
        ValueError: the page cannot be unpacked.
    """
    stated = record.headers.get("content-type", "")
    if record.headers["warc-type"] != "response":
        return (record.content, *_media_type(stated))
    head, _, body = record.content.partition(b"\r\n\r\n")
    if not _:
        head, _, body = record.content.partition(b"\n\n")
    status, _, lines = head.decode("latin-1").partition("\n")
    parts = status.split()
    if not status.startswith("HTTP/") or len(parts) < 2:
        raise ValueError("no HTTP response")
    if parts[1] != "200":
        return b"", f"status {parts[1]}", None
    headers: Message = HeaderParser().parsestr(lines)
    media_type, charset = _media_type(headers.get("content-type", ""))
    if media_type not in _HTML and media_type != "text/plain":
        return b"", media_type, None
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = _dechunked(body)
    return _unpacked(body, headers.get("content-encoding", "").lower().strip(), max_bytes), media_type, charset


def _media_type(stated: str) -> tuple[str, str | None]:
    message = Message()
    message["content-type"] = stated
    return message.get_content_type() if stated else "without type", message.get_content_charset()


def _dechunked(body: bytes) -> bytes:
    """The body without the lengths of its chunks; crawlers often store it so already, then it stays as it is."""
    parts: list[bytes] = []
    place = 0
    while (end := body.find(b"\r\n", place)) >= 0:
        try:
            length = int(body[place:end].partition(b";")[0], 16)
        except ValueError:
            if not parts:
                return body
            raise ValueError("a chunk without a length") from None
        if length <= 0:
            return b"".join(parts)
        if end + 2 + length > len(body):
            raise ValueError(f"the page is cut short within a chunk of {length} bytes")
        parts.append(body[end + 2 : end + 2 + length])
        place = end + 2 + length + 2
    return b"".join(parts) if parts else body


def _unpacked(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """The page as it was before it was packed for its way; crawlers often store it so already, then it stays.

    Raises:
        ValueError: it is cut short, swells beyond the limit, or is packed by something that is not read.
    """
    if encoding in ("", "identity", "none") or not body:
        return body
    if encoding in ("gzip", "x-gzip"):
        plain = _inflated(body, 31, max_bytes) if body.startswith(_GZIP) else body
    elif encoding == "deflate":
        plain = _inflated(body, 15 if body[0] & 0x0F == 8 else -15, max_bytes)
    elif encoding == "zstd":
        with decompressed(BytesIO(body), ".zst", len(body)) as stream:
            plain = stream.read(max_bytes + 1) if body.startswith(_ZSTD) else body
    elif encoding == "br":
        plain = body if body.lstrip()[:1] == b"<" else _from_brotli(body, max_bytes)
    else:
        raise ValueError(f"content encoding {encoding[:40]!r} is not read")
    if len(plain) > max_bytes:
        raise ValueError(f"more than {max_bytes} bytes unpacked")
    return plain


def _inflated(packed: bytes, wbits: int, max_bytes: int) -> bytes:
    plain = b""
    while len(plain) <= max_bytes:
        unpacker = zlib.decompressobj(wbits=wbits)
        plain += unpacker.decompress(packed, max_bytes + 1 - len(plain))
        if not unpacker.eof and len(plain) <= max_bytes:
            raise ValueError(f"the packed page is cut short after {len(plain)} bytes")
        packed = unpacker.unused_data
        if not packed.startswith(_GZIP):  # what may follow the page is another member, or padding
            break
    return plain


def _from_brotli(packed: bytes, max_bytes: int) -> bytes:
    try:
        import brotli
    except ImportError:
        raise ValueError("content encoding 'br' needs brotli: pip install 'millrace[sources]'") from None
    unpacker, plain = brotli.Decompressor(), b""
    try:
        plain = unpacker.process(packed, output_buffer_limit=max_bytes + 1)
        while not unpacker.is_finished() and not unpacker.can_accept_more_data() and len(plain) <= max_bytes:
            plain += unpacker.process(b"", output_buffer_limit=max_bytes + 1 - len(plain))
    except brotli.error as error:
        raise ValueError(f"no brotli: {error}") from None
    if not unpacker.is_finished() and len(plain) <= max_bytes:
        raise ValueError(f"the packed page is cut short after {len(plain)} bytes")
    return bytes(plain)
