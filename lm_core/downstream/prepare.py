"""Examples of the embedded downstream tasks, made from the documents that survived deduplication.

A document's identifier is a hash, so its order is already a random one: the first documents by `doc_id` are a sample
that does not depend on sources, shards or workers. Only the texts of that sample are read.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_contracts.schemas import EXAMPLES, SPLITS
from lm_core.artifact import Corpus, Decisions
from lm_core.downstream.config import PrepareConfig
from lm_core.downstream.docstrings import first_sentence, parameters, plain, split_summary
from lm_core.store import Build

# Most documents yield no example of a task; so many are looked at for each example wanted.
CANDIDATES_PER_ITEM = 12
MIN_BODY_CHARS = 60
MIN_TARGET_CHARS = 12
QUESTIONS_PER_DOCUMENT = 2


@dataclass(frozen=True)
class Document:
    """What an example is made from."""

    doc_id: str
    split: str
    source: str
    kind: str
    title: str
    text: str


@dataclass(frozen=True)
class Example:
    """A prompt and its target, before it is given an identifier."""

    prompt: str
    target: str
    labels: tuple[str, ...] | None = None


def prepare(
    build: Build, config: PrepareConfig, *, corpus: Corpus, cleaning: Decisions, duplicates: Decisions
) -> Mapping[str, Any]:
    """Write `examples.parquet` (schemas.EXAMPLES), sorted by task, split and item.

    Returns:
        Items of each task and split, the tasks left out with the reason, the labels of topic.
    """
    limits = dict(
        zip(SPLITS, (config.max_train_items, config.max_validation_items, config.max_test_items), strict=True)
    )
    index = _survivors(corpus, duplicates)
    families = _biggest_families(index, config)
    makers: dict[str, Callable[[Document, PrepareConfig], Iterator[Example]]] = {
        "summary": _summaries,
        "answer": _questions,
        "topic": lambda document, limits_: _topics(document, limits_, families),
    }
    quotas = {
        task: _Quota(limits, len(families) if task == "topic" else 1)
        for task in config.tasks
        if task != "topic" or len(families) >= 2
    }
    rows: dict[str, list[dict[str, Any]]] = {task: [] for task in quotas}
    wanted = _sample(index, limits, families, config)
    for done, document in enumerate(_read(corpus, wanted)):
        for task, quota in quotas.items():
            for example in makers[task](document, config):
                if quota.take(document.split, example.target if task == "topic" else ""):
                    rows[task].append(_row(task, document, example))
        if done % 500 == 0:
            build.progress(done, len(wanted), "documents")
    kept, left_out = _leave_out_the_small(rows, config)
    if "topic" in config.tasks and len(families) < 2:
        left_out["topic"] = "fewer than two sources have enough documents"
    ordered = sorted(
        (row for task in kept for row in rows[task]), key=lambda row: (row["task"], row["split"], row["item_id"])
    )
    pq.write_table(
        pa.Table.from_pylist(ordered, schema=EXAMPLES), build.folder / "examples.parquet", compression="zstd"
    )
    counts = {task: dict(sorted(Counter(row["split"] for row in rows[task]).items())) for task in kept}
    return {
        "tasks": counts,
        "left_out": left_out,
        "topic_labels": list(families) if "topic" in kept else [],
        "items": len(ordered),
    }


class _Quota:
    """Counts examples by (split, label) and refuses those beyond the limit, so that labels are balanced."""

    def __init__(self, limits: Mapping[str, int], num_labels: int) -> None:
        self._left = {split: max(1, limit // num_labels) for split, limit in limits.items()}
        self._taken: Counter[tuple[str, str]] = Counter()

    def take(self, split: str, label: str) -> bool:
        if self._taken[split, label] >= self._left[split]:
            return False
        self._taken[split, label] += 1
        return True


def _survivors(corpus: Corpus, duplicates: Decisions) -> pa.Table:
    """(doc_id, source, kind, split) of the documents that survived cleaning and deduplication, by doc_id."""
    columns = ["doc_id", "source", "kind"]
    shards = [pq.read_table(shard, columns=columns) for shard in corpus.document_shards()]
    splits = pq.read_table(duplicates.file("splits.parquet"), columns=["doc_id", "split"])
    return pa.concat_tables(shards).join(splits, "doc_id", join_type="inner").sort_by("doc_id")


def family_of(source: str, kind: str) -> str:
    """Package family: the first word of a package's name (`prefect-ray` and `prefect` are one); else the source."""
    return source.replace("_", "-").split("-")[0].lower() if kind == "docstring" else source


def _biggest_families(index: pa.Table, config: PrepareConfig) -> tuple[str, ...]:
    """Labels of topic: the families with the most documents, those too small to be learned or scored left out."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    groups = index.group_by(["source", "kind", "split"]).aggregate([([], "count_all")])
    for row in groups.to_pylist():
        counts[family_of(row["source"], row["kind"])][row["split"]] += row["count_all"]
    share = config.num_topics
    enough = [
        (-sum(splits.values()), name)
        for name, splits in counts.items()
        if splits["train"] * share >= config.min_train_items and splits["test"] * share >= config.min_test_items
    ]
    return tuple(sorted(name for _, name in sorted(enough)[: config.num_topics]))


def _sample(
    index: pa.Table, limits: Mapping[str, int], families: Sequence[str], config: PrepareConfig
) -> dict[str, str]:
    """doc_id -> split of the documents whose text is worth reading, the first by doc_id of each split and family."""
    wanted: dict[str, str] = {}
    taken: Counter[tuple[str, str]] = Counter()
    for row in index.to_pylist():
        split, family = row["split"], family_of(row["source"], row["kind"])
        general = taken[split, ""] < limits[split] * CANDIDATES_PER_ITEM
        per_label = family in families and taken[split, family] < 2 * limits[split] // len(families) + 1
        if general or per_label:
            wanted[row["doc_id"]] = split
            taken[split, ""] += general
            taken[split, family] += 1
    return wanted


def _read(corpus: Corpus, wanted: Mapping[str, str]) -> Iterator[Document]:
    """The wanted documents, in order of doc_id."""
    columns = ["doc_id", "source", "kind", "title", "text"]
    ids = pa.array(list(wanted), pa.string())
    parts = []
    for shard in corpus.document_shards():
        for batch in pq.ParquetFile(shard).iter_batches(batch_size=8192, columns=columns):
            parts.append(batch.filter(pc.is_in(batch["doc_id"], value_set=ids)))
    schema = pq.read_schema(corpus.document_shards()[0])
    fields = pa.schema([schema.field(name) for name in columns])
    table = pa.Table.from_batches(parts, schema=fields.remove_metadata()) if parts else fields.empty_table()
    for batch in table.sort_by("doc_id").to_batches(max_chunksize=2048):
        for row in batch.to_pylist():
            yield Document(
                row["doc_id"], wanted[row["doc_id"]], row["source"], row["kind"], row["title"] or "", row["text"]
            )


def _cut(text: str, max_chars: int) -> str:
    """Text cut at a word's end."""
    if len(text) <= max_chars:
        return text
    return text[:max_chars].rsplit(None, 1)[0]


def _summaries(document: Document, config: PrepareConfig) -> Iterator[Example]:
    """A docstring's body to its first line."""
    parts = split_summary(document.text) if document.kind == "docstring" else None
    if parts is None:
        return
    first, body = parts
    body = _cut(body, config.max_prompt_chars)
    if MIN_TARGET_CHARS <= len(first) <= config.max_target_chars and len(body) >= MIN_BODY_CHARS:
        name = document.title or "this object"
        yield Example(f"Summarise the documentation of {name} in one line.\n\n{body}", first)


def _questions(document: Document, config: PrepareConfig) -> Iterator[Example]:
    """What does a parameter of a function do? What does a function do?"""
    if document.kind != "docstring" or not document.title:
        return
    name = document.title.rsplit(".", 1)[-1]
    about = _cut(first_sentence(document.text), config.max_prompt_chars)
    asked = 0
    for parameter in parameters(document.text):
        if asked == QUESTIONS_PER_DOCUMENT:
            return
        if MIN_TARGET_CHARS <= len(parameter.text) <= config.max_target_chars:
            asked += 1
            question = f"What does the parameter {parameter.name} of {name} do?"
            yield Example(f"{document.title}: {about}\n\n{question}", parameter.text)
    if not asked and MIN_TARGET_CHARS <= len(about) <= config.max_target_chars:
        yield Example(f"What does {document.title} of the package {document.source} do?", about)


def _topics(document: Document, config: PrepareConfig, families: tuple[str, ...]) -> Iterator[Example]:
    """Which family a text comes from."""
    family = family_of(document.source, document.kind)
    if family in families and len(document.text) >= MIN_BODY_CHARS:
        body = _cut(plain(document.text), config.max_prompt_chars)
        yield Example(f"Which source is this text from?\n\n{body}", family, families)


def item_id_of(task: str, doc_id: str, question: str) -> str:
    """32 hex digits over task, document and question."""
    return hashlib.sha256("\0".join((task, doc_id, question)).encode()).hexdigest()[:32]


def _row(task: str, document: Document, example: Example) -> dict[str, Any]:
    return {
        "item_id": item_id_of(task, document.doc_id, example.prompt),
        "task": task,
        "split": document.split,
        "doc_id": document.doc_id,
        "prompt": example.prompt,
        "target": example.target,
        "labels": list(example.labels) if example.labels else None,
    }


def _leave_out_the_small(
    rows: Mapping[str, list[dict[str, Any]]], config: PrepareConfig
) -> tuple[list[str], dict[str, str]]:
    """Tasks that have enough examples, and the reasons of those that have not."""
    kept, left_out = [], {}
    for task, items in rows.items():
        counts = Counter(row["split"] for row in items)
        short = [
            f"{counts[split]} {split} examples, {least} needed"
            for split, least in (("train", config.min_train_items), ("test", config.min_test_items))
            if counts[split] < least
        ]
        if short:
            left_out[task] = "; ".join(short)
        else:
            kept.append(task)
    return kept, left_out
