"""Web archives, pages, feeds and sitemaps: from a real server on this machine, and from damaged archives."""

import gzip
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

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


def test_arc(tmp_path):
    body = b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n" + page("old")
    record = b"http://a.org/%d 1.2.3.4 20051124000000 text/html %d\n%s\n"
    good = [record % (number, len(body), body) for number in (1, 2, 3)]
    good[1] = good[1].replace(b" %d\n" % len(body), b" 7\n", 1)
    head = b"filedesc://a.arc 0.0.0.0 20051124000000 text/plain 6\n1 0 x\n\n"
    keys, reasons, statistics = archive(tmp_path, "a.arc", head + b"".join(good))
    assert (keys, reasons, statistics["web_records"]) == (["1", "3"], ["bad_record"], {"warcinfo": 1})
