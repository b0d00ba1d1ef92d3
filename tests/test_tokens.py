import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_core.artifact import Tokenizer
from lm_core.errors import IntegrityError, UserError
from lm_core.tokenizer import load_tokenizer, train_tokenizer
from lm_core.tokens import Windows, plan_windows, tokenize, window_order
from lm_core.training.config import TokenizeConfig, TokenizerConfig
from tests.training.corpus_files import docstrings, new_build, valid_corpus


@given(lengths=st.lists(st.integers(1, 40), max_size=60), window=st.integers(2, 12))
def test_every_token_stands_once_in_one_place(lengths, window):
    spans, num_windows = plan_windows(lengths, window)
    covered = {document: [] for document in range(len(lengths))}
    used = np.zeros((num_windows, window), int)
    for span in spans:
        covered[span.document] += range(span.start, span.start + span.num_tokens)
        used[span.window, span.offset : span.offset + span.num_tokens] += 1
    assert all(sorted(covered[d]) == list(range(length)) for d, length in enumerate(lengths))
    assert used.max(initial=0) <= 1


def test_short_documents_are_not_cut_and_windows_are_full():
    lengths = np.random.default_rng(0).exponential(60, 3000).astype(int).clip(1, 257).tolist()
    spans, num_windows = plan_windows(lengths, 257)
    assert len(spans) == len(lengths)
    assert sum(lengths) / (num_windows * 257) > 0.99


def test_order_is_a_function_of_seed_and_step_and_visits_all_once_per_epoch():
    seen = np.concatenate([window_order(3, step, 4, 10) for step in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert not np.array_equal(seen[:10], seen[10:])
    assert np.array_equal(window_order(3, 2, 4, 10), seen[8:12])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return valid_corpus(tmp_path_factory.mktemp("corpus"), docstrings())


@pytest.fixture(scope="module")
def tokenizer(corpus, tmp_path_factory):
    build = new_build(tmp_path_factory.mktemp("tokenizer"), "build")
    train_tokenizer(build, TokenizerConfig(vocab_size=400), corpus=corpus)
    return Tokenizer(build.folder, "train_tokenizer", "t", "1" * 64)


def test_windows_hold_what_the_span_table_says(corpus, tokenizer, tmp_path):
    build = new_build(tmp_path, "build")
    config = TokenizeConfig(context_length=48, windows_per_shard=7)
    statistics = tokenize(build, config, corpus=corpus, tokenizer=tokenizer)
    encoder = load_tokenizer(tokenizer.file("tokenizer.json"))
    texts = {f"{i:032x}": text for i, text in enumerate(docstrings())}
    for split in ("train", "validation", "test"):
        windows = Windows(build.folder, split)
        bodies: dict[str, dict[int, list[int]]] = {}
        for row in pq.read_table(build.folder / "spans.parquet").to_pylist():
            if row["split"] == split:
                window = windows.read([row["window"]])[0]
                piece = window[row["offset"] : row["offset"] + row["num_tokens"]]
                bodies.setdefault(row["doc_id"], {})[row["start"]] = piece.tolist()
        assert len(bodies) == statistics[f"{split}_documents"]
        for doc_id, pieces in bodies.items():
            ids = [i for start in sorted(pieces) for i in pieces[start]]
            assert ids == [encoder.end_of_text, *encoder.encode(texts[doc_id])]
        whole = windows.read(range(len(windows)))
        assert (whole != encoder.pad).sum() == statistics[f"{split}_tokens"]
        starts = windows.starts(range(len(windows)))
        assert starts.sum() == sum(len(pieces) for pieces in bodies.values())
        assert starts[whole == encoder.end_of_text].all()
        some = [len(windows) - 1, 0]
        assert (windows.starts(some) == starts[some]).all()
    assert len(list(build.folder.glob("train-*.bin"))) > 1


def test_a_torn_shard_is_named(corpus, tokenizer, tmp_path):
    build = new_build(tmp_path, "build")
    tokenize(build, TokenizeConfig(context_length=48), corpus=corpus, tokenizer=tokenizer)
    shard = build.folder / "train-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(IntegrityError, match=r"train-00000\.bin"):
        Windows(build.folder, "train")


def test_a_corpus_shorter_than_a_context_is_refused(corpus, tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"tokenize\.context_length"):
        tokenize(
            new_build(tmp_path, "build"), TokenizeConfig(context_length=131_072), corpus=corpus, tokenizer=tokenizer
        )
