"""Scores of visual question answering: both fusions, beside the controls that expose a model which does not look.

Controls: `question_only` is the same decoder, trained on blank pictures; `shuffled_image` is the model given another
picture than the one asked about. What is not better than both has answered without looking, and is refused.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from data_contracts.schemas import QUESTIONS
from lm_core.artifact import Checkpoint, DownstreamData, PictureEncoder
from lm_core.evaluation import baselines
from lm_core.evaluation.metrics import words
from lm_core.evaluation.scored import MODEL, RANDOM, Scored, interval_of, summary_of, write_predictions
from lm_core.evaluation.statistics import Resampling, paired_difference
from lm_core.model.language_model import LanguageModel
from lm_core.store import Build
from lm_core.tokenizer import TextTokenizer, load_tokenizer
from lm_core.training.loop import DTYPES
from lm_core.vision.asking import label_probabilities, other_pictures
from lm_core.vision.bag import BagAnswerer
from lm_core.vision.checkpoint import load_answerer, load_visual, visual_decoder_of
from lm_core.vision.config import EvaluateVisualConfig
from lm_core.vision.pictures import Pixels, encode_png
from lm_core.vision.rows import Items, VisualData, blank_like, rows_about

CROSS, QUESTION_ONLY, SHUFFLED = "cross_attention", "question_only", "shuffled_image"
TEXT_ONLY, CNN = "text_only", "cnn_mlp"
CONTROLS = (QUESTION_ONLY, SHUFFLED, "majority")
SHOWN = "shown.json"
SHOWN_ITEMS = 8

Floats = NDArray[np.float64]
Answers = dict[str, tuple[list[str], Floats | None]]


def evaluate_visual(
    build: Build,
    config: EvaluateVisualConfig,
    *,
    prefix: Checkpoint,
    cross_attention: Checkpoint,
    random_weights: Checkpoint,
    question_only: Checkpoint,
    encoder: PictureEncoder,
    examples: DownstreamData,
) -> Mapping[str, Any]:
    """Accuracy overall and by type of question, with controls and baselines; the scores are the statistics.

    Writes `scores.json`, `predictions.parquet`, `questions.parquet` (what was asked about which picture, and its
    type) and `shown.json` (a few pictures to look at).
    """
    torch.set_num_threads(build.runtime.num_threads)
    data = VisualData(examples, config.task, build.runtime)
    checkpoints = {MODEL: prefix, CROSS: cross_attention, RANDOM: random_weights, QUESTION_ONLY: question_only}
    asked = _Asked(data, load_tokenizer(prefix.file("tokenizer.json")), config)
    answers: Answers = {}
    for done, (name, checkpoint) in enumerate(checkpoints.items()):
        build.progress(done, len(checkpoints) + 1, "systems")
        model = load_for_scoring(checkpoint)
        answers[name] = asked.decoder(model, blind=name == QUESTION_ONLY)
        if name == MODEL:
            answers[SHUFFLED] = asked.decoder(model, shuffled=True)
    answers[CNN] = asked.answerer(load_answerer(encoder.folder))
    answers |= text_baselines(data)
    summary, scores = score_answers(config, data.items["test"], answers)
    summary |= forgetting_of(prefix)
    write_visual(build, config.task, data, answers, scores, summary)
    write_questions(build, data, [type_of(i["prompt"], i["target"], config.answer_types) for i in data.items["test"]])
    write_shown(build, data, answers)
    return summary


def forgetting_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a model has forgotten of its base's own text, where it was measured."""
    found = checkpoint.statistics.get("forgetting")
    return {"forgetting": dict(found)} if found else {}


def load_for_scoring(checkpoint: Checkpoint) -> LanguageModel:
    """A visual model, computing in the precision it was trained in."""
    model = load_visual(checkpoint.folder)
    settings = json.loads(checkpoint.file("training.json").read_text())["config"]
    model.compute_dtype = DTYPES[settings["optimization"]["precision"]]
    return model


class _Asked:
    """The test items, ready to be asked of any system."""

    def __init__(self, data: VisualData, tokenizer: TextTokenizer, config: EvaluateVisualConfig) -> None:
        self.data, self.tokenizer = data, tokenizer
        self.own = data.numbers(data.items["test"])
        self.other = other_pictures(self.own, config.seed)

    def decoder(
        self, model: LanguageModel, *, shuffled: bool = False, blind: bool = False
    ) -> tuple[list[str], Floats | None]:
        """Answers of a decoder that sees, with their probabilities."""
        inner = visual_decoder_of(model)
        pixels = self.data.pictures.pixels
        inner.look_at(blank_like(pixels) if blind else pixels)
        numbers = [0] * len(self.own) if blind else self.other if shuffled else self.own
        return self._ask(model, numbers, inner.context_length)

    def answerer(self, model: BagAnswerer) -> tuple[list[str], Floats | None]:
        """Answers of the classical answerer."""
        model.look_at(self.data.pictures.pixels)
        return self._ask(model, self.own, model.context_length)

    def _ask(
        self, model: LanguageModel, numbers: Sequence[int], context_length: int
    ) -> tuple[list[str], Floats | None]:
        items, labels = self.data.items["test"], self.data.labels
        rows = rows_about(items, numbers, self.tokenizer, context_length, labels)
        probabilities = label_probabilities(model, rows, self.tokenizer.pad)
        return [labels[i] for i in probabilities.argmax(1)], probabilities.max(1)


def text_baselines(data: VisualData) -> Answers:
    """The commonest answer, and logistic regression on the words of the question alone."""
    train, test = data.items["train"], data.items["test"]
    known, targets = [item["prompt"] for item in train], [item["target"] for item in train]
    labels, sure = baselines.tfidf_logistic_regression(known, targets, [item["prompt"] for item in test])
    return {"majority": (baselines.majority(targets, len(test)), None), TEXT_ONLY: (labels, sure)}


def score_answers(
    config: EvaluateVisualConfig, items: Items, answers: Answers
) -> tuple[dict[str, Any], dict[str, Floats]]:
    """All figures; items about one picture vary together."""
    targets, pictures = [item["target"] for item in items], [item["group"] for item in items]
    scores = {
        name: np.array([made == wanted for made, wanted in zip(said, targets, strict=True)], np.float64)
        for name, (said, _) in answers.items()
    }
    how = Resampling(config.num_resamples, config.confidence, config.seed)
    beside = {name: values for name, values in scores.items() if name != CROSS}
    predictions = {name: said for name, (said, _) in answers.items()}
    scored = Scored([item["item_id"] for item in items], targets, predictions, beside, pictures)
    summary = summary_of(config.task, "accuracy", scored, how)
    types = [type_of(item["prompt"], item["target"], config.answer_types) for item in items]
    parts = by_type(scores, types, how, pictures)
    summary |= {
        "pictures": len(set(pictures)),
        "fusions": compare_fusions(scores, how, pictures),
        "controls": {name: interval_of(scores[name], how, pictures).as_dict() for name in CONTROLS},
        "by_type": parts,
        "secondary": {kind: part[MODEL]["score"] for kind, part in parts.items()},
        **guard(scores, (QUESTION_ONLY, SHUFFLED), how, pictures),
    }
    return summary, scores


def guard(
    scores: Mapping[str, Floats], controls: Sequence[str], how: Resampling, groups: Sequence[str]
) -> dict[str, Any]:
    """Whether the model looks: its paired gain over each control must be clear of zero.

    Returns:
        gain_over_controls, and `refused`: the reason why the model may not go into service, empty when it may.
    """
    gains = {name: paired_difference(scores[MODEL], scores[name], how, groups) for name in controls}
    blind = [
        f"no better than {name.replace('_', ' ')} ({gain.estimate:+.3f}, {gain.low:+.3f} to {gain.high:+.3f})"
        for name, gain in gains.items()
        if gain.low <= 0
    ]
    return {
        "gain_over_controls": {name: gain.as_dict("mean") for name, gain in gains.items()},
        "refused": f"it answers without looking: {'; '.join(blind)}" if blind else "",
    }


def compare_fusions(scores: Mapping[str, Floats], how: Resampling, groups: Sequence[str]) -> dict[str, Any]:
    """Both ways in which a picture reaches the decoder, and their paired difference."""
    difference = paired_difference(scores[MODEL], scores[CROSS], how, groups)
    return {
        "prefix": interval_of(scores[MODEL], how, groups).as_dict(),
        CROSS: interval_of(scores[CROSS], how, groups).as_dict(),
        "prefix_over_cross_attention": difference.as_dict("mean"),
    }


def by_type(
    scores: Mapping[str, Floats], types: Sequence[str], how: Resampling, groups: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """For each type of question the items, the model's score with its interval, and everybody else's score."""
    table: dict[str, dict[str, Any]] = {}
    for kind in sorted(set(types)):
        chosen = np.array([other == kind for other in types])
        shared = [name for name, wanted in zip(groups, chosen, strict=True) if wanted]
        others = {name: round(float(values[chosen].mean()), 5) for name, values in scores.items() if name != MODEL}
        own = interval_of(scores[MODEL][chosen], how, shared).as_dict()
        table[kind] = {"items": int(chosen.sum()), MODEL: own, **others}
    return table


def type_of(prompt: str, target: str, answer_types: Mapping[str, Sequence[str]]) -> str:
    """What kind of answer a question wants; of yes and no also what it asks about, and whether it is negated.

    Args:
        answer_types: kind of answer to its labels; without any, a type is the question's first two words.
    """
    asked = words(prompt)
    own = next((kind for kind, labels in answer_types.items() if target in labels), None)
    if own is None:
        return " ".join(asked[:2])
    if not set(answer_types[own]) <= {"yes", "no"}:
        return own
    about = next((f", {k}" for k, labels in answer_types.items() if k != own and set(asked) & set(labels)), "")
    return own + about + (", negated" if {"no", "not"} & set(asked) else "")


def write_visual(
    build: Build,
    task: str,
    data: VisualData,
    answers: Answers,
    scores: Mapping[str, Floats],
    summary: Mapping[str, Any],
    ranks: Mapping[str, Floats] | None = None,
) -> None:
    """`scores.json`, and every answer of every system with its score, its picture and where it ranked the caption."""
    items = data.items["test"]
    rows = [
        {
            "item_id": item["item_id"],
            "task": task,
            "system": name,
            "prediction": answers[name][0][place],
            "target": item["target"],
            "score": float(values[place]),
            "confidence": None if (sure := answers[name][1]) is None else float(sure[place]),
            "group": item["group"],
            "prompt": item["prompt"] or None,
            "rank": float(ranks[name][place]) if ranks and name in ranks else None,
        }
        for name, values in scores.items()
        for place, item in enumerate(items)
    ]
    write_predictions(build, rows, summary)


def write_questions(
    build: Build, data: VisualData, types: Sequence[str], ranks: Mapping[str, Floats] | None = None
) -> None:
    """`questions.parquet`: what the item ids of the predictions stand for, and where each system ranked the answer."""
    rows = [
        {
            "item_id": item["item_id"],
            "picture": item["group"],
            "question": item["prompt"],
            "type": kind,
            "ranks": [(name, float(values[place])) for name, values in ranks.items()] if ranks else None,
        }
        for place, (item, kind) in enumerate(zip(data.items["test"], types, strict=True))
    ]
    table = pa.Table.from_pylist(rows, schema=QUESTIONS)
    pq.write_table(table, build.folder / "questions.parquet", compression="zstd")


def write_shown(build: Build, data: VisualData, answers: Answers) -> None:
    """`shown.json`: a few pictures, what was asked, what was wanted and what the model answered.

    One item a picture; half of them are mistakes where there are so many.
    """
    items = data.items["test"]
    said = answers[MODEL][0]
    wrong = [place for place, item in enumerate(items) if said[place] != item["target"]]
    chosen: dict[str, int] = {}
    for place in [*wrong[: SHOWN_ITEMS // 2], *range(len(items))]:
        if len(chosen) < SHOWN_ITEMS:
            chosen.setdefault(items[place]["group"], place)
    shown = [
        {
            "picture": data_uri(data.pictures.pixels[data.pictures.number[name]]),
            "question": items[place]["prompt"],
            "answer": items[place]["target"],
            "prediction": said[place],
        }
        for name, place in chosen.items()
    ]
    (build.folder / SHOWN).write_text(json.dumps(shown, ensure_ascii=False, indent=1))


def data_uri(pixels: Pixels) -> str:
    """A picture (3, S, S) as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(encode_png(pixels)).decode()
