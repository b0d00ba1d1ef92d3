"""Data sets of the Hugging Face hub; local files named as its builders name them, through our own readers."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from lm_core.config import identity_of
from lm_core.corpus.config import HubDataset, LocalFiles
from lm_core.corpus.sources import lines
from lm_core.corpus.sources.file_digests import file_digests
from lm_core.corpus.sources.formats import items_of
from lm_core.corpus.sources.local_files import LocalFile, bounded, name_below
from lm_core.corpus.sources.reuse import ReadBefore
from lm_core.corpus.sources.rows import document_of_row, text_column
from lm_core.corpus.sources.streams import BROKEN_STREAM, COMPRESSIONS, disk_is_full, open_bytes
from lm_core.corpus.text import Document, Item
from lm_core.errors import MillraceError, TryLaterError, UserError
from lm_core.runtime import Runtime

_COMMIT = re.compile("[0-9a-f]{40}")
_TIMEOUT_SECONDS = 10
# Our readers and not those of the loader: there one broken row ends the whole data set.
LOCAL_BUILDERS = ("json", "csv", "parquet", "text")
_FROM_THE_HUB = {"subset": None, "split": "train", "revision": "main"}
_SAMPLE_BYTES = 4_096


def digests(config: HubDataset, runtime: Runtime) -> dict[str, str]:
    """Identity: the commit of a data set on the hub, the contents of local files.

    Raises:
        UserError: see `check`.
    """
    check(config)
    if config.data_files is None:
        return {"revision": f"{config.name}@{_commit(config, runtime)}"}
    total = hashlib.sha256(b"own readers" if config.name in LOCAL_BUILDERS else b"")
    for digest in _digests_of_files(config, runtime).values():
        total.update(digest.encode())
    return {"files": total.hexdigest()}


def _digests_of_files(config: HubDataset, runtime: Runtime) -> dict[Path, str]:
    try:
        return file_digests(_data_files(config), runtime)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None


def _commit(config: HubDataset, runtime: Runtime) -> str:
    """The commit that a branch or tag points to now, or did when the hub last answered; else its own name."""
    if _COMMIT.fullmatch(config.revision):
        return config.revision
    name = hashlib.sha256(f"{config.name}@{config.revision}".encode()).hexdigest()[:32]
    kept = runtime.workspace / "cache" / "hub" / name
    try:
        from huggingface_hub import HfApi

        commit = HfApi().dataset_info(config.name, revision=config.revision, timeout=_TIMEOUT_SECONDS).sha
    except Exception:  # offline, down, forbidden, unknown: reading will say which
        commit = None
    if commit:
        kept.parent.mkdir(parents=True, exist_ok=True)
        draft = kept.with_name(f"{name}.{os.getpid()}")
        draft.write_text(commit)
        draft.replace(kept)
        return commit
    return kept.read_text() if kept.exists() else config.revision


def check(config: HubDataset) -> None:
    """Look for the local files that the configuration names; the hub itself is asked only on reading.

    Raises:
        UserError: a pattern without any file, a local builder without a pattern or with what only the hub has.
    """
    if config.data_files:
        _data_files(config)
        for name, usual in _FROM_THE_HUB.items():
            if config.name in LOCAL_BUILDERS and getattr(config, name) != usual:
                raise UserError(f"{name}={getattr(config, name)} has no effect on the local builder {config.name!r}")
        if config.name == "text" and config.text_column is not None:
            raise UserError("text_column has no effect on the local builder 'text', whose rows are lines")
    elif config.name in LOCAL_BUILDERS:
        raise UserError(f"the local builder {config.name!r} needs data_files")


def _data_files(config: HubDataset) -> list[Path]:
    matches = glob.glob(str(config.data_files), recursive=True)  # noqa: PTH207, the pattern may be absolute
    paths = sorted(path for path in (Path(match).absolute() for match in matches) if path.is_file())
    if not paths:
        raise UserError(f"data_files={config.data_files} matches no file")
    return paths


def read(config: HubDataset, runtime: Runtime, before: ReadBefore) -> Iterator[Item]:
    """Rows as documents, streamed: nothing is downloaded beyond what is read.

    A data set of the hub is one part, known by its revision; local files by their contents.

    Raises:
        UserError: no such data set, split or column.
        TryLaterError: the hub does not answer.
    """
    check(config)
    if config.data_files and config.name in LOCAL_BUILDERS:
        yield from _local_rows(config, runtime, before)
        return
    identified = digests(config, runtime)
    revision = identified.get("revision", "").rpartition("@")[2]
    if config.data_files is None and not _COMMIT.fullmatch(revision):
        yield from _rows(config, revision)  # a branch moves: only a commit names the same rows for ever
        return
    part = [identified, identity_of(config)], partial(_rows, config, revision)
    before.read_elsewhere([part])
    yield from before.items(*part)


def _local_rows(config: HubDataset, runtime: Runtime, before: ReadBefore) -> Iterator[Item]:
    """Rows of local files, each file a part of its own unless only so many documents are wanted of all."""
    digests = _digests_of_files(config, runtime)
    root = os.path.commonpath([path.parent for path in digests])
    files = {path: LocalFile(path, name_below(root, path), *_format(config.name, path)) for path in digests}
    settings = identity_of(config)
    if config.max_documents is not None:
        part = [list(digests.values()), settings], partial(_first_documents, list(files.values()), config)
        parts = [part]
    else:
        parts = [([files[path].name, digest, settings], partial(_items, files[path], config))
                 for path, digest in digests.items()]  # fmt: skip
    before.read_elsewhere(parts)
    for identity, reader in parts:
        yield from before.items(identity, reader)


def _items(file: LocalFile, config: HubDataset) -> Iterator[Item]:
    files = LocalFiles(
        path=str(file.path), text_column=config.text_column, max_document_bytes=config.max_document_bytes
    )
    yield from bounded(items_of(file, files, lines.read if config.name == "text" else None), file)


def _first_documents(files: list[LocalFile], config: HubDataset) -> Iterator[Item]:
    num_documents = 0
    for item in chain.from_iterable(_items(file, config) for file in files):
        yield item
        num_documents += isinstance(item, Document)
        if num_documents == config.max_documents:
            return


def _format(builder: str, path: Path) -> tuple[str, str]:
    """Format and compression of a file that a builder is for, whatever it is called."""
    compression = path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else ""
    if builder != "json":
        return {"csv": ".csv", "parquet": ".parquet", "text": ".txt"}[builder], compression
    try:
        with open_bytes(path, compression) as stream:
            first = stream.read(_SAMPLE_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n")
    except BROKEN_STREAM:
        first = b""
    # An array, or one object on many lines; else an object on each line.
    is_whole = first.startswith(b"[") or first.partition(b"\n")[0].strip() == b"{"
    return ".json" if is_whole else ".jsonl", compression


def _rows(config: HubDataset, revision: str) -> Iterator[Item]:
    import datasets

    number = 0
    files = [str(path) for path in _data_files(config)] if config.data_files else None
    try:
        rows = datasets.load_dataset(
            config.name,
            config.subset,
            split=config.split,
            revision=None if files else revision,
            data_files=files,
            streaming=True,
        )
        column: str | None = None
        for number, row in enumerate(rows, 1):
            column = column or text_column(list(row), config.text_column, f"data set {config.name}")
            yield from document_of_row(
                row,
                text=column,
                place=config.split,
                number=number,
                source=config.name.rpartition("/")[2],
                max_bytes=config.max_document_bytes,
            )
            if number == config.max_documents:
                break
    except MillraceError:
        raise
    except Exception as error:  # the loader, its readers and its way to the hub raise what they like
        if disk_is_full(error):
            raise
        said = str(error).partition("\n")[0][:200] or type(error).__name__
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | datasets.exceptions.DatasetsError):
            raise TryLaterError(f"the hub does not answer for {config.name} ({said}); try again later") from None
        raise UserError(f"data set {config.name} cannot be read after row {number}: {said}") from None
