"""One's own files: which ones a path means, and what identifies them."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lm_core.corpus.config import LocalFiles
from lm_core.corpus.sources.file_digests import file_digests
from lm_core.corpus.text import Document, Rejected
from lm_core.errors import UserError
from lm_core.runtime import Runtime

TEXT_FORMATS = {".txt", ".text", ".md", ".markdown", ".rst"}
TABLE_FORMATS = {".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"}
COMPRESSIONS = {".gz", ".zst"}
READABLE = "txt, md, rst, jsonl, csv, tsv, parquet (plain, .gz or .zst)"
LOOSE_FILES = "files"


@dataclass(frozen=True)
class LocalFile:
    """A file to read.

    Attributes:
        name: its path relative to the root, with forward slashes: the only path that reaches the corpus.
        format: suffix that names the reader, e.g. ".csv".
        compression: ".gz", ".zst" or "".
    """

    path: Path
    name: str
    format: str
    compression: str

    @property
    def source(self) -> str:
        """A table is a source of its own; loose text files are counted under their folder."""
        if self.format in TABLE_FORMATS:
            return self.name.rpartition("/")[2].partition(".")[0] or self.name
        return self.name.rpartition("/")[0] or LOOSE_FILES


def find_files(config: LocalFiles) -> list[LocalFile]:
    """The files that `config.path` means, by name.

    A folder that holds `pretrain/` is a bundle of which only that subfolder is corpus: the rest is fine-tuning and
    evaluation data, which must not be trained on.

    Raises:
        UserError: nothing there, or nothing that can be read.
    """
    path = Path(config.path).expanduser().absolute()
    if path.is_dir():
        root = path / "pretrain" if (path / "pretrain").is_dir() else path
        paths = [p for p in root.rglob("*") if p.is_file() and not _hidden(p.relative_to(root))]
    elif path.is_file():
        root, paths = path.parent, [path]
        if _local_file(path, root) is None:
            raise UserError(f"{path} is of no kind that can be read; give {READABLE}")
    else:
        paths = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207, an absolute pattern
        paths = [p for p in paths if p.is_file()]
        root = _fixed_part(path)
        if not paths:
            raise UserError(f"{config.path} does not exist and matches no file; give a file, a folder or a glob")
    files = [file for p in paths if (file := _local_file(p, root))]
    if not files:
        raise UserError(f"{config.path} holds no document that can be read; give {READABLE}")
    return sorted(files, key=lambda file: file.name)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _fixed_part(pattern: Path) -> Path:
    """The folders of a pattern before its first wildcard."""
    for index, part in enumerate(pattern.parts):
        if glob.has_magic(part):
            return Path(*pattern.parts[:index])
    return pattern.parent


def _local_file(path: Path, root: Path) -> LocalFile | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    if not suffixes or suffixes[-1] not in TEXT_FORMATS | TABLE_FORMATS:
        return None
    # A name that is not UTF-8 reaches Python with lone surrogates, which no table can hold.
    name = path.relative_to(root).as_posix().encode("utf-8", "replace").decode()
    return LocalFile(path, name, suffixes[-1], compression)


def local_digests(config: LocalFiles, runtime: Runtime) -> dict[str, str]:
    """Identity of the files: one digest over names and contents, whatever folder they lie in."""
    files = find_files(config)
    try:
        digests = file_digests([file.path for file in files], runtime)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name}\0{digests[file.path]}\n".encode())
    return {"files": total.hexdigest()}


def read_local_files(config: LocalFiles, runtime: Runtime) -> Iterator[Document | Rejected]:
    """Documents of all files, in the order of their names."""
    from lm_core.corpus.sources import tables, text_files

    for file in find_files(config):
        reader = text_files.read if file.format in TEXT_FORMATS else tables.read
        yield from reader(file, config)
