"""Pictures as bytes become pixels; one that does not decode is named, never guessed."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
WHITE = (255, 255, 255, 255)
MAX_PIXELS = 1 << 24
# Formats whose decoders stand in Pillow itself; others call programs (PostScript) or are rare.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
PIXELS, NAMES = "pictures.safetensors", "pictures.json"


class BadPicture(Exception):  # noqa: N818, a picture's fate, counted by the reader
    """Bytes that are no picture."""


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures by name.

    Attributes:
        pixels: (N, 3, size, size).
        number: name -> place in `pixels`.
    """

    pixels: Pixels
    number: Mapping[str, int]


def decode(content: bytes | None, size: int) -> Pixels:
    """One picture as (3, size, size); transparent parts become white.

    Raises:
        BadPicture: saying what is wrong.
    """
    from PIL import Image

    if not content:
        raise BadPicture("there are no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a large picture, which is refused below
            with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise BadPicture(f"{picture.width} x {picture.height} pixels are more than {MAX_PIXELS}")
                coloured = picture.convert("RGBA")
    except BadPicture:
        raise
    except Exception as error:  # decoders raise many kinds on hostile bytes: OSError, SyntaxError, struct.error, ...
        raise BadPicture(_first_line(error)) from None
    flat = Image.alpha_composite(Image.new("RGBA", coloured.size, WHITE), coloured).convert("RGB")
    if flat.size != (size, size):
        flat = flat.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(flat, np.uint8).transpose(2, 0, 1)


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    said = lines[0] if lines else type(error).__name__
    return "the bytes are no picture of a known format" if said.startswith("cannot identify") else said


def encode_png(pixels: Pixels) -> bytes:
    """A picture (3, S, S) as the bytes of a PNG file, to be looked at."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(stream, format="PNG")
    return stream.getvalue()


def stack(named: Mapping[str, Pixels], size: int) -> Pictures:
    """Decoded pictures in the order given."""
    pixels = np.stack(list(named.values())) if named else np.zeros((0, 3, size, size), np.uint8)
    return Pictures(pixels, {name: place for place, name in enumerate(named)})


def save_pictures(pictures: Pictures, folder: Path) -> None:
    """Write pixels and names."""
    from safetensors.numpy import save_file

    save_file({"pixels": np.ascontiguousarray(pictures.pixels)}, folder / PIXELS)
    (folder / NAMES).write_text(json.dumps(list(pictures.number), ensure_ascii=False))


def load_pictures(folder: Path) -> Pictures:
    """What `save_pictures` wrote."""
    from safetensors.numpy import load_file

    names = json.loads((folder / NAMES).read_text())
    return Pictures(load_file(folder / PIXELS)["pixels"], {name: place for place, name in enumerate(names)})


def blank_png(size: int = 16) -> bytes:
    """A white picture as the bytes of a PNG file: an example of what a visual model takes."""
    return encode_png(np.full((3, size, size), 255, np.uint8))
