import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lm_core.errors import IntegrityError, MachineError, UserError
from lm_core.model.build import build_model
from lm_core.model.weights import load_model, resolve_device, save_model
from lm_core.training.config import ModelConfig

CONFIG = ModelConfig(num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, d_ff=48, init="normal")
VANILLA = {"kind": "vanilla", "num_kv_heads": 4, "activation": "gelu"}


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, {"qk_norm": False, "rope_base": 500.0}, VANILLA])
def test_a_model_comes_back_from_disk_as_it_was(tmp_path, changes):
    config = CONFIG.model_copy(update=changes)
    model = build_model(config, vocab_size=60, context_length=16, seed=0).eval()
    digest = save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    tokens = torch.randint(0, 60, (2, 10))
    assert (loaded.config, loaded.vocab_size, loaded.context_length) == (config, 60, 16)
    assert torch.equal(model(tokens), loaded(tokens))
    assert save_model(loaded, tmp_path) == digest


def test_weights_that_do_not_fit_are_named(tmp_path):
    save_model(build_model(CONFIG, vocab_size=60, context_length=16, seed=0), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({**state, "model.norm.weight": torch.ones(5)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.norm\.weight is \[5\], wanted \[32\]"):
        load_model(tmp_path)
    del state["model.norm.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.norm\.weight is missing"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("num_attention_heads", 5), ("model_type", "gpt2"), ("vocab_size", "many"), (None, None)]
)
def test_a_bad_config_is_one_line_naming_the_file(tmp_path, field, value):
    save_model(build_model(CONFIG, vocab_size=60, context_length=16, seed=0), tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text("[]" if field is None else json.dumps(content | {field: value}))
    with pytest.raises(UserError, match=r"config\.json") as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(MachineError, match="cuda:63"):
        resolve_device("cuda:63")
    with pytest.raises(UserError, match="device=abacus"):
        resolve_device("abacus")
