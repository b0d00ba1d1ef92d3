"""Models on disk: model.safetensors and config.json, in Hugging Face's names. No pickle anywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lm_core.errors import IntegrityError, MachineError, UserError
from lm_core.model.build import empty_model
from lm_core.model.language_model import LanguageModel
from lm_core.tokenizer import MAX_VOCAB_SIZE, num_entries
from lm_core.training.config import ModelConfig

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
MODEL_TYPES = {"decoder": "qwen3", "vanilla": "vanilla_transformer"}
HF_NAMES = {
    "num_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "d_ff": "intermediate_size",
    "activation": "hidden_act",
    "tie_embeddings": "tie_word_embeddings",
    "norm_epsilon": "rms_norm_eps",
    "init_std": "initializer_range",
}
OWN_NAMES = ("dropout", "init")
KINDS = {"qwen3": "decoder", "llama": "decoder", "vanilla_transformer": "vanilla"}
# What `transformers` takes where a config.json of Qwen3 or Llama says nothing, if it is not what ModelConfig takes.
HF_DEFAULTS, QWEN3_HEAD_WIDTH = {"tie_word_embeddings": False}, 128
# Fields that no config.json may leave out, and the largest value of each.
SIZES = {"num_hidden_layers": 256, "hidden_size": 16_384, "num_attention_heads": 256, "intermediate_size": 65_536,
         "vocab_size": MAX_VOCAB_SIZE, "max_position_embeddings": 1 << 27}  # fmt: skip
MAX_CONTEXT_LENGTH = 131_072


def resolve_device(name: str) -> torch.device:
    """The device that a runtime names; "auto" is a GPU when there is one.

    Raises:
        MachineError: when the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device={name} is not a device to train on; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MachineError(f"device={name} is not there: this machine has {torch.cuda.device_count()} GPUs")
    return device


def hf_config(model: LanguageModel) -> dict[str, Any]:
    """config.json of a model, as `transformers` reads it."""
    config = model.config
    content = {hf: getattr(config, own) for own, hf in HF_NAMES.items()} | {n: getattr(config, n) for n in OWN_NAMES}
    llama = config.kind == "decoder" and not config.qk_norm
    architecture = "VanillaTransformer" if config.kind == "vanilla" else "LlamaForCausalLM" if llama else None
    return content | {
        "architectures": [architecture or "Qwen3ForCausalLM"],
        "model_type": "llama" if llama else MODEL_TYPES[config.kind],
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.context_length,
        "head_dim": config.width_of_heads,
        "rope_theta": config.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "torch_dtype": "float32",
    }


def read_config(path: Path) -> tuple[ModelConfig, int, int]:
    """Architecture, vocabulary size and context length from a config.json.

    Fields that it may leave out have the values that `transformers` gives them.

    Raises:
        UserError: naming the file and the field.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("model_type") not in KINDS:
            raise UserError(
                f"{path}: model_type is {content.get('model_type')!a}; it must be one of {', '.join(KINDS)}"
            )
        sizes = {hf: _size(path, content, hf) for hf in SIZES}
        return _architecture(content, sizes), sizes["vocab_size"], sizes["max_position_embeddings"]
    except ValidationError as error:
        first = error.errors()[0]
        names = HF_NAMES | {"rope_base": "rope_theta", "head_width": "head_dim"}
        field = ".".join(names.get(str(part), str(part)) for part in first["loc"])
        raise UserError(f"{path}: {field}: {first['msg']}") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as a model's config.json ({error})") from None


def check_context_length(path: Path, context_length: int) -> int:
    """The context length of a model, unless it is longer than any may be.

    Raises:
        UserError: naming the file it is from.
    """
    if context_length > MAX_CONTEXT_LENGTH:
        raise UserError(
            f"{path}: max_position_embeddings={context_length} is more than the {MAX_CONTEXT_LENGTH} tokens that a "
            "model here may see; import it with a --context-length"
        )
    return context_length


def _size(path: Path, content: Mapping[str, Any], name: str) -> int:
    if name not in content:
        raise UserError(f"{path}: {name} is missing")
    size = content[name]
    if type(size) is not int or not 1 <= size <= SIZES[name]:
        shown = json.dumps(size)[:40]
        raise UserError(f"{path}: {name}={shown} must be a whole number from 1 to {SIZES[name]}")
    return size


def _architecture(content: Mapping[str, Any], sizes: Mapping[str, int]) -> ModelConfig:
    model_type, named = content["model_type"], {**HF_DEFAULTS, **content}
    if named.get("num_key_value_heads") is None:  # older files of Llama
        named["num_key_value_heads"] = sizes["num_attention_heads"]
    fields = {own: named[hf] for own, hf in HF_NAMES.items() if hf in named}
    fields |= {name: content[name] for name in OWN_NAMES if name in content}
    fields["kind"] = KINDS[model_type]
    if fields["kind"] == "decoder":
        width = int(content.get("head_dim", QWEN3_HEAD_WIDTH if model_type == "qwen3" else 0) or 0)
        fields["head_width"] = 0 if width * fields["num_heads"] == fields["d_model"] else width
        fields["qk_norm"] = model_type != "llama"
        rope = content.get("rope_parameters") or {}
        fields["rope_base"] = rope.get("rope_theta", content.get("rope_theta", 10_000.0))
    return ModelConfig(**fields)


def state_in_hf_names(model: LanguageModel) -> dict[str, Tensor]:
    """Weights under Hugging Face's names, on the CPU, contiguous."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in _in_hf_names(model).items()}


def _in_hf_names(model: LanguageModel) -> dict[str, Tensor]:
    prefix = "model." if model.config.kind == "decoder" else ""
    return {
        name if name.startswith("lm_head") else prefix + name: tensor
        for name, tensor in sorted(model.state_dict().items())
    }


def load_state(model: LanguageModel, state: Mapping[str, Tensor], source: Path) -> None:
    """Fill a model with weights under Hugging Face's names; a model on the meta device takes the tensors themselves.

    Raises:
        UserError: naming the first tensor that is missing, unexpected or of another shape.
    """
    wanted = _in_hf_names(model)
    for name in sorted(wanted.keys() | state.keys()):
        if name not in state:
            raise UserError(f"{source}: tensor {name} is missing")
        if name not in wanted:
            raise UserError(f"{source}: tensor {name} has no place in this architecture")
        if state[name].shape != wanted[name].shape:
            raise UserError(f"{source}: tensor {name} is {[*state[name].shape]}, wanted {[*wanted[name].shape]}")
    own = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    model.load_state_dict(own, assign=any(tensor.is_meta for tensor in wanted.values()))


def save_model(model: LanguageModel, folder: Path) -> str:
    """Write model.safetensors and config.json; returns the SHA-256 (hex) of the weights' file."""
    save_file(state_in_hf_names(model), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(hf_config(model), indent=1, sort_keys=True))
    with open(folder / WEIGHTS, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_tokenizer(path: Path, vocab_size: int) -> None:
    """Refuse ids without a row in the embedding, wherever the two are used: in training, scoring, speaking, export."""
    if path.exists() and (entries := num_entries(path)) != vocab_size:
        raise UserError(
            f"{path} has {entries} entries, the model's embedding {vocab_size} rows ({path.with_name(CONFIG)}: "
            "vocab_size); bring back the tokenizer it was made with, or `millrace import` the original folder"
        )


def load_model(folder: Path, *, device: str | torch.device = "cpu") -> LanguageModel:
    """The model that `save_model` wrote, ready for inference (eval mode).

    Raises:
        UserError: when the configuration, a tensor or the tokenizer beside them does not fit.
        IntegrityError: when the weights' file is torn.
    """
    config, vocab_size, context_length = read_config(folder / CONFIG)
    _check_tokenizer(folder / TOKENIZER, vocab_size)
    length = check_context_length(folder / CONFIG, context_length)
    model = empty_model(config, vocab_size=vocab_size, context_length=length)
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{folder / WEIGHTS} cannot be read ({error})") from None
    load_state(model, state, folder / WEIGHTS)
    return model.to(resolve_device(device) if isinstance(device, str) else device).eval()
