"""Frames of WARC and ARC archives, found again after damage.

Parsers at hand believe a record's length: one bad number and the neighbours are swallowed or the rest of the archive is
lost, some of it without a word. Here a record must be followed by another or by the end; where it is not, the next
beginning of a record is looked for, and what lies between is reported with its offset.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, cast

from lm_core.corpus.sources.streams import BombError

_CHUNK_BYTES = 1 << 20
_MAX_HEADER_BYTES = 65_536
# Stands where a member was: no record begins like this, so the place is reported.
_BROKEN_MEMBER = b"\r\n\r\na broken member of the gzip file\r\n\r\n"
_GZIP_MAGIC = b"\x1f\x8b\x08"
_BLANK = re.compile(rb"[\r\n]*")
_WARC_START = re.compile(rb"WARC/[01]\.\d+\r?\n")
_WARC_NEXT = re.compile(rb"\r?\n\r?\n(?=WARC/[01]\.\d+\r?\n)")
_ARC_START = re.compile(rb"(\w+:\S+) \S+ (\d{8,14}) (\S+) (?:\S+ \S+ \S+ \S+ \S+ )?(-?\d+)\r?\n")
_ARC_NEXT = re.compile(rb"\n(?=(?:https?|dns|filedesc)://\S+ \S+ \d{8,14} \S+ (?:\S+ \S+ \S+ \S+ \S+ )?-?\d+\r?\n)")


@dataclass(frozen=True)
class Record:
    """One record of an archive: its headers with names in lower case, its bytes, where it begins unpacked."""

    headers: Mapping[str, str]
    content: bytes
    offset: int


@dataclass(frozen=True)
class Damage:
    """A place in an archive that is no record."""

    offset: int
    reason: str
    detail: str


def read_records(stream: BinaryIO, *, arc: bool, max_bytes: int) -> Iterator[Record | Damage]:
    """Records of an unpacked archive, and the damaged places between them.

    Args:
        max_bytes: a longer record is reported as too long and skipped; bounds the memory.
    """
    window = _Window(stream)
    while window.fill(1):
        blank = _BLANK.match(window.data)
        if blank and blank.end():
            window.skip(blank.end())
            continue
        offset = window.offset
        header = _arc_header(window) if arc else _warc_header(window)
        if isinstance(header, str):
            window.skip(1)
            _find_next(window, None, arc)
            yield Damage(offset, "bad_record", header)
            continue
        headers, length = header
        if length > max_bytes:
            missing = _find_next(window, length, arc)
            found = "" if not missing else f"; the record after it begins {missing} bytes too early"
            yield Damage(offset, "too_long", f"{length} bytes, more than {max_bytes}{found}")
            continue
        problem = _problem(window, length, arc)
        if problem:
            _find_next(window, None, arc)
            yield Damage(offset, "bad_record", problem)
        else:
            content = bytes(window.data[:length])
            window.skip(length)
            yield Record(headers, content, offset)


class _Window:
    """The part of a stream that is looked at."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.data = bytearray()
        self.offset = 0

    def fill(self, num_bytes: int) -> bool:
        """Have at least so many bytes; False at the end of the stream."""
        while len(self.data) < num_bytes:
            part = self._stream.read(_CHUNK_BYTES)
            if not part:
                return False
            self.data += part
        return True

    def skip(self, num_bytes: int) -> None:
        del self.data[:num_bytes]
        self.offset += num_bytes


def _warc_header(window: _Window) -> tuple[dict[str, str], int] | str:
    window.fill(_MAX_HEADER_BYTES)
    if not _WARC_START.match(window.data):
        return "no WARC record begins here"
    end = re.search(rb"\r?\n\r?\n", window.data[:_MAX_HEADER_BYTES])
    if not end:
        return "the header has no end"
    lines = bytes(window.data[: end.start()]).decode("utf-8", "replace").splitlines()[1:]
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    stated = headers.get("content-length", "")
    if not stated.isdecimal() or len(stated) > 18:
        return f"Content-Length is {stated[:40]!r}"
    window.skip(end.end())
    return headers, int(stated)


def _arc_header(window: _Window) -> tuple[dict[str, str], int] | str:
    window.fill(_MAX_HEADER_BYTES)
    found = _ARC_START.match(window.data[:_MAX_HEADER_BYTES])
    if not found:
        return "no ARC record begins here"
    url, date, kind, length = (part.decode("utf-8", "replace") for part in found.groups())
    if int(length) < 0:
        return f"the length is {length}"
    window.skip(found.end())
    day = f"{date[:4]}-{date[4:6]}-{date[6:8]}"
    time = f"{day}T{date[8:10]}:{date[10:12]}:{date[12:14]}Z" if len(date) == 14 else day
    record_type = "warcinfo" if url.startswith("filedesc:") else "response" if url.startswith("http") else "other"
    return {"warc-type": record_type, "warc-target-uri": url, "warc-date": time, "content-type": kind}, int(length)


def _problem(window: _Window, length: int, arc: bool) -> str | None:
    """Why the length cannot be right; None when another record or the end of the archive follows."""
    if not window.fill(length):
        return f"the archive ends after {len(window.data)} of {length} bytes"
    window.fill(length + _MAX_HEADER_BYTES)
    blank = _BLANK.match(window.data, length)
    after = blank.end() if blank else length
    if window.data.startswith(_BROKEN_MEMBER.strip(), after):
        return None
    if after == len(window.data) or (_ARC_START if arc else _WARC_START).match(window.data, after):
        return None
    return f"after {length} bytes comes neither a record nor the end: the length is wrong"


def _find_next(window: _Window, length: int | None, arc: bool) -> int:
    """Skip to the beginning of the next record, at most `length` bytes further.

    Returns:
        How many bytes before the end of `length` it was found.
    """
    pattern = _ARC_NEXT if arc else _WARC_NEXT
    left = length
    while window.fill(1):
        more = window.fill(2 * _MAX_HEADER_BYTES)
        found = pattern.search(window.data)
        if found and (left is None or found.end() < left):
            window.skip(found.end())
            return left - found.end() if left is not None else 0
        # What may be the first half of a beginning stays in the window.
        step = len(window.data) - _MAX_HEADER_BYTES if more else len(window.data)
        if left is not None:
            step = min(step, left)
            left -= step
        window.skip(step)
        if left == 0:
            break
    return 0


class _Members(io.RawIOBase):
    """A .gz file member by member; a broken member costs itself."""

    def __init__(self, packed: BinaryIO, max_bytes: int) -> None:
        self._packed = packed
        self._input = b""
        self._member = self._new()
        self._left = max_bytes

    @staticmethod
    def _new() -> zlib._Decompress:
        return zlib.decompressobj(wbits=31)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        while True:
            if not self._input:
                self._input = self._packed.read(_CHUNK_BYTES)
                if not self._input:
                    return 0
            try:
                part = self._member.decompress(self._input, len(buffer))
                self._input = self._member.unconsumed_tail or self._member.unused_data
            except zlib.error:
                part = _BROKEN_MEMBER
                self._next_member()
            if self._member.eof:
                self._member = self._new()
            if part:
                self._left -= len(part)
                if self._left < 0:
                    raise BombError("a bomb: it swells beyond any text")
                buffer[: len(part)] = part
                return len(part)

    def _next_member(self) -> None:
        self._member = self._new()
        data = self._input[1:]
        while (found := data.find(_GZIP_MAGIC)) < 0:
            part = self._packed.read(_CHUNK_BYTES)
            if not part:
                self._input = b""
                return
            data = data[-2:] + part
        self._input = data[found:]

    def close(self) -> None:
        self._packed.close()
        super().close()


def gzip_members(packed: BinaryIO, max_bytes: int) -> BinaryIO:
    """The plain bytes of a gzip file of many members, each of which may be broken.

    Args:
        max_bytes: more than this, unpacked, is a bomb.
    """
    return cast(BinaryIO, io.BufferedReader(_Members(packed, max_bytes), _CHUNK_BYTES))
