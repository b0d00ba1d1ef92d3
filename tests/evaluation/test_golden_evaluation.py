"""What preparing, fine-tuning and evaluating compute, pinned by version: values may not move while the version stands.

When a test fails because you meant to change the values: raise the stage's `version` in lm_core/stages.py and put the
new values here, under the new version.
"""

import hashlib
import json

import pyarrow.parquet as pq
import pytest

from lm_core.downstream.config import EvaluateConfig, EvaluateTaskConfig
from lm_core.evaluation.downstream import evaluate_task
from lm_core.evaluation.language import evaluate_language_model
from lm_core.stages import EVALUATE, EVALUATE_TASK, FINETUNE, PREPARE

HOW = "values moved but the version of {} did not: raise it in lm_core/stages.py and write the new values here"
EXAMPLES_BY_VERSION = {1: "d75f7a193e50cef7"}
VALIDATION_LOSS_BY_VERSION = {5: 1.866}
BITS_PER_BYTE_BY_VERSION = {1: (0.690, 4.317, 0.224), 2: (0.690, 4.317, 0.224)}
SUMMARY_BY_VERSION = dict.fromkeys(range(2, 11), (0.79, 1.185))


def test_examples(world):
    rows = pq.read_table(world.examples.file("examples.parquet")).to_pylist()
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]
    assert digest == EXAMPLES_BY_VERSION[PREPARE.version], HOW.format("prepare")


def test_finetune(tuned):
    journal = tuned("summary")[0].file("journal.jsonl").read_text().splitlines()
    loss = next(line["val_loss"] for line in map(json.loads, reversed(journal)) if "val_loss" in line)
    assert loss == pytest.approx(VALIDATION_LOSS_BY_VERSION[FINETUNE.version], abs=0.1), HOW.format("finetune")


def test_evaluate(world):
    config = EvaluateConfig(max_documents=20, baseline_train_bytes=20_000, num_resamples=200)
    scores = evaluate_language_model(
        world.build("golden_evaluate"), config, base=world.base, tokens=world.tokens, corpus=world.valid
    )
    baselines = scores["baseline_bits_per_byte"]
    made = (scores["val_bits_per_byte"], baselines["byte_unigram"], baselines["kneser_ney_4_gram"])
    assert made == pytest.approx(BITS_PER_BYTE_BY_VERSION[EVALUATE.version], abs=0.05), HOW.format("evaluate")


def test_evaluate_task(world, tuned):
    finetuned, from_random = tuned("summary")
    scores = evaluate_task(
        world.build("golden_task"),
        EvaluateTaskConfig(task="summary", max_items=20, max_new_tokens=24, num_resamples=200),
        finetuned=finetuned,
        from_random=from_random,
        examples=world.examples,
        corpus=world.valid,
    )
    made = (scores["baselines"]["nearest_neighbour"], scores["target_bits"]["model"])
    assert made == pytest.approx(SUMMARY_BY_VERSION[EVALUATE_TASK.version], abs=0.05), HOW.format("evaluate_task")
