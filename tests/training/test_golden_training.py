"""What the stages of this room compute, pinned by version: values may not move while the version stands.

When a test fails because you meant to change the values: raise the stage's `version` in lm_core/stages.py and put the
new values here, under the new version.
"""

import hashlib

import pytest

from lm_core.artifact import TokenDataset, Tokenizer
from lm_core.stages import PRETRAIN, TOKENIZE, TRAIN_TOKENIZER
from lm_core.tokenizer import train_tokenizer
from lm_core.tokens import tokenize
from lm_core.training.config import ModelConfig, OptimizationConfig, PretrainConfig, TokenizeConfig, TokenizerConfig
from lm_core.training.pretrain import pretrain
from tests.training.corpus_files import new_build, valid_corpus

HOW = "values moved but the version of {} did not: raise it in lm_core/stages.py and write the new values here"
TEXTS = [
    f"The {animal} number {i} crossed the {place} before {hour} o'clock; nobody in the {place} had seen a {animal}."
    for i, (animal, place, hour) in enumerate(
        (a, p, h)
        for a in ("otter", "heron", "badger", "lynx")
        for p in ("mill", "river", "orchard")
        for h in range(1, 9)
    )
]

TOKENIZER_BY_VERSION = {2: "3c438315a3fd0cd9"}
TOKENS_BY_VERSION = {1: "34a60e1bcfc7426e"}
LOSSES_BY_VERSION = {3: (4.8330659, 1.7038115)}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("golden")
    corpus = valid_corpus(root, TEXTS)
    first, second = new_build(root, "tokenizer"), new_build(root, "tokens")
    train_tokenizer(first, TokenizerConfig(vocab_size=320), corpus=corpus)
    tokenizer = Tokenizer(first.folder, "", "", "")
    tokenize(second, TokenizeConfig(context_length=32), corpus=corpus, tokenizer=tokenizer)
    return tokenizer, TokenDataset(second.folder, "", "", "")


def digest(folder) -> str:
    content = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".bin") and not path.name.startswith("record"):
            content.update(path.name.encode() + path.read_bytes())
    return content.hexdigest()[:16]


def test_tokenizer(built):
    assert digest(built[0].folder) == TOKENIZER_BY_VERSION[TRAIN_TOKENIZER.version], HOW.format("TRAIN_TOKENIZER")


def test_token_shards(built):
    assert digest(built[1].folder) == TOKENS_BY_VERSION[TOKENIZE.version], HOW.format("TOKENIZE")


def test_pretraining(built, tmp_path):
    tokenizer, tokens = built
    config = PretrainConfig(
        model=ModelConfig(num_layers=2, d_model=32, num_heads=2, num_kv_heads=1, d_ff=48),
        optimization=OptimizationConfig(batch_tokens=256, micro_batch_tokens=256),
        train_tokens=256 * 20,
        validation_tokens=640,
    )
    statistics = pretrain(new_build(tmp_path, "a"), config, tokens=tokens, tokenizer=tokenizer)
    expected = LOSSES_BY_VERSION[PRETRAIN.version]
    # Other processors round otherwise: a percent is far above rounding and far below a change of the recipe.
    found = statistics["train_loss"], statistics["val_bits_per_byte"]
    assert found == pytest.approx(expected, rel=0.01), HOW.format("PRETRAIN")
