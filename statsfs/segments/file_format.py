"""The file of a segment, from its first byte to its last.

Owns the format (docs/segments.md), and decodes files that anybody may have written. The block of
JSON is between the descriptors and the data, where a KVM decoder does not look. Locks, directories
and owners of files are elsewhere.

Threading: pure functions and immutable objects.
"""

import json
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, Final, cast

from statsfs.exceptions import FormatError, StatsfsError
from statsfs.formats.binary import Descriptor, Layout, Number, decode_layout, describe, make_layout
from statsfs.formats.metric_names import make_label
from statsfs.model.counts import count_of
from statsfs.model.values import Aggregate, Kind, Type, Value, check_name

__all__ = [
    "COMPONENTS_MAX",
    "FILE_MAX",
    "MAGIC",
    "VALUES_MAX",
    "SegmentMetadata",
    "decode",
    "encode",
    "split_path",
]

MAGIC: Final = b"statsfs\1"  # the last byte is the version
FILE_MAX: Final = 1 << 20  # bytes
VALUES_MAX: Final = 4096
COMPONENTS_MAX: Final = 8

_DESCRIPTION_MAX: Final = 4096  # bytes
_CACHED_MAX: Final = 1 << 16  # bytes of a cache entry; there are 64, and strangers write files
_ALIGNMENT: Final = 64  # of the data: a `pread` then never tore an integer
_DIGITS_MAX: Final = 20  # of an integer in the JSON; to convert many digits takes long
_HEADER: Final = struct.Struct("=6I")
_FIXED: Final = 16  # bytes of a descriptor before its name
_LENGTHS: Final = struct.Struct("=II")  # of the JSON, and 0
_TYPES: Final = {type.label: type for type in Type}
_WANTED: Final = {
    "type": str,
    "aggregate": list,
    "mode": int,
    "description": str,
    "hidden": bool,
    "bounds": list,
}
_AGGREGATES: Final = {kind.label: kind for kind in Aggregate}
_ID: Final = re.compile(r"[0-9A-Za-z-]{1,64}")
# Where `encode` puts it; in the cache all files have this one.
_ID_FIRST: Final = re.compile(rb'\{"id":"([0-9a-f]{16})"')
_ID_CACHED: Final = "0" * 16


@dataclass(frozen=True, slots=True)
class _SharedMetadata:
    # Equal in files that differ in nothing but their paths, ids and numbers.
    id: str | None
    values: tuple[Value, ...]
    labels: tuple[str | None, ...] | None
    layout: Layout


@dataclass(frozen=True, slots=True)
class SegmentMetadata:
    """All of a segment but its numbers.

    Attributes:
        path: names of sources, joined by "/".
        id: the random text by which the file is known, or None.
        labels: for each component of the path its label, as Prometheus has it, or None.
        values: without offsets; equal files share one tuple.
        layout: `layout.numbers(data)` decodes `data_size` bytes that were read at `data_offset`;
            its id string is empty.
        data_size: the number of bytes at `data_offset`, a multiple of 64.
    """

    path: str
    id: str | None
    labels: tuple[str | None, ...]
    values: tuple[Value, ...]
    layout: Layout
    data_size: int

    @property
    def components(self) -> tuple[str, ...]:
        """The names of the path."""
        return tuple(self.path.split("/"))

    @property
    def data_offset(self) -> int:
        """Where the numbers begin in the file, a multiple of 64."""
        return self.layout.data_offset

    @property
    def size(self) -> int:
        """The number of bytes that the file has at least."""
        return self.layout.data_offset + self.data_size


def split_path(path: object) -> tuple[str, ...]:
    """Return the components of a segment's path, or raise InvalidNameError or FormatError."""
    components = path.split("/") if isinstance(path, str) else [path]
    if len(components) > COMPONENTS_MAX:
        raise FormatError(f"a path of {len(components)} components, not 1 to {COMPONENTS_MAX}")
    return tuple(check_name(name, "a component of a path") for name in components)


def _pad(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


# Making


def encode(
    path: str,
    values: Sequence[Value],
    labels: Sequence[str | None] | None = None,
    *,
    numbers: Sequence[Number] | None = None,
    id: str | None = None,
) -> bytes:
    """Return a whole file, without the `show` functions of the values.

    Args:
        path: 1 to `COMPONENTS_MAX` names, joined by "/".
        values: 1 to `VALUES_MAX` values without offsets, with different names.
        labels: for each component of the path its label, or None; by default no labels.
        numbers: for each value an integer, or a list of buckets; by default 0.
        id: 1 to 64 letters, digits and "-", random; decoding is fast with 16 lower hex digits.

    Raises:
        InvalidNameError: a component of the path is not a valid name.
        FormatError: `decode` refuses the file.
    """
    split_path(path)
    described: dict[str, Any] = {} if id is None else {"id": id}
    described["values"] = dict(_describe(value) for value in values)
    if labels is not None:
        described["labels"] = list(labels)
    dumped = json.dumps(described, ensure_ascii=False, separators=(",", ":"))
    text = dumped.encode(errors="surrogatepass")
    descriptors = [describe(value) for value in values]
    if not 1 <= len(descriptors) <= VALUES_MAX:
        raise FormatError(f"{len(descriptors)} values, not 1 to {VALUES_MAX}", values)
    block = MAGIC + _LENGTHS.pack(len(text), 0) + text
    data_offset = _pad(make_layout(path, descriptors).desc_end + len(block))
    layout = make_layout(path, descriptors, data_offset=data_offset)
    size = data_offset + _pad(layout.data_size)
    if size > FILE_MAX:
        raise FormatError(f"{size} bytes, not at most {FILE_MAX}", size)
    data = b"" if numbers is None else layout.data(numbers)
    encoded = ((layout.head() + block).ljust(data_offset, b"\0") + data).ljust(size, b"\0")
    # The rules are written once, there.
    decode(encoded)
    return encoded


def _describe(value: Value) -> tuple[str, dict[str, Any]]:
    described = {
        "type": str(value.type),
        "aggregate": [kind.label for kind in value.aggregate],
        "mode": value.mode,
        "description": value.description,
    }
    if value.hidden:
        described["hidden"] = True
    if value.bounds:
        described["bounds"] = value.bounds
    return value.name, described


# Reading


def decode(encoded: bytes) -> SegmentMetadata:
    """Decode a whole file, which any user may have written.

    Raises:
        FormatError: something is wrong; the message is one line.
    """
    end = _find_block(encoded)
    header = _HEADER.unpack_from(encoded)
    _, name_size, count, id_offset, desc_offset, data_offset = header
    if not 1 <= count <= VALUES_MAX:
        raise FormatError(f"{count} values, not 1 to {VALUES_MAX}", count)
    if len(encoded) > FILE_MAX:
        raise FormatError(f"{len(encoded)} bytes, not at most {FILE_MAX}", len(encoded))
    if (id_offset, desc_offset) != (_HEADER.size, _HEADER.size + name_size):
        raise FormatError(f"invalid id_offset {id_offset} or desc_offset {desc_offset}", header)
    if data_offset % _ALIGNMENT or not end <= data_offset <= len(encoded):
        raise FormatError(f"invalid data_offset {data_offset}", data_offset)
    block = encoded[desc_offset:data_offset]
    share = _decode_shared if len(block) <= _CACHED_MAX else _decode_uncached
    first = _ID_FIRST.match(block, end - desc_offset)
    if first is not None:
        block = block[: first.start(1)] + _ID_CACHED.encode() + block[first.end(1) :]
    shared = share(encoded[: _HEADER.size], block)
    size = _pad(shared.layout.data_size)
    if (end := data_offset + size) > len(encoded):
        raise FormatError(f"the data ends at {end}, the file at {len(encoded)}", size)
    path = _decode_path(encoded[id_offset:desc_offset])
    components = path.count("/") + 1
    labels = shared.labels if shared.labels is not None else (None,) * components
    if len(labels) != components:
        raise FormatError(
            f"{count_of(len(labels), 'label')} for {count_of(components, 'component')} of a path",
            labels,
        )
    # The JSON may have the key twice: then the last one counts.
    cached = first is not None and shared.id == _ID_CACHED
    id = first[1].decode() if first is not None and cached else shared.id
    return SegmentMetadata(path, id, labels, shared.values, shared.layout, size)


def _find_block(encoded: bytes) -> int:
    # Where the JSON begins.
    if len(encoded) < _HEADER.size:
        raise FormatError(
            f"{count_of(len(encoded), 'byte')}, fewer than the {_HEADER.size} of the header"
        )
    _, name_size, count, _, desc_offset, _ = _HEADER.unpack_from(encoded)
    start: int = desc_offset + count * (_FIXED + name_size)
    end = start + len(MAGIC) + _LENGTHS.size
    magic = encoded[start : start + len(MAGIC)]
    if magic == MAGIC and end <= len(encoded):
        return end
    if magic[:-1] == MAGIC[:-1] and magic != MAGIC:
        raise FormatError(f"version {magic[-1]}, not {MAGIC[-1]}", magic)
    found = encoded.find(MAGIC)
    where = f"{count_of(count, 'descriptor')} {'ends' if count == 1 else 'end'} at {start}"
    if found not in (-1, start):
        raise FormatError(f"the magic is at {found}, but {where}", found)
    if end > len(encoded):
        raise FormatError(f"truncated: {where}, the file at {len(encoded)}", len(encoded))
    raise FormatError(f"not a segment: no magic at {start}", magic)


def _decode_path(field: bytes) -> str:
    try:
        path = field[: field.index(b"\0")].decode()
        split_path(path)
    except (ValueError, StatsfsError) as error:
        raise FormatError(f"invalid path: {error}", field) from None
    return path


def _decode_uncached(header: bytes, block: bytes) -> _SharedMetadata:
    # The block is all between the id string and the data.
    layout = decode_layout(header + bytes(_HEADER.unpack(header)[1]) + block)
    begin = layout.desc_end - layout.desc_offset + len(MAGIC) + _LENGTHS.size
    described = _decode_json(block, begin)
    by_name = described.get("values", {})
    if not isinstance(by_name, dict):
        raise FormatError('"values" is not an object')
    values = tuple(_make_value(one, by_name.get(one.name, {})) for one in layout.descriptors)
    labels = described.get("labels")
    checked = None if labels is None else tuple(_check_labels(labels))
    return _SharedMetadata(_check_id(described.get("id")), values, checked, layout)


_decode_shared: Final = lru_cache(maxsize=64)(_decode_uncached)


def _decode_json(block: bytes, begin: int) -> dict[str, Any]:
    # The JSON begins there; its length is before it.
    size, reserved = _LENGTHS.unpack_from(block, begin - _LENGTHS.size)
    if reserved or begin + size > len(block):
        raise FormatError(f"invalid JSON size {size}, or reserved {reserved}", size)
    try:
        described = json.loads(block[begin : begin + size].decode(), parse_int=_parse_int)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"invalid JSON: {error}") from None
    if not isinstance(described, dict):
        raise FormatError("the JSON is not an object")
    return described


def _parse_int(digits: str) -> int:
    if len(digits) > _DIGITS_MAX:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _check_id(id: object) -> str | None:
    if id is None or (isinstance(id, str) and _ID.fullmatch(id)):
        return id
    raise FormatError('"id" is not 1 to 64 letters, digits and "-"')


def _check_labels(labels: object) -> Iterator[str | None]:
    if not isinstance(labels, list) or len(labels) > COMPONENTS_MAX:
        raise FormatError(f'"labels" is not a list of at most {COMPONENTS_MAX}')
    for label in labels:
        try:
            yield None if label is None else make_label(check_name(label, "a label"))
        except StatsfsError as error:
            raise FormatError(str(error), label) from None


def _make_value(one: Descriptor, described: object) -> Value:
    if not isinstance(described, dict):
        raise FormatError(f"{one.name[:40]!r}: the description is not an object", described)
    # Before `Value`, whose errors quote what is refused, however deeply nested it is.
    described = {key: item for key, item in described.items() if item is not None}
    for key, wanted in _WANTED.items():
        if key in described and not isinstance(described[key], wanted):
            raise FormatError(f"{one.name[:40]!r}: invalid type of {key!r}", described)
    try:
        return Value(
            one.name,
            _TYPES[described.get("type", "u64")],
            _make_aggregate(described.get("aggregate"), one.kind),
            cast(int, described.get("mode")),
            kind=_find_kind(one, described),
            unit=one.unit,
            base=one.base,
            exponent=one.exponent,
            size=one.size,
            bucket_size=one.bucket_size,
            bounds=described.get("bounds", ()),
            description=_check_description(described.get("description", "")),
            hidden=described.get("hidden", False),
        )
    except (ValueError, TypeError, KeyError) as error:
        why = ascii(str(error))[1:-1][:200]  # one line, whatever the file has
        raise FormatError(f"{one.name[:40]!r}: {why}", described) from None


def _find_kind(one: Descriptor, described: dict[str, Any]) -> Kind:
    if one.kind is not Kind.CUMULATIVE or "bounds" not in described:
        return one.kind
    bounds = len(described["bounds"])
    if one.size != bounds + 1:
        raise ValueError(f"{count_of(one.size, 'integer')} for {count_of(bounds, 'bound')}")
    return Kind.HIST


def _make_aggregate(kinds: list[Any] | None, kind: Kind) -> Aggregate:
    if kinds is None:
        return Aggregate.MAX if kind is Kind.PEAK else Aggregate.SUM
    some = (_AGGREGATES[one] for one in kinds[: len(_AGGREGATES)])
    return reduce(Aggregate.__or__, some, Aggregate.NONE)


def _check_description(description: str) -> str:
    # JSON may have lone surrogates, which cannot be encoded.
    if len(description.encode()) > _DESCRIPTION_MAX:
        raise ValueError(f"a description of more than {_DESCRIPTION_MAX} bytes")
    return description
