"""The file of a segment, from its first byte to its last: encoded, decoded and distrusted.

Owns the format. Locks, directories and whose file it is are the business of others. A file is an
object of KVM's binary statistics format, laid out as the kernel does, in the machine's byte order;
between the descriptors and the data, where a KVM decoder does not look, it has a block of its own::

    0            six u32: flags (0), name_size, num_desc, id_offset (24), desc_offset, data_offset
    24           the id string, `name_size` bytes: the path, as "app/worker-17"
    desc_offset  = 24 + name_size; num_desc descriptors of 16 + name_size bytes
    block        = desc_offset + num_desc * (16 + name_size): the magic "statsfs\\1", u32 size of
                 the JSON, u32 0, the JSON, zeros
    data_offset  a multiple of 64; the integers, and zeros up to a multiple of 64

`name_size` is 48, or the next multiple of 8 in which the longest text has room for its NUL. The
JSON is one object in UTF-8. It says what the format cannot say, in the words of `.schema.json`. It
may be `{}`, for each key has a default, and unknown ones are ignored::

    {"labels": ["app", "worker"],     for each component of the path its label, or null; no labels
     "values": {"requests": {         by name, in any order; what is not there has the defaults:
        "type": "u64",                bool u8 u16 u32 u64 s8 s16 s32 s64; u64
        "aggregate": ["sum"],         sum min max avg count_zero count_nonzero; sum, a peak's max
        "mode": 420,                  permission bits; 0644, and 0444 for what is INSTANT
        "description": "Requests",    one line; nothing
        "hidden": false,              counted above, but not shown; false
        "bounds": [100, 300]}}}       of what is cumulative and has one integer more than bounds:
                                      it is a histogram, and a bound the largest number that its
                                      bucket counts; no histogram

The sum of what a histogram observes is a value directly behind it, as `find_sums` tells.

For others: `decode` gives a `Head`, or None for what is no segment; what equal files have in common
their heads share. `encode` makes a file, or a record of what is retained, which has further keys
in its JSON: `decode_extra` returns them.

Threading: pure functions and immutable objects.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, cast

from statsfs.exceptions import FormatError, StatsfsError
from statsfs.formats.binary import Descriptor, Layout, Number, decode_layout, describe, make_layout
from statsfs.model.values import Aggregate, Kind, Type, Value, check_name

__all__ = [
    "COMPONENTS_MAX",
    "FILE_MAX",
    "MAGIC",
    "VALUES_MAX",
    "Head",
    "decode",
    "decode_extra",
    "encode",
    "split_path",
]

MAGIC: Final = b"statsfs\1"  # the last byte is the version
FILE_MAX: Final = 1 << 20  # bytes
VALUES_MAX: Final = 4096
COMPONENTS_MAX: Final = 8

_DESCRIPTION_MAX: Final = 4096  # bytes
_CACHED_MAX: Final = 1 << 16  # bytes; 64 of these may be kept, and no stranger's megabytes
_ALIGNMENT: Final = 64  # of the data: a `pread` then never tore an integer
_DIGITS_MAX: Final = 20  # of an integer in the JSON; more are a way to waste time
_HEADER: Final = struct.Struct("=6I")
_FIXED: Final = 16  # bytes of a descriptor before its name
_LENGTHS: Final = struct.Struct("=II")
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


@dataclass(frozen=True, slots=True)
class _Shape:
    # What files that differ in their paths and numbers only have in common.
    values: tuple[Value, ...]
    labels: tuple[str | None, ...] | None
    layout: Layout


@dataclass(frozen=True, slots=True)
class Head:
    """All of a segment but its numbers.

    Attributes:
        path: whose numbers they are: names of sources, joined by "/".
        labels: for each component of the path its label, or None.
        values: what there is, without offsets; equal files share one tuple.
        layout: `layout.numbers(data)` decodes `data_size` bytes that were read at `data_offset`;
            its id string is empty.
        data_size: how many bytes there are at `data_offset`, a multiple of 64.
    """

    path: str
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
        """How many bytes the file has at least."""
        return self.layout.data_offset + self.data_size


def split_path(path: object) -> tuple[str, ...]:
    """Return the components of the path of a segment.

    Raises:
        InvalidNameError: one is no name for a source.
        FormatError: there are more than `COMPONENTS_MAX`.
    """
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
    extra: Mapping[str, Any] | None = None,
    most: int = FILE_MAX,
) -> bytes:
    """Return a whole file.

    A value's `show` is not in it: a function is no text.

    Args:
        path: 1 to `COMPONENTS_MAX` names, joined by "/".
        values: 1 to `VALUES_MAX` values without offsets, each with a name of its own.
        labels: for each component of the path its label, or None; none at all by default.
        numbers: for each value an integer, or a list of buckets; by default 0.
        extra: further keys of the JSON, with what JSON can say.
        most: the largest file, in bytes.

    Raises:
        InvalidNameError: a component of the path or a label is no name.
        FormatError: anything else that `decode` refuses.
    """
    split_path(path)
    said: dict[str, Any] = {**(extra or {}), "values": dict(_say(value) for value in values)}
    if labels is not None:
        said["labels"] = list(labels)
    text = json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode(
        errors="surrogatepass"
    )
    descriptors = [describe(value) for value in values]
    if not 1 <= len(descriptors) <= VALUES_MAX:
        raise FormatError(f"{len(descriptors)} values, not 1 to {VALUES_MAX}", values)
    start = make_layout(path, descriptors).desc_end
    data_offset = _pad(start + len(MAGIC) + _LENGTHS.size + len(text))
    layout = make_layout(path, descriptors, data_offset=data_offset)
    size = data_offset + _pad(layout.data_size)
    if size > most:
        raise FormatError(f"{size} bytes, not at most {most}", size)
    file = bytearray(size)
    block = MAGIC + _LENGTHS.pack(len(text), 0) + text
    file[:start] = layout.head()
    file[start : start + len(block)] = block
    if numbers is not None:
        file[data_offset : data_offset + layout.data_size] = layout.data(numbers)
    # What is refused is written once, there.
    decode(file, most)
    return bytes(file)


def _say(value: Value) -> tuple[str, dict[str, Any]]:
    said = {
        "type": str(value.type),
        "aggregate": [kind.label for kind in value.aggregate],
        "mode": value.mode,
        "description": value.description,
    }
    if value.hidden:
        said["hidden"] = True
    if value.bounds:
        said["bounds"] = value.bounds
    return value.name, said


# Reading


def decode(encoded: bytes | bytearray, most: int = FILE_MAX) -> Head | None:
    """Decode a file that anybody may have written.

    Args:
        encoded: the whole file.
        most: the largest file, in bytes.

    Returns:
        None if it has no block of ours, and is no segment.

    Raises:
        FormatError: it has one, and something is wrong; the message is one line.
    """
    encoded = bytes(encoded)
    end = _find_block(encoded)
    if end is None:
        return None
    if len(encoded) > most:
        raise FormatError(f"{len(encoded)} bytes, not at most {most}", len(encoded))
    header = _HEADER.unpack_from(encoded)
    _, name_size, count, id_offset, desc_offset, data_offset = header
    if (id_offset, desc_offset) != (_HEADER.size, _HEADER.size + name_size):
        raise FormatError(f"blocks at {id_offset} and {desc_offset}, not as the kernel's")
    if not 1 <= count <= VALUES_MAX:
        raise FormatError(f"{count} values, not 1 to {VALUES_MAX}", count)
    if data_offset % _ALIGNMENT or not end <= data_offset <= len(encoded):
        raise FormatError(f"no data can begin at {data_offset}", data_offset)
    make = _make_shape if data_offset - desc_offset <= _CACHED_MAX else _make_shape.__wrapped__
    shape: _Shape = make(encoded[: _HEADER.size], encoded[desc_offset:data_offset])
    size = _pad(shape.layout.data_size)
    if data_offset + size > len(encoded):
        raise FormatError(
            f"the data ends at {data_offset + size}, the file at {len(encoded)}", size
        )
    path = _decode_path(encoded[id_offset:desc_offset])
    components = path.count("/") + 1
    labels = shape.labels if shape.labels is not None else (None,) * components
    if len(labels) != components:
        raise FormatError(f"{len(labels)} labels for {components} components of a path", labels)
    return Head(path, labels, shape.values, shape.layout, size)


def decode_extra(encoded: bytes) -> dict[str, Any]:
    """Return what else stands in the JSON of a file that `decode` accepts, by key.

    Raises:
        FormatError: it is none of ours.
    """
    begin = _find_block(encoded)
    if begin is None:
        raise FormatError("no block of ours")
    said = _parse(encoded, begin)
    return {key: item for key, item in said.items() if key not in ("values", "labels")}


def _find_block(encoded: bytes) -> int | None:
    # Where the JSON begins; None where nothing says that there is one.
    if len(encoded) < _HEADER.size:
        return None
    _, name_size, count, _, desc_offset, _ = _HEADER.unpack_from(encoded)
    start = desc_offset + count * (_FIXED + name_size)
    end = start + len(MAGIC) + _LENGTHS.size
    return end if encoded[start : start + len(MAGIC)] == MAGIC and end <= len(encoded) else None


def _decode_path(field: bytes) -> str:
    try:
        path = field[: field.index(b"\0")].decode()
        split_path(path)
    except (ValueError, StatsfsError) as error:
        raise FormatError(f"no path: {error}", field) from None
    return path


@lru_cache(maxsize=64)
def _make_shape(header: bytes, block: bytes) -> _Shape:
    # Of the header and all that lies between the id string and the data.
    layout = decode_layout(header + bytes(_HEADER.unpack(header)[1]) + block)
    said = _parse(block, layout.desc_end - layout.desc_offset + len(MAGIC) + _LENGTHS.size)
    described = said.get("values", {})
    if not isinstance(described, dict):
        raise FormatError('"values" is no object')
    values = tuple(_make_value(one, described.get(one.name, {})) for one in layout.descriptors)
    labels = said.get("labels")
    return _Shape(values, None if labels is None else tuple(_check_labels(labels)), layout)


def _parse(block: bytes, begin: int) -> dict[str, Any]:
    # The JSON that begins there, behind its length.
    size, reserved = _LENGTHS.unpack_from(block, begin - _LENGTHS.size)
    if reserved or begin + size > len(block):
        raise FormatError(f"no JSON of {size} bytes, {reserved}", size)
    try:
        said = json.loads(block[begin : begin + size].decode(), parse_int=_parse_int)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"no JSON: {error}") from None
    if not isinstance(said, dict):
        raise FormatError("the JSON is no object")
    return said


def _parse_int(digits: str) -> int:
    if len(digits) > _DIGITS_MAX:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _check_labels(labels: object) -> Iterator[str | None]:
    if not isinstance(labels, list) or len(labels) > COMPONENTS_MAX:
        raise FormatError('"labels" is no list of labels')
    for label in labels:
        try:
            yield None if label is None else check_name(label, "a label")
        except StatsfsError as error:
            raise FormatError(str(error), label) from None


def _make_value(one: Descriptor, said: object) -> Value:
    if not isinstance(said, dict):
        raise FormatError(f"{one.name[:40]!r} is described by no object", said)
    # Checked before `Value` sees them, which shows what it refuses, however deep it is.
    said = {key: item for key, item in said.items() if item is not None}
    for key, wanted in _WANTED.items():
        if key in said and not isinstance(said[key], wanted):
            raise FormatError(f"{one.name[:40]!r}: {key!r} has another type", said)
    try:
        return Value(
            one.name,
            _TYPES[said.get("type", "u64")],
            _make_aggregate(said.get("aggregate"), one.kind),
            cast(int, said.get("mode")),
            kind=_find_kind(one, said),
            unit=one.unit,
            base=one.base,
            exponent=one.exponent,
            size=one.size,
            bucket_size=one.bucket_size,
            bounds=said.get("bounds", ()),
            description=_check_description(said.get("description", "")),
            hidden=said.get("hidden", False),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise FormatError(f"{one.name[:40]!r}: {_shorten(error)}", said) from None


def _find_kind(one: Descriptor, said: dict[str, Any]) -> Kind:
    if one.kind is not Kind.CUMULATIVE or "bounds" not in said:
        return one.kind
    if one.size != len(said["bounds"]) + 1:
        raise ValueError(f"{one.size} integers for {len(said['bounds'])} bounds")
    return Kind.HIST


def _make_aggregate(kinds: list[Any] | None, kind: Kind) -> Aggregate:
    if kinds is None:
        return Aggregate.MAX if kind is Kind.PEAK else Aggregate.SUM
    aggregate = Aggregate.NONE
    for one in kinds[: len(_AGGREGATES)]:
        aggregate |= _AGGREGATES[one]
    return aggregate


def _check_description(description: str) -> str:
    # A lone surrogate, which JSON can say, could not be shown to anybody.
    if len(description.encode()) > _DESCRIPTION_MAX:
        raise ValueError(f"a description of more than {_DESCRIPTION_MAX} bytes")
    return description


def _shorten(error: Exception) -> str:
    # One line, whatever a stranger put into what is refused.
    return ascii(str(error))[1:-1][:200]
