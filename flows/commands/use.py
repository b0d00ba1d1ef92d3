"""Use a registered model: complete, talk, score, export; bring one in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.commands.arguments import (
    DEFAULT_MODEL,
    AddCommand,
    Options,
    add_generation,
    add_model_argument,
    checkpoint,
    say,
    use_servers,
)

FORGET = "/new"


def add(command: AddCommand) -> None:
    """`generate`, `chat`, `score`, `export`, `harness`, `import`."""
    generate = command("generate", "complete a text with the champion, name its label, or answer about a picture",
                       _generate, add_generation)  # fmt: skip
    generate.add_argument("prompt", help="the text to go on from, to label, or asked about the picture")
    generate.add_argument("--picture", type=Path, metavar="FILE", help="the picture asked about (a visual model)")
    chat = command("chat", "talk to the champion", _chat, add_generation)
    chat.add_argument("--once", metavar="TEXT", help="ask one question and end")
    score = command("score", "log-probability of each token of a text", _score, add_model_argument)
    score.add_argument("--text", required=True, help="the text to score")
    export = command("export", "write a model as a folder that other programs load", _export, add_model_argument)
    export.add_argument("folder", type=Path, metavar="DIR", help="where to write; must not exist")
    export.add_argument("--to", choices=("hf", "gguf", "onnx"), default="hf",
                        help="hf: transformers, vLLM (default); gguf: llama.cpp; onnx: ONNX Runtime")  # fmt: skip
    harness = command("harness", "score a model with lm-evaluation-harness (the extra `harness`)", _harness,
                      add_model_argument)  # fmt: skip
    harness.add_argument("tasks", metavar="TASK", nargs="+", help="a task of the harness, or of --tasks-folder")
    harness.add_argument("--tasks-folder", type=Path, metavar="DIR", help="folder with tasks in the harness's YAML")
    harness.add_argument("--limit", type=int, metavar="N", help="so many items of each task only")
    bring_in = command("import", "register a checkpoint of Qwen3's or Llama's layout, to fine-tune it", _import)
    bring_in.add_argument("folder", type=Path, metavar="DIR",
                          help="folder with config.json, *.safetensors and tokenizer.json")  # fmt: skip
    bring_in.add_argument("--name", required=True, metavar="NAME", help="name of the model in the registry")
    bring_in.add_argument("--context-length", type=int, default=0, metavar="N",
                          help="longest input in tokens, to need less memory (default: the checkpoint's)")  # fmt: skip


def _generate(options: Options) -> dict[str, Any]:
    version, folder = checkpoint(options)
    made = {"model": version.name, "version": str(version.version), "prompt": options.prompt}
    return made | (_answered_at_once(options, folder) or _written(options, folder))


def _speaker(folder: Path) -> Any:
    from lm_core.model.conversation import Speaker
    from lm_core.runtime import Runtime

    return Speaker(folder, device=Runtime().device)


def _written(options: Options, folder: Path) -> dict[str, Any]:
    pieces = []
    for piece in _speaker(folder).complete(options.prompt, **_sampling(options)):
        pieces.append(piece)
        say(piece, end="")
    say("")
    return {"text": "".join(pieces)}


def _answered_at_once(options: Options, folder: Path) -> dict[str, Any]:
    """What a model with eyes, with labels or with spans for answers says; nothing from a model that writes."""
    from lm_core.answering import answerer_of
    from lm_core.runtime import Runtime

    pictures = _pictures(options, folder)
    answer = answerer_of(folder, device=Runtime().device)
    if answer is None:
        return {}
    ((text, probability),) = answer([options.prompt], pictures, options.max_new_tokens)
    if probability is None:
        say(text)
        return {"text": text}
    say(f"{text} ({probability:.1%})")
    return {"text": text, "probability": probability}


def _pictures(options: Options, folder: Path) -> list[bytes]:
    from lm_core.errors import UserError
    from lm_core.vision.answerer import has_eyes

    if has_eyes(folder) != (options.picture is not None):
        raise UserError(
            f"{options.model} answers about pictures: name one with --picture"
            if has_eyes(folder)
            else f"{options.model} cannot see: --picture has no effect"
        )
    try:
        return [options.picture.read_bytes()] if options.picture else []
    except OSError as error:
        raise UserError(f"{options.picture} cannot be read: {error.strerror}") from None


def _chat(options: Options) -> dict[str, Any]:
    if options.model == DEFAULT_MODEL and options.model_version is None:
        options.model = _best_for_chat(options)
    version, folder = checkpoint(options)
    speaker, sampling = _speaker(folder), _sampling(options)
    messages: list[tuple[str, str]] = []
    turns = []
    if options.once is None:
        say(f"{version.name} version {version.version}. {FORGET} begins anew; an empty line or Ctrl-D ends.")
    while question := options.once or _ask():
        if question == FORGET:
            messages = []
            continue
        pieces = []
        for piece in speaker.converse([*messages, ("user", question)], **sampling):
            pieces.append(piece)
            say(piece, end="")
        say("")
        messages += [("user", question), ("assistant", "".join(pieces))]
        turns.append({"user": question, "model": "".join(pieces)})
        if options.once:
            break
    return {"model": version.name, "version": str(version.version), "turns": turns}


def _best_for_chat(options: Options) -> str:
    """The fine-tune that answers questions, when it is in service; else the base model."""
    use_servers(options, ("mlflow",))
    from tasks import registry

    talker = f"{DEFAULT_MODEL}-answer"
    return talker if registry.version_with_alias(talker, "champion") else DEFAULT_MODEL


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _sampling(options: Options) -> dict[str, Any]:
    from lm_core.errors import UserError

    if "" in options.stop:
        raise UserError("--stop needs a text that is not empty")
    return {
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_k": options.top_k or None,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "repetition_penalty": options.repetition_penalty,
        "stop": options.stop,
        "seed": options.seed,
    }


def _score(options: Options) -> dict[str, Any]:
    _, folder = checkpoint(options)
    result = _speaker(folder).score(options.text)
    say(f"{len(result['ids'])} tokens, {sum(result['logprobs']):.3f} nats")
    return result


def _export(options: Options) -> dict[str, Any]:
    from lm_core.errors import UserError

    if options.folder.exists():
        raise UserError(f"{options.folder} exists already; name a folder that does not")
    version, folder = checkpoint(options)
    from lm_core.model.export import export_huggingface, export_onnx
    from lm_core.model.export_gguf import export_gguf

    {"hf": export_huggingface, "gguf": export_gguf, "onnx": export_onnx}[options.to](folder, options.folder)
    say(f"{version.name} version {version.version} is in {options.folder}")
    return {"model": version.name, "version": str(version.version), "folder": str(options.folder), "format": options.to}


def _harness(options: Options) -> dict[str, Any]:
    version, folder = checkpoint(options)
    from lm_core.evaluation.harness import score_with_harness
    from lm_core.model.weights import resolve_device
    from lm_core.runtime import Runtime

    device = str(resolve_device(Runtime().device))
    found = score_with_harness(
        folder, options.tasks, definitions=options.tasks_folder, limit=options.limit, device=device
    )
    for task, figures in found.items():
        say(f"{task}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    return {"model": version.name, "version": str(version.version), "tasks": found}


def _import(options: Options) -> dict[str, Any]:
    use_servers(options, ("mlflow",))
    from lm_core.runtime import Runtime
    from tasks.bringing_in import bring_in

    registered, checkpoint = bring_in(Runtime(), options.folder, options.name, options.context_length)
    figures = dict(checkpoint.statistics)
    say(f"{registered.name} version {registered.version}: {figures['num_parameters']:,} parameters, vocabulary "
        f"{figures['vocab_size']:,}; `millrace finetune TASK --base {registered.name}` goes on from it")  # fmt: skip
    return {"model": registered.name, "version": registered.version, **figures}
