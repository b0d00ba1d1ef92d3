"""Whether all that `scores.json` says of answers comes out of `predictions.parquet` again."""

import json
from pathlib import Path

from lm_core.evaluation.recompute import recomputed

# Figures of a checkpoint or of the files read: no figures of answers.
OF_OTHER_THINGS = {"forgetting", "train_items"}
SECONDARY_OF_OTHER_THINGS = {"bad_rows", "pair_accuracy"}


def figures_of_answers(folder: Path) -> dict:
    scores = json.loads((folder / "scores.json").read_text())
    found = {name: value for name, value in scores.items() if name not in OF_OTHER_THINGS}
    if "secondary" in found:
        kept = {n: v for n, v in found["secondary"].items() if n not in SECONDARY_OF_OTHER_THINGS}
        found["secondary"] = kept
    return found


def counted_again(folder: Path, config, train=()) -> dict:
    """From the predictions and the stage's configuration alone, as JSON would hold it."""
    return json.loads(json.dumps(recomputed(folder / "predictions.parquet", config, train)))
