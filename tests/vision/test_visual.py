"""Questions about pictures and captions, from fine-tune to scores; a model that does not look is refused."""

import json
from itertools import pairwise, takewhile

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from flows.downstream_report import HEADINGS, rows_of
from lm_core.artifact import Checkpoint, Evaluation
from lm_core.errors import IntegrityError, Preempted
from lm_core.evaluation.statistics import Ratio, Resampling
from lm_core.evaluation.visual import evaluate_visual, type_of
from lm_core.evaluation.visual_captions import chance, evaluate_captions, ranks_of
from lm_core.stages import EVALUATE_CAPTIONS, EVALUATE_VISUAL, FINETUNE_VISUAL, READ_PICTURES, TEACH_ENCODER
from lm_core.store import Store
from lm_core.vision.asking import label_probabilities, other_pictures
from lm_core.vision.checkpoint import load_visual, save_visual, visual_decoder_of
from lm_core.vision.config import EvaluateVisualConfig, FinetuneVisualConfig, PictureBatches
from lm_core.vision.finetune_visual import finetune_visual
from lm_core.vision.rows import VisualData, plan_steps, rows_about
from tasks.reports import report_on
from tests.evaluation.recounted import counted_again, figures_of_answers
from tests.vision.conftest import OPTIMIZATION, VISION
from tests.vision.tiny_pictures import asking

HOW = "values moved but the version of {} did not: raise it in lm_core/stages.py and write the new values here"
SCORES_BY_VERSIONS = dict.fromkeys(((1, 1, 2, 1), (1, 1, 2, 2), (1, 1, 3, 3), (2, 1, 3, 3)), (1.0, 1.0))
RETRIEVED_BY_VERSION = dict.fromkeys((1, 2, 3), (1.0, 0.647))
CONFIG = EvaluateVisualConfig(task="own_pictures", answer_types=asking().answer_types, num_resamples=200)


@pytest.fixture(scope="module")
def scored(world, tuned, questions, encoder):
    """(prefix checkpoint, name) -> scores and folder of an evaluation in which it is the model."""

    def score(prefix: Checkpoint, name: str):
        build = world.build(name)
        scores = evaluate_visual(
            build,
            CONFIG,
            prefix=prefix,
            cross_attention=tuned("own_pictures", "cross", fusion="cross_attention"),
            random_weights=tuned("own_pictures", "random", from_random=True, epochs=2),
            question_only=tuned("own_pictures", "blind", blind=True, epochs=8),
            encoder=encoder,
            examples=questions,
        )
        return scores, build.folder

    return score


@pytest.fixture(scope="module")
def seeing(scored, tuned):
    return scored(tuned("own_pictures", "prefix"), "score_seeing")


def test_a_model_that_looks_is_better_than_its_controls(seeing):
    scores = seeing[0]
    assert scores["refused"] == ""
    assert scores["score"] > 0.95 and scores["fusions"]["cross_attention"]["score"] > 0.95
    assert scores["baselines"]["question_only"] < 0.7 and scores["baselines"]["shuffled_image"] < 0.7
    assert scores["baselines"]["cnn_mlp"] > 0.95 and scores["baselines"]["text_only"] < 0.7
    assert all(gain["low"] > 0 for gain in scores["gain_over_controls"].values())


def test_values_stand_while_the_versions_stand(seeing):
    versions = tuple(stage.version for stage in (READ_PICTURES, TEACH_ENCODER, FINETUNE_VISUAL, EVALUATE_VISUAL))
    made = (seeing[0]["score"], seeing[0]["baselines"]["cnn_mlp"])
    assert made == pytest.approx(SCORES_BY_VERSIONS[versions], abs=0.05), HOW.format("a visual stage")


def test_a_blind_model_is_exposed_and_refused(scored, tuned):
    scores, _ = scored(tuned("own_pictures", "blind", blind=True, epochs=8), "score_blind")
    assert "answers without looking" in scores["refused"]
    assert "question only" in scores["refused"] and "shuffled image" in scores["refused"]


def test_every_score_can_be_recomputed(seeing):
    scores, folder = seeing
    assert counted_again(folder, CONFIG) == figures_of_answers(folder)
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    systems = {"model": scores["score"], **scores["baselines"]}
    for name, value in systems.items():
        own = [row for row in rows if row["system"] == name]
        assert np.mean([row["prediction"] == row["target"] for row in own]) == pytest.approx(value, abs=1e-4)
    own = [row for row in rows if row["system"] == "model"]
    interval = Ratio.mean([r["score"] for r in own], [r["group"] for r in own]).interval(Resampling(200))
    assert interval.as_dict() == {name: scores[name] for name in ("score", "low", "high")}
    types = {row["item_id"]: row["type"] for row in pq.read_table(folder / "questions.parquet").to_pylist()}
    for kind, part in scores["by_type"].items():
        right = [row["score"] for row in own if types[row["item_id"]] == kind]
        assert len(right) == part["items"] and np.mean(right) == pytest.approx(part["model"]["score"], abs=1e-4)


def test_a_person_can_look_at_a_few_pictures(seeing):
    shown = json.loads((seeing[1] / "shown.json").read_text())
    assert len(shown) == 8 and all(item["picture"].startswith("data:image/png;base64,iVBOR") for item in shown)
    assert all(item["question"] and item["answer"] and item["prediction"] for item in shown)


def rows_under(markdown, heading):
    lines = iter(markdown.splitlines())
    next(line for line in lines if line.startswith(heading))
    table = [
        line
        for line in takewhile(lambda line: not line.startswith("#"), lines)
        if line.startswith("| ") and "---" not in line
    ]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_the_report_shows_controls_by_type_and_both_fusions(seeing, world):
    scores, folder = seeing
    evaluation = Evaluation(folder, "evaluate_visual", "x", "d", scores)
    markdown = report_on(evaluation, Store(world.build("reporting").runtime), "evaluate own pictures").markdown
    header, overall, *kinds = rows_under(markdown, "## Controls by type of question")
    columns = {name: place for place, name in enumerate(header)}
    assert overall[0] == "all" and {row[0] for row in kinds[: len(scores["by_type"])]} == set(scores["by_type"])
    for system in ("question only", "shuffled image", "majority", "cnn mlp", "random weights"):
        assert overall[columns[system]] == f"{scores['baselines'][system.replace(' ', '_')]:.3f}"
    for row in kinds[: len(scores["by_type"])]:
        part = scores["by_type"][row[0]]
        assert row[columns["items"]] == str(part["items"]) and row[columns["model"]].startswith(
            f"{part['model']['score']:.3f} ("
        )
        assert row[columns["shuffled image"]] == f"{part['shuffled_image']:.3f}"
    assert any(row[0] == "question only" and row[1].startswith("+0.") for row in kinds)  # the paired gain
    fusions = {row[0]: row for row in rows_under(markdown, "## Fusions")}
    gain = scores["fusions"]["prefix_over_cross_attention"]
    assert fusions["prefix tokens"][2] == f"{gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"
    assert fusions["cross-attention"][1].startswith(f"{scores['fusions']['cross_attention']['score']:.3f} (")


def test_the_card_of_the_tasks_shows_the_other_fusion(seeing):
    row = dict(zip(HEADINGS, rows_of({"downstream": {"own_pictures": seeing[0]}})[0], strict=True))
    assert "cross-attention" in row["beside it"] and "prefix tokens over it" in row["beside it"]


def test_types_of_questions():
    types = asking().answer_types
    assert type_of("is it red?", "yes", types) == "yes or no, colour"
    assert type_of("is it not red?", "no", types) == "yes or no, colour, negated"
    assert type_of("what colour is it?", "red", types) == "colour"
    assert type_of("What colour is it?", "red", {}) == "what colour"


def test_no_item_keeps_its_picture_when_they_are_shuffled():
    numbers = [3, 3, 5, 8, 8, 8, 11]
    others = other_pictures(numbers, 0)
    assert all(a != b for a, b in zip(numbers, others, strict=True))
    assert others[0] == others[1] and set(others) == set(numbers)


@pytest.mark.parametrize("fusion", ["prefix", "cross"])
def test_a_visual_model_comes_back_from_disk(tuned, world, questions, fusion, tmp_path):
    kinds = {"prefix": {}, "cross": {"fusion": "cross_attention"}}
    model = load_visual(tuned("own_pictures", fusion, **kinds[fusion]).folder)
    save_visual(model, tmp_path)
    again = load_visual(tmp_path)
    data = VisualData(questions, "own_pictures", world.build("loading").runtime)
    from lm_core.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(world.base.file("tokenizer.json"))
    items = data.items["test"]
    rows = rows_about(items, data.numbers(items), tokenizer, 64, data.labels)
    found = []
    for one in (model, again):
        visual_decoder_of(one).look_at(data.pictures.pixels)
        found.append(label_probabilities(one, rows, tokenizer.pad))
    assert (found[0] == found[1]).all()
    (tmp_path / "vision.safetensors").write_bytes(b"torn")
    with pytest.raises(IntegrityError, match="fine-tune again"):
        load_visual(tmp_path)


def test_a_stopped_fine_tune_resumes_to_the_same_weights(world, questions, encoder, monkeypatch):
    from lm_core.training import loop

    config = FinetuneVisualConfig(
        task="own_pictures",
        vision=VISION,
        batches=PictureBatches(num_epochs=4, augment=True),
        optimization=OPTIMIZATION.model_copy(update={"checkpoint_seconds": 0.001}),
    )
    inputs = {"base": world.base, "examples": questions, "encoder": encoder}
    whole = world.build("undisturbed")
    finetune_visual(whole, config, **inputs)
    broken = world.build("stopped")
    step, done = loop._Run._train_step, []

    def stop_after_three(run):
        if len(done) == 3:
            raise Preempted("stopped")
        done.append(step(run))

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_train_step", stop_after_three)
        with pytest.raises(Preempted):
            finetune_visual(broken, config, **inputs)
    assert finetune_visual(broken, config, **inputs)["resumed_from_step"] > 0
    for name in ("model.safetensors", "vision.safetensors"):
        assert (broken.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_steps_are_a_function_of_the_seed_and_keep_pictures_together(world, questions):
    data = VisualData(questions, "own_pictures", world.build("planning").runtime)
    from lm_core.tokenizer import load_tokenizer

    items = data.items["train"]
    numbers = data.numbers(items)
    rows = rows_about(items, numbers, load_tokenizer(world.base.file("tokenizer.json")), 64, data.labels)
    batches = PictureBatches(num_epochs=2, texts_per_picture=2)
    steps = plan_steps(rows, numbers, batches, 256, seed=3)
    assert steps == plan_steps(rows, numbers, batches, 256, seed=3) != plan_steps(rows, numbers, batches, 256, seed=4)
    drawn = [numbers[i] for step in steps for i in step]
    assert max(drawn.count(number) for number in set(drawn)) == 4
    changes = sum(a != b for a, b in pairwise(drawn))
    assert changes < len(drawn) * 0.6


def test_captions_are_found_by_what_the_picture_shows(world, tuned, captioned):
    build = world.build("score_captions")
    config = EvaluateVisualConfig(task="own_captions", num_candidates=8, num_resamples=200, max_new_tokens=16)
    scores = evaluate_captions(
        build,
        config,
        prefix=tuned("own_captions", "prefix", epochs=30),
        cross_attention=tuned("own_captions", "cross", fusion="cross_attention", epochs=2),
        random_weights=tuned("own_captions", "random", from_random=True, epochs=2),
        examples=captioned,
    )
    assert scores["metric"] == "chrf" and scores["score"] > scores["baselines"]["shuffled_image"]
    assert 0 < scores["baselines"]["majority"] < scores["baselines"]["nearest_neighbour"]
    found = scores["retrieval"]
    assert found["chance"] == chance(scores["items"], 8)
    assert found["chance"]["at_1"]["score"] < found["model"]["at_1"]["score"]
    made = (scores["baselines"]["nearest_neighbour"], found["model"]["mean_reciprocal_rank"]["score"])
    wanted = RETRIEVED_BY_VERSION[EVALUATE_CAPTIONS.version]
    assert made == pytest.approx(wanted, abs=0.1), HOW.format("evaluate_captions")
    assert found["model"]["mean_reciprocal_rank"]["score"] > found["shuffled_image"]["mean_reciprocal_rank"]["score"]
    assert counted_again(build.folder, config) == figures_of_answers(build.folder)
    evaluation = Evaluation(build.folder, "evaluate_captions", "x", "d", scores)
    markdown = report_on(evaluation, Store(build.runtime), "evaluate own captions").markdown
    table = {row[0]: row for row in rows_under(markdown, "## The right caption among 8")}
    assert table["model"][1].startswith(f"{found['model']['at_1']['score']:.3f} (") and "shuffled image" in table
    ranks = [dict(row["ranks"]) for row in pq.read_table(build.folder / "questions.parquet").to_pylist()]
    assert np.mean([r["model"] <= 5 for r in ranks]) == pytest.approx(found["model"]["at_5"]["score"], abs=1e-4)


def test_chance_of_retrieval_is_what_random_ranks_give():
    ranks = np.concatenate([np.random.default_rng(0).permuted(np.tile(np.arange(1, n + 1), (4000, 1)), axis=1)[:, :n]
                            for n in (8, 4)], axis=1)  # fmt: skip
    expected = chance(12, 8)
    assert (ranks <= 5).mean() == pytest.approx(expected["at_5"]["score"], abs=0.01) == (8 * 5 / 8 + 4) / 12
    assert (1 / ranks).mean() == pytest.approx(expected["mean_reciprocal_rank"]["score"], abs=0.01)


def test_ranks_do_not_reward_a_caption_that_every_picture_makes_likely():
    likely = np.log(np.array([[0.50, 0.02, 0.01], [0.49, 0.08, 0.01], [0.48, 0.02, 0.09]]))
    assert ranks_of(likely, [0, 1, 2]).tolist() == [1.0, 1.0, 1.0]
    assert ranks_of(np.zeros((4, 4)), range(4)).tolist() == [2.5] * 4


def test_attention_to_the_picture_starts_as_nothing(world, questions):
    from lm_core.model.weights import load_model
    from lm_core.vision.encoder import PatchEncoder
    from lm_core.vision.fusion import VisualDecoder

    base = load_model(world.base.folder)
    config = VISION.model_copy(update={"fusion": "cross_attention"})
    model = VisualDecoder(base, config, PatchEncoder(32, 16, seed=0), seed=0)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32)).astype(np.uint8)
    model.look_at(pixels)
    tokens = torch.tensor([[0, 5, 6, 7]])
    with torch.no_grad():
        first, second = model.hidden(tokens), model.hidden(torch.tensor([[1, 5, 6, 7]]))
    assert torch.equal(first, second)
