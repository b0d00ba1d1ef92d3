"""EPUB: the chapters of a book in the order of its spine, as one document."""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

from lm_core.corpus.config import LocalFiles
from lm_core.corpus.sources.found import Origin, found
from lm_core.corpus.sources.html import page_of
from lm_core.corpus.sources.local_files import LocalFile
from lm_core.corpus.sources.streams import BROKEN_STREAM, BombError, guarded, on_disk
from lm_core.corpus.text import Item, Rejected, Tally

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_CHAPTERS = {"application/xhtml+xml", "text/html", "application/x-dtbook+xml"}
_DC = "{http://purl.org/dc/elements/1.1/}"
_MAX_XML_BYTES = 5_000_000


class _UnreadableError(Exception):
    """Why a book is none, as (reason, detail)."""


def read(file: LocalFile, config: LocalFiles) -> Iterator[Item]:
    """The book as one document, with the title, date and rights its package file states."""
    try:
        if file.compression or file.member:
            with file.open() as stream, on_disk(stream, ".epub") as path:
                text, origin, num_chapters = _book(path, file, config)
        else:
            text, origin, num_chapters = _book(file.path, file, config)
    except _UnreadableError as error:
        yield Rejected(file.source, file.name, *error.args)
        return
    except (*BROKEN_STREAM, KeyError, ValueError) as error:
        reason = "bomb" if isinstance(error, BombError) else "unreadable_file"
        yield Rejected(file.source, file.name, reason, f"{type(error).__name__}: {error}"[:300])
        return
    yield Tally("book_chapters", "epub", num_chapters)
    yield from found(text, origin, max_bytes=config.max_document_bytes)


def _book(path: Path, file: LocalFile, config: LocalFiles) -> tuple[str, Origin, int]:
    with zipfile.ZipFile(path) as archive:
        package_name = _package_name(archive)
        package = _xml(archive, package_name)
        encrypted = _encrypted(archive)
        chapters = []
        size = 0
        for name in _spine(package, posixpath.dirname(package_name)):
            if name in encrypted:
                raise _UnreadableError("encrypted", f"{name} is protected")
            page = page_of(_member(archive, name, config.max_document_bytes), main_content=False)
            size += len(page.text)
            if size > config.max_document_bytes:
                raise _UnreadableError("too_long", f"more than {config.max_document_bytes} bytes")
            chapters.append(page.text.strip())
    stated = {field: element.text for field in ("title", "rights", "date") for element in package.iter(_DC + field)}
    origin = Origin(
        file.source, file.name, title=stated.get("title"), licence=stated.get("rights"), time=stated.get("date")
    )
    return "\n\n".join(filter(None, chapters)), origin, len(chapters)


def _package_name(archive: zipfile.ZipFile) -> str:
    for element in _xml(archive, _CONTAINER).iterfind(".//{*}rootfile"):
        if name := element.get("full-path"):
            return name
    raise _UnreadableError("unreadable_file", f"{_CONTAINER} names no package")


def _spine(package: ElementTree.Element, folder: str) -> list[str]:
    """Names of the chapters in reading order; the ones beside the spine (footnotes, covers) are not read."""
    manifest = {
        item.get("id"): posixpath.normpath(posixpath.join(folder, unquote(item.get("href", ""))))
        for item in package.iterfind(".//{*}item")
        if item.get("media-type") in _CHAPTERS
    }
    return [manifest[ref.get("idref")] for ref in package.iterfind(".//{*}itemref") if ref.get("idref") in manifest]


def _encrypted(archive: zipfile.ZipFile) -> set[str]:
    if _ENCRYPTION not in archive.namelist():
        return set()
    return {unquote(element.get("URI", "")) for element in _xml(archive, _ENCRYPTION).iterfind(".//{*}CipherReference")}


def _xml(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    try:
        # Expat fetches no external entity and stops those that swell.
        return ElementTree.fromstring(_member(archive, name, _MAX_XML_BYTES))
    except ElementTree.ParseError as error:
        raise _UnreadableError("unreadable_file", f"{name} is no XML: {error}"[:300]) from None


def _member(archive: zipfile.ZipFile, name: str, max_bytes: int) -> bytes:
    with guarded(archive.open(name), archive.getinfo(name).compress_size) as stream:  # type: ignore[arg-type]
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise _UnreadableError("too_long", f"{name}: more than {max_bytes} bytes")
    return content
