import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_contracts.schemas import PREDICTIONS
from lm_core.downstream.config import EvaluateConfig, EvaluateTaskConfig
from lm_core.errors import UserError
from lm_core.evaluation.downstream import evaluate_task
from lm_core.evaluation.language import compressor_bits_per_byte, cut_bytes, evaluate_language_model
from lm_core.evaluation.likelihood import document_rows, nats_by_row
from lm_core.evaluation.outcome import Scheme, ask
from lm_core.model.weights import load_model
from lm_core.tokenizer import load_tokenizer
from tests.evaluation.recounted import counted_again, figures_of_answers

LANGUAGE = EvaluateConfig(max_documents=20, baseline_train_bytes=20_000, num_resamples=200)


def evaluated(world, tuned, task):
    build = world.build(f"evaluate_{task}")
    finetuned, from_random = tuned(task)
    config = EvaluateTaskConfig(task=task, max_items=20, max_new_tokens=24, num_resamples=200)
    scores = evaluate_task(
        build, config, finetuned=finetuned, from_random=from_random, examples=world.examples, corpus=world.valid
    )
    return build.folder, scores


@pytest.mark.parametrize("task", ["summary", "answer", "topic"])
def test_scores_can_be_recomputed_from_the_predictions(world, tuned, task):
    folder, scores = evaluated(world, tuned, task)
    assert json.loads((folder / "scores.json").read_text()) == scores
    table = pq.read_table(folder / "predictions.parquet")
    assert table.schema.equals(PREDICTIONS)
    rows = table.to_pylist()
    mean = {s: np.mean([r["score"] for r in rows if r["system"] == s]) for s in {r["system"] for r in rows}}
    assert mean.pop("model") == pytest.approx(scores["score"], abs=1e-5)
    assert mean == pytest.approx(scores["baselines"], abs=1e-5)
    assert scores["low"] <= scores["score"] <= scores["high"]
    assert scores["gain_over_random_weights"]["mean"] == pytest.approx(
        scores["score"] - scores["baselines"]["random_weights"], abs=1e-4
    )
    assert table.num_rows == scores["items"] * (len(scores["baselines"]) + 1)
    config = EvaluateTaskConfig(task=task, max_items=20, max_new_tokens=24, num_resamples=200)
    assert counted_again(folder, config) == figures_of_answers(folder)
    assert scores["groups"] < scores["items"] or task != "answer"  # questions about one docstring vary together


def test_pretraining_makes_the_wanted_answers_cheaper(world, tuned):
    saved = evaluated(world, tuned, "summary")[1]["target_bits"]["saved_by_pretraining"]
    assert saved["low"] > 0


def test_a_model_with_other_labels_is_refused(world, tuned):
    checkpoint = tuned("topic")[0]
    item = {"item_id": "1", "prompt": "Read the grain.", "target": "poetry"}
    with pytest.raises(UserError, match="other labels than the task's: it does not know 'poetry'"):
        ask(checkpoint, [item], Scheme("accuracy", (), (), 8), world.build("labels").runtime, lambda done: None)


def test_a_task_without_items_is_refused(world, tuned):
    finetuned, from_random = tuned("topic")
    with pytest.raises(UserError, match="poetry has no test items"):
        evaluate_task(
            world.build("evaluate_poetry"), EvaluateTaskConfig(task="poetry"), finetuned=finetuned,
            from_random=from_random, examples=world.examples, corpus=world.valid,
        )  # fmt: skip


def test_the_language_model_beats_random_weights_and_every_figure_has_bounds(world):
    build = world.build("evaluate")
    scores = evaluate_language_model(build, LANGUAGE, base=world.base, tokens=world.tokens, corpus=world.valid)
    assert json.loads((build.folder / "scores.json").read_text()) == scores
    assert scores["val_low"] < scores["val_bits_per_byte"] < scores["val_high"]
    assert set(scores["baseline_bits_per_byte"]) == {"random_weights", "byte_unigram", "kneser_ney_4_gram", "lzma"}
    assert scores["saved_bits_per_byte"]["random_weights"]["low"] > 0
    assert scores["test_bits_per_byte"] > 0
    rows = [r for r in pq.read_table(build.folder / "predictions.parquet").to_pylist() if r["system"] == "model"]
    bits, num_bytes = sum(float(r["prediction"]) for r in rows), sum(int(r["target"]) for r in rows)
    assert bits / num_bytes == pytest.approx(scores["val_bits_per_byte"], abs=1e-3)


def test_the_checkpoint_brings_its_own_tokenizer(world, tmp_path):
    shutil.copytree(world.base.folder, tmp_path / "base")
    assert load_tokenizer(tmp_path / "base" / "tokenizer.json").vocab_size == load_model(tmp_path / "base").vocab_size


def test_windows_predict_every_token_once():
    rows = document_rows(list(range(10, 33)), 1, 8)
    assert [t for row in rows for t in row.targets] == list(range(10, 33))
    assert all(len(row.tokens) == len(row.targets) <= 8 for row in rows)
    assert rows[0].tokens[0] == 1 and rows[1].tokens[0] == rows[0].targets[-1]
    assert document_rows([], 1, 8) == []


def test_batching_and_padding_change_no_likelihood(world):
    model, tokenizer = load_model(world.base.folder), load_tokenizer(world.base.file("tokenizer.json"))
    texts = ["Read the grain.", "Write the balance of the ledger, and nothing else.", "x"]
    rows = [document_rows(tokenizer.encode(text), tokenizer.end_of_text, 128)[0] for text in texts]
    together = nats_by_row(model, rows, tokenizer.pad)
    alone = [nats_by_row(model, [row], tokenizer.pad)[0] for row in rows]
    assert together == pytest.approx(alone, rel=1e-5)


def test_a_cut_never_splits_a_character():
    assert cut_bytes("aé", 2) == "a" and cut_bytes("aé", 3) == "aé"


def test_a_compressor_that_has_seen_the_text_needs_almost_nothing():
    text = ["".join(chr(97 + (i * i * 7 + i // 3) % 26) for i in range(4000))]
    assert compressor_bits_per_byte(text, text) < 0.3
