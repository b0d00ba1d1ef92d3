"""A visual model in use: served by MLflow and asked on the command line, it answers about the pictures it is given."""

from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from flows.commands.use import _answered_at_once
from lm_core.errors import UserError
from lm_core.vision.answerer import PictureAnswerer, has_eyes
from tasks.served_model import LanguageModel
from tests.vision.tiny_pictures import draw


@pytest.fixture(scope="module")
def folder(tuned):
    return tuned("own_pictures", "prefix").folder


@pytest.fixture(scope="module")
def new_pictures():
    generator = np.random.default_rng(99)
    return [draw(colour, shape, generator) for colour in ("red", "blue") for shape in ("square", "disc")]


def test_the_served_model_sees_what_it_is_given(folder, new_pictures):
    served = LanguageModel()
    served.load_context(SimpleNamespace(artifacts={"checkpoint": str(folder)}))
    asked = pd.DataFrame({"prompt": ["what colour is it?"] * 4, "picture": new_pictures})
    assert served.predict(None, asked)["text"].tolist() == ["red", "red", "blue", "blue"]


def test_the_command_answers_about_a_picture_and_says_what_is_missing(folder, world, new_pictures, tmp_path, capsys):
    (tmp_path / "red.png").write_bytes(new_pictures[0])
    options = Namespace(model="eyes", prompt="is it red?", picture=tmp_path / "red.png", max_new_tokens=8)
    assert _answered_at_once(options, folder) == {"text": "yes"}
    with pytest.raises(UserError, match="name one with --picture"):
        _answered_at_once(Namespace(model="eyes", prompt="is it red?", picture=None, max_new_tokens=8), folder)
    with pytest.raises(UserError, match="cannot see"):
        _answered_at_once(options, world.base.folder)
    options.picture = tmp_path / "not_there.png"
    with pytest.raises(UserError, match="No such file"):
        _answered_at_once(options, folder)
    assert not has_eyes(world.base.folder)


def test_bytes_that_are_no_picture_are_named(folder):
    with pytest.raises(UserError, match="picture 1 cannot be read"):
        PictureAnswerer(folder)([b"GIF89a"], ["what colour is it?"])


def test_a_picture_too_few_is_said(folder):
    with pytest.raises(UserError, match="each prompt needs its picture"):
        PictureAnswerer(folder)([], ["what colour is it?"])
