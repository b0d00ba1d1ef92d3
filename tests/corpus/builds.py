"""Builds and artifacts of tiny corpora for tests of the corpus stages."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.schemas import DECISIONS, DOCUMENTS
from lm_core.artifact import Corpus, Decisions
from lm_core.runtime import Runtime
from lm_core.store import Build
from tests.corpus.tiny_ledger import document


def new_build(root: Path, name: str, *, num_threads: int = 1, workspace: Path | None = None) -> Build:
    """A build whose folder is root/name, in a workspace of its own unless one is given."""
    folder, work = root / name, root / f"{name}-work"
    folder.mkdir(parents=True)
    work.mkdir()
    return Build(
        folder, work, Runtime(workspace=workspace or root / "workspace", num_threads=num_threads, num_workers=1)
    )


def corpus_of(root: Path, documents: Sequence[dict]) -> Corpus:
    """A corpus of these documents, in this order."""
    folder = root / "corpus"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(list(documents), DOCUMENTS), folder / "documents-00000.parquet")
    return Corpus(folder, "collect", "f", "d")


def nothing_dropped(root: Path) -> Decisions:
    """Decisions of a stage that dropped no document."""
    folder = root / "nothing"
    folder.mkdir(parents=True)
    pq.write_table(DECISIONS.empty_table(), folder / "decisions.parquet")
    return Decisions(folder, "clean", "f", "d")


def rows(folder: Path, name: str = "decisions.parquet") -> list[dict]:
    """Rows of a Parquet file."""
    return pq.read_table(folder / name).to_pylist()


def digest(folder: Path, *names: str) -> str:
    """Digest of the values (not of the bytes) of some Parquet files."""
    return hashlib.sha256(repr([rows(folder, name) for name in names]).encode()).hexdigest()[:16]


def sample_documents() -> list[dict]:
    """Sixty articles, an edited and an equal copy of some of them, and a few documents that are no good."""
    articles = [" ".join(f"word{(a * 97 + i * i * 31) % 1009}" for i in range(120)) for a in range(60)]
    found = [document(f"article-{n}", text) for n, text in enumerate(articles)]
    found += [document(f"edited-{n}", articles[n].replace("word1 ", "changed ") + " and more") for n in range(0, 60, 6)]
    found += [document(f"equal-{n}", articles[n]) for n in range(0, 60, 10)]
    found += [document("short", "too short"), document("hashes", "# a\n" * 40), document("broken", "\ufffd word " * 30)]
    return found
