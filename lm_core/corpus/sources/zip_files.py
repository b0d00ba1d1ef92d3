"""Zip archives: each member is read as the file that it is. An archive within an archive is not opened."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import replace

from lm_core.corpus.config import LocalFiles
from lm_core.corpus.sources.formats import ARCHIVE_FORMATS, format_of, items_of
from lm_core.corpus.sources.local_files import LocalFile, suffix_of
from lm_core.corpus.sources.streams import BROKEN_STREAM, GRACE_BYTES, MAX_RATIO, BombError
from lm_core.corpus.sources.xml_root import format_within
from lm_core.corpus.text import Item, Rejected, Tally

_MAX_MEMBERS = 1_000_000


def read(file: LocalFile, config: LocalFiles) -> Iterator[Item]:
    """Documents of all members, by name. Nothing is written anywhere: names with `..` are names like any other."""
    if file.compression:
        yield Rejected(file.source, file.name, "nested_archive", "a zip archive within a compressed file")
        return
    try:
        with zipfile.ZipFile(file.path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            _refuse_a_bomb(members, file.path.stat().st_size)
            # Two members may share a name: both are read.
            for info in sorted(members, key=lambda info: (info.filename, info.header_offset)):
                yield from _member(replace(file, member=info, archive=archive), info, config)
    except BROKEN_STREAM as error:
        reason = "bomb" if isinstance(error, BombError) else "unreadable_file"
        yield Rejected(file.source, file.name, reason, f"{type(error).__name__}: {error}"[:300])


def _refuse_a_bomb(members: list[zipfile.ZipInfo], packed_bytes: int) -> None:
    """Members may overlap: each swells within its bound, a thousand of the same bytes do not.

    Raises:
        BombError: too many members, or too much in all. Reading stops at the size that a member states, so the sum is
            a bound.
    """
    if len(members) > _MAX_MEMBERS:
        raise BombError(f"{len(members)} members; more than {_MAX_MEMBERS}")
    plain_bytes = sum(info.file_size for info in members)
    if plain_bytes > max(GRACE_BYTES, MAX_RATIO * packed_bytes):
        raise BombError(f"a bomb: {packed_bytes} packed bytes state {plain_bytes} plain ones")


def _member(file: LocalFile, info: zipfile.ZipInfo, config: LocalFiles) -> Iterator[Item]:
    found, is_encrypted = format_of(info.filename), bool(info.flag_bits & 1)
    if found is None and not is_encrypted:
        found = format_within(info.filename, lambda compression: replace(file, compression=compression).open())
    if found is None:
        yield Tally("ignored_files", suffix_of(info.filename))
        return
    name = f"{file.name}/{info.filename}".encode("utf-8", "replace").decode()
    inner = replace(file, name=name, format=found[0], compression=found[1])
    if is_encrypted:
        yield Rejected(inner.source, name, "encrypted", "the member needs a password")
    elif found[0] in ARCHIVE_FORMATS:
        yield Rejected(inner.source, name, "nested_archive", "an archive within an archive is not opened")
    else:
        yield from items_of(inner, config)
