"""A tiny pipeline up to a base model: docstrings of three packages written from patterns, so that they never change."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.schemas import DOCUMENTS, FATES, QUARANTINE, REJECTED, SPLIT_OF_DOCUMENT
from lm_core.artifact import Checkpoint, Corpus, Decisions, DownstreamData, TokenDataset, Tokenizer, ValidCorpus
from lm_core.downstream.config import PrepareConfig
from lm_core.downstream.prepare import prepare
from lm_core.runtime import Runtime
from lm_core.store import Build
from lm_core.tokenizer import train_tokenizer
from lm_core.tokens import tokenize
from lm_core.training.config import ModelConfig, OptimizationConfig, PretrainConfig, TokenizeConfig, TokenizerConfig
from lm_core.training.pretrain import pretrain

WORDS = {
    "milling": ("grain", "millstone", "flour", "sieve", "hopper"),
    "weather": ("rain", "pressure", "cloud", "wind", "storm"),
    "ledger": ("account", "invoice", "balance", "entry", "receipt"),
}
VERBS = ("Read", "Write", "Count", "Merge", "Split", "Check")
PREPARE = PrepareConfig(
    max_train_items=60, max_validation_items=12, max_test_items=20, min_train_items=10, min_test_items=3, num_topics=3
)


def docstring(package: str, verb: str, noun: str, number: int) -> str:
    return (
        f"{verb} the {noun} number {number}.\n\n"
        f"The {noun} of the {package} is taken as it stands, and nothing else in the {package} is changed by it.\n\n"
        f"Args:\n    path (str): Place of the {noun} in the {package}.\n    limit: Most {noun}s to look at.\n"
    )


def documents() -> list[dict]:
    rows = []
    for package, nouns in WORDS.items():
        for verb in VERBS:
            for noun in nouns:
                for number in (1, 2):
                    text = docstring(package, verb, noun, number)
                    name = f"{package}.{noun}.{verb.lower()}_{number}"
                    doc_id = hashlib.sha256("\0".join((package, name, text)).encode()).hexdigest()[:32]
                    rows.append(
                        {
                            "doc_id": doc_id, "source": package, "key": name, "kind": "docstring", "title": name,
                            "licence": None, "version": None, "num_bytes": len(text.encode()), "text": text,
                        }
                    )  # fmt: skip
    return rows


def split_of(doc_id: str) -> str:
    return {0: "validation", 1: "test", 2: "test"}.get(int(doc_id[-4:], 16) % 10, "train")


def new_build(root: Path, name: str) -> Build:
    folder, work = root / "artifacts" / name / "x", root / "work" / name
    folder.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    return Build(folder, work, Runtime(workspace=root, device="cpu", num_threads=1))


@dataclass
class World:
    """Artifacts of the tiny pipeline."""

    root: Path
    corpus: Corpus
    decisions: Decisions
    examples: DownstreamData
    valid: ValidCorpus
    tokens: TokenDataset
    base: Checkpoint

    def build(self, name: str) -> Build:
        return new_build(self.root, name)


def write_corpus(root: Path, rows: list[dict]) -> tuple[Corpus, Decisions, Path]:
    """Corpus, duplicates with their splits, and the folder of the fates, in which every document is kept."""
    collected, deduplicated, valid = (new_build(root, n).folder for n in ("collect", "deduplicate", "validate"))
    pq.write_table(pa.Table.from_pylist(rows, schema=DOCUMENTS), collected / "documents-00000.parquet")
    pq.write_table(REJECTED.empty_table(), collected / "rejected.parquet")
    splits = [{"doc_id": r["doc_id"], "cluster": r["doc_id"], "split": split_of(r["doc_id"])} for r in rows]
    pq.write_table(pa.Table.from_pylist(splits, schema=SPLIT_OF_DOCUMENT), deduplicated / "splits.parquet")
    fates = [
        {name: row[name] for name in ("doc_id", "source", "key", "num_bytes")}
        | {"fate": "kept", "split": split_of(row["doc_id"])}
        for row in sorted(rows, key=lambda row: row["doc_id"])
    ]
    pq.write_table(pa.Table.from_pylist(fates, schema=FATES), valid / "fates.parquet")
    pq.write_table(QUARANTINE.empty_table(), valid / "quarantine.parquet")
    return Corpus(collected, "collect", "x", "c"), Decisions(deduplicated, "deduplicate", "x", "d"), valid


def make_world(root: Path) -> World:
    corpus, decisions, valid_folder = write_corpus(root, documents())
    made = new_build(root, "prepare")
    statistics = prepare(made, PREPARE, corpus=corpus, cleaning=decisions, duplicates=decisions)
    examples = DownstreamData(made.folder, "prepare", "x", "e", statistics)
    valid = ValidCorpus(valid_folder, "validate", "x", "v", {}, {"corpus": "collect/x", "examples": "prepare/x"})
    tokenizer_build, tokens_build, base_build = (new_build(root, n) for n in ("tokenizer", "tokens", "pretrain"))
    train_tokenizer(tokenizer_build, TokenizerConfig(vocab_size=400), corpus=valid)
    tokenizer = Tokenizer(tokenizer_build.folder, "train_tokenizer", "x", "t")
    tokenize(tokens_build, TokenizeConfig(context_length=128), corpus=valid, tokenizer=tokenizer)
    tokens = TokenDataset(tokens_build.folder, "tokenize", "x", "k")
    config = PretrainConfig(
        model=ModelConfig(num_layers=2, d_model=32, num_heads=2, num_kv_heads=2, d_ff=64),
        optimization=OptimizationConfig(batch_tokens=1024, micro_batch_tokens=1024),
        train_tokens=60 * 1024,
        num_evaluations=1,
    )
    pretrain(base_build, config, tokens=tokens, tokenizer=tokenizer)
    base = Checkpoint(base_build.folder, "pretrain", "x", "b")
    return World(root, corpus, decisions, examples, valid, tokens, base)
