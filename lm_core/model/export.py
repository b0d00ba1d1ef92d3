"""Export in formats that the ecosystem loads: a Hugging Face folder of a stock architecture, or an ONNX graph."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from lm_core.errors import MachineError, UserError
from lm_core.model.decoder import Decoder
from lm_core.model.weights import hf_config, load_model, save_model
from lm_core.tokenizer import (
    ASSISTANT,
    CONTROL_TOKENS,
    END_OF_TEXT,
    PAD,
    TURN_END,
    UNKNOWN,
    USER,
    TextTokenizer,
    load_tokenizer,
)

# Programs that render this template make control tokens of control words, wherever they stand: those that a message
# holds are broken by a space, so that what a person writes stays text.
_BROKEN = "".join(f" | replace('{token}', '{token[:-1]} >')" for token in (*CONTROL_TOKENS, UNKNOWN))
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}" + ASSISTANT + "{% else %}" + USER + "{% endif %}"
    "{{ message['content']" + _BROKEN + " }}" + TURN_END + "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)


def export_huggingface(checkpoint: Path, folder: Path) -> None:
    """Write config.json, model.safetensors, tokenizer.json, tokenizer_config.json and generation_config.json.

    Args:
        checkpoint: folder of a `Checkpoint` artifact.
        folder: where to write; made if missing.

    Raises:
        UserError: for a model that `transformers` has no counterpart of.
    """
    model = exportable_decoder(checkpoint, "Hugging Face")
    tokenizer = load_tokenizer(checkpoint / "tokenizer.json")
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, folder)
    ids = {
        "bos_token_id": tokenizer.end_of_text,
        "eos_token_id": [tokenizer.end_of_text, tokenizer.turn_end],
        "pad_token_id": tokenizer.pad,
    }
    _write(folder / "config.json", hf_config(model) | ids)
    _write(folder / "generation_config.json", ids | {"max_new_tokens": model.context_length // 2})
    _write(
        folder / "tokenizer.json", json.loads(tokenizer.definition) | {"post_processor": _mark_before_text(tokenizer)}
    )
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "pad_token": PAD,
            "additional_special_tokens": [t for t in CONTROL_TOKENS if t not in (END_OF_TEXT, PAD)],
            "model_max_length": model.context_length,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def export_onnx(checkpoint: Path, folder: Path) -> None:
    """Write model.onnx (tokens (B, T) int64 -> logits (B, T, V) fp32, any B and T), config.json and tokenizer.json.

    Args:
        checkpoint: folder of a `Checkpoint` artifact, of either architecture.
        folder: where to write; made if missing.

    Raises:
        MachineError: when the extra `export` is not installed.
        UserError: for a classifier.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise MachineError(f"{' and '.join(missing)} not installed; ONNX needs the extra: pip install millrace[export]")
    _refuse_classifier(checkpoint, "the graph")
    model = load_model(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    tokens = torch.zeros(2, min(model.context_length, 8), dtype=torch.int64)
    sizes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("time", min=1, max=model.context_length)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (tokens,),
            str(folder / "model.onnx"),
            input_names=["tokens"],
            output_names=["logits"],
            dynamic_shapes={"tokens": sizes},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(checkpoint / name, folder / name)


def _mark_before_text(tokenizer: TextTokenizer) -> dict[str, Any]:
    """Other programs put the mark of a new text before each by themselves, as training did."""
    mark = {"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    token = {"id": END_OF_TEXT, "ids": [tokenizer.end_of_text], "tokens": [END_OF_TEXT]}
    return {
        "type": "TemplateProcessing",
        "single": [mark, first],
        "pair": [mark, first, second],
        "special_tokens": {END_OF_TEXT: token},
    }


def exportable_decoder(checkpoint: Path, where: str) -> Decoder:
    """The checkpoint's model, when there is a counterpart of it elsewhere.

    Raises:
        UserError: for a classifier's head and for the vanilla architecture.
    """
    _refuse_classifier(checkpoint, where)
    model = load_model(checkpoint)
    if not isinstance(model, Decoder):
        raise UserError(f"model.kind=vanilla is a reference without a counterpart in {where}; export a decoder")
    return model


def _refuse_classifier(checkpoint: Path, where: str) -> None:
    if (checkpoint / "head.safetensors").exists():
        raise UserError(f"this model is a classifier, and its head has no counterpart in {where}; export its base")


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True))
