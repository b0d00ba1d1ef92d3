"""Look into the corpus: a document's story, the fates by source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.commands.arguments import AddCommand, Options, say


def add(command: AddCommand) -> None:
    """`explain`, `funnel`."""
    explain = command("explain", "tell a document's whole story: where from, which rules, its fate", _explain)
    explain.add_argument("doc_id", nargs="?", help="document id as in fates.parquet, or its beginning")
    explain.add_argument("--text", help="a piece of the document's text instead of its id")
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


def _explain(options: Options) -> dict[str, Any]:
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
                say(f"{name.replace('_', ' '):<12} {value}")
        say("")
    return {"documents": stories}


def _funnel(options: Options) -> dict[str, Any]:
    corpus, _, runtime = _latest_corpus()
    from rich.console import Console

    from flows.scorecard import funnel_table
    from lm_core.corpus.ledger import fate_counts

    counts = fate_counts(corpus, runtime=runtime)
    Console(stderr=options.json).print(funnel_table(counts))
    if options.picture:
        from tasks.pictures import funnel

        options.picture.write_bytes(funnel(counts["by_source"]))
        say(f"the picture is in {options.picture}")
    return counts
