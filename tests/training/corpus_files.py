"""A tiny real dataset: the docstrings of a few standard modules as documents of a kept corpus."""

import ast
import inspect
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.schemas import DOCUMENTS, FATES, REJECTED
from lm_core.artifact import ValidCorpus
from lm_core.runtime import Runtime
from lm_core.store import Build

MODULES = ("argparse", "json.decoder", "textwrap", "statistics", "string")


def docstrings() -> list[str]:
    """Docstrings of the modules, in order, those of at least 40 characters."""
    texts = []
    for name in MODULES:
        module = __import__(name, fromlist=["_"])
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                texts.append(ast.get_docstring(node) or "")
    return [text for text in dict.fromkeys(texts) if len(text) >= 40]


def valid_corpus(root: Path, texts: list[str]) -> ValidCorpus:
    """A ValidCorpus over documents that are all kept; every tenth is validation, every tenth after it test."""
    splits = ["validation" if i % 10 == 8 else "test" if i % 10 == 9 else "train" for i in range(len(texts))]
    ids = [f"{i:032x}" for i in range(len(texts))]
    sizes = [len(text.encode()) for text in texts]
    folder, corpus = root / "artifacts/validate/v", root / "artifacts/collect/c"
    for path in (folder, corpus):
        path.mkdir(parents=True)
    nothing = [None] * len(texts)
    documents = {
        "doc_id": ids, "source": ["stdlib"] * len(texts), "key": ids, "kind": ["docstring"] * len(texts),
        "title": nothing, "licence": nothing, "version": nothing, "url": nothing,
        "time": nothing, "content_hash": nothing, "num_bytes": sizes, "text": texts,
    }  # fmt: skip
    fates = {
        "doc_id": ids, "source": ["stdlib"] * len(texts), "key": ids, "fate": ["kept"] * len(texts), "stage": nothing,
        "reason": nothing, "keeper": nothing, "figure": nothing, "split": splits, "num_bytes": sizes,
    }  # fmt: skip
    pq.write_table(pa.table(documents, schema=DOCUMENTS), corpus / "documents-00000.parquet")
    pq.write_table(REJECTED.empty_table(), corpus / "rejected.parquet")
    pq.write_table(pa.table(fates, schema=FATES), folder / "fates.parquet")
    return ValidCorpus(folder, "validate", "v", "0" * 64, {}, {"corpus": "collect/c"})


def new_build(root: Path, name: str) -> Build:
    """A build with one thread, its folder under `root`."""
    folder, work = root / name / "folder", root / name / "work"
    folder.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    return Build(folder, work, Runtime(workspace=root, device="cpu", num_threads=1))
