"""Parquet's footer: read and written as far as a file needs that grows by row groups.

pyarrow writes a footer once, at the end. A recording has a new one after each interval, of which
only the list of row groups differs. The footer is a struct of Thrift's compact protocol:
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift

Threading: pure.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["MAGIC", "Footer", "RowGroup", "parse_footer", "split_file"]

MAGIC: Final = b"PAR1"

_TRUE, _FALSE, _BYTE, _BINARY, _LIST, _STRUCT = 1, 2, 3, 8, 9, 12  # those of a footer
_INTEGERS: Final = (4, 5, 6)
_DEPTH_MAX: Final = 16  # Parquet nests 6 deep

# Ids of fields in parquet.thrift.
_NUM_ROWS, _ROW_GROUPS = 3, 4  # of FileMetaData
_COLUMNS, _GROUP_ROWS, _GROUP_OFFSET, _ORDINAL = 1, 3, 5, 7  # of RowGroup
_CHUNK_OFFSET, _META = 2, 3  # of ColumnChunk
_PAGE_OFFSETS: Final = (9, 10, 11, 14)  # of ColumnMetaData: data, index, dictionary, Bloom filter
_COMPRESSED_SIZE: Final = 7  # of ColumnMetaData

_Struct = dict[int, tuple[int, Any]]  # type and value, by the field's id


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group: its struct, and what of it a file has to know."""

    text: bytes
    rows: int
    end: int


class Footer:
    """All of a footer but its row groups, which differ from time to time."""

    def __init__(self, fields: _Struct) -> None:
        self._fields = fields

    def render(self, groups: Sequence[RowGroup]) -> bytes:
        """Return the end of a file that has these row groups."""
        listed = bytearray(_list_header(_STRUCT, len(groups)))
        for group in groups:
            listed += group.text
        fields = self._fields | {
            _NUM_ROWS: (6, sum(group.rows for group in groups)),
            _ROW_GROUPS: (_LIST, bytes(listed)),
        }
        text = _encode_struct(fields)
        return text + struct.pack("<I", len(text)) + MAGIC


def parse_footer(text: bytes, shift: int = 0) -> tuple[Footer, list[RowGroup]]:
    """Return a footer and its row groups; ValueError if it is none.

    Args:
        text: the struct, without what follows it in the file.
        shift: how many bytes further back the data will be.
    """
    reader = _Reader(text)
    try:
        fields = reader.struct()
        groups = [_make_group(group, shift) for group in fields[_ROW_GROUPS][1][1]]
    except (IndexError, KeyError, TypeError, struct.error) as error:
        raise ValueError("not a footer of Parquet") from error
    if reader.at != len(text):
        raise ValueError("not a footer of Parquet")
    return Footer(fields), groups


def split_file(whole: memoryview, at: int) -> tuple[memoryview, Footer, list[RowGroup]]:
    """Return the data of a file in memory, its footer, and its row groups as if data were `at`."""
    (length,) = struct.unpack("<I", whole[-8:-4])
    data = whole[len(MAGIC) : -8 - length]
    footer, groups = parse_footer(bytes(whole[-8 - length : -8]), at - len(MAGIC))
    return data, footer, groups


def _make_group(fields: _Struct, shift: int) -> RowGroup:
    end = 0
    for chunk in fields[_COLUMNS][1][1]:
        meta = chunk[_META][1]
        begins = []
        for number in _PAGE_OFFSETS:
            if number in meta:
                kind, offset = meta[number]
                meta[number] = kind, offset + shift
                begins.append(offset + shift)
        end = max(end, min(begins) + meta[_COMPRESSED_SIZE][1])
        kind, offset = chunk[_CHUNK_OFFSET]
        chunk[_CHUNK_OFFSET] = kind, offset and offset + shift
    kind, offset = fields[_GROUP_OFFSET]
    fields[_GROUP_OFFSET] = kind, offset + shift
    fields.pop(_ORDINAL, None)  # it would have to differ, and only encryption needs it
    return RowGroup(_encode_struct(fields), fields[_GROUP_ROWS][1], end)


class _Reader:
    def __init__(self, text: bytes) -> None:
        self._text = text
        self._depth = 0
        self.at = 0

    def struct(self) -> _Struct:
        self._depth += 1
        if self._depth > _DEPTH_MAX:
            raise ValueError("a footer that is too deep")
        fields: _Struct = {}
        number = 0
        while head := self._byte():
            kind = head & 15
            number = number + (head >> 4) if head >> 4 else self._integer()
            fields[number] = kind, self._value(kind)
        self._depth -= 1
        return fields

    def _byte(self) -> int:
        byte = self._text[self.at]
        self.at += 1
        return byte

    def _varint(self) -> int:
        number = shift = 0
        while (byte := self._byte()) & 128:
            number |= (byte & 127) << shift
            shift += 7
        return number | byte << shift

    def _integer(self) -> int:
        number = self._varint()
        return number >> 1 ^ -(number & 1)

    def _take(self, length: int) -> bytes:
        taken = self._text[self.at : self.at + length]
        if len(taken) < length:
            raise IndexError(length)
        self.at += length
        return taken

    def _value(self, kind: int) -> Any:
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        if kind in _INTEGERS:
            return self._integer()
        if kind == _BINARY:
            return self._take(self._varint())
        if kind == _STRUCT:
            return self.struct()
        if kind == _BYTE:
            return self._take(1)
        if kind == _LIST:
            return self._list()
        raise ValueError(f"type {kind} in a footer")

    def _list(self) -> tuple[int, list[Any]]:
        head = self._byte()
        kind, count = head & 15, head >> 4
        if count == 15:
            count = self._varint()
        return kind, [self._value(kind) for _ in range(count)]


def _encode_struct(fields: _Struct) -> bytes:
    text = bytearray()
    last = 0
    for number, (kind, value) in sorted(fields.items()):
        if kind in (_TRUE, _FALSE):
            kind = _TRUE if value else _FALSE
        # Ids of Parquet's structs are less than 15 apart.
        text.append(number - last << 4 | kind)
        last = number
        if kind not in (_TRUE, _FALSE):
            text += _encode(kind, value)
    return bytes(text) + b"\0"


def _encode(kind: int, value: Any) -> bytes:
    if kind in _INTEGERS:
        return _varint(value << 1 ^ value >> 63)
    if kind == _BINARY:
        return _varint(len(value)) + bytes(value)
    if kind == _STRUCT:
        return _encode_struct(value)
    if isinstance(value, bytes):  # a byte, or a list that is encoded already
        return value
    inner, items = value
    encoded = [_encode(inner, item) for item in items]
    return _list_header(inner, len(items)) + b"".join(encoded)


def _list_header(kind: int, count: int) -> bytes:
    return bytes([count << 4 | kind]) if count < 15 else bytes([0xF0 | kind]) + _varint(count)


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    text = bytearray()
    while number > 127:
        text.append(number & 127 | 128)
        number >>= 7
    text.append(number)
    return bytes(text)
