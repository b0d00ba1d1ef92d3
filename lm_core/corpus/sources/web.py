"""Pages of the web: which ones are meant, fetching them, and reading each as the kind of file it is.

Pages are fetched when the source is identified, before anything is read: its identity is the content it has now, and
what is read is what was identified. A page asked for a moment ago is not asked for again (`recheck_hours`).
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import partial
from io import BytesIO
from pathlib import Path
from urllib import robotparser
from urllib.parse import urldefrag, urljoin, urlsplit
from xml.etree import ElementTree

from lm_core.config import identity_of
from lm_core.corpus.config import LocalFiles, WebPages
from lm_core.corpus.sources.feeds import entries_of, unlinked_entries
from lm_core.corpus.sources.fetch import USER_AGENT, Limits, is_below, parts_of
from lm_core.corpus.sources.formats import format_of, items_of, xml_compression
from lm_core.corpus.sources.local_files import LocalFile
from lm_core.corpus.sources.reuse import ReadBefore
from lm_core.corpus.sources.streams import BROKEN_STREAM, open_bytes
from lm_core.corpus.sources.web_store import Stored, Turns, WebStore
from lm_core.corpus.sources.xml_root import HEAD_BYTES, format_of_xml, root_of_xml
from lm_core.corpus.text import Document, Item, Rejected, Tally
from lm_core.errors import MillraceError, TryLaterError, UserError
from lm_core.runtime import Runtime

_MAX_SITEMAPS = 200
_CONNECTIONS = 4
_FORMATS = {
    "text/html": ".html", "application/xhtml+xml": ".html", "text/plain": ".txt", "text/markdown": ".md",
    "application/pdf": ".pdf", "application/epub+zip": ".epub", "application/json": ".json",
    "application/x-ndjson": ".jsonl", "text/csv": ".csv", "text/tab-separated-values": ".tsv",
    "application/rss+xml": ".rss", "application/atom+xml": ".atom", "application/warc": ".warc",
    "application/zip": ".zip", "application/vnd.apache.parquet": ".parquet",
}  # fmt: skip
_XML = {"application/xml", "text/xml"}


@dataclass(frozen=True)
class _Wanted:
    """A page to fetch, and what the place that named it says of it.

    Attributes:
        unlinked_only: of a feed whose articles are fetched, the entries that name none: their own words are all there
            is.
    """

    url: str
    time: str | None = None
    licence: str | None = None
    is_feed: bool = False
    unlinked_only: bool = False


def digests(config: WebPages, runtime: Runtime) -> dict[str, str]:
    """Identity: the addresses and the content of all pages, which are fetched or asked whether they have changed.

    Raises:
        UserError: see `check`.
        TryLaterError: no page answers.
    """
    check(config)
    total = hashlib.sha256()
    for _, stored in _Crawl(config, runtime).pages():
        total.update(f"{stored.url}\0{stored.state}\n".encode("utf-8", "replace"))
    return {"pages": total.hexdigest()}


def check(config: WebPages) -> None:
    """Look at the addresses without asking for them.

    Raises:
        UserError: one that is not allowed or makes no sense, a list of addresses that cannot be read.
    """
    for url in (*config.urls, *config.sitemaps, *config.feeds, *_listed(config)):
        try:
            parts = parts_of(url)
        except ValueError as error:
            raise UserError(f"{url[:200]} is no address on the web: {error}") from None
        if parts.scheme == "http" and not config.allow_http:
            raise UserError(f"{url}: only https is allowed; set allow_http to allow this")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{url} is no address on the web")


def read(config: WebPages, runtime: Runtime, before: ReadBefore) -> Iterator[Item]:
    """Documents of all pages, in the order in which they are named."""
    check(config)
    crawl = _Crawl(config, runtime)
    settings = identity_of(config)
    parts = [
        (
            [
                wanted.url,
                wanted.time,
                stored.state,
                stored.content_type,
                settings,
                *(["unlinked"] * wanted.unlinked_only),
            ],
            partial(_read, wanted, stored, crawl.body(stored), config),
        )
        for wanted, stored in crawl.pages()
    ]
    before.read_elsewhere(parts)
    for part, reader in parts:
        yield from before.items(part, reader)
    yield from crawl.rejected
    yield Tally("web", "left_out_by_robots", crawl.num_left_out)
    yield Tally("web", "not_on_allowed_hosts", crawl.num_elsewhere)
    for limit, count in sorted(crawl.num_beyond.items()):
        if count:
            yield Tally("web", limit, count)


def _listed(config: WebPages) -> list[str]:
    found = []
    for name in config.url_lists:
        try:
            lines = Path(name).expanduser().read_text(encoding="utf-8-sig").splitlines()
        except (OSError, RuntimeError, UnicodeDecodeError) as error:
            raise UserError(f"the list of addresses {name} cannot be read: {error}") from None
        found += [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return found


class _Crawl:
    """Fetches what a configuration names."""

    def __init__(self, config: WebPages, runtime: Runtime) -> None:
        self._config = config
        named = (*config.urls, *config.sitemaps, *config.feeds, *_listed(config))
        hosts = {str(urlsplit(url).hostname).lower() for url in named} | {h.lower() for h in config.allowed_hosts}
        self._hosts = frozenset(hosts)
        limits = Limits(
            self._hosts,
            config.max_page_bytes,
            config.timeout_seconds,
            config.allow_http,
            config.allow_private_addresses,
        )
        turns = Turns(config.delay_seconds)
        self._store = WebStore(
            runtime.workspace / "cache" / "web",
            limits,
            recheck_seconds=config.recheck_hours * 3600,
            num_retries=config.num_retries,
            wait_turn=turns.wait,
        )
        self._robots: dict[str, robotparser.RobotFileParser] = {}
        self.num_left_out = 0
        self.num_elsewhere = 0
        self.num_beyond = Counter[str]()
        self.rejected: list[Rejected] = []

    def body(self, stored: Stored) -> Path:
        """The file with the bytes of a page."""
        return self._store.body(stored)

    def pages(self) -> list[tuple[_Wanted, Stored]]:
        """All pages that are meant and allowed, fetched.

        Raises:
            TryLaterError: none of them answers.
        """
        wanted: dict[str, _Wanted] = {}
        for page in self._wanted():
            page = replace(page, url=_without_fragment(page.url))
            if page.url in wanted:
                continue
            if len(wanted) >= self._config.max_pages:
                self.num_beyond["pages_beyond_max_pages"] += 1
            elif self._may(page.url):
                wanted[page.url] = page
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            stored = list(pool.map(self._get, wanted))
        if stored and all(page.for_now for page in stored):
            raise TryLaterError(f"no page answers: {stored[0].detail}; try again later")
        return list(zip(wanted.values(), stored, strict=True))

    def _get(self, url: str) -> Stored:
        return self._store.get(url, str(urlsplit(url).hostname))

    def _wanted(self) -> Iterator[_Wanted]:
        for url in (*self._config.urls, *_listed(self._config)):
            yield _Wanted(url)
        yield from self._of_sitemaps()
        for url in self._config.feeds:
            if not self._config.articles:
                yield _Wanted(url, is_feed=True)
                continue
            try:
                entries = entries_of(self._required(url))
            except MillraceError:
                raise
            except Exception as error:  # the parser raises what it likes on input that nobody foresaw
                raise UserError(f"{url} is no feed: {error}") from None
            if not all(entry.link for entry in entries):
                yield _Wanted(url, is_feed=True, unlinked_only=True)
            for link, entry in ((entry.link, entry) for entry in entries if entry.link):
                yield _Wanted(_joined(url, link), entry.time, entry.licence)

    def _required(self, url: str) -> bytes:
        """Bytes of a sitemap or a feed, without which nothing can be fetched."""
        stored = self._get(url)
        if stored.sha256 is None:
            kind = TryLaterError if stored.for_now else UserError
            raise kind(f"{url} cannot be fetched: {stored.detail}")
        return self.body(stored).read_bytes()

    def _of_sitemaps(self) -> Iterator[_Wanted]:
        waiting = list(self._config.sitemaps)
        seen = set(waiting)
        while waiting:
            url = waiting.pop(0)
            try:
                locations, is_index = _sitemap(self._required(url), url, self._config.max_page_bytes)
            except UserError as error:
                if url in self._config.sitemaps:
                    raise
                # One of many that an index names: it costs its own pages.
                self.rejected.append(Rejected(str(urlsplit(url).hostname), url, "bad_sitemap", str(error)[:300]))
                continue
            if not is_index:
                yield from (_Wanted(location) for location in locations)
                continue
            more = [place for place in dict.fromkeys(locations) if place not in seen and self._may(place)]
            room = max(0, _MAX_SITEMAPS - len(seen))
            waiting += more[:room]
            self.num_beyond["sitemaps_beyond_limit"] += len(more[room:])
            seen.update(more)

    def _may(self, url: str) -> bool:
        """Whether the host is allowed and does not ask to be left alone there."""
        try:
            parts = urlsplit(url)
            host = str(parts.hostname or "")
        except ValueError:
            host = ""
        if not is_below(host, self._hosts):
            self.num_elsewhere += 1
            return False
        if not self._config.obey_robots:
            return True
        root = f"{parts.scheme}://{parts.netloc}"
        if root not in self._robots:
            self._robots[root] = self._robots_of(root)
        allowed = self._robots[root].can_fetch(USER_AGENT, url)
        self.num_left_out += not allowed
        return allowed

    def _robots_of(self, root: str) -> robotparser.RobotFileParser:
        stored = self._get(f"{root}/robots.txt")
        rules = robotparser.RobotFileParser()
        # A host without such a file has no wishes.
        lines = self.body(stored).read_bytes().decode("utf-8", "replace").splitlines() if stored.sha256 else []
        rules.parse([line for line in lines if _is_rule(line)])
        return rules


def _without_fragment(url: str) -> str:
    try:
        return urldefrag(url)[0]
    except ValueError:
        return url.partition("#")[0]


def _joined(feed: str, link: str) -> str:
    """Where a link within a feed leads."""
    try:
        return link if "://" in link else urljoin(feed, link)
    except ValueError:
        return link


def _is_rule(line: str) -> bool:
    """Whether the parser takes a line; it raises on numbers and addresses that only look like some."""
    try:
        robotparser.RobotFileParser().parse(["User-agent: *", line])
    except ValueError:
        return False
    return True


def _sitemap(content: bytes, url: str, max_bytes: int) -> tuple[list[str], bool]:
    """Addresses in a sitemap, and whether they are those of further sitemaps."""
    try:
        if content.startswith(b"\x1f\x8b"):
            with gzip.open(BytesIO(content)) as stream:
                content = stream.read(max_bytes)
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, OSError, EOFError, zlib.error, ValueError, LookupError) as error:
        raise UserError(f"{url} is no sitemap: {error}") from None
    found = [(element.text or "").strip() for element in root.iterfind(".//{*}loc")]
    return [location for location in found if location], root.tag.endswith("sitemapindex")


def _read(wanted: _Wanted, stored: Stored, body: Path, config: WebPages) -> Iterator[Item]:
    source = str(urlsplit(wanted.url).hostname)
    if stored.sha256 is None:
        yield Rejected(source, wanted.url, str(stored.reason), stored.detail)
        return
    message = Message()
    message["content-type"] = stored.content_type
    media_type = message.get_content_type() if stored.content_type else ""
    file_format, compression, what = _format(wanted, stored, body, media_type)
    if not file_format:
        yield Rejected(source, wanted.url, "unknown_format", f"{what} is not read")
        return
    file = LocalFile(body, wanted.url, file_format, compression)
    files = LocalFiles(
        path=wanted.url,
        encoding=_known(message.get_content_charset()),
        text_column=config.text_column,
        max_document_bytes=config.max_page_bytes,
    )
    for item in items_of(file, files, unlinked_entries if wanted.unlinked_only else None):
        if isinstance(item, Document):
            yield replace(
                item,
                source=source,
                url=item.url or stored.final_url,
                licence=item.licence or wanted.licence,
                time=wanted.time or item.time or _date(stored.last_modified),
            )
        else:
            yield replace(item, source=source) if isinstance(item, Rejected) else item


def _format(wanted: _Wanted, stored: Stored, body: Path, media_type: str) -> tuple[str, str, str]:
    """Format and compression of a page, and what to call it if it has none."""
    if media_type in ("text/html", "application/xhtml+xml") and not wanted.is_feed:
        return ".html", "", ""  # a page about a file is often named like it
    if wanted.is_feed:
        return ".rss", "", ""
    path = urlsplit(stored.final_url).path
    file_format, compression = format_of(path) or (_FORMATS.get(media_type, ""), "")
    compression_of_xml = xml_compression(path)
    if not file_format and (media_type in _XML or compression_of_xml is not None):
        # Feeds are often served as nothing but XML.
        try:
            with open_bytes(body, compression_of_xml or "") as stream:
                head = stream.read(HEAD_BYTES)
        except BROKEN_STREAM as error:
            return "", "", f"XML that cannot be unpacked ({error})"
        return format_of_xml(head) or "", compression_of_xml or "", f"XML of <{root_of_xml(head)[:40]}>"
    return file_format, compression, media_type or "no type"


def _known(charset: str | None) -> str | None:
    try:
        return charset if charset and codecs.lookup(charset) else None
    except LookupError:
        return None


def _date(stated: str | None) -> str | None:
    try:
        return parsedate_to_datetime(stated).isoformat() if stated else None
    except ValueError:
        return None
