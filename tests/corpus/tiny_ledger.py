"""Artifacts of a tiny corpus, written by hand: five documents with five different stories, and one unreadable row."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.schemas import (
    CANARIES,
    CUTS,
    DECISIONS,
    DOCUMENTS,
    EDGES,
    EXAMPLES,
    REDACTIONS,
    REJECTED,
    SPLIT_OF_DOCUMENT,
)
from lm_core.artifact import Artifact, Corpus, Decisions, DownstreamData
from lm_core.runtime import Runtime

TEXTS = {
    "kept": "a kept document, which nothing is wrong with",
    "copied": "a document that has been copied",
    "copy": "a document that has been copied!",
    "poor": "x",
    "leaked": "a document that holds a test item",
    "held_out": "a document for the test split",
    "watched": "a document for validation",
}


def hex_id(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def document(key: str, text: str, source: str = "pages") -> dict:
    return {
        "doc_id": hex_id(source, key, text),
        "source": source,
        "key": key,
        "kind": "text",
        "title": None,
        "licence": "CC0-1.0",
        "version": None,
        "num_bytes": len(text.encode()),
        "text": text,
    }


IDS = {name: document(name, text)["doc_id"] for name, text in TEXTS.items()}


def decision(name: str, stage: str, fate: str, reason: str, keeper: str | None = None, figure: float | None = None):
    return {"doc_id": IDS[name], "stage": stage, "fate": fate, "reason": reason, "keeper": keeper, "figure": figure}


def example(name: str, split: str, prompt: str, task: str = "summary") -> dict:
    return {"item_id": hex_id(name, split, prompt), "task": task, "split": split, "doc_id": IDS[name],
            "prompt": prompt, "target": "an answer", "labels": None, "references": None, "group": None}  # fmt: skip


def tables() -> dict[str, dict[str, list[dict]]]:
    """Rows of every file, by artifact; a test changes what it wants to be wrong."""
    splits = {"kept": "train", "copied": "train", "leaked": "train", "held_out": "test", "watched": "validation"}
    return {
        "collect": {
            "documents-00000": [document(name, text) for name, text in sorted(TEXTS.items())],
            "rejected": [{"doc_id": hex_id("pages", "torn"), "source": "pages", "key": "torn", "reason": "not_utf8",
                          "detail": "byte 7"}],
        },
        "clean": {
            "decisions": [decision("poor", "clean", "quality", "too_short", figure=1.0)],
            "redactions": [{"doc_id": IDS["kept"], "kind": "phone", "start": 2, "length": 4}],
        },
        "deduplicate": {
            "decisions": [decision("copy", "deduplicate", "near_duplicate", "jaccard", IDS["copied"], 0.9)],
            "splits": [{"doc_id": IDS[name], "cluster": IDS[name], "split": split} for name, split in splits.items()],
            "canaries": [{"canary": f"canary {n}", "expected": "kept", "found": "kept"} for n in range(8)],
        },
        "prepare": {
            "examples": [
                example("kept", "train", "what is kept?"),
                *(example("kept", "train", f"question {number}") for number in range(12)),
                example("held_out", "test", "what is held out?"),
            ]
        },
        "decontaminate": {
            "decisions": [decision("leaked", "decontaminate", "contaminated", "summary", hex_id("held_out"), 0.8)]
        },
    }  # fmt: skip


_SCHEMAS = {"documents-00000": DOCUMENTS, "rejected": REJECTED, "decisions": DECISIONS, "splits": SPLIT_OF_DOCUMENT,
            "examples": EXAMPLES, "canaries": CANARIES, "redactions": REDACTIONS, "edges": EDGES,
            "cuts": CUTS}  # fmt: skip
_KINDS: dict[str, tuple[str, type[Artifact]]] = {
    "collect": ("corpus", Corpus),
    "clean": ("cleaning", Decisions),
    "deduplicate": ("duplicates", Decisions),
    "decontaminate": ("contamination", Decisions),
    "prepare": ("examples", DownstreamData),
}


def write(workspace: Path, rows: dict[str, dict[str, list[dict]]]) -> tuple[Runtime, dict[str, Artifact]]:
    """The artifacts as the stages would have left them, and the inputs of `validate` by name."""
    runtime = Runtime(workspace=workspace, num_threads=1)
    inputs: dict[str, Artifact] = {}
    for stage, files in rows.items():
        folder = runtime.artifacts / stage / "f"
        folder.mkdir(parents=True)
        for name, content in files.items():
            pq.write_table(pa.Table.from_pylist(content, schema=_SCHEMAS[name]), folder / f"{name}.parquet")
        name, kind = _KINDS[stage]
        inputs[name] = kind(folder=folder, stage=stage, fingerprint="f", content_digest=stage)
    return runtime, inputs
