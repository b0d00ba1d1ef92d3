"""The stage read_task: a declared task's data folder becomes examples; what is bad is counted and named by row."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.schemas import BAD_ROWS, EXAMPLES, SPLITS
from lm_core.artifact import HeldOut
from lm_core.corpus.split_overlaps import num_near_overlaps
from lm_core.downstream.config import ReadTaskConfig
from lm_core.downstream.contamination import held_by
from lm_core.downstream.passages import focus_on, histories, passages
from lm_core.downstream.prepare import item_id_of
from lm_core.downstream.row_checks import (
    BadRow,
    check_columns,
    check_row,
    named_choice,
    needed_columns,
    numbered_choice,
    options_in,
)
from lm_core.downstream.rows import HUB, Row, file_digests, read_file, read_hub, read_split, splits_of
from lm_core.downstream.task import Task, as_text, columns_of, fill
from lm_core.errors import IntegrityError, UserError
from lm_core.runtime import Runtime
from lm_core.store import Build

# Of the groups (articles, pages) of a file without splits, and of train where validation is missing.
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.06
NAMED_IN_MESSAGE = 3
SKIMMED_WHOLE, SKIM_STEP = 256, 16
# What is wrong with an item only because of what is held out: no fault of the file, and bounded by itself.
OTHERS_FAULT = ("leaks", "contaminated")


@dataclass(frozen=True)
class Place:
    """Where a row stands, for a person to find it.

    Attributes:
        outside: it is one of the texts that belong to no label.
    """

    split: str
    file: str
    row: int
    outside: bool = False


def source_digests(config: ReadTaskConfig, runtime: Runtime) -> dict[str, str]:
    """Identity of the files the task reads."""
    return file_digests(config.task, config.data)


def read_task(build: Build, config: ReadTaskConfig, *, held_out: HeldOut | None = None) -> Mapping[str, Any]:
    """Write `examples.parquet` (schemas.EXAMPLES) and `bad_rows.parquet` (schemas.BAD_ROWS).

    Raises:
        UserError: a template names a column that is not there, a split is empty.
        IntegrityError: more bad rows, or more leaks between splits, than the task allows; it names the first.
    """
    reader = TaskReader(config.task, config.data, skim=config.skim)
    items = reader.read(build)
    _name_labels(config.task, items, reader)
    leaks = _drop_leaks(items, reader)
    near = num_near_overlaps({s: [(i["item_id"], i["prompt"] or i["target"]) for i in items[s]] for s in SPLITS})
    if held_out is not None:
        _drop_contaminated(items, reader, held_by(items["train"], held_out, build.runtime))
    _check_bounds(config.task, reader, items, leaks)
    limits = _limits(config)
    kept = {split: sorted(items[split], key=lambda item: item["item_id"])[: limits[split]] for split in SPLITS}
    rows = [item for split in sorted(SPLITS) for item in kept[split]]
    _write(build.folder / "examples.parquet", rows, EXAMPLES)
    _write(build.folder / "bad_rows.parquet", reader.bad, BAD_ROWS)
    return {
        "task": config.task.name,
        "tasks": {config.task.name: {split: len(kept[split]) for split in SPLITS if kept[split]}},
        "items": len(rows),
        "items_before_the_cap": {split: len(items[split]) for split in SPLITS},
        "bad_rows": dict(sorted(Counter(row["reason"] for row in reader.bad).items())),
        "set_aside": dict(sorted(reader.set_aside.items())),
        "near_overlaps": near,
        "num_labels": len(rows[0]["labels"] or []) if rows else 0,
    }


def _write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")


def _limits(config: ReadTaskConfig) -> dict[str, int]:
    task, cap = config.task, config.max_items
    sizes = zip(SPLITS, (task.max_train_items, task.max_validation_items, task.max_test_items), strict=True)
    return {split: min(size, cap) if cap else size for split, size in sizes}


class TaskReader:
    """Turns rows into items, and remembers what it could not turn."""

    def __init__(self, task: Task, data: str, *, skim: bool = False) -> None:
        self.task, self.data, self.skim = task, data, skim
        self.splits = splits_of(task, data)
        self.bad: list[dict[str, Any]] = []
        self.set_aside: Counter[str] = Counter()
        self.num_rows: Counter[tuple[str, bool]] = Counter()
        self._needed = needed_columns(task)
        self._columns_of: dict[str, set[str]] = {}
        self._place_in: Counter[tuple[str, str]] = Counter()

    def read(self, build: Build) -> dict[str, list[dict[str, Any]]]:
        """Items of each split, without repeated ones."""
        found: dict[str, dict[str, dict[str, Any]]] = {split: {} for split in SPLITS}
        for name in self.splits:
            for file, number, row in read_split(self.task, name, self.data):
                if self.skim and number >= SKIMMED_WHOLE and number % SKIM_STEP:
                    continue
                for item in self.items(Place(name, file, number), row):
                    found[item["split"]].setdefault(item["item_id"], item)
                build.progress(number, None, "rows")
        self.check_columns()
        for split in SPLITS:
            self._add_out_of_scope(split, found[split])
        return {split: list(items.values()) for split, items in found.items()}

    def items(self, place: Place, row: Row | str) -> Iterator[dict[str, Any]]:
        """Items of one row; none when it is bad or not wanted, which is then noted."""
        if self.task.parallel and not isinstance(row, str):
            self._place_in[place.file, as_text(row.get(self.task.parallel))] += 1
        try:
            parts = self._parts(place, row)
        except BadRow as problem:
            self._note(place, problem.reason, str(problem))
            return
        for part in parts:
            try:
                item = self._item(place, part)
            except BadRow as problem:
                self._note(place, problem.reason, str(problem))
            else:
                if item:
                    yield item

    def check_columns(self) -> None:
        """A template that names a column which no row of a file has is a mistake of the declaration.

        Raises:
            UserError: naming the column and the file.
        """
        for file, columns in self._columns_of.items():
            missing = sorted({*self._needed, *self._kept(columns)} - columns)
            if missing and columns:
                raise UserError(
                    f"task {self.task.name}: its templates name the column {missing[0]}, which {file} lacks; "
                    f"it has {', '.join(sorted(columns))}"
                )

    def note(self, item: Mapping[str, Any], reason: str, detail: str, split: str) -> None:
        """Remember what is wrong with an item, by the row that it was made from."""
        self._note(replace(item["place"], split=split), reason, detail)

    def _note(self, place: Place, reason: str, detail: str) -> None:
        self.bad.append({"task": self.task.name, **vars(place), "reason": reason, "detail": detail})

    def _kept(self, columns: Container[str]) -> list[str]:
        """Columns of `keep`; a data set of the hub may lack one that our files have been given."""
        return [column for column in self.task.keep if self.data != HUB or column in columns]

    def _parts(self, place: Place, row: Row | str) -> Iterable[Row]:
        """A row that is wanted and looks right: itself, or one for each turn of a dialogue or passage of a text."""
        task = self.task
        self.num_rows[place.split, place.outside] += 1
        if isinstance(row, str):
            raise BadRow("not_readable", row)
        self._columns_of.setdefault(place.file, set()).update(row)
        kept = self._kept(row)
        check_row(task, row, (*kept, *self._needed))
        if any(as_text(row[column]) not in task.keep[column] for column in kept):
            self.set_aside["not wanted by keep"] += 1
            return []
        if task.rows == "dialogue":
            return histories(row, task.max_prompt_chars)
        if task.rows == "passages":
            pieces = passages(fill(task.target, row), task.max_target_chars)
            if not pieces:
                raise BadRow("empty", "the text is empty")
            (column,) = columns_of(task.target)
            return [row | {column: piece} for piece in pieces]
        return [row]

    def _item(self, place: Place, row: Row) -> dict[str, Any] | None:
        task = self.task
        prompt, target = self._prompt(row), fill(task.target, row)
        if not target or (task.prompt and not prompt):
            raise BadRow("empty", "the prompt or the target is empty")
        choices = [fill(choice, row) for choice in task.choices]
        if task.rows == "options":
            choices = options_in(prompt)
            if len(choices) < 2:
                self.set_aside["lists no options"] += 1
                return None
            target = named_choice(choices, target)
        elif task.kind == "choice":
            target = numbered_choice(choices, target)
        if task.kind == "label":
            target = task.label_names.get(target, target)
            if task.labels and target not in task.labels:
                raise BadRow("label_outside_the_set", repr(target))
        if len(target) > task.max_target_chars:
            self.set_aside["longer than max_target_chars"] += 1
            return None
        group = fill(task.group, row) if task.group else None
        if task.parallel and self.data != HUB:  # there the translations are data sets of their own
            value = as_text(row[task.parallel])
            group = f"{value}/{self._place_in[place.file, value]}"
        if group == "":
            raise BadRow("empty", "what it shares with other items (group) is empty")
        references = _all_answers(row[task.references]) if task.references else None
        identity = item_id_of(task.name, group or "", f"{prompt}\0{target}")
        return {
            "item_id": identity,
            "task": task.name,
            "split": self._split(place, group or identity),
            "prompt": prompt,
            "target": target,
            "labels": choices or list(task.labels) or None,
            "references": references,
            "group": as_text(row[task.picture]) if task.picture else group,
            "place": place,
        }

    def _prompt(self, row: Row) -> str:
        task = self.task
        prompt = fill(task.prompt, row)
        if len(prompt) > task.max_prompt_chars and task.focus:
            others = fill(task.prompt, row | {task.focus: ""})
            room = task.max_prompt_chars - len(others) - 1
            prompt = fill(task.prompt, row | {task.focus: focus_on(as_text(row[task.focus]), others, room)})
        return prompt[: task.max_prompt_chars].rstrip()

    def _split(self, place: Place, group: str) -> str:
        """The split of a file, or by hash of the group where the file has none."""
        share = int(hashlib.sha256(f"{self.task.name}\0{group}".encode()).hexdigest()[:8], 16) / 0x1_0000_0000
        if place.split == "all" and share < TEST_SHARE:
            return "test"
        if place.split in ("all", "train") and "validation" not in self.splits and share > 1 - VALIDATION_SHARE:
            return "validation"
        return "train" if place.split == "all" else place.split

    def _add_out_of_scope(self, split: str, items: dict[str, dict[str, Any]]) -> None:
        outside = self.task.out_of_scope
        if outside is None or split not in outside.files:
            return
        texts: dict[str, Place] = {}
        for place, row in self._outside_rows(split):
            try:
                texts[self._outside_text(place, row, columns_of(outside.prompt))] = place
            except BadRow as problem:
                self._note(place, problem.reason, str(problem))
        if not texts:
            raise UserError(f"task {self.task.name}: out_of_scope has no text for {split}; look at its files")
        made = {item_id_of(self.task.name, "", f"{text}\0{outside.label}"): text for text in texts}
        # Not the smallest identifiers: those are the ones a cap on the items keeps.
        for identity in sorted(made, key=lambda name: name[::-1])[: round(outside.share * len(items))]:
            items[identity] = {
                "item_id": identity, "task": self.task.name, "split": split, "prompt": made[identity],
                "target": outside.label, "labels": None, "references": None, "group": None,
                "place": texts[made[identity]],
            }  # fmt: skip

    def _outside_text(self, place: Place, row: Row | str, columns: list[str]) -> str:
        assert self.task.out_of_scope is not None
        self.num_rows[place.split, True] += 1
        if isinstance(row, str):
            raise BadRow("not_readable", row)
        check_columns(row, columns)
        text = fill(self.task.out_of_scope.prompt, row)[: self.task.max_prompt_chars]
        if not text:
            raise BadRow("empty", "the text is empty")
        return text

    def _outside_rows(self, split: str) -> Iterator[tuple[Place, Row | str]]:
        """Rows of the texts that belong to no label."""
        outside = self.task.out_of_scope
        assert outside is not None
        if self.data != HUB:
            for number, row in enumerate(read_file(Path(self.data) / outside.files[split])):
                yield Place(split, outside.files[split], number, True), row
        elif outside.hub is not None and split in outside.hub.splits:
            for file, number, row in read_hub(outside.hub, split):
                yield Place(split, file, number, True), row


def _all_answers(value: Any) -> list[str]:
    return [as_text(part) for part in (value if isinstance(value, list | tuple) else [value]) if part is not None]


def _drop_leaks(items: dict[str, list[dict[str, Any]]], reader: TaskReader) -> int:
    """Take from training (and from validation) the items whose text is held out; returns the held-out ones leaked."""
    leaked = 0
    for split, held_out in (("train", ("validation", "test")), ("validation", ("test",))):
        known = {_text_key(item) for other in held_out for item in items[other]}
        clean = [item for item in items[split] if _text_key(item) not in known]
        own = {_text_key(item) for item in items[split]}
        leaked += sum(_text_key(item) in own for other in held_out for item in items[other])
        for item in items[split]:
            if _text_key(item) in known:
                detail = f"{item['prompt'] or item['target']}"[:120]
                reader.note(item, "leaks", f"also held out: {detail!r}", split)
        items[split] = clean
    return leaked


def _drop_contaminated(items: dict[str, list[dict[str, Any]]], reader: TaskReader, holding: Mapping[int, str]) -> None:
    """Take from training the items that hold a held-out item of any task: `holding` names it, by place in training."""
    for place, held in holding.items():
        reader.note(items["train"][place], "contaminated", f"holds the held-out item {held}", "train")
    items["train"] = [item for place, item in enumerate(items["train"]) if place not in holding]


def _text_key(item: Mapping[str, Any]) -> str:
    return " ".join((item["prompt"] or item["target"]).casefold().split())


def _check_bounds(task: Task, reader: TaskReader, items: Mapping[str, list[Any]], leaks: int) -> None:
    for (split, outside), total in reader.num_rows.items():
        places = [row for row in reader.bad if (row["split"], row["outside"]) == (split, outside)]
        bad = list({(b["file"], b["row"]): b for b in reversed(places) if b["reason"] not in OTHERS_FAULT}.values())
        bad.reverse()
        if len(bad) > task.max_bad_share * total:
            named = "; ".join(
                f"{b['file']} row {b['row']}: {b['reason']}: {b['detail']}" for b in bad[:NAMED_IN_MESSAGE]
            )
            raise IntegrityError(
                f"task {task.name}: {len(bad)} of {total} rows of {split} are bad, "
                f"{task.max_bad_share:.0%} are allowed ({named})"
            )
    held_out = len(items["test"]) + len(items["validation"])
    if leaks > task.max_leak_share * held_out:
        first = next(row["detail"] for row in reader.bad if row["reason"] == "leaks")
        raise IntegrityError(
            f"task {task.name}: {leaks} of {held_out} held-out items stand in another split too, "
            f"{task.max_leak_share:.0%} are allowed ({first})"
        )
    asked = {"validation"} & set(reader.splits) | ({"test"} if task.kind == "choice" else {"train", "test"})
    for split in (split for split in SPLITS if split in asked):
        if not items[split]:
            raise UserError(f"task {task.name}: the split {split} is empty; look at its files and at keep")


def _name_labels(task: Task, items: dict[str, list[dict[str, Any]]], reader: TaskReader) -> None:
    """Write the closed set beside every item: as declared, or what training has; with it the answer for none.

    Held-out items whose label training never shows are bad rows.
    """
    if task.kind != "label":
        return
    labels = list(task.labels) or sorted({item["target"] for item in items["train"]})
    if task.out_of_scope and task.out_of_scope.label not in labels:
        labels.append(task.out_of_scope.label)
    known = set(labels)
    for split, found in items.items():
        for item in found:
            item["labels"] = labels
            if item["target"] not in known:
                reader.note(item, "label_outside_the_set", f"{item['target']!r}, which training never shows",
                            item["place"].split)  # fmt: skip
        items[split] = [item for item in found if item["target"] in known]
