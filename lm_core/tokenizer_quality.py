"""How well a vocabulary serves texts: per source and per language, and whether any text comes back unchanged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm_core.corpus.language import language_of
from lm_core.tokenizer import HOSTILE_STRINGS, TextTokenizer

GROUPS_SHOWN, UNUSED_SHOWN = 12, 40
# Chinese, Japanese and Thai set no spaces: there each letter counts as a word.
_WORD = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\\s\u0e00-\u0e7f\u3040-\u30ff"
                   "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")  # fmt: skip


def quality_report(tokenizer: TextTokenizer, documents: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Figures of a vocabulary on documents, given as (source, text).

    Returns:
        vocab_size; bytes_per_token; tokens_per_word (fertility; words are runs between white space, and letters where
        a script sets none). unused_entries: share of the vocabulary that these documents never use; of them
        unused_bytes: how many single bytes, which other texts may need, and unused: the longer ones learnt last.
        round_trip: share of documents that come back unchanged; hostile_round_trip and hostile_changed: the same of
        strings made to break it. by_source and by_language: documents, bytes, bytes_per_token and tokens_per_word of
        the largest; bytes_per_token_by_source.
    """
    texts = [text for _, text in documents]
    encoded = tokenizer.encode_batch(texts)
    sizes = np.array(
        [(len(t.encode()), len(ids), len(_WORD.findall(t))) for t, ids in zip(texts, encoded, strict=True)], np.int64
    ).reshape(-1, 3)
    used = np.zeros(tokenizer.vocab_size, bool)
    for ids in encoded:
        used[ids] = True
    unchanged = sum(tokenizer.decode(ids) == text for ids, text in zip(encoded, texts, strict=True))
    changed = [text for text in HOSTILE_STRINGS if tokenizer.decode(tokenizer.encode(text)) != text]
    by_source = _groups([source for source, _ in documents], sizes)
    totals = _figures(sizes)
    return {
        "vocab_size": tokenizer.vocab_size,
        "bytes_per_token": totals["bytes_per_token"],
        "tokens_per_word": totals["tokens_per_word"],
        "unused_entries": round(1 - float(used.mean()), 4),
        "unused_bytes": int((~used & (tokenizer.token_bytes == 1)).sum()),
        "unused": [tokenizer.decode([i]) for i in np.flatnonzero(~used & (tokenizer.token_bytes > 1)).tolist()][
            -UNUSED_SHOWN:
        ],
        "round_trip": round(unchanged / max(1, len(texts)), 4),
        "hostile_round_trip": round(1 - len(changed) / len(HOSTILE_STRINGS), 4),
        "hostile_changed": [ascii(text) for text in changed],
        "bytes_per_token_by_source": {source: found["bytes_per_token"] for source, found in by_source.items()},
        "by_source": by_source,
        "by_language": _groups([language_of(text) for text in texts], sizes),
    }


def _groups(names: Sequence[str], sizes: np.ndarray) -> dict[str, dict[str, float]]:
    """Figures of the groups with most bytes, in this order."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    largest = sorted(rows, key=lambda name: (-int(sizes[rows[name], 0].sum()), name))[:GROUPS_SHOWN]
    return {name: _figures(sizes[rows[name]]) for name in largest}


def _figures(sizes: np.ndarray) -> dict[str, float]:
    """Of rows (bytes, tokens, words)."""
    num_bytes, tokens, words = (int(column) for column in sizes.sum(0))
    return {
        "documents": len(sizes),
        "bytes": num_bytes,
        "bytes_per_token": round(num_bytes / max(1, tokens), 4),
        "tokens_per_word": round(tokens / max(1, words), 4),
    }
