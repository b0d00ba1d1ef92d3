"""No text is cut away, passed over or given another's name without a row or a figure that says so."""

import errno
import glob
import gzip
import json
import os
import random
import shutil
from functools import partial
from pathlib import Path

import pytest

from flows.cli import main
from lm_core.corpus.collect import collect
from lm_core.corpus.config import CollectConfig, LocalFiles
from lm_core.corpus.sources.local_files import find_files
from lm_core.corpus.sources.patterns import expanded
from lm_core.errors import UserError
from tests.corpus.builds import new_build, rows
from tests.corpus.test_sources_broken import read, reasons


@pytest.mark.parametrize(
    ("content", "texts", "places"),
    [
        (b"id,text\n1,hello, world of commas\n2,x\n", ["x"], ["line2"]),
        (b'text\nhello, world\n"quoted, it is whole"\n', ["quoted, it is whole"], ["line2"]),
        (b'id,text\n1,"a" b, and more\n2,x\n', ["x"], ["line2"]),
        (b"id;text\n1;a; b\n2;x\n", ["x"], ["line2"]),
        (b"id,text\n1,x,\n2,y,, \n", ["x", "y"], []),
    ],
)
def test_values_beyond_the_last_column_are_not_dropped(tmp_path, content, texts, places):
    found, rejected, _ = read(tmp_path, {"a.csv": content})
    assert found == texts
    assert [key.partition("#")[2] for key, _, _ in rejected] == places
    assert all(reason == "bad_rows" and "values under" in detail for _, reason, detail in rejected)


def test_two_columns_of_one_name_are_said(tmp_path):
    texts, rejected, _ = read(tmp_path, {"a.csv": b"text,text\nfirst,second\n", "b.csv": b"id,id,text\n1,2,x\n"})
    assert texts == ["x"]
    assert reasons(rejected) == ["no_text_column"]
    assert "2 columns called 'text'" in rejected[0][2]


LINES = ["one line", 'two Привет мир "x" \u010a\u0a0d', "three \U0001f600 \u2028 end", "four"]


def json_lines(texts):
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_json_lines_of_wide_characters(tmp_path, encoding, suffix):
    # Letters that are Latin stand in both bytes only where there is no mark to tell the encoding by.
    texts = LINES if encoding in ("utf-16", "utf-32") else ["one line", "zwei Zeilen, Grüße", "three"]
    content = json_lines(texts).encode(encoding)
    found, rejected, statistics = read(tmp_path, {f"a.jsonl{suffix}": gzip.compress(content) if suffix else content})
    assert found == [text.replace(" \u2028", "\n") for text in texts]
    assert not rejected
    assert statistics["encodings"] == {"utf-8": 1, encoding: len(texts)}


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_wide_characters_beyond_the_sample(tmp_path, suffix):
    texts = [f"row {n} of a long table, with Grüße" for n in range(4000)]
    content = json_lines(texts) if suffix == "jsonl" else "text\n" + "".join(f'"{text}"\n' for text in texts)
    found, rejected, _ = read(tmp_path, {f"a.{suffix}": content.encode("utf-16-le")})
    assert not rejected
    assert sorted(found) == sorted(texts)


def test_broken_lines_of_wide_characters_are_told_with_their_place(tmp_path):
    content = '{"text": "one"}\n[2]\n{"text": "thr\n{"text": "four"}\n'.encode("utf-16")
    long = ('{"text": "' + "x" * 5000 + '"}\n{"text": "after"}\n').encode("utf-16")
    files = {"a.jsonl": content, "b.jsonl": long, "c.jsonl": content[:-7]}
    texts, rejected, _ = read(tmp_path, files, max_document_bytes=2000)
    assert sorted(texts) == ["after", "four", "one", "one"]
    assert sorted(key for key, _, _ in rejected) == [
        "a.jsonl#2",
        "a.jsonl#3",
        "b.jsonl#1",
        "c.jsonl#2",
        "c.jsonl#3",
        "c.jsonl#4",
    ]
    assert rejected[0][2].startswith("line 2 at byte 34: ")
    assert content[34:].decode("utf-16-le").startswith("[2]")


@pytest.mark.parametrize(
    ("rows_", "texts", "words"),
    [
        ([{"title": "x", "content": "one"}, {"text": "two"}, {"body": "three"}], ["one", "two", "three"], []),
        ([{"Text": "one"}, {"TEXT": "two"}, {"text": "three"}], ["one", "two", "three"], []),
        ([{"prompt": "one"}, {"prompt": "two", "id": 2}], ["one", "two"], []),
        ([{"text": "one", "content": "not this"}, {"content": "two"}, {"text": "three"}], ["one", "two", "three"], []),
        ([{"text": None, "content": "one"}, {"text": "two", "content": None}], ["one", "two"], []),
        ([{"text": "one"}, {"error": "none today"}], ["one"], ["it has error; set text_column"]),
        ([{"id": "7"}, {"n": 5}, {}], [], ["it has id;", "it has n;", "it has nothing;"]),
        ([{"question": "a", "answer": "b"}], [], ["it has question, answer; set text_column (--text-column)"]),
        ([{"text": None}], [], ["no text"]),
    ],
)
def test_each_row_may_have_keys_of_its_own(tmp_path, rows_, texts, words):
    files = {"a.jsonl": "\n".join(map(json.dumps, rows_)).encode(), "b.json": json.dumps(rows_).encode()}
    found, rejected, _ = read(tmp_path, files)
    assert sorted(found) == sorted(2 * texts)
    assert len(rejected) == 2 * len(words)
    for word in words:
        assert sum(word in detail for _, reason, detail in rejected if reason == "no_text") == 2


def test_a_named_key_that_a_row_has_not_is_told_with_those_it_has(tmp_path):
    content = b'{"story": "one", "text": "not this"}\n{"text": "nor this"}\n'
    texts, rejected, _ = read(tmp_path, {"a.jsonl": content}, text_column="story")
    assert texts == ["one"]
    assert [(key, reason) for key, reason, _ in rejected] == [("a.jsonl#2", "no_text")]
    assert "it has no 'story' (text_column); it has text" in rejected[0][2]


def write_files(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"the text of {name}")


def found_at(path):
    found = find_files(LocalFiles(path=str(path)))
    return [file.name for file in found.files], dict(found.ignored)


def test_a_pattern_reads_the_folders_that_it_matches(tmp_path):
    write_files(tmp_path, "books/x/a.txt", "books/x/deep/b.txt", "books/c.txt", "books/x/p.png", "books/x/.h/d.txt")
    (tmp_path / "books/circle").symlink_to(tmp_path)
    (tmp_path / "books/gone.txt").symlink_to("nowhere")
    names, ignored = found_at(tmp_path / "books/*")
    assert names == ["c.txt", "x/a.txt", "x/deep/b.txt"]
    assert ignored == {".png": 1, "hidden": 1, "link to a folder": 1, "broken link": 1}
    again, ignored = found_at(tmp_path / "books/**")
    assert again == names
    assert ignored.pop("met again through a link") > 9
    assert ignored == {".png": 1, "hidden": 1, "link to a folder": 1, "broken link": 1}
    (tmp_path / "books/circle").unlink()
    (tmp_path / "linked").symlink_to(tmp_path / "books/x")
    assert found_at(tmp_path / "li*/*.txt")[0] == ["linked/a.txt"]
    assert found_at(tmp_path / "bo*")[0] == ["books/c.txt", "books/x/a.txt", "books/x/deep/b.txt"]


def test_what_lies_beside_pretrain_is_counted_and_said(tmp_path, capsys):
    write_files(
        tmp_path, "own/pretrain/a.txt", "own/pretrain/b.odt", "own/other.txt", "own/more/c.txt", "own/more/d/e.txt"
    )
    names, ignored = found_at(tmp_path / "own")
    assert names == ["a.txt"]
    assert ignored == {".odt": 1, "beside pretrain/": 3}
    assert found_at(tmp_path / "own/*") == (["other.txt", "pretrain/a.txt"], {".odt": 1, "beside pretrain/": 2})
    assert found_at(tmp_path / "o*")[1] == {".odt": 1, "beside pretrain/": 3}
    build = new_build(tmp_path, "out")
    statistics = collect(build, CollectConfig(sources=(LocalFiles(path=str(tmp_path / "own")),)))
    assert statistics["ignored_files"] == {".odt": 1, "beside pretrain/": 3}
    workspace = str(tmp_path / "workspace")
    plan = ["plan", "--until", "collect", "--data", str(tmp_path / "own"), "--workspace", workspace]
    assert main(plan) == 0
    said = capsys.readouterr().out
    assert "only pretrain/ is read; 3 files beside it" in said
    assert "left aside, not read: 1 .odt" in said
    assert main([*plan, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["left_aside"]) == 2


def test_a_folder_that_cannot_be_entered_is_not_an_empty_one(tmp_path):
    write_files(tmp_path, "in/a.txt")
    places = [os.open(tmp_path / "in", os.O_RDONLY)]
    for _ in range(20):  # deeper than any path may be long; access rights do not stop an administrator
        os.mkdir("x" * 250, dir_fd=places[-1])
        places.append(os.open("x" * 250, os.O_RDONLY, dir_fd=places[-1]))
    try:
        with pytest.raises(UserError, match="cannot be read: File name too long"):
            found_at(tmp_path / "in")
    finally:
        for place in places:
            os.close(place)
        shutil.rmtree(tmp_path / "in")


def lock(monkeypatch, *locked):
    """No folder of that path can be listed: access rights do not stop an administrator."""
    really = {"scandir": os.scandir, "listdir": os.listdir}

    def refuse(name, path="."):
        if str(path) in map(str, locked):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return really[name](path)

    for name in really:
        monkeypatch.setattr(os, name, partial(refuse, name))


@pytest.mark.parametrize(
    "pattern", ["", "**", "**/*.txt", "**/x/**/*.txt", "*", "*/*.txt", "x/*/*.txt", "x/locke[d]", "x/**/locked/*.txt"]
)
def test_a_folder_that_cannot_be_read_is_named_by_any_pattern_that_leads_into_it(tmp_path, monkeypatch, pattern):
    write_files(tmp_path, "in/a.txt", "in/x/b.txt", "in/x/locked/c.txt", "in/x/x/d.txt")
    locked = tmp_path / "in/x" if pattern == "*/*.txt" else tmp_path / "in/x/locked"
    lock(monkeypatch, locked)
    with pytest.raises(UserError) as raised:
        found_at(tmp_path / "in" / pattern)
    assert str(raised.value) == f"{locked} cannot be read: Permission denied; mend it or give a glob without it"


def test_a_pattern_without_the_folder_that_cannot_be_read_goes_on(tmp_path, monkeypatch):
    write_files(tmp_path, "in/a.txt", "in/x/b.txt", "in/locked/c.txt", "in/.hidden/d.txt")
    lock(monkeypatch, tmp_path / "in/locked", tmp_path / "in/.hidden")
    assert found_at(tmp_path / "in/*.txt")[0] == ["a.txt"]
    assert found_at(tmp_path / "in/[!l]*/**/*.txt")[0] == ["x/b.txt"]


def test_patterns_match_what_those_of_python_match(tmp_path):
    write_files(tmp_path, "a.txt", "x/b.txt", "x/y/c.txt", "x/.h/d.txt", ".e.txt", ".f/g.txt", "z/x/y/[c].txt", "u/**v")
    (tmp_path / "linked").symlink_to(tmp_path / "x")
    (tmp_path / "z/circle").symlink_to(tmp_path / "z")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    patterns = [
        "*", "*.txt", "?.txt", ".*", "**", "**/*.txt", "**/y/*", "**/.h/*", "*/y/**", "**/**/c.txt", "x/../*.txt",
        "[ax]*", "*/[[]c]*", "**/[[]*", "nothing/*", "*/nothing", "a.txt/*", "*/*/..", "gone.t*", ".*/*",
        "linked/*", "**/circle", "u/*v", "u/**v",
    ]  # fmt: skip
    for pattern in patterns:
        expected = {Path(path) for path in glob.glob(str(tmp_path / pattern), recursive=True)}  # noqa: PTH207
        assert set(expanded(tmp_path / pattern)) == expected, pattern


def test_a_circle_of_long_names_ends(tmp_path):
    long = "/".join(["x" * 200] * 3)
    write_files(tmp_path, f"in/{long}/a.txt")
    (tmp_path / "in" / long / "circle").symlink_to(tmp_path / "in")
    assert found_at(tmp_path / "in/**/*.txt")[0] == [f"{long}/a.txt"]


def keys_of(tmp_path, ids, name="out"):
    folder = tmp_path / name
    folder.mkdir()
    lines = [json.dumps({"id": given, "text": f"text {number}"}) + "\n" for number, given in enumerate(ids)]
    (folder / "f.jsonl").write_text("".join(lines))
    build = new_build(tmp_path, f"{name}-built")
    collect(build, CollectConfig(sources=(LocalFiles(path=str(folder)),)))
    return [row["key"].removeprefix("f.jsonl#") for row in rows(build.folder, "documents-00000.parquet")]


@pytest.mark.parametrize(
    ("ids", "keys"),
    [
        (["a", "a", "a~2"], ["a", "a~2", "a~2~2"]),
        (["a", "a~2", "a~3"], ["a", "a~2", "a~3"]),
        (["a", "a", "a", "a~2", "a~2", "a~3", "a~4"], ["a", "a~2", "a~3", "a~2~2", "a~2~3", "a~3~2", "a~4"]),
        (["a", "a", "a!", "ab", "a~02", "a~2~2", "a~2"], ["a", "a~2", "a!", "ab", "a~02", "a~2~2", "a~2~2~2"]),
        (["a", "a", "b", "a~2"], ["a", "a~2", "a~2~2", "b"]),
        (["~2", "~", "~", "~~2"], ["~", "~~2", "~2", "~~2~2"]),
    ],
)
def test_a_key_that_was_issued_is_not_issued_again(tmp_path, ids, keys):
    found = keys_of(tmp_path, ids)
    assert sorted(found) == sorted(keys)
    assert len(set(found)) == len(ids)


def test_keys_of_any_ids_are_unique(tmp_path):
    draw = random.Random(5)
    for number in range(30):
        ids = ["".join(draw.choices(["a", "~2", "~3", "~"], k=draw.randint(1, 5))) for _ in range(40)]
        found = keys_of(tmp_path, ids, f"r{number}")
        assert len(set(found)) == len(ids)
