"""What goes with what in a declaration: kinds, metrics, baselines, figures; and which field would have no effect.

A declaration that passes here is scored to its end: what cannot be computed is refused before anything is learnt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lm_core.downstream.task import Task

# Tasks with a stage of their own, which counts preferences instead of right choices.
BIAS_PROBES = ("winogender", "crows_pairs")
_TEXT_METRICS = ("token_f1", "exact_match", "rouge_l", "chrf", "same_text", "number_match")
_OF_FREE_TEXT = ("distinct_2", "repetition", "memorised_spans")
_OF_ANSWERS = (
    "rouge_1", "rouge_2", *_TEXT_METRICS, "bits_per_byte", "chrf_corpus", "bleu", "slot_f1", "copy_rate",
    "repeats_itself", "consistent_over_turns", "faithful_numbers_and_names", "placeholder_fidelity", *_OF_FREE_TEXT,
)  # fmt: skip
_WRITERS = ("majority", "nearest_neighbour", "copy", "lead_sentence", "best_overlap_sentence", "dictionary")


@dataclass(frozen=True)
class Scoring:
    """What a kind of task can be scored by, and beside."""

    metrics: tuple[str, ...]
    baselines: tuple[str, ...] = ()
    guards: tuple[str, ...] = ()


SCORING: dict[str, Scoring] = {
    "label": Scoring(
        ("accuracy",),
        ("majority", "tfidf_logistic_regression", "tfidf_with_threshold"),
        ("macro_f1", "calibration_error", "out_of_scope_recall"),
    ),
    "answer": Scoring((*_TEXT_METRICS, "bits_per_byte"), (*_WRITERS, "kneser_ney_5_gram"), _OF_ANSWERS),
    "text": Scoring(("bits_per_byte",), ("kneser_ney_5_gram",), _OF_FREE_TEXT),
    "choice": Scoring(("accuracy", "preference"), ("chance", "kneser_ney_5_gram")),
    "visual": Scoring(("accuracy", "chrf"), ("majority", "nearest_neighbour")),
    "preference": Scoring(("win_rate",)),
}
# Fields that only some kinds look at; recipes stand beside them, as `recipe.NAME`.
_ONLY_FOR: dict[str, tuple[str, ...]] = {
    "labels": ("label", "visual"),
    "label_names": ("label", "visual"),
    "out_of_scope": ("label",),
    "choices": ("choice",),
    "references": ("answer",),
    "picture": ("visual",),
    "answer_types": ("visual",),
    "recipe": ("label", "answer", "text", "preference"),
    "recipe.token_dropout": ("label",),
    "recipe.pooling": ("label",),
    "recipe.num_buckets": ("label",),
    "recipe.trunk_learns": ("label",),
}


def complaints(task: Task) -> Iterator[str]:
    """What does not go together in a declaration, most telling first."""
    yield from _about_files(task)
    yield from _about_templates(task)
    yield from _about_kind(task)
    yield from _about_scores(task)
    yield from _about_pairs(task)
    yield from _about_effects(task)


def _about_files(task: Task) -> Iterator[str]:
    unknown = set(task.files) - {"train", "validation", "test", "all"}
    if unknown or not ({"all", "test"} & set(task.files)):
        yield f"files must name all, or test and perhaps train and validation, not {sorted(task.files)}"
    if "all" in task.files and len(task.files) > 1:
        yield "files: all stands alone"


def _about_templates(task: Task) -> Iterator[str]:
    from lm_core.downstream.task import columns_of

    cut = {f"{{{name}}}" for name in columns_of(task.target)}
    for template in (task.prompt, task.group, *task.choices):
        columns_of(template)
    needs_prompt = task.kind in ("label", "answer", "preference")
    needs_target = task.kind != "choice" or task.metric == "accuracy"
    for wrong, what in (
        (needs_prompt and not task.prompt, f"kind {task.kind} needs a prompt"),
        (needs_target and not task.target, f"kind {task.kind} needs a target"),
        (
            task.rows == "passages" and task.target.strip() not in cut,
            "rows passages cuts the text of one column: target must be that column in braces, and nothing else",
        ),
        (
            task.focus and task.focus not in columns_of(task.prompt),
            f"focus has no effect: the prompt does not name the column {task.focus}",
        ),
    ):
        if wrong:
            yield what


def _about_kind(task: Task) -> Iterator[str]:
    listed = task.rows == "options"
    everything = task.loss_on == "everything"
    for wrong, what in (
        (
            listed and (task.kind != "choice" or task.choices),
            "rows options goes with kind choice, and takes its choices from the prompt",
        ),
        (task.kind == "choice" and not listed and len(task.choices) < 2, "kind choice needs two choices at least"),
        (task.kind == "visual" and not task.picture, "kind visual needs picture, the column that names it"),
        (
            task.kind == "text" and (task.prompt or not everything),
            'kind text has no prompt and counts every byte: leave prompt out and say loss_on = "everything"',
        ),
        (task.kind != "text" and everything, 'loss_on = "everything" goes with kind text'),
    ):
        if wrong:
            yield what


def _about_scores(task: Task) -> Iterator[str]:
    scoring = SCORING[task.kind]
    for kind, names, known in (
        ("metric", (task.metric,), scoring.metrics),
        ("baseline", task.baselines, scoring.baselines),
        ("guard", task.guards, scoring.guards),
    ):
        for name in names:
            if name not in known:
                yield f"{kind} {name} does not go with kind {task.kind}; {_or(known)} does"


def _about_pairs(task: Task) -> Iterator[str]:
    """What goes with the kind, but not with another field."""
    probes = task.metric == "preference"
    scope = task.out_of_scope is None
    for wrong, what in (
        (
            task.kind == "visual" and (task.metric == "accuracy") != bool(task.labels),
            "kind visual has labels and metric accuracy, or neither and metric chrf",
        ),
        (
            task.kind == "visual" and task.labels and "nearest_neighbour" in task.baselines,
            "baseline nearest_neighbour is of captions: it goes with metric chrf",
        ),
        (
            probes and task.name not in BIAS_PROBES,
            f"metric preference is computed for {_or(BIAS_PROBES)} alone; of choices of your own it is accuracy",
        ),
        (probes and task.baselines, "metric preference stands beside no baseline: one half means none"),
        (
            scope and "tfidf_with_threshold" in task.baselines,
            "baseline tfidf_with_threshold needs out_of_scope",
        ),
        (scope and "out_of_scope_recall" in task.guards, "guard out_of_scope_recall needs out_of_scope"),
        (
            task.kind == "answer" and task.metric != "bits_per_byte" and "kneser_ney_5_gram" in task.baselines,
            "baseline kneser_ney_5_gram writes no answers: it goes with metric bits_per_byte",
        ),
    ):
        if wrong:
            yield what


def _about_effects(task: Task) -> Iterator[str]:
    for field, kinds in _ONLY_FOR.items():
        holder, _, name = field.rpartition(".")
        owner = getattr(task, holder) if holder else task
        default = type(owner).model_fields[name].get_default(call_default_factory=True)
        if task.kind not in kinds and getattr(owner, name) != default:
            yield f"{field} has no effect for kind {task.kind}: it goes with {_or(kinds)}"
    if task.recipe.trunk_learns and not task.recipe.num_buckets:
        yield "recipe.trunk_learns has no effect without recipe.num_buckets"


def _or(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else "".join(names) or "none"
