"""How large the pages of a Parquet column unpack: the library reads a page whole, whatever one of its cells may hold.

Only the headers are read: a structure in Thrift's compact protocol before each page
(https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift, PageHeader).
"""

from __future__ import annotations

from typing import Any, BinaryIO

_HEADER_BYTES, _LONGEST_HEADER_BYTES = 4_096, 1 << 24
_TYPE, _UNPACKED, _PACKED = 1, 2, 3
_DICTIONARY_PAGE = 2
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _STRUCT = 1, 2, 3, 7, 8, 12
_DEEPEST = 8


def page_bytes(file: BinaryIO, column: Any) -> tuple[int, int]:
    """The unpacked sizes of the largest page of a column in a row group, and of its dictionary (0 without one).

    Args:
        column: `pyarrow.parquet.ColumnChunkMetaData`.

    Raises:
        ValueError: something else than pages stands there.
    """
    offsets = (column.dictionary_page_offset, column.data_page_offset)
    place = min(offset for offset in offsets if offset)
    end, largest, dictionary = place + column.total_compressed_size, 0, 0
    while place < end:
        size, page = _header_at(file, place, end)
        if page[_PACKED] < 0 or page[_UNPACKED] < 0:
            raise ValueError(f"the page at byte {place} has no size")
        place, largest = place + size + page[_PACKED], max(largest, page[_UNPACKED])
        if page[_TYPE] == _DICTIONARY_PAGE:
            dictionary = page[_UNPACKED]
    return largest, dictionary


def _header_at(file: BinaryIO, place: int, end: int) -> tuple[int, dict[int, int]]:
    """Size of the header of a page, and what it says, by field."""
    room = _HEADER_BYTES
    while True:
        file.seek(place)
        header = _Compact(file.read(min(room, end - place)))
        try:
            found = header.struct()
            return header.place, {field: found[field] for field in (_TYPE, _UNPACKED, _PACKED)}
        except IndexError:
            if room >= min(end - place, _LONGEST_HEADER_BYTES):
                raise ValueError(f"the header of the page at byte {place} does not end") from None
            room *= 16
        except KeyError:
            raise ValueError(f"no page stands at byte {place}") from None


class _Compact:
    """Reads Thrift's compact protocol as far as page headers need it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.place = 0

    def struct(self, depth: int = 0) -> dict[int, int]:
        """Skip a structure; returns its whole numbers by field."""
        found, field = {}, 0
        while kind := self._byte():
            field = field + (kind >> 4) if kind >> 4 else self._integer()
            value = self._value(kind & 15, depth)
            if value is not None:
                found[field] = value
        return found

    def _value(self, kind: int, depth: int) -> int | None:
        if kind in (_TRUE, _FALSE):
            return None
        if kind == _BYTE:
            self._skip(1)
        elif kind < _DOUBLE:
            return self._integer()
        elif kind == _DOUBLE:
            self._skip(8)
        elif kind == _BINARY:
            self._skip(self._number())
        elif kind == _STRUCT and depth < _DEEPEST:
            self.struct(depth + 1)
        else:  # no header has lists or maps
            raise KeyError(kind)
        return None

    def _byte(self) -> int:
        value = self._data[self.place]
        self.place += 1
        return value

    def _skip(self, count: int) -> None:
        self.place += count
        if self.place > len(self._data):
            raise IndexError

    def _number(self) -> int:
        value = 0
        for shift in range(0, 64, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise KeyError("a number without an end")

    def _integer(self) -> int:
        value = self._number()
        return (value >> 1) ^ -(value & 1)
