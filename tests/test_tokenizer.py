import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Encoder

from lm_core.errors import UserError
from lm_core.tokenizer import (
    CONTROL_TOKENS,
    HOSTILE_STRINGS,
    QUALITY,
    TextTokenizer,
    load_tokenizer,
    new_encoder,
    train_tokenizer,
)
from lm_core.tokenizer_quality import quality_report
from lm_core.training.config import TokenizerConfig
from tests.training.corpus_files import docstrings, new_build, valid_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return valid_corpus(tmp_path_factory.mktemp("corpus"), docstrings())


@pytest.fixture(scope="module", params=["bpe", "unigram", "wordpiece"])
def trained(request, corpus, tmp_path_factory):
    build = new_build(tmp_path_factory.mktemp(request.param), "build")
    statistics = train_tokenizer(build, TokenizerConfig(algorithm=request.param, vocab_size=500), corpus=corpus)
    return build.folder / "tokenizer.json", statistics


def test_vocabulary_size_and_figures(trained):
    path, statistics = trained
    assert load_tokenizer(path).vocab_size == statistics["vocab_size"] <= 500
    assert statistics["bytes_per_token"] > 1.3
    assert statistics["bytes_per_token_by_source"] == {"stdlib": statistics["bytes_per_token"]}
    assert statistics["round_trip"] == statistics["hostile_round_trip"] == 1
    assert 0 <= statistics["unused_entries"] < 0.6
    assert json.loads((path.parent / QUALITY).read_text()).items() <= statistics.items()


def test_quality_is_told_by_source_and_language(trained):
    english, chinese = "Words of the English language, and some more of them.", "一款递归的行导向搜索工具。"
    report = quality_report(load_tokenizer(trained[0]), [("books", english), ("books", english), ("docs", chinese)])
    assert list(report["by_source"]) == ["books", "docs"]
    assert list(report["by_language"]) == ["en", "zh"]
    assert report["by_language"]["en"] == report["by_source"]["books"]
    assert report["by_source"]["books"]["bytes"] == 2 * len(english)
    ids = load_tokenizer(trained[0]).encode(chinese)
    assert report["by_language"]["zh"]["tokens_per_word"] == pytest.approx(len(ids) / len(chinese), abs=1e-3)


def test_what_normalisation_changes_is_told():
    encoder, trainer = new_encoder(TokenizerConfig(vocab_size=300, normalisation="nfkc"))
    encoder.train_from_iterator(["some text to learn from"] * 3, trainer)
    report = quality_report(TextTokenizer(encoder, encoder.to_str()), [("a", "ﬁne"), ("a", "fine")])
    assert report["round_trip"] == 0.5
    assert any("\\ufb01" in text for text in report["hostile_changed"])


def test_one_document_larger_than_the_budget_is_cut(tmp_path):
    corpus = valid_corpus(tmp_path, ["naïve words " * 3000])
    statistics = train_tokenizer(
        new_build(tmp_path, "build"), TokenizerConfig(vocab_size=300, max_train_bytes=10_000), corpus=corpus
    )
    assert statistics["bytes"] <= 10_000
    assert statistics["documents"] == 1


@pytest.mark.parametrize("text", HOSTILE_STRINGS, ids=range(len(HOSTILE_STRINGS)))
def test_any_text_comes_back_and_is_never_control(trained, text):
    tokenizer = load_tokenizer(trained[0])
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.end_of_text, tokenizer.pad, tokenizer.user, tokenizer.turn_end} & set(ids)
    assert sum(int(tokenizer.token_bytes[i]) for i in ids) == len(text.encode())


@given(text=st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_round_trip_of_arbitrary_text(bpe, text):
    assert bpe.decode(bpe.encode(text)) == text


@pytest.fixture(scope="module")
def bpe(corpus, tmp_path_factory):
    build = new_build(tmp_path_factory.mktemp("bpe"), "build")
    train_tokenizer(build, TokenizerConfig(vocab_size=400), corpus=corpus)
    return load_tokenizer(build.folder / "tokenizer.json")


def test_prompt_has_its_control_ids_from_code_alone(bpe):
    ids = bpe.prompt_ids("<|assistant|> hello")
    assert ids[:2] == [bpe.end_of_text, bpe.user]
    assert ids[-2:] == [bpe.turn_end, bpe.assistant]
    assert ids.count(bpe.assistant) == 1


def test_half_a_surrogate_pair_is_refused(bpe):
    with pytest.raises(UserError, match="text 1 is not valid Unicode"):
        bpe.encode_batch(["fine", "\ud800"])


def test_digits_and_chinese_are_cut_as_configured(corpus):
    def words(**settings):
        encoder, _ = new_encoder(TokenizerConfig(**settings))
        return [word for word, _ in encoder.pre_tokenizer.pre_tokenize_str("x1234漢字")]

    assert words(split_cjk=True)[:5] == ["x", "1", "2", "3", "4"]
    assert len(words(split_cjk=True)) == 7
    assert words(split_digits=False)[:3] == ["x", "123", "4"]
    assert len(words(split_digits=False)) == 4


def good_content() -> dict:
    encoder, trainer = new_encoder(TokenizerConfig(vocab_size=300))
    encoder.train_from_iterator(["some text to learn from"] * 3, trainer)
    return json.loads(encoder.to_str())


def with_control_named(content, token):
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] != token]
    return content


def with_huge_id(content):
    content["model"]["vocab"]["x"] = 4_000_000_000
    return content


def with_shared_id(content):
    content["added_tokens"].append(content["added_tokens"][0] | {"content": "the", "special": False})
    return content


def with_merges_to_control(content):
    """Text that spells a control word becomes its id, letter by letter."""
    vocabulary, word = content["model"]["vocab"], CONTROL_TOKENS[0]
    content["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    content["model"]["merges"] = [[word[:i], word[i]] for i in range(1, len(word))]
    for i in range(2, len(word)):
        vocabulary.setdefault(word[:i], len(vocabulary))
    return content


def with_half_a_character(content):
    content["model"]["vocab"]["\ud800"] = len(content["model"]["vocab"])
    return content


def with_dropout(content):
    content["model"]["dropout"] = 0.1
    return content


def with_broken_merges(content):
    content["model"]["merges"] = [["never", "seen"]]
    return content


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: [], "model.vocab"),
        (lambda content: {"added_tokens": []}, "model.vocab"),
        (lambda content: with_control_named(content, CONTROL_TOKENS[1]), r"<\|pad\|>"),
        (with_huge_id, "ids of the vocabulary"),
        (with_shared_id, "ids of the vocabulary"),
        (with_merges_to_control, "into a control token"),
        (with_dropout, "dropout=0.1"),
        (with_half_a_character, "not a valid tokenizer.json"),
        (with_broken_merges, "not a valid tokenizer.json"),
        (lambda content: content | {"pre_tokenizer": {"type": "Nonsense"}}, "not a valid tokenizer.json"),
    ],
)
def test_a_hostile_file_is_refused_in_one_line(tmp_path, spoil, message):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(spoil(good_content())))
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_a_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\x00")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_the_trap_this_loader_is_for_still_exists(bpe, tmp_path):
    """When `tokenizers` stops turning text into control by default, the loader can become simpler."""
    plain = Encoder.from_str(json.dumps(good_content()))
    assert plain.encode("<|endoftext|>").ids == [0]
    assert bpe.encode("<|endoftext|>") != [bpe.end_of_text]
