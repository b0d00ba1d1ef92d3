"""Web archives, pages, feeds and sitemaps: from a real server on this machine, and from damaged archives."""

import contextlib
import gzip
import re
import socket
import sys
import threading
import time
import tracemalloc
import zipfile
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import brotli
import pytest
import zstandard

from lm_core.corpus.collect import check_sources, collect, source_digests
from lm_core.corpus.config import CollectConfig, LocalFiles, WebPages
from lm_core.corpus.sources.fetch import FetchError, Limits, fetch
from lm_core.errors import TryLaterError, UserError
from tests.corpus.builds import new_build, rows

HTML = "<html><head><title>{0}</title></head><body><p>The page called {0} says what it has to say.</p></body></html>"


def page(name):
    return HTML.format(name).encode()


class Site:
    """Pages by path -> (status, headers, body), or a list of what to answer in turn; counts what is asked."""

    def __init__(self):
        self.pages, self.asked = {}, []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                site.asked.append(self.path)
                answer = site.pages.get(self.path, (404, {}, b""))
                status, headers, body = answer.pop(0) if isinstance(answer, list) else answer
                if status == 200 and headers.get("ETag") and self.headers.get("If-None-Match") == headers["ETag"]:
                    status, body = 304, b""
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), "Content-Type": "text/html", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def site():
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


def web(**fields):
    fields = {"allow_http": True, "allow_private_addresses": True, "delay_seconds": 0, "num_retries": 0} | fields
    return CollectConfig(sources=(WebPages(**fields),))


def read(root, config, name="out"):
    build = new_build(root, name)
    statistics = collect(build, config)
    found = rows(build.folder, "documents-00000.parquet")
    return {row["key"]: row for row in found}, rows(build.folder, "rejected.parquet"), statistics


def test_pages_sitemaps_and_robots(tmp_path, site):
    locations = "".join(f"<url><loc>{site.root}/{name}</loc></url>" for name in ("a", "b", "secret/c"))
    elsewhere = "<url><loc>https://elsewhere.example/x</loc></url>"
    sitemap = f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{locations}{elsewhere}</urlset>'
    site.pages = {
        "/robots.txt": (200, {}, b"User-agent: *\nDisallow: /secret/\n"),
        "/sitemap.xml.gz": (200, {}, gzip.compress(sitemap.encode())),
        "/a": (200, {"Last-Modified": "Tue, 24 Nov 2026 00:00:00 GMT"}, page("a")),
        "/b": (302, {"Location": "/moved"}, b""),
        "/moved": (200, {"Content-Type": "text/html; charset=utf-8"}, page("b")),
        "/rows.jsonl": (200, {"Content-Type": "application/octet-stream"}, b'{"text": "a row"}\n[]\n'),
    }
    config = web(urls=(f"{site.root}/gone", f"{site.root}/rows.jsonl"), sitemaps=(f"{site.root}/sitemap.xml.gz",))
    found, rejected, statistics = read(tmp_path, config)
    assert set(found) == {f"{site.root}/a", f"{site.root}/b", f"{site.root}/rows.jsonl#1"}
    assert found[f"{site.root}/a"]["time"] == "2026-11-24T00:00:00+00:00"
    assert found[f"{site.root}/b"]["url"] == f"{site.root}/moved"
    assert sorted(row["reason"] for row in rejected) == ["bad_line", "http_404"]
    assert statistics["web"] == {"left_out_by_robots": 1, "not_on_allowed_hosts": 1}
    assert "/secret/c" not in site.asked


def test_a_page_is_fetched_again_only_when_it_has_changed(tmp_path, site, monkeypatch):
    site.pages = {"/a": (200, {"ETag": '"1"'}, page("a"))}
    config = web(urls=(f"{site.root}/a",), recheck_hours=0.1)
    build = new_build(tmp_path, "out")
    first = source_digests(config, build.runtime)
    assert source_digests(config, build.runtime) == first
    assert site.asked.count("/a") == 1
    from lm_core.corpus.sources import web_store

    monkeypatch.setattr(web_store.time, "time", lambda clock=web_store.time.time: clock() + 3600)
    assert source_digests(config, build.runtime) == first
    site.pages["/a"] = (200, {"ETag": '"2"'}, page("another"))
    monkeypatch.setattr(web_store.time, "time", lambda clock=web_store.time.time: clock() + 7200)
    assert source_digests(config, build.runtime) != first


def test_feeds_and_their_articles(tmp_path, site):
    item = (
        f"<item><title>News</title><link>{site.root}/news</link><pubDate>Mon, 02 Nov 2026 10:00:00 GMT</pubDate>"
        "<description>In &lt;b&gt;short&lt;/b&gt;</description></item>"
    )
    feed = f'<rss version="2.0"><channel><title>f</title>{item}</channel></rss>'.encode()
    site.pages = {"/feed": (200, {"Content-Type": "application/rss+xml"}, feed), "/news": (200, {}, page("news"))}
    found, _, _ = read(tmp_path, web(feeds=(f"{site.root}/feed",)), "articles")
    assert found[f"{site.root}/news"]["time"] == "2026-11-02T10:00:00Z"
    assert "called news" in found[f"{site.root}/news"]["text"]
    found, _, _ = read(tmp_path, web(feeds=(f"{site.root}/feed",), articles=False), "entries")
    assert [row["text"] for row in found.values()] == ["In short"]


def test_entries_without_a_link_are_read_from_the_feed(tmp_path, site):
    items = [
        f"<item><title>News</title><link>{site.root}/news</link><description>short</description></item>",
        "<item><guid isPermaLink='false'>urn:1</guid><description>Its own words are all there is.</description></item>",
        "<item><description>Nothing but words, and more of them.</description></item>",
        "<item><link>/relative</link><description>short</description></item>",
        "<item><link>//[x/#y</link><description>short</description></item>",
    ]
    feed = f'<rss version="2.0"><channel><title>f</title>{"".join(items)}</channel></rss>'.encode()
    site.pages = {
        "/feed": (200, {"Content-Type": "text/html"}, feed),
        "/news": (200, {}, page("news")),
        "/relative": (200, {}, page("relative")),
    }
    found, rejected, statistics = read(tmp_path, web(feeds=(f"{site.root}/feed",)))
    assert {key.removeprefix(site.root): row["text"].split()[0] for key, row in found.items()} == {
        "/news": "The", "/relative": "The", "urn:1": "Its", "/feed#3": "Nothing",
    }  # fmt: skip
    assert not rejected
    assert statistics["web"] == {"left_out_by_robots": 0, "not_on_allowed_hosts": 1}


def test_what_is_beyond_a_limit_is_counted(tmp_path, site, monkeypatch):
    monkeypatch.setattr("lm_core.corpus.sources.web._MAX_SITEMAPS", 3)
    places = "".join(f"<sitemap><loc>{site.root}/{number}.xml</loc></sitemap>" for number in (1, 2, 3, 4, 4))
    site.pages = {"/index.xml": (200, {}, f"<sitemapindex>{places}</sitemapindex>".encode())}
    for number in (1, 2, 3, 4):
        pages = "".join(f"<url><loc>{site.root}/{number}-{part}</loc></url>" for part in "aabc")
        site.pages[f"/{number}.xml"] = (200, {}, f"<urlset>{pages}</urlset>".encode())
        site.pages |= {f"/{number}-{part}": (200, {}, page(f"{number}{part}")) for part in "abc"}
    found, _, statistics = read(tmp_path, web(sitemaps=(f"{site.root}/index.xml",), max_pages=4))
    assert sorted(key.rpartition("/")[2] for key in found) == ["1-a", "1-b", "1-c", "2-a"]
    assert statistics["web"]["pages_beyond_max_pages"] == 2
    assert statistics["web"]["sitemaps_beyond_limit"] == 2


RSS = (
    b"<rss version='2.0'><channel><title>f</title><item><guid>g</guid><description>Own words.</description></item>"
    b"</channel></rss>"
)
ATOM = (
    b"<feed xmlns='http://www.w3.org/2005/Atom'><title>f</title><entry><id>g</id><summary>Own words.</summary></entry>"
    b"</feed>"
)
RDF = (
    b"<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#' xmlns='http://purl.org/rss/1.0/'>"
    b"<channel><title>f</title></channel><item><title>t</title><description>Own words.</description></item></rdf:RDF>"
)
DECLARED = b"<?xml version='1.0'?>\n<?xml-stylesheet href='a.xsl'?><!-- <html> --><!DOCTYPE rss [<!ENTITY a '<b>'>]>\n"
FEEDS = {
    "a.xml": RSS, "b.xml": ATOM, "c.xml": RDF, "d.xml": DECLARED + RSS, "e.xml.gz": gzip.compress(RSS),
    "f.xml": ('<?xml version="1.0" encoding="utf-16"?>' + RSS.decode()).encode("utf-16"),
}  # fmt: skip
OTHERS = {
    "g.xml": b"<urlset><url/></urlset>", "h.xml": b"", "i.xml": b"<!-- never closed", "j.xml.gz": b"no gzip",
    "k.xml": b"\0" * 99, "l.xml": b"<rdf:RDF xmlns:rdf='x'/>", "m.xml": b"<" * 70_000, "n.xml": b"<!--x-->" * 9000,
}  # fmt: skip


def test_feeds_that_are_called_xml(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, content in {**FEEDS, **OTHERS}.items():
        (folder / name).write_bytes(content)
    with zipfile.ZipFile(folder / "z.zip", "w") as packed:
        for name, content in {**FEEDS, **OTHERS}.items():
            packed.writestr(name, content)
    found, rejected, statistics = read(tmp_path, CollectConfig(sources=(LocalFiles(path=str(folder)),)))
    assert {row["text"] for row in found.values()} == {"Own words."}
    assert statistics["num_documents"] == 2 * len(FEEDS)
    assert not rejected
    assert statistics["ignored_files"] == {".gz": 2, ".xml": 14}
    with pytest.raises(UserError, match="no kind that can be read"):
        check_sources(CollectConfig(sources=(LocalFiles(path=str(folder / "g.xml")),)))


def test_feeds_that_are_served_as_xml(tmp_path, site):
    xhtml = b"<?xml version='1.0'?><html xmlns='http://www.w3.org/1999/xhtml'><body><p>A page in XML.</p></body></html>"
    site.pages = {
        "/index.xml": (200, {"Content-Type": "text/xml; charset=utf-8"}, RSS),
        "/plain": (200, {"Content-Type": "application/xml"}, ATOM),
        "/page": (200, {"Content-Type": "application/xml"}, xhtml),
        "/named.xml": (200, {"Content-Type": "application/octet-stream"}, RSS),
        "/map.xml": (200, {"Content-Type": "text/xml"}, b"<urlset/>"),
    }
    found, rejected, _ = read(tmp_path, web(urls=tuple(f"{site.root}{path}" for path in site.pages)))
    assert sorted(row["text"] for row in found.values()) == ["A page in XML.", *["Own words."] * 3]
    assert [(row["reason"], row["detail"]) for row in rejected] == [("unknown_format", "XML of <urlset> is not read")]


@pytest.mark.parametrize(
    ("url", "fields", "words"),
    [
        ("ftp://a.org/", {}, "only https"),
        ("http://a.org/", {"allow_http": False}, "only https"),
        ("https://b.org/", {}, "not among the allowed hosts"),
        ("https://evil-a.org/", {}, "not among the allowed hosts"),
        ("https://user@a.org/", {}, "user name"),
        ("https://a.org:22/", {}, "port 22"),
        ("http://127.0.0.1/", {}, "private address"),
        ("http://localhost/", {}, "private address"),
        ("http://[::1]/", {}, "private address"),
        ("http://[::ffff:10.0.0.1]/", {}, "private address"),
        ("http://169.254.169.254/latest/meta-data", {}, "private address"),
        ("http://2130706433/", {}, "private address"),
    ],
)
def test_places_that_are_not_asked(tmp_path, url, fields, words):
    hosts = frozenset({"a.org", "127.0.0.1", "localhost", "::1", "::ffff:10.0.0.1", "169.254.169.254", "2130706433"})
    limits = {"max_bytes": 1000, "timeout_seconds": 2, "allow_http": True, "allow_private_addresses": False}
    with open(tmp_path / "sink", "wb") as sink, pytest.raises(FetchError, match=words):
        fetch(url, Limits(hosts=hosts, **(limits | fields)), sink)


def test_a_redirection_is_judged_like_an_address(tmp_path, site):
    site.pages = {
        "/out": (302, {"Location": "https://elsewhere.example/"}, b""),
        "/loop": (302, {"Location": "/loop"}, b""),
        "/long": (200, {}, b"x" * 5000),
        "/short": (200, {"Content-Length": "900"}, b"x"),
        "/fine": (200, {}, page("fine")),
    }
    names = ("out", "loop", "long", "short", "fine")
    config = web(urls=tuple(f"{site.root}/{name}" for name in names), max_page_bytes=1000, timeout_seconds=2)
    found, rejected, _ = read(tmp_path, config)
    assert list(found) == [f"{site.root}/fine"]
    reasons = {row["key"].rpartition("/")[2]: row["reason"] for row in rejected}
    assert {**reasons, "short": ""} == {"out": "not_allowed", "loop": "redirections", "long": "too_long", "short": ""}


HOSTILE_ROBOTS = b"User-agent: *\nDisallow: //[x\nCrawl-delay: \xc2\xb2\nRequest-rate: \xc2\xb2/9\nDisallow: /secret\n"


def test_hostile_words_of_a_site_cost_a_page_and_not_the_run(tmp_path, site):
    label = "x" * 70
    places = ("[x/", f"127.0.0.1.{label}/", "127.0.0.1:99999/", "127.0.0.1:\u00b2/")
    bad = "".join(f"<url><loc>http://{place}</loc></url>" for place in places)
    below = f"<url><loc>https://a..example.org/</loc></url><url><loc>https://{label}.example.org/</loc></url>"
    good = f"<url><loc>{site.root}/a</loc></url><url><loc>{site.root}/secret</loc></url>"
    good += f"<url><loc>{site.root}/away</loc></url>"
    site.pages = {
        "/robots.txt": (200, {}, HOSTILE_ROBOTS),
        "/sitemap.xml": (
            200,
            {},
            f"<urlset>{bad}{below}{good}<url><loc>{site.root}/away</loc></url></urlset>".encode(),
        ),
        "/a": (200, {}, page("a")),
        "/away": (302, {"Location": "https://[x/"}, b""),
    }
    config = web(sitemaps=(f"{site.root}/sitemap.xml",), allowed_hosts=("example.org",))
    found, rejected, statistics = read(tmp_path, config)
    assert list(found) == [f"{site.root}/a"]
    assert {row["key"]: row["reason"] for row in rejected} == dict.fromkeys(
        ["https://a..example.org/", f"https://{label}.example.org/", "http://127.0.0.1:99999/",
         "http://127.0.0.1:\u00b2/", f"{site.root}/away"], "not_allowed"
    )  # fmt: skip
    assert statistics["web"] == {"left_out_by_robots": 1, "not_on_allowed_hosts": 2}


def broken_gzip():
    packed = bytearray(gzip.compress(b"<urlset>" + bytes(range(256)) * 50))
    packed[30:60] = b"\xff" * 30
    return bytes(packed)


BROKEN_SITEMAPS = [
    broken_gzip(), gzip.compress(b"<urlset/>")[:-9], b"<urlset>", b"",
    b'<?xml version="1.0" encoding="none"?><urlset/>', b'<?xml version="1.0" encoding="gb18030"?><urlset/>',
]  # fmt: skip


@pytest.mark.parametrize("content", BROKEN_SITEMAPS, ids=range(len(BROKEN_SITEMAPS)))
def test_a_broken_sitemap_is_one_line_and_costs_an_index_its_own_pages(tmp_path, site, content):
    locations = "".join(f"<sitemap><loc>{site.root}/{name}.xml</loc></sitemap>" for name in ("broken", "gone", "good"))
    site.pages = {
        "/index.xml": (200, {}, f"<sitemapindex>{locations}</sitemapindex>".encode()),
        "/broken.xml": (200, {}, content),
        "/good.xml": (200, {}, f"<urlset><url><loc>{site.root}/a</loc></url></urlset>".encode()),
        "/a": (200, {}, page("a")),
    }
    found, rejected, _ = read(tmp_path, web(sitemaps=(f"{site.root}/index.xml",)), "index")
    assert list(found) == [f"{site.root}/a"]
    assert [(row["key"].rpartition("/")[2], row["reason"]) for row in rejected] == [
        ("broken.xml", "bad_sitemap"),
        ("gone.xml", "bad_sitemap"),
    ]
    with pytest.raises(UserError, match="is no sitemap"):
        read(tmp_path, web(sitemaps=(f"{site.root}/broken.xml",)), "named")


class Drip:
    """A server that sends little at a time, until the other side hangs up or it has sent all."""

    def __init__(self, first, part, num_parts):
        self.num_sent = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.root = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._first, self._part, self._num_parts = first, part, num_parts
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self):
        connection, _ = self._listening.accept()
        with connection, self._listening, contextlib.suppress(OSError):
            connection.recv(4096)
            connection.sendall(self._first)
            while self.num_sent < self._num_parts:
                connection.sendall(self._part)
                self.num_sent += 1
                time.sleep(0.05)


@pytest.mark.parametrize(
    ("first", "part"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
)
def test_a_page_in_drips_ends_at_the_time_limit(tmp_path, first, part):
    drip = Drip(first, part, 400)
    limits = Limits(frozenset({"127.0.0.1"}), 10_000, 0.5, allow_http=True, allow_private_addresses=True)
    with open(tmp_path / "sink", "wb") as sink, pytest.raises(FetchError) as raised:
        fetch(f"{drip.root}/x", limits, sink)
    assert raised.value.reason == "too_slow"
    drip.thread.join()
    assert drip.num_sent < 400, "the server was heard to its end"


def test_a_site_that_is_down_is_tried_later(tmp_path, site):
    site.pages = {"/a": (503, {}, b"")}
    with pytest.raises(TryLaterError, match="503"):
        read(tmp_path, web(urls=(f"{site.root}/a",)))
    with pytest.raises(UserError, match="only https"):
        check_sources(CollectConfig(sources=(WebPages(urls=(site.root,)),)))


def test_what_fails_for_a_moment_is_asked_for_again(tmp_path, site, monkeypatch):
    from lm_core.corpus.sources import web_store

    monkeypatch.setattr(web_store, "_MAX_PAUSE_SECONDS", 0)
    good = (200, {}, page("a"))
    site.pages = {
        "/busy": [(503, {}, b""), (429, {}, b""), good],
        "/cut": [(200, {"Content-Length": "900"}, b"<p>half a pa"), (200, {}, page("b"))],
        "/gone": [(404, {}, b""), good],
    }
    urls = tuple(f"{site.root}/{name}" for name in ("busy", "cut", "gone"))
    found, rejected, _ = read(tmp_path, web(urls=urls, num_retries=2, timeout_seconds=2))
    assert sorted(found) == sorted(urls[:2])
    assert [row["reason"] for row in rejected] == ["http_404"]
    assert [site.asked.count(f"/{name}") for name in ("busy", "cut", "gone")] == [3, 2, 1]


def test_a_kept_page_that_no_longer_has_its_checksum_is_fetched_again(tmp_path, site):
    site.pages = {"/a": (200, {}, page("a"))}
    config = web(urls=(f"{site.root}/a",))
    first, _, statistics = read(tmp_path, config, "first")
    again, _, reused = read(tmp_path, config, "again")
    assert (statistics["num_parts_read"], reused["num_parts_reused"], site.asked.count("/a")) == (1, 1, 1)
    bodies = (tmp_path / "workspace" / "cache" / "web").glob("*.body")
    next(body for body in bodies if b"called a" in body.read_bytes()).write_bytes(page("forged"))
    mended, _, _ = read(tmp_path, config, "mended")
    assert site.asked.count("/a") == 2
    assert first == again == mended


def warc(number, body=None, **headers):
    body = page(f"p{number}") if body is None else body
    lines = "".join(f"{name}: {value}\r\n" for name, value in {"Content-Type": "text/html", **headers}.items())
    content = f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode() + body
    head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: https://a.org/{number}\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content + b"\r\n\r\n"


def archive(root, name, content, **settings):
    root.mkdir(exist_ok=True)
    (root / name).write_bytes(content)
    found, rejected, statistics = read(root, CollectConfig(sources=(LocalFiles(path=str(root / name), **settings),)))
    return sorted(key.rpartition("/")[2] for key in found), [row["reason"] for row in rejected], statistics


RECORDS = [warc(number) for number in range(1, 6)]


@pytest.mark.parametrize("length", [b"-5", b"abc", b"7", b"400", b"99999", b"99999999999"])
def test_a_wrong_length_costs_its_record(tmp_path, length):
    bad = re.sub(rb"(?m)^Content-Length: \d+", b"Content-Length: " + length, RECORDS[1], count=1)
    keys, reasons, _ = archive(tmp_path, "a.warc", b"".join([RECORDS[0], bad, *RECORDS[2:]]))
    assert keys == ["1", "3", "4", "5"]
    assert reasons in (["bad_record"], ["too_long"])


def test_archives_cut_and_damaged(tmp_path):
    packed = [gzip.compress(record, mtime=0) for record in RECORDS]
    packed[1] = packed[1][:40] + b"\xff" * 20 + packed[1][60:]
    keys, reasons, _ = archive(tmp_path / "gz", "a.warc.gz", b"".join(packed)[:-30])
    assert keys == ["1", "3", "4"]
    assert len(reasons) == 2
    keys, reasons, _ = archive(tmp_path / "cut", "a.warc", b"".join(RECORDS)[:-60])
    assert (keys, reasons) == (["1", "2", "3", "4"], ["bad_record"])


def test_what_a_record_can_hold(tmp_path):
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (page("c")[:40], page("c")[40:])) + b"0\r\n\r\n"
    records = [
        warc(1, chunks, **{"Transfer-Encoding": "chunked"}),
        warc(2, gzip.compress(page("g")), **{"Content-Encoding": "gzip"}),
        warc(3, b"\x89PNG", **{"Content-Type": "image/png"}),
        warc(4, b"odd", **{"Content-Encoding": "secret"}),
        warc(5, b"<p>" + b"x" * 20_000),
        warc(6).replace(b"200 OK", b"404 NO"),
        warc(7).replace(b"WARC-Type: response", b"WARC-Type: request "),
    ]
    keys, reasons, statistics = archive(tmp_path, "a.warc", b"".join(records), max_document_bytes=5000)
    assert keys == ["1", "2"]
    assert sorted(reasons) == ["bad_page", "too_long"]
    assert statistics["web_records"] == {"image/png": 1, "request": 1, "status 404": 1}


def chunked(content, size=40):
    parts = [content[start : start + size] for start in range(0, len(content), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def raw_deflate(content):
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(content) + packer.flush()


LONG = HTML.format(" ".join(f"word{n * n}" for n in range(300))).encode()
PACKED = {
    "gzip": gzip.compress(LONG), "deflate": zlib.compress(LONG), "deflate ": raw_deflate(LONG),
    "br": brotli.compress(LONG), "zstd": zstandard.ZstdCompressor().compress(LONG),
}  # fmt: skip


@pytest.mark.parametrize("encoding", PACKED)
def test_packed_pages_whole_and_cut(tmp_path, encoding):
    packed, header = PACKED[encoding], {"Content-Encoding": encoding}
    records = [
        warc(1, packed, **header),
        warc(2, packed[: len(packed) // 2], **header),
        warc(3, packed[:-1], **header),
        warc(4, packed[:5], **header),
    ]
    if not encoding.startswith("deflate"):
        records.append(warc(5, LONG, **header))  # as crawlers store it that unpack it
    keys, reasons, _ = archive(tmp_path, "a.warc", b"".join(records))
    assert keys == (["1"] if encoding.startswith("deflate") else ["1", "5"])
    assert set(reasons) == {"bad_page"}


def test_pages_of_several_members_and_of_cut_chunks(tmp_path):
    halves = gzip.compress(LONG[:900]) + gzip.compress(LONG[900:])
    bomb = brotli.compress(b"<p>" + b"x" * 50_000_000)
    records = [
        warc(1, halves + b"\0" * 20, **{"Content-Encoding": "gzip"}),
        warc(2, chunked(LONG), **{"Transfer-Encoding": "chunked"}),
        warc(3, chunked(LONG)[:-30], **{"Transfer-Encoding": "chunked"}),
        warc(4, bomb, **{"Content-Encoding": "br"}),
    ]
    tracemalloc.start()
    root = tmp_path / "in"
    keys, reasons, _ = archive(root, "a.warc", b"".join(records), max_document_bytes=100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (keys, reasons) == (["1", "2"], ["bad_page", "bad_page"])
    assert peak < 20_000_000
    texts = [row["text"] for row in rows(root / "out", "documents-00000.parquet")]
    assert all(text.count("word89401") == 1 for text in texts)


def test_pages_that_the_crawler_has_cut_are_counted(tmp_path):
    cut = warc(2).replace(b"WARC-Type", b"WARC-Truncated: length\r\nWARC-Type", 1)
    keys, reasons, statistics = archive(tmp_path, "a.warc", RECORDS[0] + cut)
    assert (keys, reasons) == (["1", "2"], [])
    assert statistics["web_records"] == {"pages cut by the crawler": 1}


def test_without_brotli_the_reason_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "brotli", None)
    archive(tmp_path / "in", "a.warc", RECORDS[0] + warc(2, PACKED["br"], **{"Content-Encoding": "br"}))
    details = [row["detail"] for row in rows(tmp_path / "in" / "out", "rejected.parquet")]
    assert len(details) == 1
    assert "pip install 'millrace[sources]'" in details[0]


def test_arc(tmp_path):
    body = b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n" + page("old")
    record = b"http://a.org/%d 1.2.3.4 20051124000000 text/html %d\n%s\n"
    good = [record % (number, len(body), body) for number in (1, 2, 3)]
    good[1] = good[1].replace(b" %d\n" % len(body), b" 7\n", 1)
    head = b"filedesc://a.arc 0.0.0.0 20051124000000 text/plain 6\n1 0 x\n\n"
    keys, reasons, statistics = archive(tmp_path, "a.arc", head + b"".join(good))
    assert (keys, reasons, statistics["web_records"]) == (["1", "3"], ["bad_record"], {"warcinfo": 1})
