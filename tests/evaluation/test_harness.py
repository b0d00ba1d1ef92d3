"""lm-evaluation-harness scores what we export as we do."""

import importlib.util
import json

import pytest
import torch

from lm_core.errors import UserError
from lm_core.evaluation.harness import score_with_harness
from lm_core.tokenizer import load_tokenizer
from tests.model.test_export import checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="the extra `harness` is not installed"),
]

ITEMS = [
    {"question": f"some text {number}", "choices": [" to learn", " from", " naïve"], "answer": number % 3}
    for number in range(6)
]


def declare(folder):
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    task = {
        "task": "tiny_choice", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(folder / "items.jsonl")}},
        "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "answer",
        "target_delimiter": "", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    (folder / "tiny_choice.yaml").write_text(json.dumps(task))  # JSON is YAML


def test_the_harness_finds_our_own_log_probabilities(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    (tmp_path / "tasks").mkdir()
    model = checkpoint(tmp_path / "model")
    tokenizer = load_tokenizer(tmp_path / "model" / "tokenizer.json")
    declare(tmp_path / "tasks")
    samples = {}
    scores = score_with_harness(tmp_path / "model", ["tiny_choice"], definitions=tmp_path / "tasks", samples=samples)
    right = 0
    for item, sample in zip(ITEMS, samples["tiny_choice"], strict=True):
        found = [float(answer[0][0]) for answer in sample["resps"]]
        expected = []
        for choice in item["choices"]:
            context, whole = tokenizer.encode(item["question"]), tokenizer.encode(item["question"] + choice)
            ids = torch.tensor([[tokenizer.end_of_text, *whole]])
            with torch.no_grad():
                logprobs = model(ids)[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            expected.append(float(logprobs[len(context) :].sum()))
        assert found == pytest.approx(expected, abs=1e-3)
        right += max(range(3), key=expected.__getitem__) == item["answer"]
    assert scores["tiny_choice"]["acc"] == pytest.approx(right / len(ITEMS))


def test_an_unknown_task_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no_such_task") as error:
        score_with_harness(tmp_path, ["no_such_task"])
    assert "\n" not in str(error.value)
