"""Names of folders and files reach a terminal as they are spelled: not as commands, not as markup, not as formulas."""

import contextlib
import io
import re
import warnings

import pytest
from rich.console import Console

from flows.cli import main
from flows.config import load_config
from flows.presets import preset
from flows.scorecard import funnel_table
from flows.terminal import on_one_line, visible
from flows.wiring import Until, UntilReached, corpus_to_model
from lm_core.runtime import Runtime
from lm_core.store import Store
from tasks.pictures import funnel

OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]")
NAMES = ["[/b]x", "[red]x", ":smile:", "back\\", "[link=https://a.org]x", "a$x_$", r"$\frac$"]


def test_what_a_terminal_obeys_is_spelled_out():
    assert visible("a\x1b[31m\x9b\r\u202eb\udcff\nc\td") == "a\\x1b[31m\\x9b\\r\\u202eb\\udcff\nc\td"
    assert on_one_line("a\nb\tc") == "a\\nb\\tc"
    assert visible("Grüße, 你好, שלום\n") == "Grüße, 你好, שלום\n"


def counts(name):
    return {"collected": 1, "fates": {"kept": 1}, "by_source": {name: {"collected": 1, "fates": {"kept": 1}}}}


@pytest.mark.parametrize("name", NAMES)
def test_a_source_keeps_its_name_in_the_funnel(name):
    out = io.StringIO()
    Console(file=out, width=100, force_terminal=False).print(funnel_table(counts(name)))
    assert any(line.strip().startswith(f"{name} ") for line in out.getvalue().splitlines())
    assert funnel(counts(name)["by_source"]).startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A validated corpus of which the folders and files have names that were made to do something."""
    root = tmp_path_factory.mktemp("names")
    for number, name in enumerate(["[red]\x1b[31mfolder", r"$\frac$", "plain"]):
        (root / "in" / name).mkdir(parents=True)
        for page in range(4):
            words = " ".join(f"word{(number * 97 + page * 31 + i * i) % 1009}" for i in range(90))
            (root / "in" / name / f"page\n\x1b]0;title\x07{page}.txt").write_text(f"Page{number}{page} says {words}.")
    store, until = Store(Runtime(workspace=root / "workspace", num_threads=1)), Until("validate")

    def run(stage, config, *, label=None, **inputs):
        until.check(stage)
        return store.build(stage, config, inputs)[0]

    with contextlib.suppress(UntilReached):
        corpus_to_model(load_config(preset("smoke"), data=str(root / "in")), run)
    return root / "workspace"


def test_explain_and_funnel_write_nothing_that_a_terminal_obeys(workspace, capsys):
    assert main(["explain", "--text", "Page00 says", "--workspace", str(workspace)]) == 0
    said = capsys.readouterr().out
    assert "[red]\\x1b[31mfolder/page\\n\\x1b]0;title\\x070.txt" in said
    assert not OBEYED.search(said)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = str(workspace / "funnel.png")
        assert main(["funnel", "--workspace", str(workspace), "--picture", picture]) == 0
    said = capsys.readouterr().out
    assert "[red]\\x1b[31mfolder" in said
    assert not OBEYED.search(said)


def test_an_error_that_quotes_a_name_is_spelled_out(workspace, capsys):
    assert main(["plan", "--data", "\x1b[31m\udcff", "--workspace", str(workspace)]) == 2
    assert "\\x1b[31m\\udcff does not exist" in capsys.readouterr().err


def test_json_holds_names_that_are_not_utf8(workspace, capsys, tmp_path):
    (tmp_path / "\udcff.txt").write_text("a text")
    assert main(["config", "--data", str(tmp_path / "\udcff.txt"), "--json", "--workspace", str(workspace)]) == 0
    assert "\\udcff.txt" in capsys.readouterr().out
