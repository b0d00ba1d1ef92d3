"""Look into the corpus: a document's story, the fates by source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.commands.arguments import AddCommand, Options, say
from flows.terminal import on_one_line

_SHOWN_STEPS, _SHOWN_COPIES = 20, 10


def add(command: AddCommand) -> None:
    """`explain`, `funnel`."""
    explain = command(
        "explain", "tell a document's whole story, from its source to the training steps that saw it", _explain
    )
    explain.add_argument("doc_id", nargs="?", help="document id as in fates.parquet, or its beginning")
    explain.add_argument("--text", help="a piece of the document's text instead of its id")
    explain.add_argument("--steps", type=Path, metavar="FILE.parquet",
                         help="write which windows each training step read, for SQL beside spans.parquet")  # fmt: skip
    funnel = command("funnel", "show the fates of the documents by source", _funnel)
    funnel.add_argument("--picture", type=Path, metavar="FILE.png", help="draw them too")


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


def _newest_on(store: Any, stage: Any, name: str, artifact: Any) -> Any:
    """The newest artifact of a stage that was made from this one, as its input of that name; None without."""
    wanted = f"{artifact.stage}/{artifact.fingerprint}"
    for manifest in store.manifests(stage.name):
        if manifest["inputs"].get(name, {}).get("folder") == wanted:
            return store.open(stage.output, store.folder(stage.name, manifest["fingerprint"]))
    return None


def _explain(options: Options) -> dict[str, Any]:
    corpus, store, runtime = _latest_corpus()
    from lm_core.corpus.story import explain
    from lm_core.errors import UserError
    from lm_core.exposure import TrainingOrder
    from lm_core.stages import PRETRAIN, TOKENIZE

    # Windows can be told only of the very corpus that was tokenised, steps of the tokens that were learnt from.
    tokens = _newest_on(store, TOKENIZE, "corpus", corpus)
    trained = _newest_on(store, PRETRAIN, "tokens", tokens) if tokens else None
    order = TrainingOrder.of(trained, tokens) if trained else None
    written: dict[str, Any] = {}
    if options.steps:
        if order is None:
            raise UserError("no model was trained on the newest corpus of this workspace: there are no steps to write")
        written = {"steps_file": str(options.steps), "rows": order.write(options.steps)}
        say(f"the windows of {order.num_steps} steps are in {options.steps}")
        if options.doc_id is None and options.text is None:
            return written
    stories = explain(corpus, runtime=runtime, doc_id=options.doc_id, text=options.text, tokens=tokens, order=order)
    for story in stories:
        for line in _told(story):
            say(on_one_line(line))
        say("")
    return {"documents": stories, **written}


def _told(story: Mapping[str, Any]) -> Iterator[str]:
    """A story in lines, in the order in which it happened."""
    yield f"{story['source']}: {story['key']}"
    about = [story.get(name) for name in ("title", "licence", "version", "url", "time")]
    facts = [str(value) for value in about if value and value != story["key"]]
    yield _line("document", f"{story['doc_id']}, {story['num_bytes']:,} bytes")
    if facts:
        yield _line("stated", "; ".join(facts))
    if story.get("excerpt"):
        yield _line("begins", " ".join(story["excerpt"].split())[:100])
    if story.get("detail"):
        yield _line("collect", f"not readable: {story['reason']}, {story['detail']}")
    for decision in story["decisions"]:
        figure = f" ({decision['figure']:.3g})" if decision["figure"] is not None else ""
        yield _line(decision["stage"], f"{decision['fate'].replace('_', ' ')} by {decision['reason']}{figure}")
    instead = story["kept_instead"]
    if instead:
        yield _line("instead", f"{instead['source']}: {instead['key']} ({instead['doc_id'][:12]}, {instead['fate']})")
    elif story.get("keeper"):
        yield _line("held out", f"evaluation item {story['keeper']}")
    if story["redactions"]:
        yield _line("redacted", ", ".join(f"{row['places']} {row['kind']}" for row in story["redactions"]))
    for cut in story["cuts"][:_SHOWN_COPIES]:
        yield _line("cut", f"{cut['kind']}, {cut['length']} characters: {' '.join(cut['excerpt'].split())[:80]}")
    for copy in story["copies"][:_SHOWN_COPIES]:
        yield _line("copy", f"{copy['source']}: {copy['key']} ({copy['jaccard']:.2f})")
    fate = f"{story['fate'].replace('_', ' ')}" + (f", split {story['split']}" if story["split"] else "")
    yield _line("fate", fate + (f" ({story['stage']}: {story['reason']})" if story["stage"] else ""))
    yield from _learnt(story)


def _learnt(story: Mapping[str, Any]) -> Iterator[str]:
    for row in story.get("training", ()):
        yield _line("tokens", f"{row['tokens']:,} in {row['windows']} windows of split {row['split']}")
    steps = story.get("steps")
    if steps:
        shown = ", ".join(map(str, steps[:_SHOWN_STEPS])) + (", ..." if len(steps) > _SHOWN_STEPS else "")
        yield _line("learnt", f"read {len(steps)} times in {story['num_steps']:,} steps: {shown}")
    elif steps is not None:
        yield _line("learnt", f"at none of {story['num_steps']:,} steps")


def _line(name: str, text: str) -> str:
    return f"  {name:<11} {text}"


def _funnel(options: Options) -> dict[str, Any]:
    corpus, _, runtime = _latest_corpus()
    from rich.console import Console

    from flows.scorecard import funnel_table
    from lm_core.corpus.ledger import fate_counts

    counts = fate_counts(corpus, runtime=runtime)
    Console(stderr=options.json).print(funnel_table(counts))
    say(f"the same rows for SQL: {corpus.file('fates.parquet')}")
    if options.picture:
        from tasks.pictures import funnel

        options.picture.write_bytes(funnel(counts["by_source"]))
        say(f"the picture is in {options.picture}")
    return counts | {"table": str(corpus.file("fates.parquet"))}
