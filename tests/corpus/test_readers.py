"""Broken files cost their broken rows and nothing else; a source that is not there is said in one line."""

import gzip

import pytest

from lm_core.corpus.collect import check_sources, collect
from lm_core.corpus.config import CollectConfig, HubDataset, InstalledPackages, LocalFiles
from lm_core.errors import UserError
from tests.corpus.builds import new_build, rows


def read(root, name, content):
    """Texts and reasons of rejection of one file, read beside a good one."""
    folder = root / "in"
    folder.mkdir()
    (folder / name).write_bytes(content)
    (folder / "good.txt").write_text("a good text")
    build = new_build(root, "out")
    statistics = collect(build, CollectConfig(sources=(LocalFiles(path=str(folder)),)))
    texts = [row["text"] for row in rows(build.folder, "documents-00000.parquet") if row["text"] != "a good text"]
    reasons = [row["reason"] for row in rows(build.folder, "rejected.parquet")]
    assert statistics["num_documents"] == len(texts) + 1
    assert statistics["num_rejected"] == len(reasons)
    return texts, reasons


@pytest.mark.parametrize(
    ("name", "content", "texts", "reasons"),
    [
        ("latin.txt", "caf\xe9".encode("latin-1"), ["café"], []),
        ("empty.txt", b"", [], ["empty"]),
        ("utf16.txt", "Grüße".encode("utf-16"), ["Grüße"], []),
        ("windows.txt", b"\xef\xbb\xbfone  \r\ntwo\x00\r\n", ["one\ntwo"], []),
        ("cut.txt.gz", gzip.compress(b"text " * 9000, mtime=0)[:60], [], ["unreadable_file"]),
        ("fake.txt.gz", b"not packed at all", [], ["unreadable_file"]),
        ("rows.jsonl", b'{"text": "one"}\n[1, 2]\n{"text": \n\n{"text": "two"}\n', ["one", "two"], ["bad_line"] * 2),
        ("latin.jsonl", b'{"text": "caf\xe9"}\n{"text": "two"}\n', ["café", "two"], []),
        ("quotes.csv", b'id,text\n1,"one ""quoted"""\n2,a "loose one\n', ['one "quoted"', 'a "loose one'], []),
        ("latin.csv", b"id,text\n1,caf\xe9\n2,two\n", ["café", "two"], []),
        ("fake.parquet", b"PAR1 and nothing else", [], ["unreadable_file"]),
        ("empty.jsonl", b"", [], []),
        ("empty.csv", b"", [], []),
    ],
)  # fmt: skip
def test_a_broken_file(tmp_path, name, content, texts, reasons):
    assert read(tmp_path, name, content) == (texts, reasons)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (LocalFiles(path="/nowhere/at/all"), "does not exist"),
        (LocalFiles(path="/nowhere/*.txt"), "matches no file"),
        (InstalledPackages(packages=("numpy", "no-such-package")), "no-such-package"),
        (HubDataset(name="json"), "needs data_files"),
        (HubDataset(name="json", data_files="/nowhere/*.json"), "matches no file"),
    ],
)
def test_a_missing_source_is_said_in_one_line(source, message):
    with pytest.raises(UserError, match=message) as raised:
        check_sources(CollectConfig(sources=(source,)))
    assert "\n" not in str(raised.value)


def test_a_package_that_is_not_there_is_no_smaller_corpus(tmp_path):
    source = InstalledPackages(packages=("numpy", "no-such-package"), include_standard_library=False)
    with pytest.raises(UserError, match="no-such-package"):
        collect(new_build(tmp_path, "out"), CollectConfig(sources=(source,)))


def test_sources_that_are_there_pass(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    check_sources(CollectConfig(sources=(LocalFiles(path=str(tmp_path)), InstalledPackages(packages=("NumPy",)))))
