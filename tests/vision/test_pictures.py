"""Bytes that are no picture are named by row, never guessed; a bound makes a split with many of them fail."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, Value

from lm_core.downstream.task import Hub
from lm_core.errors import IntegrityError, UserError
from lm_core.vision.config import ReadPicturesConfig
from lm_core.vision.pictures import MAX_PIXELS, BadPicture, decode, encode_png, load_pictures
from lm_core.vision.read_pictures import read_pictures
from tests.vision.conftest import read
from tests.vision.tiny_pictures import SIZE, asking, draw, png, write_pictures, write_questions

GOOD = draw("red", "disc", np.random.default_rng(0))
BAD = {
    "empty": b"",
    "text": b"this is not a picture",
    "cut": GOOD[: len(GOOD) // 2],
    "head alone": GOOD[:30],
    "bomb": png(1 << 13, (MAX_PIXELS >> 13) + 1),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_is_refused(name):
    with pytest.raises(BadPicture):
        decode(BAD[name], SIZE)


def test_damaged_bytes_either_decode_or_are_refused():
    generator = np.random.default_rng(1)
    for _ in range(300):
        content = bytearray(GOOD)
        for place in generator.integers(0, len(content), 3):
            content[place] = generator.integers(0, 256)
        try:
            pixels = decode(bytes(content), SIZE)
        except BadPicture as problem:
            assert str(problem)
        else:
            assert pixels.shape == (3, SIZE, SIZE)


def test_a_picture_survives_as_png():
    pixels = decode(GOOD, SIZE)
    assert (decode(encode_png(pixels), SIZE) == pixels).all()


def _with_bad_rows(folder, pictures, names):
    """The tiny world, some of its training pictures replaced by bad bytes."""
    for path in pictures.glob("*.parquet"):
        shutil.copy(path, folder)
    rows = pq.read_table(folder / "train_pictures.parquet").to_pylist()
    contents = {row["id"]: row["png"] for row in rows}
    contents |= {str(number): BAD[name] for number, name in enumerate(names)}
    write_pictures(folder, "train", contents)


def test_bad_pictures_are_counted_and_named_by_row(world, pictures, tmp_path):
    names = ["text", "cut", "bomb"]
    _with_bad_rows(tmp_path, pictures, names)
    examples = read(world, asking(max_bad_share=0.2), tmp_path, "read_bad")
    assert examples.statistics["bad_rows"] == {"picture_does_not_decode": 3, "without_picture": 9}
    bad = pq.read_table(examples.file("bad_rows.parquet")).to_pylist()
    undecoded = [row for row in bad if row["reason"] == "picture_does_not_decode"]
    assert [(row["file"], row["row"]) for row in undecoded] == [("train_pictures.parquet", n) for n in range(3)]
    assert "pixels are more than" in undecoded[2]["detail"]
    kept = {row["group"] for row in pq.read_table(examples.file("examples.parquet")).to_pylist()}
    assert not kept & {"train/0", "train/1", "train/2"} and set(load_pictures(examples.folder).number) == kept


def test_too_many_bad_pictures_fail(world, pictures, tmp_path):
    _with_bad_rows(tmp_path, pictures, ["text"])
    with pytest.raises(IntegrityError, match=r"train_pictures.parquet row 0: picture_does_not_decode"):
        read(world, asking(max_bad_share=0.01), tmp_path, "read_too_many")


def test_a_label_outside_the_set_and_a_missing_column(world, pictures, tmp_path):
    for path in pictures.glob("*.parquet"):
        shutil.copy(path, tmp_path)
    write_questions(tmp_path, "test", [("0", "what colour is it?", "mauve"), ("1", "what colour is it?", "blue")])
    with pytest.raises(IntegrityError, match="label_outside_the_set: 'mauve'"):
        read(world, asking(), tmp_path, "read_mauve")
    with pytest.raises(UserError, match="no file of train has the columns text"):
        read(world, asking(prompt="{text}"), tmp_path, "read_no_column")


def test_a_picture_of_two_splits_leaves_training(world, pictures, tmp_path):
    for path in pictures.glob("*.parquet"):
        shutil.copy(path, tmp_path)
    held_out = pq.read_table(tmp_path / "test_pictures.parquet").to_pylist()[0]["png"]
    train = {row["id"]: row["png"] for row in pq.read_table(tmp_path / "train_pictures.parquet").to_pylist()}
    write_pictures(tmp_path, "train", train | {"7": held_out})
    with pytest.raises(IntegrityError, match="picture train/7 is also held out as test/0"):
        read(world, asking(max_leak_share=0.0), tmp_path, "read_leak")
    examples = read(world, asking(max_leak_share=0.5), tmp_path, "read_leak_allowed")
    assert "train/7" not in {row["group"] for row in pq.read_table(examples.file("examples.parquet")).to_pylist()}


@pytest.fixture
def data_set(tmp_path):
    """Writes a data set as the hub holds it, and names it by its folder: two questions about each picture."""

    def write(contents: list[bytes]) -> str:
        features = Features({"image": Image(), "question": Value("string"), "said": Value("string")})
        rows = [
            {"image": {"bytes": content, "path": None}, "question": question, "said": answer}
            for number, content in enumerate(contents)
            for question, answer in (
                ("what colour is it?", "red" if number % 2 else "blue"),
                ("is it red?", "yes" if number % 2 else "no"),
                ("how many mills are there?", "7"),
            )
        ]
        folder = tmp_path / "data_set"
        folder.mkdir()
        Dataset.from_list(rows, features=features).to_parquet(folder / "train-00000-of-00001.parquet")
        return str(folder)

    return write


def hub_task(name: str, **values):
    labels = ("no", "yes", "blue", "red")
    hub = Hub(name=name, splits={"all": "train"}, rename={"said": "answer"}, keep={"answer": labels})
    return asking(hub=hub, labels=labels, keep={"only_in_our_files": ("1",)}, **values)


def read_hub_pictures(world, task, name):
    build = world.build(name)
    return build.folder, read_pictures(build, ReadPicturesConfig(task=task, data="hub", picture_size=SIZE))


def test_pictures_of_a_data_set_of_the_hub_stay_in_one_split_with_all_their_questions(world, data_set):
    generator = np.random.default_rng(5)
    task = hub_task(data_set([draw(("blue", "red")[n % 2], "disc", generator) for n in range(40)]))
    folder, statistics = read_hub_pictures(world, task, "read_hub_pictures")
    rows = pq.read_table(folder / "examples.parquet").to_pylist()
    assert statistics["pictures"] == 40 and len(rows) == 80 and not statistics["bad_rows"]
    split_of = {row["group"]: row["split"] for row in rows}
    assert all(split_of[row["group"]] == row["split"] for row in rows)
    assert set(split_of.values()) >= {"train", "test"} and len(split_of) == 40


def test_a_bad_picture_of_the_hub_is_named_by_its_row(world, data_set):
    generator = np.random.default_rng(5)
    contents = [draw("blue", "disc", generator) for _ in range(40)]
    contents[3] = BAD["text"]
    name = data_set(contents)
    folder, _ = read_hub_pictures(world, hub_task(name, max_bad_share=0.1), "read_hub_bad")
    bad = pq.read_table(folder / "bad_rows.parquet").to_pylist()
    assert {(row["row"], row["reason"]) for row in bad if row["reason"] == "picture_does_not_decode"} == {
        (9, "picture_does_not_decode"),
        (10, "picture_does_not_decode"),
    }
    with pytest.raises(IntegrityError, match="row 9: picture_does_not_decode"):
        read_hub_pictures(world, hub_task(name, max_bad_share=0.0), "read_hub_too_bad")


def test_a_question_that_lacks_its_answer_is_named(world, pictures, tmp_path):
    for path in pictures.glob("*.parquet"):
        shutil.copy(path, tmp_path)
    rows = pq.read_table(tmp_path / "train_questions.parquet").to_pylist()
    del rows[5]["answer"]
    rows[6]["question"] = {"text": "is it red?"}
    (tmp_path / "train_questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"train": "train_questions.jsonl + train_pictures.parquet", "test": asking().files["test"]}
    examples = read(world, asking(files=files, max_bad_share=0.05), tmp_path, "read_no_answer")
    bad = pq.read_table(examples.file("bad_rows.parquet")).to_pylist()
    named = [(row["file"], row["row"], row["reason"]) for row in bad]
    assert named == [("train_questions.jsonl", 5, "missing_column"), ("train_questions.jsonl", 6, "wrong_type")]
