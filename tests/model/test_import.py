"""What is exported can be imported, and computes the same; what does not fit is refused in one line."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Encoder

from lm_core import stages
from lm_core.artifact import Checkpoint
from lm_core.errors import IntegrityError, UserError
from lm_core.model.export import export_huggingface
from lm_core.model.import_config import ImportConfig
from lm_core.model.import_huggingface import import_model
from lm_core.model.weights import load_model
from lm_core.runtime import Runtime
from lm_core.store import Store
from lm_core.tokenizer import CONTROL_TOKENS, SINGLE_DIGITS, load_tokenizer
from tests.model.test_export import checkpoint
from tests.training.corpus_files import docstrings, new_build

FOREIGN, ALPHABET = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], pre_tokenizers.ByteLevel.alphabet()
LAYOUTS = [{}, {"qk_norm": False}, {"tie_embeddings": False}, {"head_width": 32}]


@pytest.fixture
def exported(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    checkpoint(tmp_path / "checkpoint")
    export_huggingface(tmp_path / "checkpoint", tmp_path / "export")
    return tmp_path / "export"


def brought_in(folder, root, **settings):
    build = new_build(root, "import")
    return build.folder, import_model(build, ImportConfig(folder=str(folder), **settings))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["qwen3", "llama", "untied", "wide heads"])
def test_an_export_comes_back_as_the_same_model(tmp_path, layout):
    (tmp_path / "checkpoint").mkdir()
    model = checkpoint(tmp_path / "checkpoint", **layout)
    export_huggingface(tmp_path / "checkpoint", tmp_path / "export")
    folder, statistics = brought_in(tmp_path / "export", tmp_path)
    again = load_model(folder)
    assert again.config == model.config
    tokens = torch.randint(5, model.vocab_size, (2, 40))
    with torch.no_grad():
        assert torch.equal(again(tokens), model(tokens))
    assert statistics["added_tokens"] == 0
    assert (folder / "tokenizer.json").exists()


def test_a_model_of_transformers_in_shards_and_half_precision(tmp_path, exported):
    """As it would come from elsewhere: bf16, in shards, rows to spare, none of our control tokens but one."""
    transformers = pytest.importorskip("transformers", reason="the extra `export` is not installed")
    config = transformers.Qwen3Config(
        vocab_size=420, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=7,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    foreign = tmp_path / "foreign"
    transformers.Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(foreign, max_shard_size="40KB")
    stock = transformers.AutoModelForCausalLM.from_pretrained(
        foreign, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    assert len(list(foreign.glob("*.safetensors"))) > 1
    content = json.loads((exported / "tokenizer.json").read_text())
    lost = {entry["content"]: f"<|other{i}|>" for i, entry in enumerate(content["added_tokens"]) if i}
    for entry in content["added_tokens"]:
        entry["content"] = lost.get(entry["content"], entry["content"])
    content["model"]["vocab"] = {lost.get(token, token): i for token, i in content["model"]["vocab"].items()}
    (foreign / "tokenizer.json").write_text(json.dumps(content))
    size = len(content["model"]["vocab"])

    folder, statistics = brought_in(foreign, tmp_path, context_length=32)
    model, tokenizer = load_model(folder), load_tokenizer(folder / "tokenizer.json")
    assert statistics["added_tokens"] == len(CONTROL_TOKENS) - 1
    assert model.vocab_size == tokenizer.vocab_size == size + len(CONTROL_TOKENS) - 1
    assert model.context_length == 32
    tokens = torch.randint(0, size, (2, 30))
    with torch.no_grad():
        assert torch.equal(model(tokens)[..., :size], stock(tokens).logits[..., :size])


def smollm_tokenizer():
    encoder = Encoder(models.BPE())
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=FOREIGN, initial_alphabet=ALPHABET)
    encoder.train_from_iterator(docstrings(), trainer)
    return encoder


def qwen_tokenizer():
    encoder = Encoder(models.BPE())
    encoder.normalizer = normalizers.NFC()
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SINGLE_DIGITS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    encoder.train_from_iterator(docstrings(), trainers.BpeTrainer(vocab_size=400, initial_alphabet=ALPHABET))
    encoder.add_special_tokens(FOREIGN)
    encoder.add_tokens(["<think>"])
    return encoder


@pytest.mark.parametrize("foreign", [smollm_tokenizer, qwen_tokenizer])
def test_tokenizers_of_others_keep_their_ids_and_gain_our_control_tokens(tmp_path, exported, foreign):
    encoder = foreign()
    encoder.decoder = decoders.ByteLevel()
    encoder.save(str(exported / "tokenizer.json"))
    size = encoder.get_vocab_size()
    with_config(vocab_size=512, bos_token_id=encoder.token_to_id("<|im_start|>"))(exported)
    with_weights(lambda state: state.update({"model.embed_tokens.weight": torch.randn(512, 96)}))(exported)
    folder, statistics = brought_in(exported, tmp_path)
    tokenizer, model = load_tokenizer(folder / "tokenizer.json"), load_model(folder)
    assert statistics["added_tokens"] == len(CONTROL_TOKENS) - 1  # <|endoftext|> was there
    assert tokenizer.vocab_size == model.vocab_size == size + len(CONTROL_TOKENS) - 1
    assert tokenizer.end_of_text == encoder.token_to_id("<|endoftext|>")
    text = "some naïve text 42 <|im_start|>"
    encoder.encode_special_tokens = True
    assert tokenizer.encode(text) == encoder.encode(text).ids
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert sum(int(tokenizer.token_bytes[i]) for i in tokenizer.encode(text)) == len(text.encode())


def with_config(**changes):
    def spoil(folder):
        content = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(content))

    return spoil


def without(*names):
    def spoil(folder):
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({k: v for k, v in content.items() if k not in names}))

    return spoil


def with_weights(change):
    def spoil(folder):
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return spoil


def with_index(*names):
    def spoil(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys("ab", names[0])}))

    return spoil


def with_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def with_tokenizer(**changes):
    def spoil(folder):
        content = json.loads((folder / "tokenizer.json").read_text()) | changes
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return spoil


def with_more_entries(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    size = len(content["model"]["vocab"])
    content["added_tokens"] += [
        content["added_tokens"][0] | {"id": size + i, "content": f"<|more{i}|>"} for i in range(3)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def set_nan(state):
    state["model.norm.weight"][3] = torch.nan


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (with_config(model_type="gpt2"), "model_type is 'gpt2'"),
        (with_config(rope_scaling={"rope_type": "yarn", "factor": 4}), "rope_scaling"),
        (with_config(rope_parameters={"rope_type": "llama3"}), "rope_type='llama3'"),
        (with_config(attention_bias=True), "attention_bias"),
        (with_config(quantization_config={"bits": 4}), "quantization_config"),
        (with_config(layer_types=["sliding_attention"]), "sliding_attention"),
        (with_config(hidden_act="gelu_new"), "hidden_act"),
        (with_config(layer_types=5), "layer_types holds '5'"),
        (with_config(layer_types=[["a"]]), "layer_types holds"),
        (with_config(hidden_size="wide"), 'hidden_size="wide" must be a whole number'),
        (with_config(num_hidden_layers=True), "num_hidden_layers=true"),
        (with_config(vocab_size=-5), "vocab_size=-5"),
        (with_config(max_position_embeddings=0), "max_position_embeddings=0"),
        (with_config(max_position_embeddings=200_000), "max_position_embeddings=200000 is more .* --context-length"),
        (with_config(max_position_embeddings=10**30), "max_position_embeddings=1000"),
        (with_config(num_key_value_heads=3), "num_kv_heads=3"),
        (with_config(rope_parameters=None, rope_theta=None), "rope_theta"),
        (without("max_position_embeddings"), "max_position_embeddings is missing"),
        (without("num_hidden_layers"), "num_hidden_layers is missing"),
        (without("intermediate_size"), "intermediate_size is missing"),
        (with_config(num_hidden_layers=3), r"layers\.2\.\S+ is missing"),
        (with_config(num_hidden_layers=1), "has no place"),
        (with_config(intermediate_size=65_536, num_hidden_layers=256), "is missing|wanted"),
        (with_config(vocab_size=300), "vocab_size=300"),
        (with_config(model_type="llama"), "k_norm.weight has no place"),
        (with_weights(lambda state: state.pop("model.norm.weight")), r"model\.norm\.weight is missing"),
        (with_weights(lambda state: state.update(extra=torch.zeros(1))), "extra has no place"),
        (with_weights(lambda state: state.update({"model.norm.weight": torch.ones(95)})), "norm.weight is"),
        (with_weights(lambda state: state.update({"model.norm.weight": torch.ones(96).to(torch.int8)})), "quantised"),
        (with_weights(set_nan), "NaN"),
        (with_pickle, "is a pickle"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (with_index("../../secret.safetensors"), "beside it"),
        (with_index("part.safetensors"), "part.safetensors is missing"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "config.json").write_text("[]"), "no JSON object"),
        (with_tokenizer(decoder={"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"}), "ByteLevel"),
        (with_tokenizer(added_tokens=7), "added_tokens"),
        (with_more_entries, r"tokenizer\.json has \d+ entries, the embedding \d+ rows"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, exported, spoil, message):
    spoil(exported)
    with pytest.raises(UserError, match=message) as error:
        brought_in(exported, tmp_path)
    assert "\n" not in str(error.value)


def test_what_a_config_leaves_out_is_what_transformers_takes(tmp_path):
    """As older files of Llama: neither the heads of keys nor whether the embeddings are tied."""
    (tmp_path / "checkpoint").mkdir()
    model = checkpoint(tmp_path / "checkpoint", qk_norm=False, tie_embeddings=False, num_kv_heads=4)
    export_huggingface(tmp_path / "checkpoint", tmp_path / "export")
    names = "num_key_value_heads", "tie_word_embeddings", "head_dim", "rope_parameters", "rope_theta", "rms_norm_eps"
    without(*names, "hidden_act", "initializer_range", "dropout", "init")(tmp_path / "export")
    folder, _ = brought_in(tmp_path / "export", tmp_path)
    again, tokens = load_model(folder), torch.randint(5, model.vocab_size, (2, 40))
    with torch.no_grad():
        assert torch.equal(again(tokens), model(tokens))
    with_config(max_position_embeddings=1 << 20)(tmp_path / "export")
    _, statistics = brought_in(tmp_path / "export", tmp_path / "shorter", context_length=32)
    assert statistics["context_length"] == 32


def test_a_torn_file_of_weights_is_named(tmp_path, exported):
    path = exported / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(IntegrityError, match=r"model\.safetensors cannot be read"):
        brought_in(exported, tmp_path)


def test_the_stage_knows_a_checkpoint_by_its_content(tmp_path, exported):
    store = Store(Runtime(workspace=tmp_path / "workspace"))
    made, cached = store.build(stages.IMPORT, ImportConfig(folder=str(exported)), {})
    assert isinstance(made, Checkpoint)
    assert not cached
    moved = exported.rename(exported.with_name("elsewhere"))
    assert store.build(stages.IMPORT, ImportConfig(folder=str(moved)), {}) == (made, True)
    with_weights(lambda state: state["model.norm.weight"].add_(1))(moved)
    assert store.build(stages.IMPORT, ImportConfig(folder=str(moved)), {})[0].fingerprint != made.fingerprint
