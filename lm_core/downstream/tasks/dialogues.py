"""The next turn of a conversation: customer service, dialogue over several services."""

from __future__ import annotations

from lm_core.downstream.task import Hub, Task

GUARDS = ("chrf_corpus", "bleu", "slot_f1", "bits_per_byte", "repeats_itself", "consistent_over_turns")

SGD = Hub(
    name="google-research-datasets/schema_guided_dstc8",
    subset="dialogues",
    rename={"turns.utterance": "turns", "turns.speaker": "speakers"},
)

TASKS = (
    Task(
        name="customer_service",
        kind="answer",
        files={
            "train": "finetune/customer_service_taskmaster4/train.parquet",
            "validation": "finetune/customer_service_taskmaster4/validation.parquet",
            "test": "finetune/customer_service_taskmaster4/test.parquet",
        },
        hub=Hub(
            name="google-research-datasets/taskmaster2",
            subset="food-ordering",
            splits={"all": "train"},
            rename={"utterances.text": "turns", "utterances.speaker": "speakers", "conversation_id": "dialogue_id"},
        ),
        rows="dialogue",
        prompt="{history}",
        target="{reply}",
        group="{dialogue_id}",
        metric="chrf",
        guards=GUARDS,
        baselines=("majority", "nearest_neighbour", "copy"),
        max_prompt_chars=400,
        max_target_chars=200,
        max_train_items=4000,
        max_test_items=300,
        num_epochs=1.0,
        max_steps=20,
        licence="CC-BY-4.0",
        source="Taskmaster-4: coffee orders between a customer and an agent",
        weakness="templates: many near-duplicate dialogues, split by hash; equal openings stand on both sides",
        max_leak_share=0.6,
    ),
    Task(
        name="dialogue",
        kind="answer",
        files={
            "train": "finetune/dialogue_sgd/train.parquet",
            "validation": "finetune/dialogue_sgd/validation.parquet",
            "test": "finetune/dialogue_sgd/test.parquet",
        },
        hub=SGD,
        rows="dialogue",
        prompt="{history}",
        target="{reply}",
        group="{dialogue_id}",
        metric="chrf",
        guards=GUARDS,
        baselines=("majority", "nearest_neighbour", "copy"),
        max_prompt_chars=400,
        max_target_chars=240,
        max_train_items=4000,
        max_test_items=200,
        num_epochs=1.0,
        max_steps=20,
        licence="CC-BY-SA-4.0",
        source="Schema-Guided Dialogue (Rastogi et al. 2020)",
    ),
    Task(
        name="dialogue_zh",
        kind="answer",
        files={
            "train": "finetune/dialogue_crosswoz_zh/train.parquet",
            "test": "finetune/dialogue_crosswoz_zh/test.parquet",
        },
        hub=Hub(
            name="GEM/CrossWOZ",
            splits={"train": "train", "test": "test"},
            rename={"messages.content": "turns", "messages.role": "speakers", "dialog_id": "dialogue_id"},
        ),
        rows="dialogue",
        prompt="{history}",
        target="{reply}",
        group="{dialogue_id}",
        metric="chrf",
        guards=GUARDS,
        baselines=("majority", "nearest_neighbour", "copy"),
        language="zh",
        max_prompt_chars=64,
        max_target_chars=24,
        max_new_tokens=64,
        max_train_items=2000,
        max_test_items=200,
        num_epochs=1.0,
        max_steps=14,
        licence="Apache-2.0",
        source="CrossWOZ (Zhu et al. 2020); its validation file serves as train",
        weakness="short answers only; farewells recur",
        max_leak_share=0.05,
    ),
)
