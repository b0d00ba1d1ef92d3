"""The score card: what a run ends with, as one JSON object for programs and as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.terminal import on_one_line
from lm_core.artifact import Artifact, ValidCorpus
from lm_core.corpus.ledger import fate_counts
from tasks.markdown import table as markdown_table
from tasks.registry import Registered
from tasks.stage import StageRunner
from tasks.wording import duration

SOURCES_SHOWN = 8


def score_card(
    runner: StageRunner,
    registered: Mapping[str, Registered],
    alias: str | None,
    seconds: float,
    peak_rss_mb: int,
    name: str,
) -> dict[str, Any]:
    """Everything a run found out, from the handles it made."""
    made = runner.made
    model = registered.get(name)
    base = made.get("pretrain")
    return {
        "model": name if model else None,
        "version": model.version if model else None,
        "alias": alias,
        "weights_sha256": base.statistics.get("weights_sha256") if base else None,
        "seconds": round(seconds, 2),
        "peak_rss_mb": peak_rss_mb,
        "corpus": _corpus(made.get("validate"), runner),
        "pretrain": _pretrain(base, made.get("evaluate")),
        "downstream": {
            artifact.statistics["task"]: dict(artifact.statistics)
            for label, artifact in made.items()
            if "score" in artifact.statistics and not label.startswith("evaluate champion")
        },
        "registered": {key: item.version for key, item in registered.items()},
        "stages": [
            {"name": record.name, "seconds": record.seconds, "state": record.state} for record in runner.records
        ],
    }


def _corpus(artifact: Artifact | None, runner: StageRunner) -> dict[str, Any]:
    return fate_counts(artifact, runtime=runner.runtime) if isinstance(artifact, ValidCorpus) else {}


def _pretrain(base: Artifact | None, evaluation: Artifact | None) -> dict[str, Any]:
    if base is None:
        return {}
    result = {name: base.statistics.get(name) for name in ("tokens", "tokens_per_second", "num_parameters")}
    result["val_bits_per_byte"] = base.statistics.get("val_bits_per_byte")
    if evaluation is not None:
        wanted = ("val_bits_per_byte", "val_low", "val_high", "baseline_bits_per_byte", "test_bits_per_byte")
        result |= {name: evaluation.statistics[name] for name in wanted if name in evaluation.statistics}
    return result


def show(card: Mapping[str, Any], addresses: Mapping[str, str], console: Console) -> None:
    """The card as a person reads it."""
    console.print()
    if card["corpus"]:
        console.print(funnel_table(card["corpus"], most=SOURCES_SHOWN))
    if card["pretrain"].get("baseline_bits_per_byte"):
        console.print(_language(card["pretrain"]))
    if card["downstream"]:
        console.print(_downstream(card["downstream"]))
    if card["model"]:
        console.print(f"[bold]{card['model']} version {card['version']}[/] is [bold]{card['alias']}[/]")
    for name, address in addresses.items():
        console.print(f"  {name:<8} {address}", highlight=False)
    cached = sum(stage["state"] == "Cached" for stage in card["stages"])
    console.print(
        f"{len(card['stages'])} stages, {cached} cached, {duration(card['seconds'])}, "
        f"peak memory {card['peak_rss_mb']} MB"
    )
    if card["model"]:
        console.print("Next: millrace chat · millrace generate 'Return the' · millrace models · millrace down")


def funnel_table(corpus: Mapping[str, Any], most: int | None = None) -> Table:
    """Fates by source, the biggest sources first: all of them, or so many."""
    fates = [fate for fate, count in corpus["fates"].items() if count]
    # Narrow enough for its headings on a terminal of eighty columns.
    table = Table(title="Corpus: every document has one fate", title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("source", no_wrap=True, min_width=12, max_width=24)
    for heading in ("collected", *fates):
        table.add_column(heading.replace("_duplicate", "\ncopies"), justify="right")
    ranked = sorted(corpus["by_source"].items(), key=lambda item: -item[1]["collected"])
    for source, counts in ranked[:most]:
        table.add_row(
            Text(on_one_line(source)),
            f"{counts['collected']:,}",
            *(f"{counts['fates'].get(fate, 0):,}" for fate in fates),
        )
    if most is not None and len(ranked) > most:
        table.add_row(f"... {len(ranked) - most} more sources", *[""] * (len(fates) + 1))
    table.add_section()
    table.add_row("all", f"{corpus['collected']:,}", *(f"{corpus['fates'][fate]:,}" for fate in fates))
    return table


def _language(scores: Mapping[str, Any]) -> Table:
    table = Table(title="Validation text (lower is better)", title_justify="left")
    table.add_column("system")
    table.add_column("bits per byte", justify="right")
    low, high = scores.get("val_low"), scores.get("val_high")
    interval = f"  [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
    table.add_row("this model", f"[bold]{scores['val_bits_per_byte']:.3f}[/]{interval}")
    for name, value in scores["baseline_bits_per_byte"].items():
        table.add_row(name.replace("_", " "), f"{value:.3f}")
    return table


def _downstream(tasks: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(title="Downstream tasks (held-out documents)", title_justify="left")
    for heading in _TASK_HEADINGS:
        table.add_column(heading)
    for row in _task_rows(tasks):
        table.add_row(*row)
    return table


_TASK_HEADINGS = ("task", "metric", "score", "interval", "random weights", "best other baseline")


def _task_rows(tasks: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for task, scores in tasks.items():
        others = {name: value for name, value in scores["baselines"].items() if name != "random_weights"}
        sign = -1 if scores.get("better") == "lower" else 1
        best = max(others, key=lambda name: sign * others[name]) if others else None
        rows.append(
            (
                task,
                str(scores["metric"]),
                f"{scores['score']:.3f}",
                f"{scores['low']:.3f} to {scores['high']:.3f}",
                f"{scores['baselines'].get('random_weights', float('nan')):.3f}",
                f"{others[best]:.3f} {best.replace('_', ' ')}" if best else "",
            )
        )
    return rows


def as_markdown(card: Mapping[str, Any]) -> str:
    """The card as Markdown, for Prefect and MLflow."""
    model = f"{card['model']} version {card['version']} is {card['alias']}" if card["model"] else "no model registered"
    parts = [f"# Score card: {model}"]
    if card["corpus"]:
        fates = [(fate.replace("_", " "), count) for fate, count in card["corpus"]["fates"].items() if count]
        parts += ["## Documents by fate", markdown_table(("fate", "documents"), fates)]
    pretrain = card["pretrain"]
    if pretrain.get("baseline_bits_per_byte"):
        systems = [("this model", pretrain["val_bits_per_byte"]), *pretrain["baseline_bits_per_byte"].items()]
        parts += [
            "## Validation text, bits per byte (lower is better)",
            markdown_table(("system", "bits per byte"), systems),
        ]
    if card["downstream"]:
        parts += ["## Downstream tasks", markdown_table(_TASK_HEADINGS, _task_rows(card["downstream"]))]
    return "\n\n".join(parts)


def headline_metrics(card: Mapping[str, Any]) -> dict[str, float]:
    """The figures by which whole runs are compared in MLflow."""
    corpus, pretrain = card["corpus"], card["pretrain"]
    metrics = {
        "documents_collected": corpus.get("collected"),
        "documents_kept": corpus.get("kept"),
        "val_bits_per_byte": pretrain.get("val_bits_per_byte"),
        "tokens_per_second": pretrain.get("tokens_per_second"),
        "seconds": card["seconds"],
        "peak_rss_mb": card["peak_rss_mb"],
        **{f"{task}_{scores['metric']}": scores["score"] for task, scores in card["downstream"].items()},
    }
    return {name: float(value) for name, value in metrics.items() if value is not None}
