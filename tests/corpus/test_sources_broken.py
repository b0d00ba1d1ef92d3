"""Really broken files of every kind: each costs its broken part, with reason and place, and nothing else."""

import bz2
import copy
import gzip
import io
import json
import lzma
import os
import tracemalloc
import zipfile
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lm_core.corpus.collect import collect
from lm_core.corpus.config import CollectConfig, LocalFiles, WebPages, source_of
from lm_core.corpus.sources.lines import lines_of
from lm_core.corpus.sources.local_files import find_files
from tests.corpus.builds import new_build, rows

LIMIT = 100_000


def read(root, files, **settings):
    """Texts, rejected rows as (key, reason, detail), and the statistics, of files read beside a good one."""
    folder = root / "in"
    folder.mkdir()
    (folder / "good.txt").write_text("a good text")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    build = new_build(root, "out")
    statistics = collect(build, CollectConfig(sources=(LocalFiles(path=str(folder), **settings),)))
    found = rows(build.folder, "documents-00000.parquet")
    texts = [row["text"] for row in found if row["text"] != "a good text"]
    rejected = [(row["key"], row["reason"], row["detail"]) for row in rows(build.folder, "rejected.parquet")]
    assert statistics["num_documents"] == len(texts) + 1
    assert statistics["num_rejected"] == len(rejected)
    return texts, rejected, statistics


def zipped(**members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def reasons(rejected):
    return [reason for _, reason, _ in rejected]


RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему."


@pytest.mark.parametrize(
    ("content", "text", "encoding"),
    [
        (RUSSIAN.encode("cp1251"), RUSSIAN, "cp1251"),
        (RUSSIAN.encode("koi8_r"), RUSSIAN, "koi8_r"),
        ("Grüße aus Köln".encode("cp1252"), "Grüße aus Köln", "cp1252"),
        ("Grüße ".encode("utf-16-le") * 9, ("Grüße " * 9).rstrip(), "utf-16-le"),
        ("naïve ".encode() * 40 + b"\xff", "naïve " * 40 + "\ufffd", "utf-8, damaged"),
        (b"\xed\xa0\x80 lone", "\ufffd\ufffd\ufffd lone".replace("\ufffd\ufffd\ufffd", "í\xa0€"), "cp1252"),
    ],
)  # fmt: skip
def test_encodings_are_found_and_counted(tmp_path, content, text, encoding):
    texts, rejected, statistics = read(tmp_path, {"a.txt": content})
    assert (texts, rejected) == ([text], [])
    assert statistics["encodings"][encoding] == 1


def test_mojibake_is_mended_and_counted(tmp_path):
    texts, _, statistics = read(tmp_path, {"a.txt": "le cafÃ© est fermÃ©\nплохо".encode()})
    assert texts == ["le café est fermé\nплохо"]
    assert statistics["mended"] == {"mojibake": 1}


def test_a_wrong_label_is_not_believed(tmp_path):
    page = "<html><head><meta charset='latin-1'></head><body><p>Grüße aus Köln</p></body></html>".encode()
    texts, _, statistics = read(tmp_path, {"a.html": page})
    assert texts == ["Grüße aus Köln"]
    assert statistics["encodings"] == {"utf-8": 2}


def test_bytes_that_are_no_text_are_said_so(tmp_path):
    assert reasons(read(tmp_path, {"a.txt": b"\0\1\2\3" * 900})[1]) == ["binary"]


PACKERS = {
    ".gz": gzip.compress, ".bz2": partial(bz2.compress, compresslevel=1), ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}  # fmt: skip


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_whole_cut_and_fake(tmp_path, suffix):
    lines = b"".join(json.dumps({"text": f"text {n} {n * n * 7919}"}).encode() + b"\n" for n in range(8000))
    packed = PACKERS[suffix](lines)
    files = {"whole.jsonl": packed, "cut.jsonl": packed[: len(packed) // 2], "fake.jsonl": b"not packed" * 9}
    texts, rejected, _ = read(tmp_path, {name + suffix: content for name, content in files.items()})
    assert len(texts) > 9000, "what stands before the place where a file is cut is read"
    assert {key.partition(".")[0] for key, _, _ in rejected} == {"cut", "fake"}
    assert all("byte" in detail for _, _, detail in rejected)


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_bomb_is_stopped(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr("lm_core.corpus.sources.streams.GRACE_BYTES", 1_000_000)
    monkeypatch.setattr("lm_core.corpus.sources.streams.MAX_RATIO", 20)
    bomb = PACKERS[suffix](b" " * 20_000_000)
    _, rejected, _ = read(tmp_path, {f"a.jsonl{suffix}": bomb, f"b.csv{suffix}": bomb, f"c.txt{suffix}": bomb})
    assert reasons(rejected) == ["bomb"] * 3


def test_archives_within_archives_are_not_opened(tmp_path):
    inner = zipped(**{"deep.txt": "deep"})
    content = zipped(**{"a.txt": "one", "in/b.jsonl": '{"text": "two"}\n[]\n', "nest.zip": inner, "p.png": "x"})
    content_up = zipped(**{"../../up.txt": "up"})
    texts, rejected, statistics = read(tmp_path, {"z.zip": content, "up.zip": content_up, "cut.zip": content[:40]})
    assert sorted(texts) == ["one", "two", "up"]
    assert sorted(reasons(rejected)) == ["bad_line", "nested_archive", "unreadable_file"]
    assert statistics["ignored_files"] == {".png": 1}
    assert not list(tmp_path.rglob("up.txt"))


def test_members_that_share_a_name_are_both_read(tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a.txt", "the first text")
        archive.writestr("a.txt", "the second text")
    assert sorted(read(tmp_path, {"z.zip": packed.getvalue()})[0]) == ["the first text", "the second text"]


def test_members_that_overlap_are_a_bomb(tmp_path, monkeypatch):
    """Every entry of the directory points at the same bytes: each is harmless, all together fill the disk."""
    monkeypatch.setattr("lm_core.corpus.sources.zip_files.GRACE_BYTES", 1_000_000)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", "0" * 100_000)
        for number in range(400):
            twin = copy.copy(archive.filelist[0])
            twin.filename = f"{number}.txt"
            archive.filelist.append(twin)
    texts, rejected, _ = read(tmp_path, {"z.zip": packed.getvalue()})
    assert (texts, reasons(rejected)) == ([], ["bomb"])


def test_a_parser_that_fails_costs_its_file(tmp_path, monkeypatch):
    def fail(*arguments, **settings):
        raise AttributeError("an error that nobody foresaw")

    monkeypatch.setattr("feedparser.parse", fail)
    _, rejected, _ = read(tmp_path, {"a.rss": b"<rss/>"})
    assert rejected == [("a.rss", "reader_failed", "AttributeError: an error that nobody foresaw")]


def test_pages_and_feeds_of_nothing_but_tags_are_not_parsed(tmp_path):
    feed = b'<rss version="2.0"><channel>' + b"<item/>" * 100_001
    _, rejected, _ = read(tmp_path, {"a.html": b"<i>" * 1_000_001, "b.rss": feed})
    assert {key: reason for key, reason, _ in rejected} == {"a.html": "bomb", "b.rss": "unreadable_file"}


def test_feeds_that_are_none(tmp_path):
    _, rejected, _ = read(tmp_path, {"a.rss": b"", "b.atom": b"no feed at all"})
    assert reasons(rejected) == ["unreadable_file"] * 2


def test_what_is_no_file_is_counted_and_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "broken.txt").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "good.txt").write_text("a text")
    found = find_files(LocalFiles(path=str(tmp_path)))
    assert [file.name for file in found.files] == ["good.txt"]
    assert found.ignored == {"no regular file": 1, "broken link": 1, "link to a folder": 1}


@pytest.mark.parametrize(
    ("content", "texts", "places"),
    [
        (b'id,text\n1,"two\nlines"\n2,x\n', ["two\nlines", "x"], []),
        (b'id,text\n1,"never closed\n2,x\n3,y\n', ["x", "y"], ["line2"]),
        (b'id,text\n1,"never\n2,x\n3,"closed"\n', ["x", "closed"], ["line2"]),
        (b'id,text\n1,"a" b\n2,"say ""so"""\n', ["a b", 'say "so"'], []),
        (b"id;text\n1;a, b\n", ["a, b"], []),
        (b"id,text\n1,nul\0here\n", ["nulhere"], []),
        (b"id,text\n1\n2,x\n", ["x"], ["1"]),
    ],
)
def test_csv_with_odd_quotes(tmp_path, content, texts, places):
    found, rejected, _ = read(tmp_path, {"a.csv": content})
    assert found == texts
    assert [key.partition("#")[2] for key, _, _ in rejected] == places


def test_tsv_takes_lonely_quotes_as_they_are(tmp_path):
    assert read(tmp_path, {"a.tsv": b'id\ttext\n1\t"so\n2\tx\n'})[0] == ["x"]
    assert source_of("a.tsv") == LocalFiles(path="a.tsv")


def test_lines_that_are_no_objects_or_too_much(tmp_path):
    lines = [
        b'{"text": "one"}',
        b"[1]",
        b"3",
        b'"x"',
        b"null",
        b'{"text": 5}',
        b"{",
        b"[" * 9000,
        b'{"text": "\\ud800!"}',
    ]
    texts, rejected, _ = read(tmp_path, {"a.jsonl": b"\n".join(lines)})
    assert texts == ["one", "\ufffd!"]
    assert len(rejected) == 7
    assert all("line" in detail for _, _, detail in rejected)
    assert rejected[0][2].startswith("line 2 at byte 16")


def test_one_endless_line_costs_itself(tmp_path):
    content = b'{"text": "' + b"x" * (40 * LIMIT) + b'"}\n{"text": "after"}\n'
    csv_content = b"id,text\n1," + b"x" * (40 * LIMIT) + b"\n2,after\n"
    tracemalloc.start()
    texts, rejected, _ = read(tmp_path, {"a.jsonl": content, "b.csv": csv_content}, max_document_bytes=LIMIT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert texts == ["after", "after"]
    assert len(rejected) == 2
    assert peak < len(content) + len(csv_content) + 8_000_000  # what the test itself holds


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("suffix", ["", *PACKERS])
def test_a_line_of_many_times_the_limit_is_one_rejected_row(tmp_path, encoding, suffix):
    """Of a limit beyond what is skipped at once: the rest of the line must not be taken for lines."""
    limit = 1_500_000
    head = json.dumps({"text": "before"}) + "\n"
    tail = '\n{"text": "after"}\n[]\n'
    content = (head + "x" * (4 * limit + 7) + json.dumps({"text": "within"}) + tail).encode(encoding)
    packed = PACKERS[suffix](content) if suffix else content
    texts, rejected, _ = read(tmp_path, {f"a.jsonl{suffix}": packed}, max_document_bytes=limit)
    assert texts == ["before", "after"]
    last = len(content) - len("[]\n".encode(encoding.replace("16", "16-le")))
    assert rejected == [
        (f"a.jsonl{suffix}#2", "bad_line", f"line 2 at byte {len(head.encode(encoding))}: longer than {limit} bytes"),
        (f"a.jsonl{suffix}#4", "bad_line", f"line 4 at byte {last}: not an object but list"),
    ]


def test_a_long_line_is_skipped_in_bounded_memory(tmp_path):
    limit, path = 2_000_000, tmp_path / "a.jsonl"
    with open(path, "wb") as stream:
        for _ in range(60):
            stream.write(b"x" * 1_000_000)
        stream.write(b'\n{"text": "after"}\n')
    with open(path, "rb") as stream:
        lines, _ = lines_of(stream, limit)
        tracemalloc.start()
        found = [(number, offset, len(line)) for number, offset, line in lines]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert found == [(1, 0, limit + 1), (2, 60_000_001, 18)]
    assert peak < 4 * limit


def write_half_a_gigabyte(path):
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": ["word " * 100_000_000, "a small text"]}), path)
        return
    with (gzip.open if path.suffix == ".gz" else open)(path, "wb") as stream:
        stream.write(b'{"text": "' if path.suffix == ".jsonl" else b"text\n" if "sv" in path.name else b"WARC/1.0\r\n")
        for _ in range(500):
            stream.write(b"word " * 200_000)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "name",
    [
        "a.jsonl", "a.csv", "a.txt", "a.html", "a.warc", "a.epub", "a.tsv", "a.json", "a.rss", "a.arc", "a.jsonl.gz",
        "a.parquet",
    ],
)  # fmt: skip
def test_half_a_gigabyte_in_one_line(tmp_path, name):
    import subprocess
    import sys

    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.txt").write_text("good")
    write_half_a_gigabyte(folder / name)
    code = (
        "import resource, sys; from pathlib import Path; from lm_core.corpus.collect import collect\n"
        "from lm_core.corpus.config import *; from tests.corpus.builds import new_build\n"
        "import pyarrow.parquet; before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"config = CollectConfig(sources=(LocalFiles(path={str(folder)!r}),))\n"
        f"s = collect(new_build(Path({str(tmp_path)!r}), 'out'), config)\n"
        "assert s['num_documents'] == 1 and s['num_rejected'] >= 1, s\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 512


def test_names_that_mean_something_elsewhere(tmp_path):
    names = ["a'b.txt", 'a"b.txt', "a*?[b].txt", "a..b.txt", "a\nb.txt", "$(x).txt", "a;b.jsonl"]
    texts, rejected, _ = read(tmp_path, {n: b'{"text": "in a"}' if n.endswith("l") else n.encode() for n in names})
    assert len(texts) == len(names)
    assert not rejected


def test_parquet_that_is_damaged(tmp_path):
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": [f"text {n} " * 50 for n in range(9000)]}), sink, row_group_size=1000)
    whole = sink.getvalue()
    hole = bytearray(whole)
    hole[len(hole) // 2 : len(hole) // 2 + 400] = b"\xff" * 400
    gone = pa.BufferOutputStream()
    pq.write_table(pa.table({"other": [1], "columns": [2]}), gone)
    files = {"cut.parquet": whole[:-10], "hole.parquet": bytes(hole), "none.parquet": gone.getvalue().to_pybytes()}
    texts, rejected, _ = read(tmp_path, files)
    found = {key.partition("#")[0]: (reason, detail) for key, reason, detail in rejected}
    assert found["cut.parquet"][0] == "unreadable_file"
    assert found["none.parquet"][0] == "no_text_column"
    assert found["hole.parquet"][1].startswith(f"rows {len(texts) + 1} to 9000")


def test_parquet_of_bytes_and_of_rows_beyond_the_limit(tmp_path):
    def packed(values):
        sink = io.BytesIO()
        pq.write_table(pa.table({"text": values}), sink)
        return sink.getvalue()

    plain = pa.array(["Grüße".encode(), b"\0\1\2\3" * 900, "Köln".encode("latin-1")], pa.binary())
    files = {"bytes.parquet": packed(plain), "long.parquet": packed(["x" * (2 * LIMIT)])}
    texts, rejected, _ = read(tmp_path, files, max_document_bytes=LIMIT)
    assert texts == ["Grüße", "Köln"]
    assert [(key, reason) for key, reason, _ in rejected] == [
        ("bytes.parquet#2", "binary"),
        ("long.parquet#1-", "too_long"),
    ]


def packed_table(values, **options):
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": values}), sink, **options)
    return sink.getvalue()


def test_one_long_cell_of_a_table_costs_itself(tmp_path):
    values = [f"a small text, number {n}" for n in range(300)]
    table = packed_table([*values[:100], "x" * (2 * LIMIT), *values[100:]])
    texts, rejected, _ = read(tmp_path, {"a.parquet": table}, max_document_bytes=LIMIT)
    assert sorted(texts) == sorted(values)
    assert rejected == [("a.parquet#101", "too_long", f"row 101: more than {LIMIT} bytes")]


def test_a_page_that_would_fill_the_memory_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("lm_core.corpus.sources.parquet._MAX_PAGE_BYTES", LIMIT)
    values = [f"a small text, number {n}" for n in range(4000)]
    values[1500] = "x" * (2 * LIMIT)
    table = packed_table(values, row_group_size=1000, use_dictionary=False)
    texts, rejected, _ = read(tmp_path, {"a.parquet": table}, max_document_bytes=50 * LIMIT)
    assert len(texts) == 3000
    assert [(key, reason) for key, reason, _ in rejected] == [("a.parquet#1001-", "too_long")]
    assert rejected[0][2].startswith("rows 1001 to 2000: a page of ")


def test_a_dictionary_is_not_unfolded_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("lm_core.corpus.sources.parquet._EXPANDED_BYTES", 10 * LIMIT)
    table = packed_table(["x" * LIMIT] * 50)
    assert len(table) < LIMIT
    asked = []
    whole = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *a, **k: asked.append(a[1]) or whole(*a, **k))
    texts, _, _ = read(tmp_path, {"a.parquet": table})
    assert len(texts) == 50
    assert 0 < asked[0] < 10


def test_page_headers_that_are_none(tmp_path):
    table = bytearray(packed_table([f"text {n} " * 50 for n in range(900)], compression="none"))
    for place, broken in ((4, b"\xff" * 40), (4, b"\x15\x00\x15\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")):
        damaged = bytes(table[:place]) + broken + bytes(table[place + len(broken) :])
        (tmp_path / str(len(broken))).mkdir()
        _, rejected, _ = read(tmp_path / str(len(broken)), {"a.parquet": damaged})
        assert reasons(rejected) == ["unreadable_file"]


def test_a_source_says_what_it_is():
    assert source_of("https://a.org/page.html") == WebPages(urls=("https://a.org/page.html",))
    assert source_of("https://a.org/rss.xml").feeds
    assert source_of("https://a.org/sitemap.xml").sitemaps
    assert source_of("hf://datasets/org/name@abc").revision == "abc"
    assert source_of("s3://bucket/folder") == LocalFiles(path="s3://bucket/folder")
