"""What a person sees of a tokenizer in Prefect."""

from lm_core.artifact import TokenDataset, Tokenizer
from lm_core.runtime import Runtime
from lm_core.store import Store
from lm_core.tokenizer import train_tokenizer
from lm_core.tokens import tokenize
from lm_core.training.config import TokenizeConfig, TokenizerConfig
from tasks.reports import report_on
from tests.training.corpus_files import docstrings, new_build, valid_corpus


def test_the_reports_tell_of_languages_sources_and_encoders(tmp_path):
    corpus, store = valid_corpus(tmp_path, docstrings()), Store(Runtime(workspace=tmp_path))
    build = new_build(tmp_path, "tokenizer")
    statistics = train_tokenizer(build, TokenizerConfig(vocab_size=400), corpus=corpus)
    tokenizer = Tokenizer(build.folder, "train_tokenizer", "t", "1" * 64, statistics)
    text = report_on(tokenizer, store, "train_tokenizer").markdown
    assert "| en | " in text
    assert "| stdlib | " in text
    assert "100% come back unchanged" in text

    build = new_build(tmp_path, "tokens")
    statistics = tokenize(build, TokenizeConfig(context_length=48), corpus=corpus, tokenizer=tokenizer)
    statistics["encoders_refused"]["quick 1.0"] = "other ids"
    tokens = TokenDataset(build.folder, "tokenize", "t", "1" * 64, statistics)
    text = report_on(tokens, store, "tokenize").markdown
    assert f"| encoder | {statistics['encoder']} |" in text
    assert "- quick 1.0 was not used: other ids" in text
