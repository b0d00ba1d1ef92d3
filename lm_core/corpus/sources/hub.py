"""Data sets of the Hugging Face hub, and local files through the same loader."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from lm_core.config import identity_of
from lm_core.corpus.config import HubDataset
from lm_core.corpus.sources.file_digests import file_digests
from lm_core.corpus.sources.reuse import ReadBefore
from lm_core.corpus.sources.rows import document_of_row, text_column
from lm_core.corpus.text import Item
from lm_core.errors import TryLaterError, UserError
from lm_core.runtime import Runtime

_COMMIT = re.compile("[0-9a-f]{40}")
_TIMEOUT_SECONDS = 10
LOCAL_BUILDERS = ("json", "csv", "parquet", "text")


def digests(config: HubDataset, runtime: Runtime) -> dict[str, str]:
    """Identity: the commit of a data set on the hub, the contents of local files."""
    if config.data_files is None:
        return {"revision": f"{config.name}@{_commit(config, runtime)}"}
    total = hashlib.sha256()
    for digest in file_digests(_data_files(config), runtime).values():
        total.update(digest.encode())
    return {"files": total.hexdigest()}


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
        UserError: a pattern without any file, a local builder without a pattern.
    """
    if config.data_files:
        _data_files(config)
    elif config.name in LOCAL_BUILDERS:
        raise UserError(f"the local builder {config.name!r} needs data_files")


def _data_files(config: HubDataset) -> list[Path]:
    matches = glob.glob(str(config.data_files), recursive=True)  # noqa: PTH207, the pattern may be absolute
    paths = sorted(Path(path).absolute() for path in matches)
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
    identified = digests(config, runtime)
    revision = identified.get("revision", "").rpartition("@")[2]
    if config.data_files is None and not _COMMIT.fullmatch(revision):
        yield from _rows(config, revision)  # a branch moves: only a commit names the same rows for ever
        return
    yield from before.items([identified, identity_of(config)], lambda: _rows(config, revision))


def _rows(config: HubDataset, revision: str) -> Iterator[Item]:
    import datasets

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
    except ConnectionError as error:
        raise TryLaterError(
            f"the hub does not answer for {config.name} ({str(error)[:200]}); try again later"
        ) from None
    except (FileNotFoundError, ValueError, datasets.exceptions.DatasetsError) as error:
        first_line = str(error).partition("\n")[0]
        raise UserError(f"data set {config.name} cannot be read: {first_line[:300]}") from None
