"""Coloured squares and discs as PNG bytes, and a task that asks about them."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from lm_core.downstream.task import Task

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}
SHAPES = ("square", "disc")
SIZE = 32


def draw(colour: str, shape: str, generator: np.random.Generator, size: int = SIZE) -> bytes:
    tint = tuple(int(part) for part in generator.integers(225, 256, 3))  # no two pictures are alike
    picture = Image.new("RGB", (size, size), tint)
    left, top = generator.integers(0, size // 2, 2)
    box = [int(left), int(top), int(left) + size // 2, int(top) + size // 2]
    pen = ImageDraw.Draw(picture)
    (pen.rectangle if shape == "square" else pen.ellipse)(box, fill=COLOURS[colour])
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


def png(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("1", (width, height)).save(stream, format="PNG")
    return stream.getvalue()


def write_pictures(folder: Path, split: str, pictures: dict[str, bytes]) -> None:
    rows = [{"id": name, "png": content} for name, content in pictures.items()]
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}_pictures.parquet")


def write_questions(folder: Path, split: str, rows: list[tuple[str, str, str]]) -> None:
    table = [dict(zip(("id", "question", "answer"), row, strict=True)) for row in rows]
    pq.write_table(pa.Table.from_pylist(table), folder / f"{split}_questions.parquet")


def write_world(folder: Path, *, train: int = 40, test: int = 24) -> None:
    """Pictures of every colour and shape; of each is asked what colour it has, and whether it is red."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        pictures, questions = {}, []
        for number in range(count):
            colour, shape = list(COLOURS)[number % 2], SHAPES[number // 2 % 2]
            pictures[str(number)] = draw(colour, shape, generator)
            questions.append((str(number), "what colour is it?", colour))
            questions.append((str(number), "is it red?", "yes" if colour == "red" else "no"))
            questions.append((str(number), "is it not red?", "no" if colour == "red" else "yes"))
        write_pictures(folder, split, pictures)
        write_questions(folder, split, questions)


def asking(**values) -> Task:
    """The task over what `write_world` writes."""
    fields = {
        "name": "own_pictures",
        "kind": "visual",
        "files": {s: f"{s}_questions.parquet + {s}_pictures.parquet" for s in ("train", "test")},
        "prompt": "{question}",
        "target": "{answer}",
        "labels": ("no", "yes", "blue", "red"),
        "answer_types": {"yes or no": ("no", "yes"), "colour": ("blue", "red")},
        "picture": "id",
        "metric": "accuracy",
    }
    return Task.model_validate(fields | values)


def naming(**values) -> Task:
    """Captions for pictures that stand beside them in one file."""
    fields = {
        "name": "own_captions",
        "kind": "visual",
        "files": {"all": "captions.parquet"},
        "target": "{caption}",
        "picture": "id",
        "metric": "chrf",
        "max_leak_share": 1.0,
    }
    return Task.model_validate(fields | values)


def write_captions(folder: Path, count: int = 60) -> None:
    generator = np.random.default_rng(1)
    rows = []
    for number in range(count):
        colour, shape = list(COLOURS)[number % 2], SHAPES[number // 2 % 2]
        rows.append({"id": str(number), "caption": f"{colour} {shape}", "png": draw(colour, shape, generator)})
    pq.write_table(pa.Table.from_pylist(rows), folder / "captions.parquet")
