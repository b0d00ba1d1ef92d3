"""Import of a checkpoint in the layout of Qwen3 or Llama (config.json, *.safetensors, tokenizer.json).

What does not fit exactly is refused: a model that is nearly the same computes something else. Weights become fp32.
Control tokens that the checkpoint lacks are added at the end of its vocabulary; rows of the embedding that stand for no
token are dropped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lm_core.errors import IntegrityError, UserError
from lm_core.model.build import empty_model
from lm_core.model.import_config import ImportConfig
from lm_core.model.weights import CONFIG, WEIGHTS, check_context_length, load_state, read_config, save_model
from lm_core.runtime import Runtime
from lm_core.store import Build, file_sha256
from lm_core.tokenizer import CONTROL_TOKENS, END_OF_TEXT, MAX_FILE_BYTES, load_tokenizer

INDEX, TOKENIZER = "model.safetensors.index.json", "tokenizer.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# Fields of config.json that change the arithmetic, and the only values with which it is ours.
FIXED: Mapping[str, tuple[Any, ...]] = {
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "use_sliding_window": (None, False),
    "rope_scaling": (None,),
    "partial_rotary_factor": (None, 1, 1.0),
    "quantization_config": (None,),
    "pretraining_tp": (None, 1),
}


def source_digests(config: ImportConfig, runtime: Runtime) -> dict[str, str]:
    """SHA-256 of every file that is read: the checkpoint's identity."""
    folder = Path(config.folder)
    return {path.name: file_sha256(path) for path in (folder / CONFIG, folder / TOKENIZER, *_weight_files(folder))}


def import_model(build: Build, config: ImportConfig) -> dict[str, Any]:
    """Write the checkpoint as one of ours: model.safetensors, config.json, tokenizer.json, training.json.

    Raises:
        UserError: naming the file, field or tensor that does not fit.
        IntegrityError: when a file of weights is torn.
    """
    folder = Path(config.folder)
    files = _weight_files(folder)
    content = _read_json(folder / CONFIG)
    _check_architecture(folder / CONFIG, content)
    architecture, vocab_size, context_length = read_config(folder / CONFIG)
    if config.context_length > context_length:
        raise UserError(
            f"context_length={config.context_length} is longer than the checkpoint's {context_length} "
            f"({folder / CONFIG}: max_position_embeddings)"
        )
    context_length = check_context_length(folder / CONFIG, config.context_length or context_length)
    state = _read_weights(files)
    if architecture.tie_embeddings:
        _drop_tied_output(state, folder)
    added = _write_tokenizer(folder / TOKENIZER, build.folder / TOKENIZER, vocab_size)
    tokenizer = load_tokenizer(build.folder / TOKENIZER)
    source = content.get("bos_token_id"), content.get("eos_token_id")
    for name in (EMBEDDING, OUTPUT):
        if name in state:
            if state[name].ndim != 2 or len(state[name]) != vocab_size:
                raise UserError(
                    f"{folder}: tensor {name} is {[*state[name].shape]}; {CONFIG} has vocab_size={vocab_size}"
                )
            state[name] = _with_rows(state[name], tokenizer.vocab_size, added, source)
    with torch.device("meta"):  # nothing is allocated by what a file claims, only by the tensors that are there
        model = empty_model(architecture, vocab_size=tokenizer.vocab_size, context_length=context_length)
    load_state(model, state, folder)
    weights_sha256 = save_model(model, build.folder)
    training = {"imported_from": folder.name, "config": content}
    (build.folder / "training.json").write_text(json.dumps(training, indent=1, sort_keys=True))
    return {
        "num_parameters": model.num_parameters(),
        "vocab_size": tokenizer.vocab_size,
        "added_tokens": len(added),
        "context_length": model.context_length,
        "weights_sha256": weights_sha256,
    }


# --------------------------------------------------------------------------------------------------- what is refused


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else ascii(str(error))
        raise UserError(f"{path} cannot be read ({reason})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    return content


def _check_architecture(path: Path, content: Mapping[str, Any]) -> None:
    if content.get("model_type") not in ("qwen3", "llama"):
        raise UserError(f"{path}: model_type is {content.get('model_type')!a}; qwen3 and llama can be imported")
    for field, allowed in FIXED.items():
        value = content.get(field)
        if value not in allowed:
            raise UserError(f"{path}: {field}={json.dumps(value)[:80]} has no counterpart here")
    rope = content.get("rope_parameters") or {}
    kind = rope.get("rope_type", "default") if isinstance(rope, dict) else rope
    if kind != "default":
        raise UserError(f"{path}: rope_parameters.rope_type={kind!a} has no counterpart here; default alone has one")
    layers = content.get("layer_types") or []
    odd = [layer for layer in layers if layer != "full_attention"] if isinstance(layers, list) else [layers]
    if odd:
        raise UserError(f"{path}: layer_types holds {str(odd[0])[:40]!a}; only full_attention can be imported")


def _weight_files(folder: Path) -> list[Path]:
    """Files of weights, one or as the index names them.

    Raises:
        UserError: when there are none but pickled ones, or the index names a path outside the folder.
    """
    for name in (CONFIG, TOKENIZER):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing; a model to import is a folder with {CONFIG}, {TOKENIZER} and "
                            "*.safetensors")  # fmt: skip
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        pickled = next((path.name for kind in PICKLES for path in sorted(folder.glob(kind))), None)
        if pickled:
            raise UserError(f"{folder / pickled} is a pickle, and loading one runs its code; convert it to safetensors")
        raise UserError(f"{folder / WEIGHTS} is missing")
    shards = _read_json(folder / INDEX).get("weight_map")
    names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
    bad = next((n for n in names if Path(n).name != n or not n.endswith(".safetensors")), None)
    if bad or not names:
        raise UserError(f"{folder / INDEX}: weight_map must name *.safetensors files beside it, not {(bad or '')!a}")
    missing = next((name for name in names if not (folder / name).is_file()), None)
    if missing:
        raise UserError(f"{folder / missing} is missing; {INDEX} names it")
    return [folder / name for name in names]


def _read_weights(files: list[Path]) -> dict[str, Tensor]:
    """All tensors in fp32; buffers that follow from the configuration are left out."""
    state: dict[str, Tensor] = {}
    for path in files:
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise IntegrityError(f"{path} cannot be read ({ascii(str(error))[1:200]})") from None
        for name, tensor in tensors.items():
            if name.endswith("rotary_emb.inv_freq"):
                continue
            if tensor.dtype not in FLOATS:
                raise UserError(f"{path}: tensor {name} is {tensor.dtype}; quantised weights cannot be imported")
            state[name] = tensor.float()
            if not state[name].isfinite().all():
                raise UserError(f"{path}: tensor {name} holds NaN or infinite values")
    return state


def _drop_tied_output(state: dict[str, Tensor], folder: Path) -> None:
    """Some writers store the shared matrix twice."""
    output = state.pop(OUTPUT, None)
    if output is not None and not torch.equal(output, state.get(EMBEDDING, torch.empty(0))):
        raise UserError(f"{folder / CONFIG}: tie_word_embeddings=true, but {OUTPUT} is not the embedding")


# ------------------------------------------------------------------------------------------------------- vocabulary


def _write_tokenizer(source: Path, target: Path, num_rows: int) -> list[str]:
    """Copy tokenizer.json; control tokens that it lacks are added at its end. Returns those added."""
    content = _read_json(source)
    try:
        vocabulary, entries = content["model"]["vocab"], content["added_tokens"]
        names = set(vocabulary) if isinstance(vocabulary, dict) else {token for token, _ in vocabulary}
        known = {entry["content"] for entry in entries}
        size = len(names | known)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{source} is not a tokenizer.json: it needs model.vocab and added_tokens") from None
    if "ByteLevel" not in json.dumps(content.get("decoder")):
        raise UserError(f"{source} does not work on bytes (its decoder is not ByteLevel), so it cannot be imported")
    if size > num_rows:
        raise UserError(f"{source} has {size} entries, the embedding {num_rows} rows ({CONFIG}: vocab_size)")
    added = [token for token in CONTROL_TOKENS if token not in known]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    unlisted = [token for token in added if token in names]
    if unlisted:
        raise UserError(f"{source}: {unlisted[0]} is an ordinary entry of the vocabulary; it must be a special token")
    entries += [{"id": size + i, "content": token, **flags} for i, token in enumerate(added)]
    target.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return added


def _with_rows(matrix: Tensor, size: int, added: list[str], source: tuple[Any, Any]) -> Tensor:
    """The rows that stand for tokens, and one for each token added.

    A mark for the beginning of text starts as the checkpoint's own, whatever it was called; other new tokens start as
    the mean of all.
    """
    kept = matrix[: size - len(added)]
    own = next((i for i in source if isinstance(i, int) and 0 <= i < len(kept)), None)
    rows = [kept[own] if token == END_OF_TEXT and own is not None else kept.mean(0) for token in added]
    return torch.cat([kept, torch.stack(rows)]) if rows else kept.contiguous()
