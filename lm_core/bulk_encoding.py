"""Encoding a corpus: by a fast encoder where its ids are proven equal on this very corpus, else by `tokenizers`.

tokenizer.json stays the artifact, and `tokenizers` the reference. A fast encoder reads the same file without its
control words, so that no text can become control there. Its ids are compared with the reference's: of hostile strings,
of the corpus's first documents (an even sample, for documents stand in the order of a hash), and of every 64th after
them. One difference anywhere, and the whole corpus is encoded by `tokenizers`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm_core.errors import MillraceError
from lm_core.tokenizer import HOSTILE_STRINGS, TextTokenizer

CHECKED_FIRST, CHECKED_FIRST_CHARACTERS, CHECKED_EVERY = 256, 500_000, 64
REFERENCE = "tokenizers"


class FlatIds(NamedTuple):
    """Ids of many texts in one row: text i has `ids[offsets[i] : offsets[i + 1]]`."""

    ids: np.ndarray
    offsets: np.ndarray

    def of(self, text: int) -> np.ndarray:
        """Ids of one text."""
        ids: np.ndarray = self.ids[self.offsets[text] : self.offsets[text + 1]]
        return ids


Encode = Callable[[Sequence[str]], FlatIds]


class DisagreementError(Exception):
    """A fast encoder gave other ids than `tokenizers`; caught by whoever encodes the corpus."""


class BulkEncoder:
    """One way to encode a corpus, comparing itself with the reference as it goes.

    Attributes:
        name: the package, with its version.
        num_checked: documents of the corpus whose ids were compared.
    """

    def __init__(self, name: str, encode: Encode, tokenizer: TextTokenizer) -> None:
        self.name, self.num_checked = name, 0
        self._encode, self._tokenizer = encode, tokenizer
        self._is_reference = name.startswith(REFERENCE)
        self._num_seen, self._first_characters = 0, 0
        if not self._is_reference:
            self._compare(HOSTILE_STRINGS, encode(HOSTILE_STRINGS), range(len(HOSTILE_STRINGS)))

    def __call__(self, texts: Sequence[str]) -> FlatIds:
        """Ids of documents.

        Raises:
            DisagreementError: when they are not what `tokenizers` gives.
        """
        if self._is_reference:
            return self._encode(texts)
        try:
            found = self._encode(texts)
        except (KeyboardInterrupt, SystemExit, MillraceError):
            raise
        except BaseException as error:
            raise DisagreementError(_in_one_line(error)) from error
        else:
            chosen = [i for i, text in enumerate(texts) if self._is_checked(text)]
            self._compare(texts, found, chosen)
            self.num_checked += len(chosen)
        return found

    def _is_checked(self, text: str) -> bool:
        self._num_seen += 1
        if self._num_seen <= CHECKED_FIRST and self._first_characters < CHECKED_FIRST_CHARACTERS:
            self._first_characters += len(text)
            return True
        return self._num_seen % CHECKED_EVERY == 0

    def _compare(self, texts: Sequence[str], found: FlatIds, chosen: Sequence[int]) -> None:
        expected = self._tokenizer.encode_batch([texts[i] for i in chosen])
        for i, ids in zip(chosen, expected, strict=True):
            if not np.array_equal(found.of(i), ids):
                raise DisagreementError(f"other ids than {REFERENCE} for the text that begins {texts[i][:40]!r}")


def bulk_encoders(tokenizer: TextTokenizer, refused: dict[str, str]) -> Iterator[BulkEncoder]:
    """Encoders to try in order, the reference last; `refused` gets the reason of each that cannot be used."""
    for package, load in (("fastokens", _fastokens), ("splintr-rs", _splintr)):
        try:
            name = f"{package} {importlib.metadata.version(package)}"
            encoder = BulkEncoder(name, load(_without_control_words(tokenizer.definition)), tokenizer)
        except importlib.metadata.PackageNotFoundError:
            refused[package] = "not installed (the extra `fast`)"
        except (KeyboardInterrupt, SystemExit, MillraceError):
            raise
        except BaseException as error:  # a panic in Rust is no Exception
            refused[package] = _in_one_line(error)
        else:
            yield encoder
    yield BulkEncoder(f"{REFERENCE} {importlib.metadata.version(REFERENCE)}", _reference(tokenizer), tokenizer)


def _in_one_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _without_control_words(definition: str) -> str:
    content: dict[str, Any] = json.loads(definition)
    content["added_tokens"] = [entry for entry in content["added_tokens"] if not entry["special"]]
    return json.dumps(content | {"post_processor": None, "truncation": None, "padding": None}, ensure_ascii=False)


def _fastokens(definition: str) -> Encode:
    encoder = importlib.import_module("fastokens").Tokenizer.from_json_str(definition)
    return lambda texts: _from_bytes(*encoder.encode_batch_flat(list(texts), False, True))


def _splintr(definition: str) -> Encode:
    encoder = importlib.import_module("splintr").from_json_bytes(definition.encode())
    return lambda texts: _from_bytes(*encoder.encode_batch_flat(list(texts)))


def _from_bytes(ids: bytes, offsets: bytes) -> FlatIds:
    return FlatIds(np.frombuffer(ids, "<u4"), np.frombuffer(offsets, "<u8").astype(np.int64))


def _reference(tokenizer: TextTokenizer) -> Encode:
    def encode(texts: Sequence[str]) -> FlatIds:
        rows = tokenizer.encode_batch(texts)
        offsets = np.cumsum([0, *map(len, rows)])
        return FlatIds(np.fromiter((i for row in rows for i in row), np.uint32, int(offsets[-1])), offsets)

    return encode
