"""What each stage leaves for a person: a Markdown artifact in Prefect, the same text and its pictures in MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lm_core.artifact import (
    Artifact,
    Checkpoint,
    Corpus,
    Decisions,
    DownstreamData,
    Evaluation,
    HeldOut,
    PictureEncoder,
    TokenDataset,
    Tokenizer,
    ValidCorpus,
)
from lm_core.store import Store
from tasks import pictures
from tasks.acceptance import contract_report, drift_of
from tasks.markdown import table
from tasks.visual_report import visual_sections
from tasks.wording import amount

SAMPLE_ROWS = 6


@dataclass(frozen=True)
class Report:
    """Markdown, pictures by file name (they also stand in the Markdown as data URIs), whole pages of HTML by name."""

    markdown: str
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    pages: Mapping[str, str] = field(default_factory=dict)


def report_path(workspace: Path, stage: str, fingerprint: str) -> Path:
    """Where the Markdown of an artifact's report is kept."""
    return workspace / "reports" / stage / f"{fingerprint}.md"


def picture_shown(title: str, picture: bytes) -> str:
    """A picture (PNG) within Markdown."""
    return f"![{title}]({pictures.data_uri(picture)})"


def _figures(statistics: Mapping[str, Any]) -> str:
    rows = [
        (name.replace("_", " "), value) for name, value in statistics.items() if isinstance(value, int | float | str)
    ]
    return table(("figure", "value"), rows)


def report_on(artifact: Artifact, store: Store, title: str) -> Report:
    """The report of a stage, chosen by the kind of its artifact."""
    body = _REPORTS[type(artifact)](artifact, store)
    head = f"# {title}\n\n"
    tail = f"\n\n`{artifact.stage}/{artifact.fingerprint}`, content `{artifact.content_digest[:16]}`\n"
    if body.pages:
        return Report(head + body.markdown + tail, body.pictures, body.pages)
    told = contract_report(artifact)
    if told is None:
        return Report(head + body.markdown + tail, body.pictures)
    markdown = f"{head}{body.markdown}\n\n{told.markdown}{tail}"
    return Report(markdown, body.pictures, {"contracts.html": told.html})


def _corpus(artifact: Artifact, store: Store) -> Report:
    shard = next(iter(sorted(artifact.folder.glob("documents-*.parquet"))))
    sample = next(pq.ParquetFile(shard).iter_batches(SAMPLE_ROWS, columns=["source", "key", "num_bytes", "text"]))
    rows = [(r["source"], r["key"], r["num_bytes"], r["text"][:160]) for r in sample.to_pylist()]
    sources = artifact.statistics.get("by_source", {})
    ranked = sorted(sources.items(), key=lambda item: -_size(item[1]))[:20]
    parts = [_figures(artifact.statistics)]
    if ranked:
        parts += [
            "## Biggest sources",
            table(("source", "documents"), [(name, _size(count)) for name, count in ranked]),
        ]
    for name in ("rejected_by_reason", "ignored_files", "encodings", "mended"):
        if counts := artifact.statistics.get(name):
            parts += [f"## {name.replace('_', ' ').capitalize()}", table(("which", "count"), list(counts.items()))]
    parts += ["## A few documents", table(("source", "key", "bytes", "text"), rows)]
    return Report("\n\n".join(parts))


def _size(count: Any) -> int:
    return int(count.get("documents", 0)) if isinstance(count, Mapping) else int(count)


def _decisions(artifact: Artifact, store: Store) -> Report:
    reasons = {n: v for n, v in artifact.statistics.items() if isinstance(v, Mapping)}
    parts = [_figures(artifact.statistics)]
    for name, counts in reasons.items():
        rows = sorted(((k, v) for k, v in counts.items() if isinstance(v, int | float)), key=lambda row: -row[1])[:25]
        if rows:
            parts += [f"## {name.replace('_', ' ')}", table((name, "count"), rows)]
    return Report("\n\n".join(parts))


def _examples(artifact: Artifact, store: Store) -> Report:
    sample = next(pq.ParquetFile(artifact.file("examples.parquet")).iter_batches(400), None)
    rows = [(r["task"], r["split"], r["prompt"][:160], r["target"][:80]) for r in sample.to_pylist()] if sample else []
    shown = [row for task in dict.fromkeys(r[0] for r in rows) for row in [r for r in rows if r[0] == task][:3]]
    left_out = artifact.statistics.get("left_out", {})
    parts = [
        table(("task", "items"), [(task, json.dumps(n)) for task, n in artifact.statistics.get("tasks", {}).items()]),
        *(f"- *{task}* is left out: {reason}" for task, reason in left_out.items()),
        "## A few examples",
        table(("task", "split", "prompt", "target"), shown),
    ]
    return Report("\n\n".join(parts))


def _valid(artifact: Artifact, store: Store) -> Report:
    from lm_core.corpus.ledger import fate_counts

    if not isinstance(artifact, ValidCorpus):
        raise TypeError(type(artifact).__name__)
    counts = fate_counts(artifact, runtime=store.runtime)
    picture = pictures.funnel(counts["by_source"])
    fates = [(fate, n, f"{n / max(counts['collected'], 1):.1%}") for fate, n in counts["fates"].items() if n]
    told = contract_report(artifact, drift_of(artifact, store.runtime), pictures.data_uri(picture))
    parts = [
        f"{counts['kept']:,} of {counts['collected']:,} documents are kept.",
        table(("fate", "documents", "share"), fates),
        picture_shown("fates by source", picture),
        told.markdown if told else "",
    ]
    return Report("\n\n".join(parts), {"funnel.png": picture}, {"contracts.html": told.html} if told else {})


def _plain(artifact: Artifact, store: Store) -> Report:
    return Report(_figures(artifact.statistics))


def _tokenizer(artifact: Artifact, store: Store) -> Report:
    found = artifact.statistics
    columns = ("documents", "bytes", "bytes_per_token", "tokens_per_word")
    parts = [
        table(("figure", "value"), [(n.replace("_", " "), v) for n, v in found.items() if isinstance(v, int | float)]),
        "Fertility is tokens per word: words are runs between white space, and letters where a script sets none. "
        f"Of the hostile strings {found['hostile_round_trip']:.0%} come back unchanged.",
        *(f"- changed: `{text}`" for text in found["hostile_changed"]),
    ]
    for kind in ("language", "source"):
        groups = found[f"by_{kind}"]
        rows = [(name, *(figures[column] for column in columns)) for name, figures in groups.items()]
        parts += [f"## By {kind}", table((kind, "documents", "bytes", "bytes per token", "fertility"), rows)]
    unused = " ".join(f"`{text!r}`" for text in found["unused"] if "`" not in text)
    return Report("\n\n".join([*parts, "## Longer entries that the sample never uses", unused or "none"]))


def _tokens(artifact: Artifact, store: Store) -> Report:
    refused = artifact.statistics.get("encoders_refused", {})
    lines = [f"- {name} was not used: {reason}" for name, reason in refused.items()]
    return Report("\n\n".join([_plain(artifact, store).markdown, *lines]))


def _checkpoint(artifact: Artifact, store: Store) -> Report:
    picture = pictures.loss_curve(artifact.file("journal.jsonl"))
    parts = [_figures(artifact.statistics)]
    if picture is None:
        return Report(parts[0])
    return Report("\n\n".join([picture_shown("loss", picture), *parts]), {"loss.png": picture})


def _evaluation(artifact: Artifact, store: Store) -> Report:
    scores = artifact.statistics
    if "score" not in scores:
        baselines = scores.get("baseline_bits_per_byte", {})
        rows = [("this model", scores.get("val_bits_per_byte")), *baselines.items()]
        picture = pictures.score_bars(
            [(name, float(value)) for name, value in rows],
            "bits per byte on validation text (lower is better)",
            float(scores.get("val_low", rows[0][1])),
            float(scores.get("val_high", rows[0][1])),
        )
        return Report(f"{picture_shown('bits per byte', picture)}\n\n{_figures(scores)}", {"scores.png": picture})
    bars = [("this model", float(scores["score"])), *((n, float(v)) for n, v in scores["baselines"].items())]
    picture = pictures.score_bars(bars, scores["metric"], float(scores["low"]), float(scores["high"]))
    said = [_gain(scores), _forgotten(scores)]
    shown = [picture_shown(scores["metric"], picture), *said, _figures(scores), *visual_sections(scores)]
    parts = [*shown, "## A few predictions"]
    predictions = pq.read_table(artifact.file("predictions.parquet")).to_pylist()
    ours = [row for row in predictions if row["system"] == "model"][:SAMPLE_ROWS]
    cells = [tuple(str(row[name])[:160] for name in ("prediction", "target", "score")) for row in ours]
    parts += [table(("written", "wanted", "score"), cells), *_pictures_asked_about(artifact)]
    return Report("\n\n".join(part for part in parts if part), {"scores.png": picture})


def _pictures_asked_about(artifact: Artifact) -> list[str]:
    """A few pictures of a visual task with what was asked, wanted and answered; and why a model was refused."""
    parts = [f"**Refused:** {artifact.statistics['refused']}."] if artifact.statistics.get("refused") else []
    if not artifact.file("shown.json").exists():
        return parts
    shown = json.loads(artifact.file("shown.json").read_text())
    rows = [(f"![]({r['picture']})", r["question"], r["answer"], r["prediction"]) for r in shown]
    return [*parts, "## A few pictures", table(("picture", "asked", "wanted", "answered"), rows)]


def _gain(scores: Mapping[str, Any]) -> str:
    """What pretraining brought, in a sentence."""
    gain = scores.get("gain_over_random_weights")
    if not gain:
        return ""
    return (
        f"Against the same model fine-tuned from random weights: {gain['mean']:+.3f} "
        f"(95 % interval {gain['low']:+.3f} to {gain['high']:+.3f})."
    )


def _forgotten(scores: Mapping[str, Any]) -> str:
    """What tuning cost of the base's own text, in a sentence."""
    found = scores.get("forgetting")
    if not found:
        return ""
    more = found["after"] - found["before"]
    mixed_in = f", with {found['share_of_base']:.0%} of the base mixed back in" if found["share_of_base"] else ""
    after = f"{found['after']:.3f} bits per byte after tuning, {more:+.3f} against before"
    return f"The base's own text costs {after}{mixed_in}."


_REPORTS: dict[type[Artifact], Callable[[Artifact, Store], Report]] = {
    Corpus: _corpus,
    Decisions: _decisions,
    HeldOut: _decisions,
    DownstreamData: _examples,
    ValidCorpus: _valid,
    Tokenizer: _tokenizer,
    TokenDataset: _tokens,
    Checkpoint: _checkpoint,
    PictureEncoder: _checkpoint,
    Evaluation: _evaluation,
}

# The figures worth a place in the one line that a stage ends with.
_HEADLINES = (
    ("num_documents", "{} documents"),
    ("num_rejected", "{} unreadable"),
    ("dropped", "{} dropped"),
    ("kept", "{} kept"),
    ("items", "{} items"),
    ("vocab_size", "vocabulary {}"),
    ("tokens", "{} tokens"),
    ("num_parameters", "{} parameters"),
    ("tokens_per_second", "{} tokens/s"),
    ("val_bits_per_byte", "{} bits per byte"),
)


def summary_of(artifact: Artifact) -> str:
    """One line on what a stage made."""
    scores = artifact.statistics
    if "score" in scores:
        return f"{scores['metric'].replace('_', ' ')} {scores['score']:.3f} [{scores['low']:.3f}, {scores['high']:.3f}]"
    values = [(text, scores[name]) for name, text in _HEADLINES if isinstance(scores.get(name), int | float)]
    return ", ".join(text.format(amount(value)) for text, value in values[:4])
