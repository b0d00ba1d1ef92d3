"""Artifacts: what stages make. A handle names a folder; the data stays in the folder.

Each kind of artifact is a class of its own, so that handing a stage the wrong thing (a corpus that never passed the
gate, say) is a type error. Handles are small, frozen and serialisable: they cross task boundaries, data never does.

    Corpus            documents as collected, and the rows that could not be read
    Decisions         fates that one corpus stage has given to documents
    DownstreamData    examples of the downstream tasks, with their splits
    HeldOut           texts of the held-out items of all declared tasks
    ValidCorpus       the fates of all documents; only the gate makes one
    Tokenizer         tokenizer.json
    TokenDataset      token shards and the span table
    Checkpoint        weights of a model, its configuration, its training journal
    PictureEncoder    what sees for a visual model, and the classical answerer that taught it
    Evaluation        scores, intervals, baselines, predictions item by item
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

MANIFEST = "manifest.json"

ArtifactT = TypeVar("ArtifactT", bound="Artifact")


@dataclass(frozen=True)
class Artifact:
    """Handle of one published, immutable artifact.

    Attributes:
        folder: absolute path, `<workspace>/artifacts/<stage>/<fingerprint>`.
        stage: name of the stage that made it.
        fingerprint: SHA-256 (hex) over stage, version, configuration and the content digests of the inputs.
        content_digest: SHA-256 (hex) over names and digests of the content files: what stages below count as input.
        statistics: the small figures its stage reported (counts, rates, losses).
        inputs: name -> folder of each input artifact, relative to the workspace's `artifacts`.
    """

    folder: Path
    stage: str
    fingerprint: str
    content_digest: str
    statistics: Mapping[str, Any] = field(default_factory=dict, compare=False)
    inputs: Mapping[str, str] = field(default_factory=dict, compare=False)

    def file(self, name: str) -> Path:
        """Path of one of its files."""
        return self.folder / name

    def input_folder(self, name: str) -> Path:
        """Folder of one of its inputs, as its manifest names it."""
        return self.folder.parents[1] / self.inputs[name]


class Corpus(Artifact):
    """`documents-*.parquet` (schemas.DOCUMENTS) and `rejected.parquet` (schemas.REJECTED)."""

    def document_shards(self) -> list[Path]:
        """The Parquet shards of the text, in order."""
        return sorted(self.folder.glob("documents-*.parquet"))


class Decisions(Artifact):
    """`decisions.parquet` (schemas.DECISIONS): one row for each document this stage has dropped."""


class DownstreamData(Artifact):
    """`examples.parquet` (schemas.EXAMPLES): examples of every downstream task, each with its document and split."""


class HeldOut(Artifact):
    """`held_out.parquet` (schemas.HELD_OUT_TEXTS): the texts of all held-out items of the declared tasks."""


class ValidCorpus(Artifact):
    """`fates.parquet` (schemas.FATES): one row for each collected document. Only the stage `validate` makes one."""


class Tokenizer(Artifact):
    """`tokenizer.json`; load it through `lm_core.tokenizer.load_tokenizer` alone."""


class TokenDataset(Artifact):
    """`<split>-*.bin` token shards, `spans.parquet` (schemas.SPANS) and `dataset.json`."""


class Checkpoint(Artifact):
    """`model.safetensors`, `config.json` (Hugging Face names), `tokenizer.json`, `training.json`, `journal.jsonl`."""


class PictureEncoder(Artifact):
    """`answerer.safetensors` (encoder included), `vision.json`, `journal.jsonl`."""


class Evaluation(Artifact):
    """`scores.json` and `predictions.parquet` (schemas.PREDICTIONS)."""
