"""The file that MLflow runs by itself: what it answers is what the model says."""

from types import SimpleNamespace

import pandas as pd

from lm_core.downstream.classifier import PooledClassifier, save_finetuned
from lm_core.downstream.labeller import Labeller
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


def test_a_classifier_names_labels(tmp_path):
    checkpoint(tmp_path)
    trunk = load_model(tmp_path)
    model = PooledClassifier(trunk, ["billing", "delivery"])
    model.head.data[1] += 1.0
    save_finetuned(model, tmp_path)
    served = LanguageModel()
    served.load_context(SimpleNamespace(artifacts={"checkpoint": str(tmp_path)}))
    texts = served.predict(None, pd.DataFrame({"prompt": ["some", "text to learn from"]}))["text"].tolist()
    assert texts == [label for label, _ in Labeller(tmp_path)(["some", "text to learn from"])]
    assert set(texts) <= {"billing", "delivery"}
