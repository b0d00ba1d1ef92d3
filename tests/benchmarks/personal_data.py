"""How much of what is personal is found, and how much of what is found is personal, on the labelled texts of the tests.

    python -m tests.benchmarks.personal_data

Prints a line for each kind, with 95 % intervals (Wilson), and one JSON object last. `plain` are the forms that the
patterns were made for, beside texts that only look like them; `hard` is what people write besides.
"""

import json
import math

from lm_core.corpus.privacy import PLACEHOLDERS, find_personal
from tests.corpus.personal_data import HARD, NEGATIVE, POSITIVE, labelled


def wilson(hits: int, total: int) -> list[float]:
    """95 % interval of a share."""
    if not total:
        return [0.0, 1.0]
    share, z = hits / total, 1.96
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return [round((centre + sign * half) / (1 + z * z / total), 3) for sign in (-1, 1)]


def score(texts: list[str], kinds: list[str]) -> dict[str, object]:
    """Precision and recall over marked texts, of exact places."""
    num_right = num_found = num_labels = 0
    for marked in texts:
        text, truth = labelled(marked)
        truth = {label for label in truth if label[0] in kinds}
        found = {(r.kind, text[r.start : r.start + r.length]) for r in find_personal(text, kinds)}
        num_right += len(found & truth)
        num_found += len(found)
        num_labels += len(truth)
    return {
        "labels": num_labels,
        "precision": round(num_right / max(num_found, 1), 3),
        "precision_interval": wilson(num_right, num_found),
        "recall": round(num_right / max(num_labels, 1), 3),
        "recall_interval": wilson(num_right, num_labels),
    }


def main() -> None:
    """Print the figures."""
    sets = {"plain": [POSITIVE, NEGATIVE], "hard": [HARD, NEGATIVE]}
    for name, texts in sets.items():
        for kind in PLACEHOLDERS:
            print(f"{name:<6} {kind:<6} {score(texts, [kind])}")
    print(json.dumps({"benchmark": "personal_data"} | {n: score(t, list(PLACEHOLDERS)) for n, t in sets.items()}))


if __name__ == "__main__":
    main()
