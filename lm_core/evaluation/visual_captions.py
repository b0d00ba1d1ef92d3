"""Scores of picture captioning: what the model writes (chrF), and whether it finds the right caption (retrieval).

In retrieval every picture stands before so many captions of other pictures and its own. They are ranked by how much
likelier the picture makes a caption than the other pictures do: log p(caption | picture) minus its mean over pictures
in probability. Without that, short captions would win whatever is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lm_core.artifact import Checkpoint, DownstreamData
from lm_core.evaluation.baselines import majority
from lm_core.evaluation.metrics import chrf
from lm_core.evaluation.scored import MODEL, RANDOM, Scored, interval_of, summary_of
from lm_core.evaluation.statistics import Resampling, bootstrap_mean, paired_difference
from lm_core.evaluation.visual import (
    CROSS,
    SHUFFLED,
    Answers,
    compare_fusions,
    forgetting_of,
    guard,
    load_for_scoring,
    write_questions,
    write_shown,
    write_visual,
)
from lm_core.model.language_model import LanguageModel
from lm_core.store import Build
from lm_core.tokenizer import TextTokenizer, load_tokenizer
from lm_core.vision.asking import captions, log_likelihoods, other_pictures
from lm_core.vision.checkpoint import visual_decoder_of
from lm_core.vision.config import EvaluateVisualConfig
from lm_core.vision.pictures import Pixels
from lm_core.vision.rows import Items, VisualData, opening_rows, rows_about

NEAREST, MAJORITY, CHANCE = "nearest_neighbour", "majority", "chance"
RANKS = (1, 5, 10)
SMALL = 8  # pixels a side of the pictures that the nearest neighbour compares

Floats = NDArray[np.float64]


def evaluate_captions(
    build: Build,
    config: EvaluateVisualConfig,
    *,
    prefix: Checkpoint,
    cross_attention: Checkpoint,
    random_weights: Checkpoint,
    examples: DownstreamData,
) -> Mapping[str, Any]:
    """chrF of the captions and retrieval at 1, 5 and 10, with control and baselines; files as `evaluate_visual`."""
    torch.set_num_threads(build.runtime.num_threads)
    data = VisualData(examples, config.task, build.runtime)
    test = _Test(data, load_tokenizer(prefix.file("tokenizer.json")), config)
    answers: Answers = {}
    ranks: dict[str, Floats] = {}
    checkpoints = {MODEL: prefix, CROSS: cross_attention, RANDOM: random_weights}
    for done, (name, checkpoint) in enumerate(checkpoints.items()):
        build.progress(done, len(checkpoints), "systems")
        model = load_for_scoring(checkpoint)
        visual_decoder_of(model).look_at(data.pictures.pixels)
        answers[name] = test.write(model, test.own), None
        likelihoods = test.likelihoods(model)
        ranks[name] = ranks_of(likelihoods, range(len(test.own)))
        if name == MODEL:
            answers[SHUFFLED] = test.write(model, test.other), None
            ranks[SHUFFLED] = ranks_of(likelihoods, test.other_places)
    answers[NEAREST] = nearest_captions(data), None
    captions_known = [item["target"] for item in data.items["train"]]
    answers[MAJORITY] = majority(captions_known, len(test.own), lambda made, wanted: chrf(made, [wanted])), None
    summary, scores = score_captions(config, data.items["test"], answers, ranks)
    summary |= forgetting_of(prefix)
    write_visual(build, config.task, data, answers, scores, summary, ranks)
    write_questions(build, data, ["caption"] * len(data.items["test"]), ranks)
    write_shown(build, data, answers)
    return summary


class _Test:
    """The test pictures, in pools within which captions are looked for."""

    def __init__(self, data: VisualData, tokenizer: TextTokenizer, config: EvaluateVisualConfig) -> None:
        self.data, self.tokenizer, self.config = data, tokenizer, config
        self.items = data.items["test"]
        self.own = data.numbers(self.items)
        self.other = other_pictures(self.own, config.seed)

    @property
    def other_places(self) -> list[int]:
        """For each item the next one of its pool: whose picture it is ranked by in the control."""
        return [self._pool(i)[(i - self._pool(i)[0] + 1) % len(self._pool(i))] for i in range(len(self.items))]

    def _pool(self, place: int) -> range:
        size = self.config.num_candidates
        start = place // size * size
        return range(start, min(start + size, len(self.items)))

    def write(self, model: LanguageModel, numbers: Sequence[int]) -> list[str]:
        """A caption for each picture."""
        room = visual_decoder_of(model).context_length - self.config.max_new_tokens
        rows = opening_rows([item["prompt"] for item in self.items], numbers, self.tokenizer, room)
        return captions(model, self.tokenizer, [row.tokens for row in rows], self.config.max_new_tokens)

    def likelihoods(self, model: LanguageModel) -> Floats:
        """log p of caption (column) given picture (row), (N, N); NaN across pools."""
        found = np.full((len(self.items), len(self.items)), np.nan)
        length = visual_decoder_of(model).context_length
        for start in range(0, len(self.items), self.config.num_candidates):
            pool = self._pool(start)
            items = [self.items[j] for j in pool]
            for i in pool:
                rows = rows_about(items, [self.own[i]] * len(pool), self.tokenizer, length, [])
                found[i, pool.start : pool.stop] = log_likelihoods(model, rows, self.tokenizer.pad)
        return found


def ranks_of(likelihoods: Floats, pictures: Sequence[int]) -> Floats:
    """The rank, from 1, of each item's own caption when it is looked for with a picture; ties count half.

    Args:
        likelihoods: (N, N), log p of caption (column) given picture (row); NaN where a pair is not compared.
        pictures: for each item the picture that is looked at.
    """
    with np.errstate(invalid="ignore"):
        highest = np.nanmax(likelihoods, 0)
        usual = highest + np.log(np.nanmean(np.exp(likelihoods - highest), 0))
    ranks = []
    for item, picture in enumerate(pictures):
        evidence = likelihoods[picture] - usual
        evidence = evidence[~np.isnan(evidence)]
        own = likelihoods[picture, item] - usual[item]
        ranks.append(1 + (evidence > own).sum() + ((evidence == own).sum() - 1) / 2)
    return np.array(ranks, np.float64)


def nearest_captions(data: VisualData) -> list[str]:
    """The caption of the training picture whose pixels are nearest, at a few pixels a side."""
    known = data.items["train"]
    train = _thumbnails(data.pictures.pixels[data.numbers(known)])
    test = _thumbnails(data.pictures.pixels[data.numbers(data.items["test"])])
    distance = (test**2).sum(1)[:, None] - 2 * test @ train.T + (train**2).sum(1)
    return [known[i]["target"] for i in distance.argmin(1)]


def _thumbnails(pixels: Pixels) -> Floats:
    count, colours, size, _ = pixels.shape
    step = size // SMALL
    blocks = pixels.reshape(count, colours, SMALL, step, SMALL, step).astype(np.float64)
    thumbnails: Floats = blocks.mean((3, 5)).reshape(count, -1)
    return thumbnails


def score_captions(
    config: EvaluateVisualConfig, items: Items, answers: Answers, ranks: Mapping[str, Floats]
) -> tuple[dict[str, Any], dict[str, Floats]]:
    """All figures; items about one picture vary together."""
    targets, pictures = [item["target"] for item in items], [item["group"] for item in items]
    scores = {
        name: np.array([chrf(made, [wanted]) for made, wanted in zip(said, targets, strict=True)])
        for name, (said, _) in answers.items()
    }
    how = Resampling(config.num_resamples, config.confidence, config.seed)
    beside = {name: values for name, values in scores.items() if name != CROSS}
    predictions = {name: said for name, (said, _) in answers.items()}
    scored = Scored([item["item_id"] for item in items], targets, predictions, beside, pictures)
    summary = summary_of(config.task, "chrf", scored, how)
    reciprocal = {name: 1 / values for name, values in ranks.items()}
    found = retrieval(ranks, how, pictures) | {CHANCE: chance(len(items), config.num_candidates)}
    summary |= {
        "pictures": len(set(pictures)),
        "fusions": compare_fusions(scores, how, pictures),
        "controls": {SHUFFLED: interval_of(scores[SHUFFLED], how, pictures).as_dict()},
        "retrieval": found | {"candidates": min(config.num_candidates, len(items))},
        "secondary": {f"retrieval at {k}": found[MODEL][f"at_{k}"]["score"] for k in RANKS},
        **guard(reciprocal, (SHUFFLED,), how, pictures),
    }
    return summary, scores


def chance(num_items: int, num_candidates: int) -> dict[str, Any]:
    """What retrieval finds when captions are ranked at random within pools of so many candidates."""
    pools = [min(num_candidates, num_items - start) for start in range(0, num_items, num_candidates)]

    def expected(of_pool: Callable[[int], float]) -> dict[str, float]:
        value = round(sum(size * of_pool(size) for size in pools) / num_items, 5)
        return {"score": value, "low": value, "high": value}

    at = {f"at_{k}": expected(partial(_share_within, k)) for k in RANKS}
    return at | {"mean_reciprocal_rank": expected(lambda size: sum(1 / rank for rank in range(1, size + 1)) / size)}


def _share_within(first: int, pool_size: int) -> float:
    return min(1.0, first / pool_size)


def retrieval(ranks: Mapping[str, Floats], how: Resampling, pictures: Sequence[str]) -> dict[str, Any]:
    """Share of captions found among the first k, and the mean reciprocal rank with its gain over random weights."""
    table: dict[str, Any] = {}
    for name, values in ranks.items():
        at = {f"at_{k}": bootstrap_mean((values <= k).astype(float), how, pictures).as_dict() for k in RANKS}
        table[name] = at | {"mean_reciprocal_rank": bootstrap_mean(1 / values, how, pictures).as_dict()}
    gain = paired_difference(1 / ranks[MODEL], 1 / ranks[RANDOM], how, pictures)
    return table | {"reciprocal_rank_over_random_weights": gain.as_dict("mean")}
