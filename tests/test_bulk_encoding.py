"""Fast encoders are used only while their ids are those of `tokenizers`."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from lm_core import bulk_encoding, tokens
from lm_core.artifact import Tokenizer
from lm_core.bulk_encoding import BulkEncoder, DisagreementError, FlatIds, bulk_encoders
from lm_core.tokenizer import HOSTILE_STRINGS, load_tokenizer, new_encoder, train_tokenizer
from lm_core.tokens import tokenize
from lm_core.training.config import TokenizeConfig, TokenizerConfig
from tests.training.corpus_files import docstrings, new_build, valid_corpus

CHINESE = "一款递归的行导向搜索工具。旨在成为"


def tokenizer_of(folder, **settings):
    encoder, trainer = new_encoder(TokenizerConfig(vocab_size=600, **settings))
    encoder.train_from_iterator([*docstrings(), CHINESE * 3], trainer)
    encoder.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder / "tokenizer.json")


def same_ids(found: FlatIds, tokenizer, texts) -> bool:
    return all(found.of(i).tolist() == ids for i, ids in enumerate(tokenizer.encode_batch(texts)))


@pytest.mark.parametrize("package", ["fastokens", "splintr"])
@pytest.mark.parametrize("digits", [True, False])
def test_a_fast_encoder_gives_the_ids_of_the_reference(tmp_path, package, digits):
    pytest.importorskip(package, reason="the extra `fast` is not installed")
    tokenizer, refused = tokenizer_of(tmp_path, split_digits=digits), {}
    texts = [*docstrings(), *HOSTILE_STRINGS, CHINESE, *(a + b for a in HOSTILE_STRINGS for b in HOSTILE_STRINGS)]
    encoder = next(e for e in bulk_encoders(tokenizer, refused) if e.name.startswith(package))
    assert same_ids(encoder(texts), tokenizer, texts)
    assert not refused
    assert encoder.num_checked >= len(docstrings())


@pytest.mark.parametrize("settings", [{}, {"split_cjk": True}, {"normalisation": "nfkc"}, {"algorithm": "wordpiece"}])
def test_whatever_is_chosen_gives_the_ids_of_the_reference(tmp_path, settings):
    tokenizer, refused = tokenizer_of(tmp_path, **settings), {}
    texts = [*docstrings(), *HOSTILE_STRINGS, CHINESE]
    for encoder in bulk_encoders(tokenizer, refused):
        assert same_ids(encoder(texts), tokenizer, texts), encoder.name
    assert encoder.name.startswith("tokenizers")
    assert all(reason and "\n" not in reason for reason in refused.values())


class Wrong:
    """An encoder that is right on everything but texts that hold a word."""

    def __init__(self, tokenizer, word):
        self.tokenizer, self.word = tokenizer, word

    def __call__(self, texts):
        rows = [[*ids, 7] if self.word in text else ids for text, ids in zip(texts, self.tokenizer.encode_batch(texts), strict=True)]  # fmt: skip # noqa: E501
        return FlatIds(np.array([i for row in rows for i in row], np.uint32), np.cumsum([0, *map(len, rows)]))


def test_an_encoder_that_differs_is_not_used(tmp_path):
    tokenizer = tokenizer_of(tmp_path)
    with pytest.raises(DisagreementError, match="endoftext"):
        BulkEncoder("wrong", Wrong(tokenizer, "<|endoftext|>"), tokenizer)
    encoder = BulkEncoder("wrong", Wrong(tokenizer, "rare"), tokenizer)
    encoder(["common"] * 10)
    with pytest.raises(DisagreementError, match="rare word"):
        encoder(["common", "a rare word"][::-1])


def test_one_difference_and_the_whole_corpus_is_encoded_by_the_reference(tmp_path, monkeypatch):
    corpus = valid_corpus(tmp_path, docstrings())
    trained = new_build(tmp_path, "tokenizer")
    train_tokenizer(trained, TokenizerConfig(vocab_size=400), corpus=corpus)
    tokenizer = Tokenizer(trained.folder, "train_tokenizer", "t", "1" * 64)
    config = TokenizeConfig(context_length=48)
    plain = new_build(tmp_path, "plain")
    tokenize(plain, config, corpus=corpus, tokenizer=tokenizer)

    def wrong_first(text_tokenizer, refused):
        yield BulkEncoder("wrong 1.0", Wrong(text_tokenizer, "the"), text_tokenizer)
        yield from bulk_encoding.bulk_encoders(text_tokenizer, refused)

    monkeypatch.setattr(tokens, "bulk_encoders", wrong_first)
    other = new_build(tmp_path, "other")
    statistics = tokenize(other, config, corpus=corpus, tokenizer=tokenizer)
    assert "other ids than tokenizers" in statistics["encoders_refused"]["wrong 1.0"]
    assert statistics["encoder"] != "wrong 1.0"
    for path in plain.folder.glob("*.bin"):
        assert path.read_bytes() == (other.folder / path.name).read_bytes()
    assert pq.read_table(plain.folder / "spans.parquet").equals(pq.read_table(other.folder / "spans.parquet"))


def test_the_reference_encoder_needs_no_fast_one(tmp_path, monkeypatch):
    def absent(name):
        raise bulk_encoding.importlib.metadata.PackageNotFoundError(name)

    tokenizer, refused = tokenizer_of(tmp_path), {}
    version = bulk_encoding.importlib.metadata.version
    monkeypatch.setattr(
        bulk_encoding.importlib.metadata, "version", lambda n: version(n) if n == "tokenizers" else absent(n)
    )
    (encoder,) = bulk_encoders(tokenizer, refused)
    assert encoder.name.startswith("tokenizers")
    assert set(refused) == {"fastokens", "splintr-rs"}
    assert json.loads(tokenizer.definition)["model"]["type"] == "BPE"
