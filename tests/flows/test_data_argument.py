"""What `--data` can be given, from the command line: whatever makes no sense is one line and exit code 2."""

import os
import socket

import fsspec
import pytest

from flows.cli import main
from flows.config import load_config
from flows.presets import preset
from lm_core.corpus.collect import collect
from lm_core.corpus.config import CollectConfig, source_of
from lm_core.corpus.sources import local_files, remote
from lm_core.errors import UserError
from tests.corpus.builds import new_build, rows

LONG = "x" * 300


def plan(tmp_path, capsys, *arguments):
    code = main(["plan", "--until", "collect", "--workspace", str(tmp_path / "ws"), *arguments])
    return code, capsys.readouterr().err


ERRORS = {
    "host": socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    "denied": PermissionError(13, "Forbidden"),
    "type": TypeError("missing 1 required\npositional argument"),
    "down": ConnectionResetError(104, "reset"),
}


class OddFileSystem(fsspec.AbstractFileSystem):
    """Raises what its address names, as the file systems of others do."""

    protocol = "odd"

    def find(self, path, **settings):
        raise ERRORS[path.strip("/")]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("hf://datasets/", "names no data set"),
        ("hf://datasets/@main", "names no data set"),
        ("https://[x/", "no address on the web"),
        ("HTTPS://[x/", "no address on the web"),
        ("https://a..b/", "no host can have that name"),
        (f"https://{'x' * 70}.example.org/", "no host can have that name"),
        ("https://a.org:99999/", "Port out of range"),
        ("https://", "no address on the web"),
        ("zip://nowhere.zip", "cannot be read"),
        ("reference://x", "cannot be read"),
        ("odd://host", "no host has that name"),
        ("odd://denied", "cannot be read: PermissionError"),
        ("odd://type", "missing 1 required positional"),
        ("~nobody-of-that-name/x", "home"),
        (LONG, "too long"),
        (f"{LONG}/*.txt", "too long"),
        ("", "no path"),
        (" ", "no path"),
        ("pipe", "neither a file nor a folder: no regular file"),
        ("loop", "neither a file nor a folder: broken link"),
        ("\udcff", "\\udcff does not exist"),
    ],
)
def test_what_makes_no_sense_is_one_line(tmp_path, capsys, monkeypatch, data, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("what an empty path must not find")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    fsspec.register_implementation("odd", OddFileSystem, clobber=True)
    code, said = plan(tmp_path, capsys, "--data", data)
    assert code == 2
    assert words in said
    assert said.startswith("millrace: ")
    assert said.count("\n") == 1


def test_a_store_that_does_not_answer_is_tried_later(tmp_path, capsys):
    fsspec.register_implementation("odd", OddFileSystem, clobber=True)
    code, said = plan(tmp_path, capsys, "--data", "odd://down")
    assert code == 75
    assert "does not answer" in said


def test_a_text_column_by_any_name(tmp_path, capsys):
    """The rejection names the option, and the option reads the column; where it can have no effect it is refused."""
    (tmp_path / "a.csv").write_text("id,utterance\n1,one\n")
    (tmp_path / "b.jsonl").write_text('{"id": 2, "utterance": "two"}\n')
    config = CollectConfig(sources=(source_of(str(tmp_path)),))
    with pytest.raises(UserError, match="no readable document") as raised:
        collect(new_build(tmp_path, "none"), config)
    assert "(--text-column)" in str(raised.value)
    named = load_config(preset("smoke"), data=str(tmp_path), text_column="utterance").collect
    build = new_build(tmp_path, "out")
    collect(build, named)
    assert sorted(row["text"] for row in rows(build.folder, "documents-00000.parquet")) == ["one", "two"]
    assert plan(tmp_path, capsys, "--data", str(tmp_path), "--text-column", "utterance")[0] == 0
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "c.txt").write_text("three")
    code, said = plan(tmp_path, capsys, "--data", str(tmp_path / "books"), "--text-column", "utterance")
    assert (code, said.count("\n")) == (2, 1)
    assert "no effect" in said


def counted(monkeypatch, module, name):
    """What the function returned each time that it was called from now on."""
    returned, function = [], getattr(module, name)

    def call(*arguments):
        returned.append(function(*arguments))
        return returned[-1]

    monkeypatch.setattr(module, name, call)
    return returned


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize("place", ["{folder}", "{folder}/**/*.*", "memory://looked-at"])
def test_a_source_is_looked_at_once_for_what_is_read_and_what_is_left_aside(
    tmp_path, capsys, monkeypatch, command, place
):
    """A folder may be large, and a store far away."""

    def stop(*arguments):
        raise UserError("the servers would start here")

    folder, memory = tmp_path / "in", fsspec.filesystem("memory")
    (folder / "x").mkdir(parents=True)
    for name in ("a.txt", "b.odt"):
        (folder / "x" / name).write_text("a text")
        memory.pipe(f"/looked-at/{name}", b"a text")
    walks = counted(monkeypatch, local_files, "_on_this_machine")
    listings = counted(monkeypatch, remote, "listing")
    asides = counted(monkeypatch, local_files, "left_aside")
    monkeypatch.setattr("flows.commands.pipeline.use_servers", stop)
    given = ["--data", place.format(folder=folder), "--until", "collect", "--workspace", str(tmp_path / "ws")]
    for times in (1, 2):  # another command looks for itself
        assert main([command, *given]) == (2 if command == "run" else 0)
        assert len(walks) + len(listings) == times
        assert len(asides) == times
        assert asides[-1][0].endswith("left aside, not read: 1 .odt")
    said = capsys.readouterr()
    assert ("the servers would start here" in said.err) if command == "run" else (asides[0][0] in said.out)
