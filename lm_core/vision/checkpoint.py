"""Visual models on disk: the decoder as any checkpoint, what sees for it beside it."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lm_core.downstream.classifier import PooledClassifier
from lm_core.errors import IntegrityError
from lm_core.model.language_model import LanguageModel
from lm_core.model.weights import load_model, resolve_device, save_model
from lm_core.vision.bag import BagAnswerer
from lm_core.vision.config import VisionConfig
from lm_core.vision.encoder import PatchEncoder
from lm_core.vision.fusion import VisualDecoder

SEEING, VISION = "vision.safetensors", "vision.json"
ANSWERER = "answerer.safetensors"


def visual_decoder_of(model: LanguageModel) -> VisualDecoder:
    """The decoder that sees, with or without a head of labels on top."""
    inner = model.trunk if isinstance(model, PooledClassifier) else model
    assert isinstance(inner, VisualDecoder)
    return inner


def _own_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """All weights but the decoder's."""
    decoder = "trunk.trunk." if isinstance(model, PooledClassifier) else "trunk."
    state = model.state_dict()
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if not name.startswith(decoder)}


def save_visual(model: LanguageModel, folder: Path) -> str:
    """Write decoder and encoder; returns the SHA-256 (hex) of the decoder's file."""
    inner = visual_decoder_of(model)
    labels = list(model.labels) if isinstance(model, PooledClassifier) else []
    save_file(_own_tensors(model), folder / SEEING)
    content = {"vision": inner.vision.model_dump(mode="json"), "labels": labels}
    (folder / VISION).write_text(json.dumps(content, ensure_ascii=False, indent=1))
    return save_model(inner.trunk, folder)


def load_visual(folder: Path, *, device: str = "cpu") -> LanguageModel:
    """The model that `save_visual` wrote, ready for inference; it has yet to be given pictures.

    Raises:
        IntegrityError: when a file cannot be read or does not fit.
    """
    trunk = load_model(folder)
    try:
        content = json.loads((folder / VISION).read_text())
        config = VisionConfig(**content["vision"])
        encoder = PatchEncoder(config.picture_size, config.encoder_width, seed=0)
        model: LanguageModel = VisualDecoder(trunk, config, encoder, seed=0)
        if content["labels"]:
            model = PooledClassifier(model, content["labels"])
        missing, unexpected = model.load_state_dict(load_file(folder / SEEING), strict=False)
        lacking = [name for name in missing if name in _own_tensors(model)]
        if lacking or unexpected:
            raise ValueError(f"tensor {(lacking + unexpected)[0]} is missing or has no place")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise IntegrityError(f"{folder / SEEING} cannot be read ({error}); fine-tune again") from None
    return model.to(resolve_device(device)).eval()


def save_answerer(model: BagAnswerer, folder: Path) -> None:
    """Write the classical answerer, encoder included."""
    save_file({name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}, folder / ANSWERER)
    (folder / VISION).write_text(json.dumps(model.shape, indent=1))


def load_answerer(folder: Path) -> BagAnswerer:
    """The answerer that `save_answerer` wrote.

    Raises:
        IntegrityError: when a file cannot be read or does not fit.
    """
    try:
        shape = json.loads((folder / VISION).read_text())
        model = BagAnswerer(**shape, seed=0)
        model.load_state_dict(load_file(folder / ANSWERER))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise IntegrityError(f"{folder / ANSWERER} cannot be read ({error}); teach the encoder again") from None
    return model.eval()
