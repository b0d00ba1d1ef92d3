"""Bits per byte of held-out text, with intervals over documents, beside models that are not neural."""

from __future__ import annotations

import json
import lzma
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from data_contracts.schemas import PREDICTIONS
from lm_core.artifact import Checkpoint, TokenDataset, ValidCorpus
from lm_core.corpus.ledger import kept_documents
from lm_core.downstream.config import EvaluateConfig
from lm_core.errors import UserError
from lm_core.evaluation.likelihood import document_rows, nats_by_row
from lm_core.evaluation.ngram import KneserNey
from lm_core.evaluation.statistics import Interval, Resampling, bootstrap_ratio
from lm_core.model.build import build_model
from lm_core.model.language_model import LanguageModel
from lm_core.model.weights import load_model
from lm_core.runtime import Runtime
from lm_core.store import Build
from lm_core.tokenizer import TextTokenizer, load_tokenizer

COMPRESSOR_BYTES = 1_000_000
Bits = NDArray[np.float64]


@dataclass(frozen=True)
class Texts:
    """Held-out documents, cut to their beginnings.

    Attributes:
        ids: token ids of each, without marks.
        num_bytes: UTF-8 length of each.
    """

    doc_ids: list[str]
    texts: list[str]
    ids: list[list[int]]
    num_bytes: Bits


def evaluate_language_model(
    build: Build, config: EvaluateConfig, *, base: Checkpoint, tokens: TokenDataset, corpus: ValidCorpus
) -> Mapping[str, Any]:
    """Write `scores.json` and `predictions.parquet`; the scores are the statistics.

    The checkpoint's own tokenizer is used, so that a model with another vocabulary can be measured on the same text.
    In `predictions.parquet` an item is a document, the prediction its bits, the target its bytes, the score bits per
    byte.

    Raises:
        UserError: when neither a validation nor a test document was kept.
    """
    torch.set_num_threads(build.runtime.num_threads)
    tokenizer = load_tokenizer(base.file("tokenizer.json"))
    held_out = {split: read_texts(corpus, split, tokenizer, config, build.runtime) for split in ("validation", "test")}
    validation = held_out["validation"] if held_out["validation"].ids else held_out["test"]
    if not validation.ids:
        raise UserError("no validation or test document was kept, so there is nothing to evaluate on")
    model = load_model(base.folder, device=build.runtime.device)
    systems = {"model": model_bits(model, tokenizer, validation, build)}
    systems["random_weights"] = model_bits(_random(model, config.seed, build.runtime), tokenizer, validation, build)
    train = _training_text(corpus, config, build.runtime)
    systems |= classical_bits(train, tokenizer, validation, config)
    how = Resampling(config.num_resamples, config.confidence, config.seed)
    intervals = {name: bootstrap_ratio(bits, validation.num_bytes, how) for name, bits in systems.items()}
    statistics = _statistics(intervals, systems, validation, how)
    statistics["baseline_bits_per_byte"]["lzma"] = round(compressor_bits_per_byte(train, validation.texts), 5)
    if held_out["test"].ids:
        bits = model_bits(model, tokenizer, held_out["test"], build)
        test = bootstrap_ratio(bits, held_out["test"].num_bytes, how)
        statistics["test_bits_per_byte"] = round(test.estimate, 5)
    _write(build, validation, systems, statistics)
    return statistics


def _statistics(
    intervals: Mapping[str, Interval], systems: Mapping[str, Bits], texts: Texts, how: Resampling
) -> dict[str, Any]:
    own = intervals["model"].as_dict("val_bits_per_byte")
    others = {name: interval for name, interval in intervals.items() if name != "model"}
    saved = {
        name: bootstrap_ratio(systems[name] - systems["model"], texts.num_bytes, how).as_dict("mean") for name in others
    }
    return {
        **own,
        "val_low": own["low"],
        "val_high": own["high"],
        "baseline_bits_per_byte": {name: round(interval.estimate, 5) for name, interval in others.items()},
        "saved_bits_per_byte": saved,
        "documents": len(texts.ids),
        "bytes": int(texts.num_bytes.sum()),
    }


def read_texts(
    corpus: ValidCorpus, split: str, tokenizer: TextTokenizer, config: EvaluateConfig, runtime: Runtime
) -> Texts:
    """The first kept documents of a split, in the order of doc_id, each cut to its first bytes."""
    doc_ids: list[str] = []
    texts: list[str] = []
    for batch in kept_documents(corpus, splits=(split,), runtime=runtime, batch_rows=config.max_documents):
        room = config.max_documents - len(texts)
        doc_ids += batch.column("doc_id").to_pylist()[:room]
        texts += [cut_bytes(text, config.max_document_bytes) for text in batch.column("text").to_pylist()[:room]]
        if len(texts) >= config.max_documents:
            break
    num_bytes = np.array([len(text.encode()) for text in texts], np.float64)
    return Texts(doc_ids, texts, tokenizer.encode_batch(texts) if texts else [], num_bytes)


def cut_bytes(text: str, max_bytes: int) -> str:
    """The longest beginning of a text of at most so many UTF-8 bytes."""
    return text.encode()[:max_bytes].decode(errors="ignore")


def _training_text(corpus: ValidCorpus, config: EvaluateConfig, runtime: Runtime) -> list[str]:
    def texts() -> Iterator[str]:
        for batch in kept_documents(corpus, splits=("train",), columns=("text",), runtime=runtime):
            yield from batch.column("text").to_pylist()

    chosen: list[str] = []
    room = config.baseline_train_bytes
    for text in texts():
        chosen.append(cut_bytes(text, room))
        room -= len(text.encode())
        if room <= 0:
            break
    return chosen


def _random(model: LanguageModel, seed: int, runtime: Runtime) -> LanguageModel:
    """The same architecture before any training."""
    fresh = build_model(model.config, vocab_size=model.vocab_size, context_length=model.context_length, seed=seed)
    return fresh.to(next(model.parameters()).device).eval()


def model_bits(model: LanguageModel, tokenizer: TextTokenizer, texts: Texts, build: Build) -> Bits:
    """Bits of each document: windows of one context, every token predicted once."""
    rows, owner = [], []
    for index, ids in enumerate(texts.ids):
        windows = document_rows(ids, tokenizer.end_of_text, model.context_length)
        rows += windows
        owner += [index] * len(windows)
    nats = nats_by_row(model, rows, tokenizer.pad, lambda done: build.progress(done, len(rows), "windows"))
    return np.bincount(owner, weights=nats, minlength=len(texts.ids)) / math.log(2)


def classical_bits(
    train: Sequence[str], tokenizer: TextTokenizer, texts: Texts, config: EvaluateConfig
) -> dict[str, Bits]:
    """Bits of each document under a byte unigram and a Kneser-Ney n-gram of the same tokens."""
    counts = np.ones(256)  # add-one smoothing
    for text in train:
        counts += np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=256)
    cost = -np.log2(counts / counts.sum())
    unigram = [cost[np.frombuffer(text.encode(), np.uint8)].sum() for text in texts.texts]
    mark = tokenizer.end_of_text
    encoded = [[mark, *ids] for ids in tokenizer.encode_batch(train)] if train else []
    ngram = KneserNey(encoded, vocab_size=tokenizer.vocab_size, order=config.ngram_order)
    return {
        "byte_unigram": np.array(unigram),
        f"kneser_ney_{ngram.order}_gram": np.array([ngram.bits([mark, *ids]).sum() for ids in texts.ids]),
    }


def compressor_bits_per_byte(train: Sequence[str], texts: Sequence[str]) -> float:
    """What xz needs for the held-out text after it has seen training text. It sees all documents in one stream."""
    seen = "\n".join(train).encode()[:COMPRESSOR_BYTES]
    new = "\n".join(texts).encode()
    return 8 * (len(lzma.compress(seen + new)) - len(lzma.compress(seen))) / max(1, len(new))


def _write(build: Build, texts: Texts, systems: Mapping[str, Bits], statistics: Mapping[str, Any]) -> None:
    rows = [
        {
            "item_id": doc_id,
            "task": "language_model",
            "system": name,
            "prediction": f"{bits[place]:.3f}",
            "target": str(int(texts.num_bytes[place])),
            "score": float(bits[place] / max(1.0, texts.num_bytes[place])),
        }
        for name, bits in systems.items()
        for place, doc_id in enumerate(texts.doc_ids)
    ]
    pq.write_table(
        pa.Table.from_pylist(rows, schema=PREDICTIONS), build.folder / "predictions.parquet", compression="zstd"
    )
    (build.folder / "scores.json").write_text(json.dumps(statistics, indent=1, sort_keys=True))
