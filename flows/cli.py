"""The command line. Heavy packages load inside the commands that need them, so that `--help` is instant."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

EXIT_INTERRUPTED = 130
Handler = Callable[[argparse.Namespace], Any]


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workspace", type=Path, default=Path("workspace"), metavar="DIR",
                        help="folder of all state (default: ./workspace)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line of stdout")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and the logs of the servers' clients")


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset", default="laptop", metavar="NAME", help="smoke, laptop, real or gpu (default: laptop)"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file whose values change the preset")
    parser.add_argument("--data", metavar="DIR", help="folder, file or glob with your own text")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", dest="settings",
                        help="change one value, e.g. pretrain.model.num_layers=6; may be repeated")  # fmt: skip
    parser.add_argument("--until", metavar="STAGE", help="stop after this stage")


def _add_ports(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prefect-port", type=int, metavar="PORT", help="port of the Prefect server (default: 4200)")
    parser.add_argument("--mlflow-port", type=int, metavar="PORT", help="port of the MLflow server (default: 5000)")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="millrace", metavar="NAME", help="registered model (default: millrace)")
    _add_version(parser)


def _add_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", dest="model_version", metavar="N|ALIAS",
                        help="version number or alias (default: champion)")  # fmt: skip


def _add_generation(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--max-new-tokens", type=int, default=80, metavar="N", help="longest answer (default: 80)")
    parser.add_argument("--temperature", type=float, default=0.7, metavar="T",
                        help="0 takes the likeliest token; higher is freer (default: 0.7)")  # fmt: skip
    parser.add_argument("--top-k", type=int, default=50, metavar="K", help="choose among the K likeliest (default: 50)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the sampling (default: 0)")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="millrace", description="From raw text to a promoted language model, one orchestrated pipeline."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, *options: Callable[[argparse.ArgumentParser], None]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        for add in (*options, _add_common):
            add(sub)
        return sub

    command("run", "run the pipeline; what exists already is reused", _add_config, _add_ports)
    command("plan", "say what `run` would do and why, without doing it", _add_config)
    command("up", "start the Prefect and MLflow servers and a worker; Ctrl-C stops them", _add_ports)
    command("down", "stop the servers that run in the background")
    schedule = command("schedule", "make a scheduled deployment of the pipeline", _add_config, _add_ports)
    schedule.add_argument("cron", help='when to run, as a cron line: "0 3 * * *" is every night at three')
    schedule.add_argument("--name", default="scheduled", help="name of the deployment (default: scheduled)")
    schedule.add_argument("--timezone", default="UTC", help="time zone of the cron line (default: UTC)")
    command("models", "list the registered models, their versions, aliases and scores")
    command("promote", "make a version champion by hand", _add_model)
    command("rollback", "make the previous champion champion again", _add_model)
    generate = command("generate", "complete a text with the champion", _add_generation)
    generate.add_argument("prompt", help="the text to go on from")
    chat = command("chat", "talk to the champion", _add_generation)
    chat.add_argument("--once", metavar="TEXT", help="ask one question and end")
    score = command("score", "log-probability of each token of a text", _add_version)
    score.add_argument("model", help="name of a registered model")
    score.add_argument("--text", required=True, help="the text to score")
    explain = command("explain", "tell a document's whole story: where from, which rules, its fate")
    explain.add_argument("doc_id", nargs="?", help="document id as in fates.parquet, or its beginning")
    explain.add_argument("--text", help="a piece of the document's text instead of its id")
    funnel = command("funnel", "show the fates of the documents by source")
    funnel.add_argument("--picture", type=Path, metavar="FILE.png", help="draw them too")
    export = command("export", "write a model as a folder that transformers, vLLM and others load", _add_model)
    export.add_argument("folder", type=Path, metavar="DIR", help="where to write; must not exist")
    gc = command("gc", "remove artifacts that no registered model and no recent run descends from")
    gc.add_argument("--delete", action="store_true", help="really remove; without it only list")
    command("config", "print the configuration of a preset, with every field's meaning", _add_config)
    return parser


# ---------------------------------------------------------------- running


def _load_config(options: argparse.Namespace) -> Any:
    from flows.config import load_config
    from flows.presets import preset

    return load_config(preset(options.preset), toml=options.config, data=options.data, settings=options.settings)


def _use_servers(options: argparse.Namespace, services: tuple[str, ...]) -> dict[str, Any]:
    """Find or start servers and point this process at them; waits for Prefect only, MLflow gets ready meanwhile."""
    from tasks import servers
    from tasks.environment import use_addresses

    ports = {name: port for name in services if (port := getattr(options, f"{name}_port", None)) is not None}
    found = servers.begin(options.workspace, services, ports)
    if "prefect" in found:
        servers.wait(found["prefect"], options.workspace)
    elif "mlflow" in found:
        servers.wait(found["mlflow"], options.workspace)
    addresses = {name: server.api for name, server in found.items()}
    use_addresses(prefect_api=addresses.get("prefect"), mlflow=addresses.get("mlflow"))
    return found


def _run(options: argparse.Namespace) -> dict[str, Any]:
    config = _load_config(options)
    from flows.wiring import Until

    Until(options.until)
    from lm_core.corpus.collect import source_digests
    from lm_core.runtime import Runtime

    source_digests(config.collect, Runtime())  # a path that is not there is said before any server starts
    found = _use_servers(options, ("prefect", "mlflow"))
    from flows.pipeline import display_in_use, run_corpus_to_model
    from flows.scorecard import show
    from tasks.display import Display

    with Display() as display:
        display.say(f"preset {options.preset}; watch the run at {found['prefect'].address}")
        display_in_use.set(display)
        card = run_corpus_to_model(config=config, until=options.until)
    addresses = {"Prefect": f"{found['prefect'].address}/runs", "MLflow": f"{found['mlflow'].address}/#/models"}
    show(card, addresses, display.console)
    return card


def _plan(options: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import asdict

    from flows.plan import make_plan
    from lm_core.runtime import Runtime

    stages = make_plan(_load_config(options), Runtime(), options.until)
    for stage in stages:
        _say(f"{stage.name:<36} {stage.state:<7} {stage.why}")
    return {"stages": [asdict(stage) for stage in stages]}


def _config(options: argparse.Namespace) -> dict[str, Any]:
    config = _load_config(options)
    from flows.config import describe

    for line in describe(config):
        _say(line)
    return dict(config.model_dump(mode="json"))


# ---------------------------------------------------------------- local stack


def _up(options: argparse.Namespace) -> dict[str, Any]:
    from tasks import stack

    found = _use_servers(options, ("prefect", "mlflow"))
    return stack.stay_up(options.workspace, found, _say)


def _down(options: argparse.Namespace) -> dict[str, Any]:
    from tasks import servers

    stopped = servers.stop(options.workspace)
    _say(f"stopped {' and '.join(stopped)}" if stopped else "nothing was running")
    return {"stopped": stopped}


def _schedule(options: argparse.Namespace) -> dict[str, Any]:
    config = _load_config(options)
    _use_servers(options, ("prefect", "mlflow"))
    from flows.deployments import deploy_scheduled

    result = deploy_scheduled(config, options.cron, options.name, options.timezone, options.until)
    _say(f"deployment {result['deployment']}: {options.cron} ({options.timezone}); `millrace up` runs what is due")
    return result


# ---------------------------------------------------------------- models


def _models(options: argparse.Namespace) -> dict[str, Any]:
    _use_servers(options, ("mlflow",))
    from tasks import registry

    rows = registry.list_versions()
    for row in rows:
        scores = ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in row["scores"].items() if isinstance(v, float))
        _say(f"{row['model']:<24} {row['version']:>3}  {', '.join(row['aliases']):<24} {scores}")
    if not rows:
        _say("no model is registered yet; `millrace run` makes one")
    return {"models": rows}


def _promote(options: argparse.Namespace) -> dict[str, Any]:
    _use_servers(options, ("mlflow",))
    from tasks import registry

    version = registry.find_version(options.model, options.model_version or "challenger")
    registry.promote(options.model, str(version.version), ("promoted by hand",))
    _say(f"{options.model} version {version.version} is champion")
    return {"model": options.model, "version": str(version.version), "alias": "champion"}


def _rollback(options: argparse.Namespace) -> dict[str, Any]:
    _use_servers(options, ("mlflow",))
    from tasks import registry

    version = registry.rollback(options.model)
    _say(f"{options.model} version {version} is champion again")
    return {"model": options.model, "version": version, "alias": "champion"}


def _checkpoint(options: argparse.Namespace) -> tuple[Any, Path]:
    """The version asked for and the folder of its checkpoint."""
    _use_servers(options, ("mlflow",))
    from lm_core.runtime import Runtime
    from tasks import registry

    version = registry.find_version(options.model, options.model_version)
    return version, registry.checkpoint_folder(version, Runtime())


def _generate(options: argparse.Namespace) -> dict[str, Any]:
    version, folder = _checkpoint(options)
    from lm_core.model.conversation import Speaker

    pieces = []
    for piece in Speaker(folder).complete(options.prompt, **_sampling(options)):
        pieces.append(piece)
        _write(piece, options)
    _write("\n", options)
    return {"model": version.name, "version": str(version.version), "prompt": options.prompt, "text": "".join(pieces)}


def _chat(options: argparse.Namespace) -> dict[str, Any]:
    if options.model == "millrace" and options.model_version is None:
        options.model = _best_for_chat(options)
    version, folder = _checkpoint(options)
    from lm_core.model.conversation import Speaker

    speaker = Speaker(folder)
    turns = []
    if options.once is None:
        _say(f"{version.name} version {version.version}. An empty line or Ctrl-D ends.")
    while True:
        question = options.once or _ask()
        if not question:
            break
        pieces = []
        for piece in speaker.answer(question, **_sampling(options)):
            pieces.append(piece)
            _write(piece, options)
        _write("\n", options)
        turns.append({"user": question, "model": "".join(pieces)})
        if options.once:
            break
    return {"model": version.name, "version": str(version.version), "turns": turns}


def _best_for_chat(options: argparse.Namespace) -> str:
    """The fine-tune that answers questions, when it is in service; else the base model."""
    _use_servers(options, ("mlflow",))
    from tasks import registry

    return "millrace-answer" if registry.version_with_alias("millrace-answer", "champion") else "millrace"


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "seed": options.seed,
    }


def _score(options: argparse.Namespace) -> dict[str, Any]:
    _, folder = _checkpoint(options)
    from lm_core.model.conversation import Speaker

    result = Speaker(folder).score(options.text)
    _say(f"{len(result['ids'])} tokens, {sum(result['logprobs']):.3f} nats")
    return result


def _export(options: argparse.Namespace) -> dict[str, Any]:
    from lm_core.errors import UserError

    if options.folder.exists():
        raise UserError(f"{options.folder} exists already; name a folder that does not")
    version, folder = _checkpoint(options)
    from lm_core.model.export import export_huggingface

    export_huggingface(folder, options.folder)
    _say(f"{version.name} version {version.version} is in {options.folder}")
    return {"model": version.name, "version": str(version.version), "folder": str(options.folder)}


# ---------------------------------------------------------------- corpus


def _latest_corpus() -> tuple[Any, Any, Any]:
    """The newest validated corpus of the workspace, its store and the runtime."""
    from lm_core.errors import UserError
    from lm_core.runtime import Runtime
    from lm_core.stages import VALIDATE
    from lm_core.store import Store

    runtime = Runtime()
    store = Store(runtime)
    corpus = store.newest(VALIDATE)
    if corpus is None:
        raise UserError(f"no validated corpus in {runtime.workspace}; `millrace run --until validate` makes one")
    return corpus, store, runtime


def _explain(options: argparse.Namespace) -> dict[str, Any]:
    corpus, store, runtime = _latest_corpus()
    from lm_core.corpus.story import explain
    from lm_core.stages import TOKENIZE

    tokens = store.newest(TOKENIZE)
    # Windows can be told only of the very corpus that was tokenised.
    if tokens is not None and tokens.input_folder("corpus") != corpus.folder:
        tokens = None
    stories = explain(corpus, runtime=runtime, doc_id=options.doc_id, text=options.text, tokens=tokens)
    for story in stories:
        for name, value in story.items():
            if value not in (None, [], {}):
                _say(f"{name.replace('_', ' '):<12} {value}")
        _say("")
    return {"documents": stories}


def _funnel(options: argparse.Namespace) -> dict[str, Any]:
    corpus, _, runtime = _latest_corpus()
    from rich.console import Console

    from flows.scorecard import funnel_table
    from lm_core.corpus.ledger import fate_counts

    counts = fate_counts(corpus, runtime=runtime)
    Console(stderr=options.json).print(funnel_table(counts))
    if options.picture:
        from tasks.pictures import funnel

        options.picture.write_bytes(funnel(counts["by_source"]))
        _say(f"the picture is in {options.picture}")
    return counts


def _gc(options: argparse.Namespace) -> dict[str, Any]:
    from tasks.housekeeping import collect_garbage

    removed = collect_garbage(options.workspace, delete=options.delete)
    for path, size in removed:
        _say(f"{size / 1e6:>9.1f} MB  {path}")
    total = sum(size for _, size in removed)
    verb = "removed" if options.delete else "would be removed (add --delete)"
    _say(f"{len(removed)} folders, {total / 1e6:.1f} MB {verb}")
    return {"folders": [str(path) for path, _ in removed], "bytes": total, "deleted": options.delete}


HANDLERS: dict[str, Handler] = {
    "run": _run,
    "plan": _plan,
    "up": _up,
    "down": _down,
    "schedule": _schedule,
    "models": _models,
    "promote": _promote,
    "rollback": _rollback,
    "generate": _generate,
    "chat": _chat,
    "score": _score,
    "explain": _explain,
    "funnel": _funnel,
    "export": _export,
    "gc": _gc,
    "config": _config,
}


def _say(text: str) -> None:
    """A line for a person: on stdout, unless stdout is for JSON."""
    print(text, file=sys.stderr if _json_wanted else sys.stdout)


def _write(text: str, options: argparse.Namespace) -> None:
    stream = sys.stderr if options.json else sys.stdout
    stream.write(text)
    stream.flush()


_json_wanted = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    global _json_wanted
    options = build_parser().parse_args(arguments)
    options.workspace = options.workspace.absolute()
    _json_wanted = options.json
    from tasks.environment import prepare_environment

    prepare_environment(options.workspace, debug=options.debug)
    from lm_core.errors import MillraceError

    try:
        result = HANDLERS[options.command](options)
    except MillraceError as error:
        if options.debug:
            raise
        sys.stderr.write(f"millrace: {error}\n")
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has seen enough, `head` say
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("millrace: interrupted; the same command goes on from here\n")
        return EXIT_INTERRUPTED
    if options.json:
        sys.stdout.write(json.dumps(result, ensure_ascii=False, default=str) + "\n")
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
