import pytest

from lm_core.artifact import TokenDataset, Tokenizer
from lm_core.tokenizer import train_tokenizer
from lm_core.tokens import tokenize
from lm_core.training.config import TokenizeConfig, TokenizerConfig
from tests.training.corpus_files import docstrings, new_build, valid_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return valid_corpus(tmp_path_factory.mktemp("corpus"), docstrings())


@pytest.fixture(scope="session")
def tokenizer(corpus, tmp_path_factory):
    build = new_build(tmp_path_factory.mktemp("tokenizer"), "build")
    train_tokenizer(build, TokenizerConfig(vocab_size=400), corpus=corpus)
    return Tokenizer(build.folder, "train_tokenizer", "t", "1" * 64)


@pytest.fixture(scope="session")
def tokens(corpus, tokenizer, tmp_path_factory):
    build = new_build(tmp_path_factory.mktemp("tokens"), "build")
    tokenize(build, TokenizeConfig(context_length=32), corpus=corpus, tokenizer=tokenizer)
    return TokenDataset(build.folder, "tokenize", "k", "2" * 64)
