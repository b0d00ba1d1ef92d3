"""The command line. Heavy packages load inside the commands that need them, so that `--help` is instant."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence

from flows.commands import arguments, corpus, downstream, pipeline, registry, stack, use
from flows.commands.arguments import Handler
from flows.terminal import visible

GROUPS = (pipeline, stack, registry, use, downstream, corpus)
EXIT_TRY_LATER, EXIT_INTERRUPTED = 75, 130
FULL_BELOW_BYTES = 1_000_000


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="millrace", description="From raw text to a promoted language model, one orchestrated pipeline."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, text: str, handler: Handler, *groups: Callable[[argparse.ArgumentParser], None]
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        for add in (*groups, arguments.add_common):
            add(sub)
        sub.set_defaults(handler=handler)
        return sub

    for group in GROUPS:
        group.add(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = build_parser().parse_args(argv)
    options.workspace = options.workspace.absolute()
    from tasks.environment import prepare_environment

    prepare_environment(options.workspace, debug=options.debug)
    from lm_core.errors import MillraceError

    try:
        with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
            result = options.handler(options)
    except MillraceError as error:
        if options.debug:
            raise
        sys.stderr.write(visible(f"millrace: {error}\n"))
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has seen enough, `head` say
        return 0
    except Exception:
        # Prefect's and MLflow's servers meet a full disk first, and their clients wrap it in many ways.
        disk = next(path for path in (options.workspace, *options.workspace.parents) if path.exists())
        if shutil.disk_usage(disk).free > FULL_BELOW_BYTES:
            raise
        sys.stderr.write(f"millrace: the disk under {options.workspace} is full; free some space and run again\n")
        return EXIT_TRY_LATER
    except KeyboardInterrupt:
        sys.stderr.write("millrace: interrupted; the same command goes on from here\n")
        return EXIT_INTERRUPTED
    if options.json:
        line = json.dumps(result, ensure_ascii=False, default=str)
        # A file name that is not UTF-8 holds lone surrogates, which JSON can spell and UTF-8 cannot.
        sys.stdout.write(line.encode("utf-8", "backslashreplace").decode() + "\n")
        sys.stdout.flush()
    return 0


def run() -> None:
    """Console script: exit at once, without waiting for idle threads of the clients."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
