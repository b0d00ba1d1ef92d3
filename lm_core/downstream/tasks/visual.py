"""Questions about pictures, and pictures to be named."""

from __future__ import annotations

from lm_core.downstream.task import Hub, Task

FOLDER = "vqa/easy_vqa"
YES_NO, SHAPES = ("no", "yes"), ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")

TASKS = (
    Task(
        name="visual_qa",
        kind="visual",
        files={
            "train": f"{FOLDER}/train_questions.parquet + {FOLDER}/train_images.parquet",
            "test": f"{FOLDER}/test_questions.parquet + {FOLDER}/test_images.parquet",
        },
        # Photographs, 3.4 GB of them; questions with one of our answers. Each picture is asked about several times.
        hub=Hub(
            name="merve/vqav2-small",
            splits={"all": "validation"},
            rename={"multiple_choice_answer": "answer"},
            keep={"answer": (*YES_NO, *SHAPES, *COLOURS)},
        ),
        prompt="{question}",
        target="{answer}",
        labels=(*YES_NO, *SHAPES, *COLOURS),
        answer_types={"yes or no": YES_NO, "shape": SHAPES, "colour": COLOURS},
        picture="image_id",
        metric="accuracy",
        baselines=("majority",),
        max_train_items=40_000,
        max_validation_items=1_200,
        max_test_items=10_000,
        num_epochs=7.0,
        max_steps=570,
        batch_tokens=1024,
        licence="MIT",
        source="easy-VQA: one coloured shape a picture (https://github.com/vzhou842/easy-VQA), the official split",
        weakness="107 distinct questions; two in three are answered without looking by the commonest answer to each "
        "question",
    ),
    Task(
        name="captioning",
        kind="visual",
        files={"all": "vqa/emoji_captions.parquet"},
        hub=Hub(name="kuotient/noto-emoji-dataset", splits={"all": "train"}, rename={"text": "caption"}),
        keep={"n_codepoints": ("1",)},
        target="{caption}",
        picture="emoji",
        metric="chrf",
        baselines=("majority", "nearest_neighbour"),
        max_train_items=2_000,
        max_validation_items=100,
        max_test_items=200,
        max_new_tokens=20,
        num_epochs=8.0,
        max_steps=100,
        batch_tokens=1024,
        licence="Apache-2.0 by the repository's README, OFL-1.1 by its newest LICENSE; names: Unicode",
        source="Noto emoji with their Unicode names (https://github.com/googlefonts/noto-emoji)",
        weakness="a thousand pictures, most names occur once: what a picture shows is often named by no other. "
        "Of sequences (flags, keycaps, persons with a sign) none is kept, for they repeat one another across splits",
    ),
)
