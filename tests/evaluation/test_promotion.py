"""The gate: better on the validation text and not worse on any task, whichever way the task's metric points."""

import pytest

from lm_core.evaluation.promotion import decide

BETTER, CHAMPION = {"val_bits_per_byte": 1.8}, {"val_bits_per_byte": 1.9}
CHAMPION_TASKS = {
    "story": {"metric": "bits_per_byte", "better": "lower", "score": 1.83, "low": 1.79, "high": 1.88},
    "sentiment": {"metric": "accuracy", "better": "higher", "score": 0.80, "low": 0.78, "high": 0.82},
    "blimp": {"metric": "accuracy", "score": 0.60, "low": 0.58, "high": 0.62},
}


def decided(task: str, score: float):
    own = CHAMPION_TASKS[task] | {"score": score, "low": score - 0.1, "high": score + 0.1}
    return decide(BETTER, CHAMPION, {task: own}, {task: CHAMPION_TASKS[task]})


@pytest.mark.parametrize(
    ("task", "score", "promoted"),
    [
        ("story", 5.0, False),
        ("story", 1.89, False),
        ("story", 1.88, True),
        ("story", 1.70, True),
        ("sentiment", 0.77, False),
        ("sentiment", 0.78, True),
        ("sentiment", 0.95, True),
        ("blimp", 0.57, False),
        ("blimp", 0.90, True),
    ],
)
def test_a_task_may_not_get_worse_than_the_champions_interval(task, score, promoted):
    decision = decided(task, score)
    assert decision.promote is promoted
    assert decision.evidence[-1].endswith(": not worse" if promoted else ": worse")


def test_the_evidence_names_the_bound_and_its_side():
    assert "(at most 1.880 wanted)" in decided("story", 5.0).evidence[-1]
    assert "(at least 0.780 wanted)" in decided("sentiment", 0.9).evidence[-1]


def test_a_model_that_is_not_better_on_the_validation_text_stays_challenger():
    assert not decide(CHAMPION, CHAMPION, {}, {}).promote
    assert decide(BETTER, CHAMPION, {}, {}).promote


def test_the_first_model_is_promoted_and_a_task_the_champion_never_had_is_no_hindrance():
    assert decide(BETTER, None, CHAMPION_TASKS, {}).promote
    assert decide(BETTER, CHAMPION, CHAMPION_TASKS, {}).promote
