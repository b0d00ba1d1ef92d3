"""Encoding a corpus as the stage tokenize does it, beside `tokenizers.encode_batch`, in turns on the same documents.

    python tests/benchmarks/encoding_against_tokenizers.py --data DIR

DIR holds Parquet files with a column `text`. Our seconds include the checks against `tokenizers`. Ids are compared
document by document, and with control words put into documents. The last line is JSON: megabytes per second and ratios.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from lm_core.bulk_encoding import DisagreementError, bulk_encoders
from lm_core.tokenizer import CONTROL_TOKENS, load_tokenizer, new_encoder
from lm_core.training.config import TokenizerConfig

BATCH_DOCUMENTS = 4096


def read_texts(folder: Path) -> list[str]:
    """Texts of all documents, shuffled as the hash of the ledger would."""
    texts: list[str] = []
    for path in sorted(folder.rglob("*.parquet")):
        if "text" in pq.read_schema(path).names:
            texts += pq.read_table(path, columns=["text"]).column("text").to_pylist()
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]


def train(texts: list[str], path: Path, options: argparse.Namespace) -> None:
    encoder, trainer = new_encoder(TokenizerConfig(algorithm=options.algorithm, vocab_size=options.vocab_size))
    encoder.train_from_iterator((text[:4000] for text in texts[: options.train_documents]), trainer)
    encoder.save(str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of Parquet files")
    parser.add_argument("--algorithm", default="bpe")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--train-documents", type=int, default=2000)
    parser.add_argument("--limit", type=int, default=None, help="so many documents only")
    options = parser.parse_args()
    texts = read_texts(options.data)[: options.limit]
    num_bytes = sum(len(text.encode()) for text in texts)
    batches = [texts[i : i + BATCH_DOCUMENTS] for i in range(0, len(texts), BATCH_DOCUMENTS)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        train(texts, path, options)
        started = time.perf_counter()
        ours, name, refused = encode(load_tokenizer(path), batches)
        own_seconds = time.perf_counter() - started
        peer = Tokenizer.from_file(str(path))
        peer.encode_special_tokens = True
        started = time.perf_counter()
        theirs = [encoding.ids for batch in batches for encoding in peer.encode_batch(batch, add_special_tokens=False)]
        peer_seconds = time.perf_counter() - started
        hostile = [f"{text[:200]} {token} {text[:50]}" for text in texts[:500] for token in CONTROL_TOKENS]
        found, _, _ = encode(load_tokenizer(path), [hostile])
        expected = peer.encode_batch(hostile, add_special_tokens=False)
        control = {peer.token_to_id(token) for token in CONTROL_TOKENS}
    result = {
        "benchmark": "encoding",
        "algorithm": options.algorithm,
        "vocab_size": options.vocab_size,
        "documents": len(texts),
        "megabytes": round(num_bytes / 1e6, 1),
        "encoder": name,
        "refused": refused,
        "mb_per_second": round(num_bytes / 1e6 / own_seconds, 1),
        "tokenizers_mb_per_second": round(num_bytes / 1e6 / peer_seconds, 2),
        "ratio": round(peer_seconds / own_seconds, 1),
        "identical_documents": sum(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)),
        "identical_with_control_words": sum(np.array_equal(a, b.ids) for a, b in zip(found, expected, strict=True)),
        "control_ids_from_text": sum(len(control & set(ids.tolist())) for ids in found),
    }
    print(json.dumps(result))


def encode(tokenizer, batches) -> tuple[list[np.ndarray], str, dict[str, str]]:
    """Ids of all documents, by which encoder, and why not by others."""
    refused: dict[str, str] = {}
    for encoder in bulk_encoders(tokenizer, refused):
        try:
            return [flat.of(i) for batch in batches for flat in [encoder(batch)] for i in range(len(batch))], encoder.name, refused  # fmt: skip # noqa: E501
        except DisagreementError as error:
            refused[encoder.name] = str(error)
    raise AssertionError


if __name__ == "__main__":
    main()
