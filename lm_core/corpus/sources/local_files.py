"""One's own files: which ones a path means, what identifies them, and reading again only what has changed."""

from __future__ import annotations

import glob
import hashlib
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from lm_core.config import identity_of
from lm_core.corpus.config import LocalFiles
from lm_core.corpus.sources import remote
from lm_core.corpus.sources.file_digests import file_digests
from lm_core.corpus.sources.formats import READABLE, TABLE_FORMATS, format_of, items_of
from lm_core.corpus.sources.remote import RemoteFile
from lm_core.corpus.sources.reuse import ReadBefore
from lm_core.corpus.sources.streams import decompressed, guarded, open_bytes
from lm_core.corpus.text import Item, Rejected, Tally
from lm_core.errors import UserError
from lm_core.runtime import Runtime

LOOSE_FILES = "files"
MAX_REJECTED = 100_000


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


def find_files(config: LocalFiles) -> Found:
    """The files that `config.path` means, by name.

    A folder that holds `pretrain/` is a bundle of which only that subfolder is corpus: the rest is fine-tuning and
    evaluation data, which must not be trained on.

    Raises:
        UserError: nothing there, or nothing that can be read.
    """
    found = _remote_files(config.path) if remote.is_remote(config.path) else _on_this_machine(config.path)
    files, ignored = [], Counter[str]()
    for label, file in found:
        if file is None:
            ignored[label] += 1
        else:
            files.append(file)
    if not files:
        raise UserError(f"{config.path} holds no document that can be read; give {READABLE}")
    return Found(sorted(files, key=lambda file: file.name), ignored)


def _on_this_machine(given: str) -> list[tuple[str, LocalFile | None]]:
    """What each path is called where it is left alone, and the file to read."""
    root, paths = _paths(given)
    return [(_label(path), _local_file(path, root) if path.is_file() else None) for path in paths]


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


def _paths(given: str) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and all files."""
    path = Path(given).expanduser().absolute()
    if path.is_dir():
        root = path / "pretrain" if (path / "pretrain").is_dir() else path
        below = (p for p in root.rglob("*") if not _hidden(p.relative_to(root)))
        return root, [p for p in below if p.is_symlink() or not p.is_dir()]
    if path.is_file():
        if _local_file(path, path.parent) is None:
            raise UserError(f"{path} is of no kind that can be read; give {READABLE}")
        return path.parent, [path]
    paths = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207, an absolute pattern
    paths = [p for p in paths if p.is_file()]
    if not paths:
        raise UserError(f"{given} does not exist and matches no file; give a file, a folder or a glob")
    return _fixed_part(path), paths


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _fixed_part(pattern: Path) -> Path:
    """The folders of a pattern before its first wildcard."""
    for index, part in enumerate(pattern.parts):
        if glob.has_magic(part):
            return Path(*pattern.parts[:index])
    return pattern.parent


def _local_file(path: Path, root: Path) -> LocalFile | None:
    # A name that is not UTF-8 reaches Python with lone surrogates, which no table can hold.
    name = path.relative_to(root).as_posix().encode("utf-8", "replace").decode()
    found = format_of(name)
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
        yield from _bounded(items_of(file, config), file)
        return
    with remote.downloaded(file.there) as path:
        if isinstance(path, str):
            yield Rejected(file.source, file.name, "not_downloaded", path)
        else:
            yield from _bounded(items_of(replace(file, path=path), config), file)


def _bounded(items: Iterator[Item], file: LocalFile) -> Iterator[Item]:
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
