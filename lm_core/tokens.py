"""Token shards: documents packed once into windows, and the table that says which window holds which document.

A window is context_length + 1 tokens: its inputs are all but the last, its targets all but the first. A document is
`[end_of_text] + tokens`. Documents longer than a window are cut into whole windows and a rest; rests and short
documents are packed by best fit, so nearly every short document stands whole in one window. What stays free is padding,
which carries no loss.

The plan depends on (document, length) alone and is kept as the span table: document -> windows, window -> documents.
Which window is read at which step is a pure function of (seed, step): `window_order`.
"""

from __future__ import annotations

import json
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.schemas import SPANS, SPLITS
from lm_core.artifact import TokenDataset, Tokenizer, ValidCorpus
from lm_core.bulk_encoding import BulkEncoder, DisagreementError, bulk_encoders
from lm_core.corpus.ledger import document_shards, kept_documents
from lm_core.errors import IntegrityError, UserError
from lm_core.runtime import Runtime
from lm_core.store import Build, Progress, silent
from lm_core.tokenizer import load_tokenizer
from lm_core.training.config import TokenizeConfig

DATASET = "dataset.json"


@dataclass(frozen=True)
class Span:
    """A piece of a document in a window. `start` counts within the document, its end_of_text being position 0."""

    document: int
    window: int
    offset: int
    start: int
    num_tokens: int


def plan_windows(lengths: Sequence[int], window_tokens: int) -> tuple[list[Span], int]:
    """Pack documents of given lengths; returns the spans in order of (window, offset) and the number of windows.

    Best fit, the longest pieces first: each goes to the open window whose free room it fills best, the oldest of
    several. No token is lost and none is there twice.
    """
    pieces = [
        (document, start, min(window_tokens, length - start))
        for document, length in enumerate(lengths)
        for start in range(0, length, window_tokens)
    ]
    pieces.sort(key=lambda piece: -piece[2])
    spans: list[Span] = []
    free: list[tuple[int, int]] = []  # (room, window) of windows that are not full, sorted
    num_windows = 0
    for document, start, size in pieces:
        at = bisect_left(free, (size, -1))
        if at < len(free):
            room, window = free.pop(at)
        else:
            room, window, num_windows = window_tokens, num_windows, num_windows + 1
        spans.append(Span(document, window, window_tokens - room, start, size))
        if room > size:
            insort(free, (room - size, window))
    spans.sort(key=lambda span: (span.window, span.offset))
    return spans, num_windows


def tokenize(build: Build, config: TokenizeConfig, *, corpus: ValidCorpus, tokenizer: Tokenizer) -> dict[str, Any]:
    """Encode every kept document, pack each split, write shards, span table and dataset.json.

    Raises:
        UserError: when the training split does not fill one window.
    """
    definition = tokenizer.file("tokenizer.json")
    encoder = load_tokenizer(definition)
    window_tokens = config.context_length + 1
    content: dict[str, Any] = {
        "context_length": config.context_length,
        "vocab_size": encoder.vocab_size,
        "pad": encoder.pad,
        "dtype": "uint16" if encoder.vocab_size <= 1 << 16 else "uint32",
        "windows_per_shard": config.windows_per_shard,
        "splits": {},
    }
    statistics: dict[str, Any] = {"vocab_size": encoder.vocab_size, "context_length": config.context_length}
    tables = []
    encoded, how = _encode_corpus(build, corpus, definition)
    for split in SPLITS:
        documents, bodies, num_bytes = encoded[split]
        spans, num_windows = plan_windows([len(body) for body in bodies], window_tokens)
        num_tokens = sum(len(body) for body in bodies)
        if split == "train" and num_tokens < window_tokens:
            raise UserError(
                f"the training documents give {num_tokens} tokens, fewer than one window of context_length="
                f"{config.context_length}; add text or lower tokenize.context_length"
            )
        _write_shards(build.folder, split, bodies, spans, num_windows, content)
        tables.append(_span_table(documents, split, spans))
        content["splits"][split] = {"windows": num_windows, "tokens": num_tokens}
        statistics[f"{split}_tokens"], statistics[f"{split}_windows"] = num_tokens, num_windows
        statistics[f"{split}_documents"], statistics[f"{split}_bytes"] = len(documents), num_bytes
        statistics[f"{split}_filled"] = round(num_tokens / max(1, num_windows * window_tokens), 4)
    pq.write_table(pa.concat_tables(tables), build.folder / "spans.parquet", compression="zstd")
    (build.folder / DATASET).write_text(json.dumps(content, indent=1, sort_keys=True))
    return statistics | how


Encoded = tuple[list[str], list[np.ndarray], int]


def _encode_corpus(build: Build, corpus: ValidCorpus, definition: Path) -> tuple[dict[str, Encoded], dict[str, Any]]:
    """All splits encoded, and by which encoder: in one stream here, where the parts work elsewhere shard by shard."""
    shards = document_shards(corpus.input_folder("corpus"))
    parts = [(shard,) for shard in shards] if build.mapper else [tuple(shards)]
    progress = silent if build.mapper else build.progress
    encode = partial(_encode_part, corpus=corpus, definition=definition, runtime=build.runtime, progress=progress)
    found = list(build.map(encode, parts))
    encoded = {split: _in_order([part[split] for part, _ in found]) for split in SPLITS}
    how = dict(found[0][1])
    how["encoder_checked_documents"] = sum(one["encoder_checked_documents"] for _, one in found)
    how["encoder"] = ", ".join(sorted({one["encoder"] for _, one in found}))
    return encoded, how


def _in_order(parts: Sequence[Encoded]) -> Encoded:
    """The documents of all parts in the order of doc_id."""
    if len(parts) == 1:
        return parts[0]
    documents = [document for part in parts for document in part[0]]
    bodies = [body for part in parts for body in part[1]]
    order = sorted(range(len(documents)), key=documents.__getitem__)
    return [documents[place] for place in order], [bodies[place] for place in order], sum(part[2] for part in parts)


def _encode_part(
    shards: tuple[Path, ...], *, corpus: ValidCorpus, definition: Path, runtime: Runtime, progress: Progress
) -> tuple[dict[str, Encoded], dict[str, Any]]:
    """All splits of some shards by the first encoder that agrees with `tokenizers`, and which that was."""
    tokenizer = load_tokenizer(definition)
    refused: dict[str, str] = {}
    for encoder in bulk_encoders(tokenizer, refused):
        try:
            encoded = {
                split: _encode_split(
                    kept_documents(corpus, splits=(split,), runtime=runtime, shards=shards),
                    encoder,
                    tokenizer.end_of_text,
                    progress,
                )
                for split in SPLITS
            }
        except DisagreementError as error:
            refused[encoder.name] = str(error)
        else:
            how = {"encoder": encoder.name, "encoder_checked_documents": encoder.num_checked}
            return encoded, how | {"encoders_refused": refused}
    raise AssertionError("the reference encoder cannot disagree with itself")


def _encode_split(
    batches: Iterable[pa.RecordBatch], encoder: BulkEncoder, end_of_text: int, progress: Progress
) -> Encoded:
    """Ids of the documents of a split, their tokens with end_of_text before them, and their bytes."""
    documents: list[str] = []
    bodies: list[np.ndarray] = []
    num_bytes = 0
    for batch in batches:
        texts = batch.column("text").to_pylist()
        documents += batch.column("doc_id").to_pylist()
        flat = encoder(texts)
        marked = np.insert(flat.ids, flat.offsets[:-1], end_of_text)
        bodies += np.split(marked, flat.offsets[1:-1] + np.arange(1, len(texts)))
        num_bytes += sum(len(text.encode()) for text in texts)
        progress(num_bytes, None, "bytes")
    return documents, bodies, num_bytes


def _write_shards(
    folder: Path, split: str, bodies: list[np.ndarray], spans: list[Span], num_windows: int, content: dict[str, Any]
) -> None:
    """Write <split>-00000.bin and on: windows one after the other, little-endian."""
    window_tokens, per_shard = content["context_length"] + 1, content["windows_per_shard"]
    at = 0
    for shard, first in enumerate(range(0, num_windows, per_shard)):
        last = min(first + per_shard, num_windows)
        windows = np.full((last - first, window_tokens), content["pad"], np.dtype(content["dtype"]).newbyteorder("<"))
        while at < len(spans) and spans[at].window < last:
            span = spans[at]
            piece = bodies[span.document][span.start : span.start + span.num_tokens]
            windows[span.window - first, span.offset : span.offset + span.num_tokens] = piece
            at += 1
        windows.tofile(folder / f"{split}-{shard:05d}.bin")


def _span_table(documents: list[str], split: str, spans: list[Span]) -> pa.Table:
    columns = {
        "doc_id": [documents[span.document] for span in spans],
        "split": [split] * len(spans),
        "window": [span.window for span in spans],
        "offset": [span.offset for span in spans],
        "start": [span.start for span in spans],
        "num_tokens": [span.num_tokens for span in spans],
    }
    return pa.table(columns, schema=SPANS)


# --------------------------------------------------------------------------------------------------------- reading


class Windows:
    """The windows of one split, by memory map.

    Attributes:
        context_length: T; a window has T + 1 tokens.
        vocab_size: V of the tokenizer that made them.
        pad: id of padding.
    """

    def __init__(self, tokens: TokenDataset | Path, split: str) -> None:
        folder = tokens if isinstance(tokens, Path) else tokens.folder
        content = json.loads((folder / DATASET).read_text())
        self.context_length: int = content["context_length"]
        self.vocab_size: int = content["vocab_size"]
        self.pad: int = content["pad"]
        self._per_shard: int = content["windows_per_shard"]
        self._num_windows: int = content["splits"][split]["windows"]
        dtype = np.dtype(content["dtype"]).newbyteorder("<")
        shards = range(0, self._num_windows, self._per_shard)
        self._spans, self._split = folder / "spans.parquet", split
        self._paths = paths = [folder / f"{split}-{shard:05d}.bin" for shard in range(len(shards))]
        self._shards = [
            _open_shard(path, dtype, min(self._per_shard, self._num_windows - first), self.context_length + 1)
            for path, first in zip(paths, shards, strict=True)
        ]

    def __len__(self) -> int:
        return self._num_windows

    def read(self, windows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Windows by number, int64 (N, T + 1).

        Raises:
            IntegrityError: an id has no place in the vocabulary; a model's embedding would be read beyond its end.
        """
        rows = [self._shards[w // self._per_shard][w % self._per_shard] for w in map(int, windows)]
        read = np.stack(rows).astype(np.int64)
        if read.max() >= self.vocab_size:
            at = int(read.max(axis=1).argmax())
            path = self._paths[int(windows[at]) // self._per_shard]
            raise IntegrityError(
                f"{path} holds the id {read[at].max()} in window {windows[at]}, beyond its vocabulary of "
                f"{self.vocab_size}; remove its folder to tokenize again"
            )
        return read

    def starts(self, windows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Where documents, or rests of them, begin in windows by number, bool (N, T + 1)."""
        begins = np.zeros((len(windows), self.context_length + 1), bool)
        of_windows, offsets = self._offsets
        bounds = np.searchsorted(of_windows, np.stack((windows, np.add(windows, 1))))
        for row, (lo, hi) in enumerate(bounds.T):
            begins[row, offsets[lo:hi]] = True
        return begins

    @cached_property
    def _offsets(self) -> tuple[np.ndarray, np.ndarray]:
        """Window and offset of all spans, in their order."""
        table = pq.read_table(self._spans, columns=["window", "offset"], filters=[("split", "=", self._split)])
        return table.column("window").to_numpy(), table.column("offset").to_numpy()


def _open_shard(path: Path, dtype: np.dtype, num_windows: int, window_tokens: int) -> np.ndarray:
    expected = num_windows * window_tokens * dtype.itemsize
    found = path.stat().st_size if path.exists() else 0
    if found != expected:
        raise IntegrityError(f"{path} has {found} bytes, {expected} expected; remove its folder to tokenize again")
    return np.memmap(path, dtype, mode="r", shape=(num_windows, window_tokens))


def window_order(seed: int, step: int, rows: int, num_windows: int) -> np.ndarray:
    """Numbers of the windows of a step, (rows,): an endless row of shuffled epochs, cut into steps."""
    places = np.arange(step * rows, (step + 1) * rows)
    return np.array([_epoch(seed, int(p) // num_windows, num_windows)[int(p) % num_windows] for p in places])


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, num_windows: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_windows)
