"""RSS and Atom: the entries of a feed, each with what it says itself and the page it links to."""

from __future__ import annotations

from calendar import timegm
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lm_core.corpus.config import LocalFiles
from lm_core.corpus.sources.formats import missing_extra
from lm_core.corpus.sources.found import Origin, found
from lm_core.corpus.sources.html import page_of
from lm_core.corpus.sources.local_files import LocalFile
from lm_core.corpus.sources.text_files import whole
from lm_core.corpus.text import Item, Rejected, Tally

# The parser takes a minute for a few times as many.
_MAX_TAGS = 100_000


@dataclass(frozen=True)
class Entry:
    """One entry.

    Attributes:
        key: its link or identifier; one without either has its place in the feed, "#1" and so on.
        time: published, else updated; ISO 8601 in UTC.
        markup: the entry's own content or summary, HTML.
    """

    key: str
    link: str | None
    title: str | None
    time: str | None
    licence: str | None
    markup: str


def entries_of(content: bytes) -> list[Entry]:
    """Entries of a feed in its order.

    Raises:
        ValueError: the bytes are no feed.
        MachineError: the extra `sources` is not installed.
    """
    try:
        import feedparser
    except ImportError as error:
        raise missing_extra("feeds", error) from None
    if content.count(b"<") > _MAX_TAGS:
        raise ValueError(f"more than {_MAX_TAGS} tags")
    feed = feedparser.parse(content, sanitize_html=False, resolve_relative_uris=False)
    if not feed.get("version") and not feed.entries:
        raise ValueError(f"no feed: {feed.get('bozo_exception', 'neither RSS nor Atom')}")
    licence = feed.feed.get("rights") or None
    entries = []
    for number, entry in enumerate(feed.entries, 1):
        parts = [part.get("value", "") for part in entry.get("content", ())]
        entries.append(
            Entry(
                key=str(entry.get("link") or entry.get("id") or f"#{number}"),
                link=entry.get("link") or None,
                title=entry.get("title") or None,
                time=_time(entry),
                licence=entry.get("license") or entry.get("rights") or licence,
                markup=max([*parts, entry.get("summary", "")], key=len),
            )
        )
    return entries


def _time(entry: Mapping[str, Any]) -> str | None:
    stamp = entry.get("published_parsed") or entry.get("updated_parsed")
    return datetime.fromtimestamp(timegm(stamp), UTC).isoformat().replace("+00:00", "Z") if stamp else None


def read(file: LocalFile, config: LocalFiles) -> Iterator[Item]:
    """A saved feed: each entry as a document of what the entry itself says."""
    yield from _read(file, config, lambda entry: True)


def unlinked_entries(file: LocalFile, config: LocalFiles) -> Iterator[Item]:
    """As `read`, of the entries that link to no page."""
    yield from _read(file, config, lambda entry: entry.link is None)


def _read(file: LocalFile, config: LocalFiles, wanted: Callable[[Entry], bool]) -> Iterator[Item]:
    content = whole(file, config.max_document_bytes)
    if isinstance(content, Rejected):
        yield content
        return
    try:
        entries = [entry for entry in entries_of(content) if wanted(entry)]
    except ValueError as error:
        yield Rejected(file.source, file.name, "unreadable_file", str(error)[:300])
        return
    yield Tally("feed_entries", "read", len(entries))
    for entry in entries:
        page = page_of(entry.markup.encode("utf-8", "replace"), label="utf-8", main_content=False)
        key = f"{file.name}{entry.key}" if entry.key.startswith("#") else entry.key
        origin = Origin(file.source, key, title=entry.title, licence=entry.licence, url=entry.link, time=entry.time)
        yield from found(page.text, origin, max_bytes=config.max_document_bytes)
