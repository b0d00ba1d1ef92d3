"""The stage read_pictures: decoded pictures and the texts about them; whatever is bad is counted and named by row."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.schemas import BAD_ROWS, EXAMPLES, SPLITS
from lm_core.downstream.prepare import item_id_of
from lm_core.downstream.read_task import NAMED_IN_MESSAGE, TEST_SHARE, VALIDATION_SHARE
from lm_core.downstream.row_checks import BadRow, check_columns
from lm_core.downstream.rows import HUB, Row, read_split, splits_of
from lm_core.downstream.task import Task, as_text, columns_of, fill
from lm_core.errors import IntegrityError, UserError
from lm_core.store import Build
from lm_core.vision.config import ReadPicturesConfig
from lm_core.vision.pictures import BadPicture, Pixels, decode, save_pictures, stack

Item = dict[str, Any]


def read_pictures(build: Build, config: ReadPicturesConfig) -> Mapping[str, Any]:
    """Write `examples.parquet`, `bad_rows.parquet` and the pictures that the examples name in `group`.

    Of a task's files, one with bytes in its rows holds pictures, under the name in task.picture; texts may stand in
    the same rows or in another file of the split. A picture that a data set of the hub does not name goes by its
    content, so that all texts about it stay in one split.

    Raises:
        UserError: a column is missing, or a split is empty.
        IntegrityError: more bad rows, or more pictures in two splits, than the task allows; it names the first.
    """
    task = config.task
    reader = _Reader(task, config.data, config.picture_size)
    found = [item for split in reader.splits for item in reader.read(split, build)]
    reader.check_bounds()
    items = {split: [item for item in found if item["split"] == split] for split in SPLITS}
    _drop_leaks(items, reader)
    for split in SPLITS:
        limit = min(int(getattr(task, f"max_{split}_items")), config.max_items or len(found))
        items[split] = _capped(items[split], limit, config.max_pictures)
        if not items[split] and split != "validation":
            raise UserError(f"task {task.name}: the split {split} is empty; look at its files")
    rows = [item for split in sorted(SPLITS) for item in sorted(items[split], key=lambda item: item["item_id"])]
    named = {name: reader.pixels[name] for name in dict.fromkeys(item["group"] for item in rows)}
    pq.write_table(pa.Table.from_pylist(rows, schema=EXAMPLES), build.folder / "examples.parquet", compression="zstd")
    bad = pa.Table.from_pylist(reader.bad, schema=BAD_ROWS)
    pq.write_table(bad, build.folder / "bad_rows.parquet", compression="zstd")
    save_pictures(stack(named, config.picture_size), build.folder)
    return {
        "task": task.name,
        "tasks": {task.name: {split: len(items[split]) for split in SPLITS if items[split]}},
        "items": len(rows),
        "pictures": len(named),
        "bad_rows": dict(sorted(Counter(row["reason"] for row in reader.bad).items())),
        "set_aside": dict(sorted(reader.set_aside.items())),
        "num_labels": len(task.labels),
    }


def _capped(items: Sequence[Item], limit: int, max_pictures: int | None) -> list[Item]:
    """Whole pictures in the order of their hash, until a limit is reached."""
    by_picture: dict[str, list[Item]] = {}
    for item in sorted(items, key=lambda item: (_digest(item["group"]), item["item_id"])):
        by_picture.setdefault(item["group"], []).append(item)
    kept: list[Item] = []
    for texts in list(by_picture.values())[:max_pictures]:
        if len(kept) + len(texts) > limit:
            break
        kept += texts
    return kept


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _drop_leaks(items: dict[str, list[Item]], reader: _Reader) -> None:
    """Take from training (and from validation) what is about a picture that is held out under another name.

    Raises:
        IntegrityError: more of the held-out pictures leak than the task allows.
    """
    task = reader.task
    looks = {name: _digest_of(pixels) for name, pixels in reader.pixels.items()}
    leaked: set[str] = set()
    for split, held_out in (("train", ("validation", "test")), ("validation", ("test",))):
        known = {looks[item["group"]]: item["group"] for other in held_out for item in items[other]}
        leaking = {item["group"] for item in items[split] if looks[item["group"]] in known}
        leaked |= {known[looks[name]] for name in leaking}
        for name in sorted(leaking):
            reader.note(split, "", -1, "leaks", f"picture {name} is also held out as {known[looks[name]]}")
        items[split] = [item for item in items[split] if item["group"] not in leaking]
    held = {item["group"] for split in ("validation", "test") for item in items[split]}
    if len(leaked) > task.max_leak_share * max(1, len(held)):
        first = next(row["detail"] for row in reader.bad if row["reason"] == "leaks")
        raise IntegrityError(
            f"task {task.name}: {len(leaked)} of {len(held)} held-out pictures stand in another split too, "
            f"{task.max_leak_share:.0%} are allowed ({first})"
        )


def _digest_of(pixels: Pixels) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()


class _Reader:
    """Reads files, and remembers what it could not read."""

    def __init__(self, task: Task, data: str, picture_size: int) -> None:
        self.task, self.data, self.size = task, data, picture_size
        self.splits = splits_of(task, data)
        self.text_columns = [*columns_of(task.prompt), *columns_of(task.target), task.picture]
        self.pixels: dict[str, Pixels] = {}
        self.bad: list[dict[str, Any]] = []
        self.num_rows: Counter[str] = Counter()
        self.set_aside: Counter[str] = Counter()

    def read(self, split: str, build: Build) -> list[Item]:
        """Items of a split whose picture could be decoded."""
        texts: list[tuple[str, int, Row]] = []
        partly: list[tuple[str, int, str]] = []
        for file, number, row in read_split(self.task, split, self.data):
            self.num_rows[split] += 1
            build.progress(number, None, "rows")
            if isinstance(row, str):
                self.note(split, file, number, "not_readable", row)
            elif self._wanted(row):
                text = self._take_picture(split, file, number, row)
                missing = [column for column in self.text_columns if column not in text]
                if not missing:
                    texts.append((file, number, text))
                elif self._is_text(text):
                    partly.append((file, number, missing[0]))
        if not texts:
            columns = ", ".join(dict.fromkeys(self.text_columns))
            raise UserError(f"task {self.task.name}: no file of {split} has the columns {columns}")
        with_texts = {file for file, _, _ in texts}
        for file, number, column in partly:
            if file in with_texts:
                self.note(split, file, number, "missing_column", f"it has no {column}")
        return [item for file, number, row in texts for item in self._item(split, file, number, row)]

    def _wanted(self, row: Row) -> bool:
        asked = self.task.keep.items()
        wanted = all(as_text(row.get(c)) in values for c, values in asked if self.data != HUB or c in row)
        self.set_aside["not wanted by keep"] += not wanted
        return wanted

    def _is_text(self, row: Row) -> bool:
        """Whether a row lacks a text, and not because it is a picture for the texts of another file."""
        return not any(_bytes_in(value) is not None for value in row.values())

    def _take_picture(self, split: str, file: str, number: int, row: Row) -> Row:
        """The row without its picture, which is decoded and kept by its name."""
        content = {column: found for column, value in row.items() if (found := _bytes_in(value)) is not None}
        rest = {column: value for column, value in row.items() if column not in content}
        if not content:
            return rest
        first = next(iter(content.values()))
        if self.data == HUB and self.task.picture not in rest:
            rest[self.task.picture] = hashlib.sha256(first).hexdigest()[:16]
        name = f"{split}/{rest.get(self.task.picture)}"
        if name not in self.pixels or self.data != HUB:
            try:
                self.pixels[name] = decode(first, self.size)
            except BadPicture as problem:
                self.note(split, file, number, "picture_does_not_decode", f"picture {name}: {problem}")
        return rest

    def _item(self, split: str, file: str, number: int, row: Row) -> Iterator[Item]:
        task = self.task
        try:
            check_columns(row, self.text_columns)
        except BadRow as problem:
            self.note(split, file, number, problem.reason, str(problem))
            return
        picture = f"{split}/{row[task.picture]}"
        prompt, target = fill(task.prompt, row)[: task.max_prompt_chars], fill(task.target, row)
        target = task.label_names.get(target, target)
        if picture not in self.pixels:
            self.note(split, file, number, "without_picture", f"picture {picture} is missing or does not decode")
        elif not target:
            self.note(split, file, number, "empty", "the answer is empty")
        elif task.labels and target not in task.labels:
            self.note(split, file, number, "label_outside_the_set", repr(target))
        elif len(target) > task.max_target_chars:
            self.set_aside["longer than max_target_chars"] += 1
        else:
            yield {
                "item_id": item_id_of(task.name, picture, f"{prompt}\0{target}"),
                "task": task.name,
                "split": self._split(split, picture),
                "prompt": prompt,
                "target": target,
                "labels": list(task.labels) or None,
                "references": None,
                "group": picture,
            }

    def _split(self, file_split: str, picture: str) -> str:
        """The split of a file, or by hash of the picture where the file has none."""
        share = int(_digest(f"{self.task.name}\0{picture}")[:8], 16) / 0x1_0000_0000
        if file_split == "all" and share < TEST_SHARE:
            return "test"
        if file_split in ("all", "train") and "validation" not in self.splits and share > 1 - VALIDATION_SHARE:
            return "validation"
        return "train" if file_split == "all" else file_split

    def note(self, split: str, file: str, number: int, reason: str, detail: str) -> None:
        """Remember a bad row and where it stands."""
        place: Mapping[str, Any] = {"split": split, "file": file, "row": number}
        self.bad.append({"task": self.task.name, **place, "reason": reason, "detail": detail})

    def check_bounds(self) -> None:
        """Refuse a split with too many bad rows.

        Raises:
            IntegrityError: naming the first of them.
        """
        for split, total in self.num_rows.items():
            bad = [row for row in self.bad if row["split"] == split]
            if len(bad) > self.task.max_bad_share * total:
                named = "; ".join(
                    f"{b['file']} row {b['row']}: {b['reason']}: {b['detail']}" for b in bad[:NAMED_IN_MESSAGE]
                )
                raise IntegrityError(
                    f"task {self.task.name}: {len(bad)} of {total} rows of {split} are bad, "
                    f"{self.task.max_bad_share:.0%} are allowed ({named})"
                )


def _bytes_in(value: Any) -> bytes | None:
    """A cell that holds a picture: its bytes, or a record with them as the image columns of `datasets` have it."""
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) else None
