"""Zip archives: each member is read as the file that it is. An archive within an archive is not opened."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lm_core.corpus.config import LocalFiles
from lm_core.corpus.sources.formats import ARCHIVE_FORMATS, format_of, reader_of
from lm_core.corpus.sources.local_files import LocalFile
from lm_core.corpus.sources.streams import BROKEN_STREAM, BombError
from lm_core.corpus.text import Item, Rejected, Tally

_MAX_MEMBERS = 1_000_000


def read(file: LocalFile, config: LocalFiles) -> Iterator[Item]:
    """Documents of all members, by name. Nothing is written anywhere: names with `..` are names like any other."""
    if file.compression:
        yield Rejected(file.source, file.name, "nested_archive", "a zip archive within a compressed file")
        return
    try:
        with zipfile.ZipFile(file.path) as archive:
            members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
            if len(members) > _MAX_MEMBERS:
                raise BombError(f"{len(members)} members; more than {_MAX_MEMBERS}")
            for name in sorted(members):
                yield from _member(replace(file, member=name, archive=archive), members[name], config)
    except BROKEN_STREAM as error:
        reason = "bomb" if isinstance(error, BombError) else "unreadable_file"
        yield Rejected(file.source, file.name, reason, f"{type(error).__name__}: {error}"[:300])


def _member(file: LocalFile, info: zipfile.ZipInfo, config: LocalFiles) -> Iterator[Item]:
    found = format_of(info.filename)
    if found is None:
        yield Tally("ignored_files", Path(info.filename).suffix.lower()[:20] or "no suffix")
        return
    name = f"{file.name}/{info.filename}".encode("utf-8", "replace").decode()
    inner = replace(file, name=name, format=found[0], compression=found[1])
    if info.flag_bits & 1:
        yield Rejected(inner.source, name, "encrypted", "the member needs a password")
    elif found[0] in ARCHIVE_FORMATS:
        yield Rejected(inner.source, name, "nested_archive", "an archive within an archive is not opened")
    else:
        yield from reader_of(found[0])(inner, config)
