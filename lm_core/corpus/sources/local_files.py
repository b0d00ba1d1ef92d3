"""One's own files: which ones a path means, what identifies them, and reading again only what has changed."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from lm_core.config import identity_of
from lm_core.corpus.config import LocalFiles
from lm_core.corpus.sources import remote
from lm_core.corpus.sources.file_digests import file_digests
from lm_core.corpus.sources.formats import (
    ARCHIVE_FORMATS,
    COLUMN_FORMATS,
    READABLE,
    TABLE_FORMATS,
    format_of,
    items_of,
)
from lm_core.corpus.sources.patterns import expanded, fixed_part
from lm_core.corpus.sources.remote import RemoteFile
from lm_core.corpus.sources.reuse import ReadBefore
from lm_core.corpus.sources.streams import decompressed, guarded, open_bytes
from lm_core.corpus.sources.xml_root import format_within
from lm_core.corpus.text import Item, Rejected, Tally
from lm_core.errors import UserError
from lm_core.runtime import Runtime

LOOSE_FILES = "files"
MAX_REJECTED = 100_000
BESIDE_PRETRAIN = "beside pretrain/"
_PRETRAIN = "pretrain"
_KINDS_SHOWN = 6


@dataclass(frozen=True)
class LocalFile:
    """A file to read.

    Attributes:
        name: its path relative to the root, with forward slashes: the only path that reaches the corpus.
        format: suffix that names the reader, e.g. ".csv".
        compression: ".gz", ".bz2", ".xz", ".zst" or "".
        member: place within `archive`, the zip archive `path`; None for a file by itself.
        there: where a file is that is not on this machine; `path` is then of no use.
    """

    path: Path
    name: str
    format: str
    compression: str
    member: zipfile.ZipInfo | None = None
    archive: zipfile.ZipFile | None = None
    there: RemoteFile | None = None

    @property
    def source(self) -> str:
        """A table is a source of its own; loose text files are counted under their folder."""
        if self.format in TABLE_FORMATS:
            return self.name.rpartition("/")[2].partition(".")[0] or self.name
        return self.name.rpartition("/")[0] or LOOSE_FILES

    def open(self) -> BinaryIO:
        """The plain bytes, decompressed as they are read."""
        if self.archive is None or self.member is None:
            return open_bytes(self.path, self.compression)
        plain = guarded(cast(BinaryIO, self.archive.open(self.member)), self.member.compress_size)
        return decompressed(plain, self.compression, self.member.compress_size)


@dataclass(frozen=True)
class Found:
    """What a path means.

    Attributes:
        ignored: suffix -> number of files that no reader is for; what is no file at all has a label of its own.
    """

    files: list[LocalFile]
    ignored: Counter[str]


_found_before: ContextVar[dict[LocalFiles, Found] | None] = ContextVar("_found_before", default=None)


@contextmanager
def found_once() -> Iterator[None]:
    """Within this, each source is looked for only once: a folder may be large, and a store far away."""
    token = _found_before.set({})
    try:
        yield
    finally:
        _found_before.reset(token)


def find_files(config: LocalFiles) -> Found:
    """The files that `config.path` means, by name; within `found_once`, as they were at the first look.

    Raises:
        UserError: nothing there, nothing that can be read, or a folder that may not be entered.
    """
    before = _found_before.get()
    if before is None:
        return _look(config)
    if config not in before:
        before[config] = _look(config)
    return before[config]


def _look(config: LocalFiles) -> Found:
    """The files that `config.path` means, by name.

    A folder that holds `pretrain/` is a bundle of which only that subfolder is corpus: the rest is fine-tuning and
    evaluation data, which must not be trained on. It is counted.
    """
    ignored = Counter[str]()
    is_remote = remote.is_remote(config.path)
    found = _remote_files(config.path) if is_remote else _on_this_machine(config.path, ignored)
    files = []
    for label, file in found:
        if file is None:
            ignored[label] += 1
        else:
            files.append(file)
    if not files:
        raise UserError(f"{config.path} holds no document that can be read; give {READABLE}")
    if config.text_column is not None and not any(file.format in COLUMN_FORMATS | ARCHIVE_FORMATS for file in files):
        raise UserError(f"text_column={config.text_column} has no effect: {config.path} holds no table with columns")
    # Names that are not UTF-8 may be spelled alike.
    return Found(sorted(files, key=lambda file: (file.name, str(file.path))), ignored)


def left_aside(config: LocalFiles) -> list[str]:
    """What is passed over there, in lines for a person."""
    ignored = find_files(config).ignored.copy()
    beside = ignored.pop(BESIDE_PRETRAIN, 0)
    lines = []
    if beside:
        lines.append(
            f"{config.path}: only pretrain/ is read; {beside:,} files beside it are left aside (data of tasks)"
        )
    if ignored:
        kinds = ", ".join(f"{count:,} {label}" for label, count in ignored.most_common(_KINDS_SHOWN))
        more = ", ..." if len(ignored) > _KINDS_SHOWN else ""
        lines.append(f"{config.path}: left aside, not read: {kinds}{more}")
    return lines


def _on_this_machine(given: str, ignored: Counter[str]) -> list[tuple[str, LocalFile | None]]:
    """What each path is called where it is left alone, and the file to read."""
    try:
        root, paths = _paths(given, ignored)
        return [(_label(path), _local_file(path, root) if path.is_file() else None) for path in paths]
    except RuntimeError as error:  # ~somebody of whom this machine has no home
        raise UserError(f"{given}: {error}") from None
    except OSError as error:
        place = str(error.filename or given)[:300]
        raise UserError(f"{place} cannot be read: {error.strerror}; mend it or give a glob without it") from None


def _remote_files(url: str) -> list[tuple[str, LocalFile | None]]:
    found = []
    for name, there in remote.listing(url).items():
        file = _local_file(Path("/") / name, Path("/"))
        found.append((suffix_of(name), replace(file, there=there) if file else None))
    return found


def _label(path: Path) -> str:
    if path.is_file():
        return suffix_of(path.name)
    if path.is_dir():
        return "link to a folder"  # followed, it could lead in circles, or out of what the user meant
    return "broken link" if path.is_symlink() else "no regular file"


def suffix_of(name: str) -> str:
    """What a file is counted under that no reader is for."""
    return Path(name).suffix.lower()[:20].encode("utf-8", "replace").decode() or "no suffix"


def _paths(given: str, ignored: Counter[str]) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and all files; what is not even looked at is counted."""
    if not given.strip():
        raise UserError("a source of local files has an empty path")  # it would mean the current folder
    path = Path(given).expanduser().absolute()
    if path.is_dir():
        return _tree(path, ignored)
    if path.is_file():
        if _local_file(path, path.parent) is None:
            raise UserError(f"{path} is of no kind that can be read; give {READABLE}")
        return path.parent, [path]
    paths = _matches(path, ignored)
    if paths == [path]:
        raise UserError(f"{given} is neither a file nor a folder: {_label(path)}")
    if not any(p.is_file() for p in paths):
        raise UserError(f"{given} does not exist and matches no file; give a file, a folder or a glob")
    return fixed_part(path), paths


def _matches(pattern: Path, ignored: Counter[str]) -> list[Path]:
    """What a pattern matches, with all that is below the folders it matches."""
    matches = list(expanded(pattern))
    found, folders = set(), set[Path]()
    for match in sorted(_each_once(matches, ignored)):
        if match.is_symlink() or not match.is_dir():
            found.add(match)
            continue
        if not folders.isdisjoint(match.parents):
            continue  # `**` matches what lies in a folder beside the folder itself
        folders.add(match)
        if match.name != _PRETRAIN and (match.parent / _PRETRAIN).is_dir():
            ignored[BESIDE_PRETRAIN] += _num_files(match)  # a wildcard may meet what nobody meant to train on
        else:
            found.update(_tree(match, ignored)[1])
    return sorted(found)


def _each_once(paths: list[Path], ignored: Counter[str]) -> Iterator[Path]:
    """Paths without those that lead through a link to what is there already: `**` follows a circle many times."""
    linked = {folder: folder.resolve() != folder for folder in {path.parent for path in paths}}
    known = {path for path in paths if not linked[path.parent]}
    yield from known
    for path in sorted((path for path in paths if linked[path.parent]), key=lambda path: (len(path.parts), path)):
        real = path.parent.resolve() / path.name
        if real in known:
            ignored["met again through a link"] += 1
        else:
            known.add(real)
            yield path


def _tree(folder: Path, ignored: Counter[str]) -> tuple[Path, list[Path]]:
    """The part of a folder that is corpus, and what lies in it but for hidden things.

    Raises:
        OSError: a folder below may not be entered.
    """
    root = folder / _PRETRAIN if (folder / _PRETRAIN).is_dir() else folder
    if root != folder and (beside := _num_files(folder) - _num_files(root)):
        ignored[BESIDE_PRETRAIN] += beside
    found = []
    for place, folders, files in os.walk(root, onerror=_stop):
        names = [*files, *(name for name in folders if Path(place, name).is_symlink())]
        found += [Path(place, name) for name in names if not name.startswith(".")]
        hidden = sum(name.startswith(".") for name in (*files, *folders))
        if hidden:
            ignored["hidden"] += hidden
        folders[:] = [name for name in folders if not name.startswith(".")]
    return root, found


def _num_files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def _stop(error: OSError) -> None:
    raise error


def name_below(root: Path | str, path: Path) -> str:
    """What a file is called: one whose name is not UTF-8 has lone surrogates in Python, which no table can hold."""
    return path.relative_to(root).as_posix().encode("utf-8", "replace").decode()


def _local_file(path: Path, root: Path) -> LocalFile | None:
    name = name_below(root, path)
    found = format_of(name)
    if found is None and path.is_file():
        found = format_within(path.name, partial(open_bytes, path))
    return LocalFile(path, name, *found) if found else None


def check(config: LocalFiles) -> None:
    """Look for the files.

    Raises:
        UserError: nothing there, or nothing that can be read.
    """
    find_files(config)


def digests(config: LocalFiles, runtime: Runtime) -> dict[str, str]:
    """Identity of the files: one digest over names and contents, whatever folder they lie in."""
    total = hashlib.sha256()
    for file, digest in _digests(find_files(config).files, runtime):
        total.update(f"{file.name}\0{digest}\n".encode())
    return {"files": total.hexdigest()}


def _digests(files: list[LocalFile], runtime: Runtime) -> list[tuple[LocalFile, str]]:
    try:
        digests = file_digests([file.path for file in files if file.there is None], runtime)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
    return [(file, file.there.state if file.there else digests[file.path]) for file in files]


def read(config: LocalFiles, runtime: Runtime, before: ReadBefore) -> Iterator[Item]:
    """Documents of all files, in the order of their names; what an unchanged file yielded is not read again."""
    found = find_files(config)
    for suffix, count in sorted(found.ignored.items()):
        yield Tally("ignored_files", suffix, count)
    settings = identity_of(config)
    parts = [
        ([file.name, digest, settings], partial(_read, file, config)) for file, digest in _digests(found.files, runtime)
    ]
    before.read_elsewhere(parts)
    for identity, reader in parts:
        yield from before.items(identity, reader)


def _read(file: LocalFile, config: LocalFiles) -> Iterator[Item]:
    if file.there is None:
        yield from bounded(items_of(file, config), file)
        return
    with remote.downloaded(file.there) as path:
        if isinstance(path, str):
            yield Rejected(file.source, file.name, "not_downloaded", path)
        else:
            yield from bounded(items_of(replace(file, path=path), config), file)


def bounded(items: Iterator[Item], file: LocalFile) -> Iterator[Item]:
    """No more rejected rows of one file than a table can hold; the others are counted in a last one."""
    num_rejected, last = 0, ""
    for item in items:
        if isinstance(item, Rejected):
            num_rejected, last = num_rejected + 1, f"{item.reason}: {item.detail}"
            if num_rejected > MAX_REJECTED:
                continue
        yield item
    if num_rejected > MAX_REJECTED:
        detail = f"{num_rejected - MAX_REJECTED} more, the last {last}"
        yield Rejected(file.source, f"{file.name}#more", "more_rejected", detail[:300])
