"""Export to GGUF, the format of llama.cpp and of what is built on it: weights in fp32 and the tokenizer in one file."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lm_core.errors import MachineError, UserError
from lm_core.model.decoder import Decoder
from lm_core.model.export import CHAT_TEMPLATE, exportable_decoder
from lm_core.model.weights import state_in_hf_names
from lm_core.tokenizer import DIGITS_IN_THREES, SINGLE_DIGITS, TextTokenizer, load_tokenizer

MODEL = "model.gguf"
# llama.cpp knows pre-tokenizers by name. Llama 3's own name would also take whole words from the vocabulary, past the
# merges; dbrx names the same pattern without that.
PRE_TOKENIZERS = {SINGLE_DIGITS: "qwen2", DIGITS_IN_THREES: "dbrx"}
TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def export_gguf(checkpoint: Path, folder: Path) -> None:
    """Write model.gguf.

    Args:
        checkpoint: folder of a `Checkpoint` artifact.
        folder: where to write; made if missing.

    Raises:
        MachineError: when the extra `export` is not installed.
        UserError: for a model or tokenizer that llama.cpp has no counterpart of.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MachineError("gguf is not installed; GGUF needs the extra: pip install millrace[export]")
    import gguf

    model = exportable_decoder(checkpoint, "llama.cpp")
    if model.config.activation != "silu":
        raise UserError(f"llama.cpp knows activation=silu for this architecture, not {model.config.activation}")
    tokenizer = load_tokenizer(checkpoint / "tokenizer.json")
    vocabulary = _vocabulary(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(folder / MODEL, "qwen3" if model.config.qk_norm else "llama")
    _write_architecture(writer, model)
    _write_tokenizer(writer, tokenizer, vocabulary)
    for name, tensor in state_in_hf_names(model).items():
        writer.add_tensor(_gguf_name(name), _in_order_of_pairs(name, tensor, model).float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _vocabulary(tokenizer: TextTokenizer) -> dict[str, Any]:
    """What of tokenizer.json goes into the file: {"pre", "tokens", "special", "merges"}.

    Raises:
        UserError: when llama.cpp would cut text into other tokens.
    """
    content = json.loads(tokenizer.definition)
    if content["model"]["type"] != "BPE":
        raise UserError(f"GGUF holds byte-level BPE, not {content['model']['type']}: train_tokenizer.algorithm=bpe")
    if content["normalizer"]:
        raise UserError(
            "llama.cpp does not normalise text, so it would see other tokens: train_tokenizer.normalisation"
        )
    cutters = (content["pre_tokenizer"] or {}).get("pretokenizers", [])
    pattern = cutters[0].get("pattern", {}).get("Regex") if len(cutters) == 2 else None
    if pattern not in PRE_TOKENIZERS or cutters[1]["type"] != "ByteLevel" or cutters[1]["add_prefix_space"]:
        raise UserError(
            "llama.cpp has no pre-tokenizer that cuts words as this tokenizer does (split_cjk, or a foreign one)"
        )
    added = {entry["id"]: entry for entry in content["added_tokens"]}
    tokens = {i: token for token, i in content["model"]["vocab"].items()} | {i: e["content"] for i, e in added.items()}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    return {
        "pre": PRE_TOKENIZERS[pattern],
        "tokens": [tokens[i] for i in range(len(tokens))],
        "special": [i in added and added[i]["special"] for i in range(len(tokens))],
        "added": [i in added for i in range(len(tokens))],
        "merges": merges,
    }


def _write_architecture(writer: Any, model: Decoder) -> None:
    config = model.config
    head_width = config.width_of_heads
    writer.add_vocab_size(model.vocab_size)
    writer.add_context_length(model.context_length)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(head_width)
    writer.add_value_length(head_width)
    writer.add_rope_dimension_count(head_width)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_file_type(0)  # all tensors are fp32


def _write_tokenizer(writer: Any, tokenizer: TextTokenizer, vocabulary: dict[str, Any]) -> None:
    import gguf

    kinds = zip(vocabulary["special"], vocabulary["added"], strict=True)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary["pre"])
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(
        [
            gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED if added else gguf.TokenType.NORMAL
            for special, added in kinds
        ]
    )
    writer.add_token_merges(vocabulary["merges"])
    writer.add_bos_token_id(tokenizer.end_of_text)
    writer.add_eos_token_id(tokenizer.end_of_text)
    writer.add_eot_token_id(tokenizer.turn_end)
    writer.add_pad_token_id(tokenizer.pad)
    writer.add_add_bos_token(True)  # the mark of a new text stands before it, as in training
    writer.add_chat_template(CHAT_TEMPLATE)


def _gguf_name(name: str) -> str:
    """Name of a tensor in GGUF; its last part (weight) stays."""
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        layer, _, part = stem.removeprefix("model.layers.").partition(".")
        return f"blk.{layer}.{TENSORS[part]}.weight"
    return f"{TENSORS[stem]}.weight"


def _in_order_of_pairs(name: str, tensor: Tensor, model: Decoder) -> Tensor:
    """Rotary pairs are (i, i + K/2) in our layout and in llama.cpp's Qwen3; its Llama has them side by side."""
    heads = {"q_proj": model.config.num_heads, "k_proj": model.config.num_kv_heads}
    part = name.split(".")[-2]
    if model.config.qk_norm or part not in heads:
        return tensor
    return torch.stack(tensor.view(heads[part], 2, -1, tensor.shape[1]).unbind(1), 2).reshape(tensor.shape)
