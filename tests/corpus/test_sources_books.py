"""Books, files on other file systems, and reading again only what has changed."""

import base64
import gzip
import hashlib
import json
import subprocess
import sys
import zipfile
import zlib
from collections import Counter
from functools import partial
from pathlib import Path
from typing import ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from lm_core.artifact import Corpus
from lm_core.corpus.collect import check_sources, collect, source_digests
from lm_core.corpus.config import CollectConfig, DeduplicateConfig, HubDataset, InstalledPackages, LocalFiles
from lm_core.corpus.deduplicate import deduplicate
from lm_core.corpus.sources.gutenberg import without_licence
from lm_core.errors import MachineError, UserError
from lm_core.stages import COLLECT
from tests.corpus.builds import digest, new_build, nothing_dropped, rows

CONTAINER = '<container><rootfiles><rootfile full-path="OPS/book.opf"/></rootfiles></container>'
PACKAGE = """<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">
<metadata><dc:title>A Book</dc:title><dc:rights>CC0-1.0</dc:rights><dc:date>1901</dc:date></metadata>
<manifest><item id="b" href="b.xhtml" media-type="application/xhtml+xml"/>
<item id="a" href="a%20one.xhtml" media-type="application/xhtml+xml"/></manifest>
<spine><itemref idref="a"/><itemref idref="b"/></spine></package>"""
XHTML = '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml">'
CHAPTER = XHTML + "<body><h1>{0}</h1><p>Text of {0}.</p></body></html>"


def write_epub(path, **changes):
    members = {"mimetype": "application/epub+zip", "META-INF/container.xml": CONTAINER, "OPS/book.opf": PACKAGE,
               "OPS/a one.xhtml": CHAPTER.format("one"), "OPS/b.xhtml": CHAPTER.format("two")}  # fmt: skip
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | changes).items():
            if content is not None:
                archive.writestr(name, content)


def write_pdf(path, words, *, packed=False):
    """A PDF of one page, written by hand: objects, then the table of their offsets."""
    stream = f"BT /F1 12 Tf 72 700 Td ({words}) Tj ET".encode()
    stream, how = (zlib.compress(stream, 1), b"/Filter /FlateDecode ") if packed else (stream, b"")
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< %s/Length %d >>\nstream\n%s\nendstream" % (how, len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]  # fmt: skip
    content, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    content += b"xref\n0 6\n0000000000 65535 f \n%strailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (
        table,
        len(content),
    )
    path.write_bytes(content)


def read(root, *sources, name="out", **settings):
    build = new_build(root, name)
    statistics = collect(build, CollectConfig(sources=sources, **settings))
    rejected = {row["key"]: row["reason"] for row in rows(build.folder, "rejected.parquet")}
    return rows(build.folder, "documents-00000.parquet"), rejected, statistics


def test_epubs_whole_and_broken(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_epub(folder / "whole.epub")
    write_epub(folder / "gone.epub", **{"OPS/b.xhtml": None})
    write_epub(folder / "laugh.epub", **{"OPS/book.opf": '<!DOCTYPE x [<!ENTITY a "b">'})
    write_epub(folder / "locked.epub", **{"META-INF/encryption.xml": '<e><CipherReference URI="OPS/b.xhtml"/></e>'})
    (folder / "cut.epub").write_bytes((folder / "whole.epub").read_bytes()[:200])
    (book,), rejected, _ = read(tmp_path, LocalFiles(path=str(folder)))
    assert (book["title"], book["licence"], book["time"]) == ("A Book", "CC0-1.0", "1901")
    assert book["text"].index("Text of one.") < book["text"].index("Text of two.")
    assert rejected == {"gone.epub": "unreadable_file", "laugh.epub": "unreadable_file", "cut.epub": "unreadable_file",
                        "locked.epub": "encrypted"}  # fmt: skip


def test_pdfs_whole_and_broken(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_pdf(folder / "whole.pdf", "Words on a page.")
    with zipfile.ZipFile(folder / "packed.zip", "w") as archive:
        archive.write(folder / "whole.pdf", "in.pdf")
    (folder / "fake.pdf").write_bytes(b"%PDF-1.4 and nothing else")
    documents, rejected, statistics = read(tmp_path, LocalFiles(path=str(folder)))
    assert [row["text"] for row in documents] == ["Words on a page."] * 2
    assert rejected == {"fake.pdf": "unreadable_file"}
    assert statistics["book_pages"] == {"pdf": 2}


@pytest.mark.slow
def test_a_pdf_that_swells_beyond_the_memory_of_its_reader_costs_itself(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_pdf(folder / "bomb.pdf", "word " * 60_000_000, packed=True)
    write_pdf(folder / "packed.pdf", "Words on a page.", packed=True)
    documents, rejected, _ = read(tmp_path, LocalFiles(path=str(folder)))
    assert [row["text"] for row in documents] == ["Words on a page."]
    assert rejected == {"bomb.pdf": "unreadable_file"}


def test_real_books_lose_their_licence_and_keep_their_text(tmp_path, data_bundle):
    documents, rejected, statistics = read(tmp_path, LocalFiles(path=str(data_bundle / "raw")))
    assert not rejected
    assert statistics["mended"] == {"gutenberg_licence_cut": 4}
    assert statistics["encodings"] == {"cp1252": 2, "utf-8": 2}
    assert sorted({row["title"] for row in documents}) == [
        "Die Verwandlung",
        "Grimms' Fairy Tales",
        "Pride and Prejudice",
    ]
    assert not any("PROJECT GUTENBERG" in row["text"].upper() for row in documents)


def test_a_text_about_gutenberg_is_left_alone():
    assert without_licence("Project Gutenberg is a library of free books.\nThe end.") is None


def test_files_on_another_file_system(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/lake/a.txt", b"text of a")
    memory.pipe("/lake/in/b.jsonl", b'{"text": "text of b"}\n[]\n')
    memory.pipe("/lake/c.png", b"picture")
    source = LocalFiles(path="memory://lake")
    documents, rejected, statistics = read(tmp_path, source)
    assert [row["text"] for row in documents] == ["text of b", "text of a"]
    assert list(rejected.values()) == ["bad_line"]
    assert statistics["ignored_files"] == {".png": 1}
    before = source_digests(CollectConfig(sources=(source,)), new_build(tmp_path, "d").runtime)
    memory.pipe("/lake/a.txt", b"text of a, longer")
    assert source_digests(CollectConfig(sources=(source,)), new_build(tmp_path, "e").runtime) != before
    memory.rm("/lake", recursive=True)


class HalfwayFileSystem(MemoryFileSystem):
    """Files in memory of which the first copy comes cut short, and some come damaged for ever."""

    protocol = "halfway"
    num_asked: ClassVar = Counter()

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("halfway://", "memory://"))

    def get_file(self, path, copy, **settings):
        super().get_file(path, copy, **settings)
        self.num_asked[path] += 1
        content = Path(copy).read_bytes()
        if path.endswith("lost.txt") or self.num_asked[path] == 1:
            Path(copy).write_bytes(content[:3])
        if path.endswith("moved.txt"):
            Path(copy).write_bytes(content[::-1])

    def find(self, path, **settings):
        found = super().find(path, **settings)
        for info in found.values() if settings.get("detail") else ():
            md5 = hashlib.md5(self.store[info["name"]].getvalue(), usedforsecurity=False)
            info["md5Hash"] = base64.b64encode(md5.digest()).decode()
        return found


def test_a_copy_that_is_not_what_was_listed_is_fetched_again(tmp_path, monkeypatch):
    monkeypatch.setattr("lm_core.corpus.sources.remote._PAUSES_SECONDS", (0, 0))
    fsspec.register_implementation("halfway", HalfwayFileSystem, clobber=True)
    lake = fsspec.filesystem("halfway")
    for name in ("found", "lost", "moved"):
        lake.pipe(f"/half/{name}.txt", f"text of {name}".encode())
    documents, rejected, _ = read(tmp_path, LocalFiles(path="halfway://half"))
    assert [row["text"] for row in documents] == ["text of found"]
    assert rejected == {"lost.txt": "not_downloaded", "moved.txt": "not_downloaded"}
    lake.rm("/half", recursive=True)


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [("memory://nowhere", UserError, "does not exist"), ("nosuch://a", UserError, "no file system"),
     ("https://a.org/x", UserError, "kind web"), ("gs://bucket/a", MachineError, "pip install gcsfs")],
)  # fmt: skip
def test_places_that_are_not_there(tmp_path, path, kind, words):
    with pytest.raises(kind, match=words) as raised:
        read(tmp_path, LocalFiles(path=path))
    assert "\n" not in str(raised.value)


def test_what_is_unchanged_is_not_read_again(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.txt").write_text(f"text number {number}")
    (folder / "rows.jsonl").write_text('{"text": "a row"}\n[]\n')
    sources = (LocalFiles(path=str(folder)), InstalledPackages(packages=("click",), include_standard_library=False))
    first = read(tmp_path, *sources, name="first")
    again = read(tmp_path, *sources, name="again")
    assert (first[2]["num_parts_read"], first[2]["num_parts_reused"]) == (22, 0)
    assert (again[2]["num_parts_read"], again[2]["num_parts_reused"]) == (0, 22)
    assert again[:2] == first[:2]
    (folder / "3.txt").write_text("another text")
    (folder / "4.txt").unlink()
    changed = read(tmp_path, *sources, name="changed")
    whole = read(tmp_path, *sources, name="whole", reuse=False)
    assert (changed[2]["num_parts_read"], changed[2]["num_parts_reused"]) == (1, 20)
    assert changed[:2] == whole[:2]
    assert {k: v for k, v in changed[2].items() if "parts" not in k} == {
        k: v for k, v in whole[2].items() if "parts" not in k
    }


def test_a_damaged_pack_is_read_anew(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(f'{{"text": "row {n} {n * 7919}"}}\n' for n in range(500)))
    first = read(tmp_path, LocalFiles(path=str(folder)), name="first")
    (pack,) = (tmp_path / "workspace" / "cache" / "collected").glob("*.pack")
    content = bytearray(pack.read_bytes())
    content[len(content) // 3] ^= 0xFF
    pack.write_bytes(content)
    again = read(tmp_path, LocalFiles(path=str(folder)), name="again")
    assert again[:2] == first[:2]
    assert again[2]["num_parts_read"] == 1


def test_a_chapter_in_markup_is_found_in_its_book(tmp_path):
    lines = [" ".join(f"word{(chapter * 89 + n * n) % 997}" for n in range(90)) for chapter in range(6)]
    chapter = f"{XHTML}<head><title>Two</title></head><body>" + "".join(f"<p>{line}</p>" for line in lines[2:4])
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "book.txt").write_text("\n\n".join(lines))
    (folder / "chapters.jsonl").write_text(json.dumps({"id": "two", "text": chapter + "</body></html>"}) + "\n")
    build = new_build(tmp_path, "out")
    statistics = collect(build, CollectConfig(sources=(LocalFiles(path=str(folder)),)))
    assert statistics["mended"] == {"markup_of_a_page": 1}
    page = next(row for row in rows(build.folder, "documents-00000.parquet") if row["key"] == "chapters.jsonl#two")
    assert page["title"] == "Two"
    assert page["text"].split() == " ".join(lines[2:4]).split()
    corpus, copies = Corpus(build.folder, "collect", "f", "d"), new_build(tmp_path, "copies")
    deduplicate(copies, DeduplicateConfig(), corpus=corpus, cleaning=nothing_dropped(tmp_path))
    assert [(row["doc_id"], row["reason"]) for row in rows(copies.folder)] == [(page["doc_id"], "containment")]


COLLECT_BY_VERSION = {5: "0299f2d8d67a890f"}


def test_what_collect_finds_is_pinned_by_its_version(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_epub(folder / "book.epub")
    (folder / "a.txt").write_bytes("Grüße, cafÃ©  \r\n".encode())
    (folder / "b.csv").write_bytes(b'id,text\n1,"open\n2,caf\xe9\n')
    (folder / "c.jsonl").write_bytes(b'{"text": "one", "url": "https://a.org", "license": "MIT"}\n[]\n')
    (folder / "d.html").write_bytes(b"<title>t</title><p>A paragraph of a page.</p>")
    (folder / "e.jsonl").write_text(json.dumps({"text": CHAPTER.format("three")}))
    build = new_build(tmp_path, "out")
    collect(build, CollectConfig(sources=(LocalFiles(path=str(folder)),)))
    found = digest(build.folder, "documents-00000.parquet", "rejected.parquet")
    assert found == COLLECT_BY_VERSION[COLLECT.version], (
        "values moved but the version of collect did not: raise it in lm_core/stages.py and write the new value here"
    )


def hub_files(root):
    """Files for the local builders: a cut one, broken rows, an array, lines."""
    content = "".join(json.dumps({"text": f"row {n} {n * 7919}"}) + "\n" for n in range(3000)).encode()
    files = {
        "cut.jsonl.gz": gzip.compress(content)[:9000],
        "mixed.jsonl": b'{"text": "one"}\n[1, 2]\n{"text": null}\nno JSON\n{"text": "three"}\n',
        "array.json": b'[{"text": "four"}, 5]',
        "sub/mixed.jsonl": b'{"text": "six"}\n',
        "lines.dat": b'{"text": "seven"}\n{"text": "eight"}\n',
        "one.json": b'{\n "text": "nine"\n}\n',
    }
    for name, packed in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(packed)


def test_a_broken_row_of_a_local_builder_costs_itself(tmp_path):
    hub_files(tmp_path / "in")
    source = HubDataset(name="json", data_files=str(tmp_path / "in/**"))
    documents, rejected, statistics = read(tmp_path, source)
    texts = {row["key"]: row["text"] for row in documents if not row["key"].startswith("cut")}
    assert texts == {
        "mixed.jsonl#1": "one", "mixed.jsonl#5": "three", "array.json#1": "four", "sub/mixed.jsonl#1": "six",
        "lines.dat#1": "seven", "lines.dat#2": "eight", "one.json#1": "nine",
    }  # fmt: skip
    assert len(documents) > 200 + len(texts), "what stands before the cut is read"
    assert rejected == {
        "cut.jsonl.gz": "unreadable_rows", "mixed.jsonl#2": "bad_line", "mixed.jsonl#3": "no_text",
        "mixed.jsonl#4": "bad_line", "array.json#2": "bad_line",
    }  # fmt: skip
    assert read(tmp_path, source, name="again")[2]["num_parts_reused"] == statistics["num_parts_read"] == 6
    few = HubDataset(name="json", data_files=str(tmp_path / "in/**"), max_documents=2)
    assert len(read(tmp_path, few, name="few")[0]) == 2


def test_local_builders_of_tables_and_lines(tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n007,NA\n8,one, cut\n9,two\n")
    (tmp_path / "b.txt").write_bytes("Grüße\n\nlast".encode("utf-16"))
    pq.write_table(pa.table({"text": ["three", None]}), tmp_path / "c.parquet")
    sources = [HubDataset(name=name, data_files=str(tmp_path / file))
               for name, file in (("csv", "a.csv"), ("text", "b.txt"), ("parquet", "c.parquet"))]  # fmt: skip
    documents, rejected, _ = read(tmp_path, *sources)
    assert {row["key"]: row["text"] for row in documents} == {
        "a.csv#007": "NA", "a.csv#9": "two", "b.txt#1": "Grüße", "b.txt#3": "last", "c.parquet#1": "three",
    }  # fmt: skip
    assert rejected == {"a.csv#line3": "bad_rows", "b.txt#2": "empty", "c.parquet#2": "no_text"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"split": "test"}, "split=test"), ({"subset": "x"}, "subset=x"), ({"revision": "v1"}, "revision=v1"),
     ({"name": "text", "text_column": "x"}, "text_column")],
)  # fmt: skip
def test_what_only_the_hub_has_is_refused_for_local_files(tmp_path, fields, words):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}')
    source = HubDataset(**({"name": "json", "data_files": str(tmp_path / "a.jsonl")} | fields))
    config = CollectConfig(sources=(source,))
    for look in (check_sources, partial(source_digests, runtime=new_build(tmp_path, "out").runtime)):
        with pytest.raises(UserError, match=f"{words}.* has no effect"):
            look(config)


def test_a_json_file_of_lines_is_read_line_by_line(tmp_path):
    names = {"lines.json": b'{"text": "one"}\n[]\n{"text": "two"}\n', "one.json": b'{"text": "three"}\n',
             "wide.json": '{"text": "four"}\n'.encode("utf-16"), "deep.json": b"[" * 99_999 + b"\n{}",
             "pretty.json": b'[\n{"text": "five"}\n]'}  # fmt: skip
    (tmp_path / "in").mkdir()
    for name, content in names.items():
        (tmp_path / "in" / name).write_bytes(content)
    documents, rejected, _ = read(tmp_path, LocalFiles(path=str(tmp_path / "in")))
    assert sorted(row["text"] for row in documents) == ["five", "four", "one", "three", "two"]
    assert rejected == {"lines.json#2": "bad_line", "deep.json": "unreadable_file"}


@pytest.mark.slow
def test_a_data_set_of_the_hub_is_read_again_when_its_branch_has_moved(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.corpus.small_hub", str(tmp_path)], capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == {
        "first": [["one", "two"], 0],
        "again": [["one", "two"], 1],
        "moved": [["one", "two", "three"], 0],
        "pinned": {"revision": "org/set@" + "a" * 40},
        "closed": {"revision": "org/set@" + "b" * 40},
    }
