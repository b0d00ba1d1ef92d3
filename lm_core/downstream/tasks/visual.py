"""Questions about pictures."""

from __future__ import annotations

from lm_core.downstream.task import Task

FOLDER = "vqa/easy_vqa"

TASKS = (
    Task(
        name="visual_qa",
        kind="visual",
        files={
            "train": f"{FOLDER}/train_questions.parquet + {FOLDER}/train_images.parquet",
            "test": f"{FOLDER}/test_questions.parquet + {FOLDER}/test_images.parquet",
        },
        prompt="{question}",
        target="{answer}",
        labels=(
            *("black", "blue", "brown", "circle", "gray", "green", "no"),
            *("rectangle", "red", "teal", "triangle", "yellow", "yes"),
        ),
        picture="image_id",
        metric="accuracy",
        baselines=("majority",),
        max_train_items=40_000,
        max_validation_items=1_200,
        max_test_items=10_000,
        num_epochs=4.0,
        licence="MIT",
        source="easy-VQA: one coloured shape a picture (https://github.com/vzhou842/easy-VQA), the official split",
        weakness="about 100 distinct questions; two in three are answered without looking by the commonest answer to "
        "each question",
    ),
)
