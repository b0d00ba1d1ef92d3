"""The README and the command line name the same commands; help is there for all of them."""

import argparse
import subprocess
import sys
from pathlib import Path

from flows.cli import build_parser

README = (Path(__file__).parents[2] / "README.md").read_text()


def _commands() -> dict[str, argparse.ArgumentParser]:
    action = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def test_every_command_has_a_handler_and_stands_in_the_readme():
    for name, command in _commands().items():
        assert callable(command.get_default("handler"))
        assert f"millrace {name}" in README, f"README.md does not show `millrace {name}`"


def test_every_option_has_help():
    for name, command in _commands().items():
        for action in command._actions:
            assert action.help, f"{name} {action.option_strings or action.dest} has no help"


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from flows.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'prefect', 'mlflow', 'pydantic', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_plan_loads_neither_torch_nor_prefect(tmp_path):
    code = (
        "import sys; from flows.cli import main\n"
        f"assert main(['plan', '--preset', 'smoke', '--workspace', {str(tmp_path)!r}]) == 0\n"
        "print([m for m in ('torch', 'prefect', 'mlflow', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
