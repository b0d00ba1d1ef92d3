"""Which file is read by what, by its suffix."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from lm_core.corpus.sources.streams import COMPRESSIONS, disk_is_full
from lm_core.corpus.text import Item, Rejected
from lm_core.errors import MachineError, MillraceError

if TYPE_CHECKING:
    from lm_core.corpus.config import LocalFiles
    from lm_core.corpus.sources.local_files import LocalFile

TEXT_FORMATS = {".txt", ".text", ".md", ".markdown", ".rst", ".html", ".htm", ".xhtml", ".epub", ".pdf"}
COLUMN_FORMATS = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"}
TABLE_FORMATS = COLUMN_FORMATS | {".warc", ".arc", ".rss", ".atom"}
ARCHIVE_FORMATS = {".zip"}
READABLE = (
    "txt, md, rst, html, epub, pdf, json, jsonl, csv, tsv, parquet, warc, arc, rss, atom, feeds as xml "
    "(plain, .gz, .bz2, .xz, .zst or within a .zip)"
)
_SOURCES = "lm_core.corpus.sources"
_READERS = {
    ".html": "html_files", ".htm": "html_files", ".xhtml": "html_files", ".epub": "epub", ".pdf": "pdf",
    ".jsonl": "json_lines", ".ndjson": "json_lines", ".json": "json_lines", ".csv": "delimited", ".tsv": "delimited",
    ".parquet": "parquet", ".warc": "web_archives", ".arc": "web_archives", ".rss": "feeds", ".atom": "feeds",
    ".zip": "zip_files",
}  # fmt: skip

Reader = Callable[["LocalFile", "LocalFiles"], Iterator[Item]]


def format_of(name: str) -> tuple[str, str] | None:
    """Format and compression of a file by its name, e.g. (".csv", ".gz"); None for one that is not read."""
    suffix, compression = _suffixes(name)
    return (suffix, compression) if suffix in TEXT_FORMATS | TABLE_FORMATS | ARCHIVE_FORMATS else None


def xml_compression(name: str) -> str | None:
    """Compression of a file whose name says only that it is XML, for its first element to say more; else None."""
    suffix, compression = _suffixes(name)
    return compression if suffix == ".xml" else None


def _suffixes(name: str) -> tuple[str, str]:
    parts = name.rpartition("/")[2].lower().split(".")
    suffixes = [f".{part}" for part in parts[1:]]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    return suffixes[-1] if suffixes else "", compression


def reader_of(file_format: str) -> Reader:
    """The function that reads files of a format."""
    # Imported here: who reads text files needs none of the parsers of books and pages.
    name = _READERS.get(file_format, "text_files")
    return importlib.import_module(f"{_SOURCES}.{name}").read


def items_of(file: LocalFile, config: LocalFiles, reader: Reader | None = None) -> Iterator[Item]:
    """What the reader of a file's format, or the one given, finds in it.

    Parsers of other people's formats raise what they like on input that nobody foresaw: it costs the file, not the run.
    """
    try:
        yield from (reader or reader_of(file.format))(file, config)
    except MillraceError:
        raise
    except Exception as error:
        if disk_is_full(error):
            raise
        yield Rejected(file.source, file.name, "reader_failed", f"{type(error).__name__}: {error}"[:300])


def missing_extra(what: str, error: ImportError) -> MachineError:
    """The one line for a parser that is not installed."""
    return MachineError(f"reading {what} needs {error.name}: pip install 'millrace[sources]'")
