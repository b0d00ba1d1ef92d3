"""The file that MLflow runs by itself: what it answers is what the model says."""

import argparse
import json
from types import SimpleNamespace

import pandas as pd
import pytest

from flows.commands.use import _answered_at_once, _written
from lm_core.downstream.classifier import PooledClassifier, save_finetuned
from lm_core.downstream.labeller import Labeller
from lm_core.errors import MachineError
from lm_core.model.conversation import Speaker
from lm_core.model.weights import load_model
from tasks.served_model import LanguageModel
from tests.model.test_export import checkpoint


def test_it_completes_as_the_command_line_does(tmp_path):
    checkpoint(tmp_path)
    served = LanguageModel()
    served.load_context(SimpleNamespace(artifacts={"checkpoint": str(tmp_path)}))
    prompts = ["some", "", "text to learn from " * 40]
    speaker = Speaker(tmp_path)
    plain = served.predict(None, pd.DataFrame({"prompt": prompts}), {"max_new_tokens": 6})
    assert plain["text"].tolist() == ["".join(speaker.complete(text, max_new_tokens=6)) for text in prompts]
    params = {"max_new_tokens": 6, "temperature": 1.0, "top_k": 9, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 4}
    drawn = served.predict(None, pd.DataFrame({"prompt": ["some"]}), params)
    assert drawn["text"].tolist() == ["".join(speaker.complete("some", **params))]


def classifier(folder) -> None:
    checkpoint(folder)
    model = PooledClassifier(load_model(folder), ["billing", "delivery"])
    model.head.data[1] += 1.0
    save_finetuned(model, folder)


@pytest.mark.parametrize("made", [checkpoint, classifier])
@pytest.mark.parametrize("use", ["served", "command line"])
def test_it_works_on_the_device_of_the_environment(tmp_path, monkeypatch, made, use):
    made(tmp_path)
    options = argparse.Namespace(
        model="m", prompt="some", picture=None, max_new_tokens=2, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0,
        repetition_penalty=1.0, stop=[], seed=0,
    )  # fmt: skip

    def used():
        if use == "served":
            LanguageModel().load_context(SimpleNamespace(artifacts={"checkpoint": str(tmp_path)}))
        else:
            assert _answered_at_once(options, tmp_path) or _written(options, tmp_path)

    monkeypatch.setenv("MILLRACE_DEVICE", "cuda:7")
    with pytest.raises(MachineError, match="cuda:7 is not there"):
        used()
    monkeypatch.setenv("MILLRACE_DEVICE", "cpu")
    used()


def test_a_classifier_names_labels(tmp_path):
    classifier(tmp_path)
    served = LanguageModel()
    served.load_context(SimpleNamespace(artifacts={"checkpoint": str(tmp_path)}))
    texts = served.predict(None, pd.DataFrame({"prompt": ["some", "text to learn from"]}))["text"].tolist()
    assert texts == [label for label, _ in Labeller(tmp_path)(["some", "text to learn from"])]
    assert set(texts) <= {"billing", "delivery"}


def test_one_that_answers_by_spans_does_so_wherever_it_is_used(tmp_path):
    checkpoint(tmp_path)
    (tmp_path / "training.json").write_text(json.dumps({"config": {"spans_between": ["\n", ""]}}))
    served = LanguageModel()
    served.load_context(SimpleNamespace(artifacts={"checkpoint": str(tmp_path)}))
    text = "text to learn from some"
    (answer,) = served.predict(None, pd.DataFrame({"prompt": [f"Which one?\n{text}"]}))["text"]
    assert answer
    assert answer in text
    options = argparse.Namespace(model="m", prompt=f"Which one?\n{text}", picture=None, max_new_tokens=64)
    assert _answered_at_once(options, tmp_path) == {"text": answer}
