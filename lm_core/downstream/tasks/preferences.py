"""The better of two answers, by stated rules."""

from __future__ import annotations

from lm_core.downstream.task import Task
from lm_core.downstream.tasks.dialogues import SGD

TASKS = (
    Task(
        name="preference",
        kind="preference",
        files={
            "train": "finetune/customer_service_taskmaster4/train.parquet + finetune/dialogue_sgd/train.parquet",
            "validation": "finetune/customer_service_taskmaster4/validation.parquet",
            "test": "finetune/dialogue_sgd/test.parquet",
        },
        hub=SGD,
        rows="dialogue",
        prompt="{history}",
        target="{reply}",
        group="{dialogue_id}",
        metric="win_rate",
        max_prompt_chars=300,
        max_target_chars=160,
        max_new_tokens=40,
        max_train_items=3000,
        max_validation_items=200,
        max_test_items=300,
        num_epochs=1.0,
        max_steps=20,
        batch_tokens=2048,
        licence="CC-BY-4.0 and CC-BY-SA-4.0",
        source="Turns of Taskmaster-4 and SGD; pairs by the rules of lm_core/downstream/preference_rules.py",
        weakness="the rules see form and invented values, not whether an answer helps",
        max_leak_share=0.6,
    ),
)
