"""The binary statistics format of KVM: `.stats.bin`, a kernel's descriptor, a segment.

The format is that of KVM_GET_STATS_FD (the kernel's Documentation/virt/kvm/api.rst, 4.133,
include/uapi/linux/kvm.h): a header, and where it says an id string, descriptors, and data of
unsigned 64-bit integers, all in the machine's own byte order. The id string and each name take
`name_size` bytes, with a NUL at their end: the kernel's are 48; a longer path or name makes all of
them longer. Signed integers are stored as two's complement; the format does not say so.

Objects to be decoded may be hostile: any error is a `FormatError`, and time and memory are bounded
by their length. Threading: pure functions and immutable objects.
"""

import operator
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, Final

from statsfs.exceptions import FormatError
from statsfs.model.counts import count_of
from statsfs.model.values import Kind, Unit, Value

__all__ = [
    "Data",
    "Descriptor",
    "Layout",
    "Number",
    "Statistics",
    "decode",
    "decode_layout",
    "describe",
    "encode",
    "make_layout",
    "render",
]

Data = bytes | bytearray | memoryview
Number = int | list[int]
_Pick = Callable[[tuple[int, ...]], tuple[Any, ...]]

_HEADER: Final = struct.Struct("=6I")
_DESCRIPTOR: Final = struct.Struct("=IhHII")
_NAME_SIZE: Final = 48  # KVM_STATS_NAME_SIZE
_SLOT: Final = 8  # bytes of an integer; all blocks begin at a multiple of it
_CACHED_MAX: Final = 512  # numbers of a directory whose layout is kept, with its values
_FLAGS: Final = 0xFFF  # the bits of a descriptor's flags that mean something
_POWERS: Final = (10, 2)  # the bases by number
_U64: Final = (1 << 64) - 1
_KINDS: Final = {kind.value: kind for kind in Kind if kind is not Kind.HIST}
_UNITS: Final = {unit.value: unit for unit in Unit}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What one statistic is, and where in the data.

    Attributes:
        base, exponent: its integers count units of `base` (10 or 2) to the power `exponent`.
        size: how many integers; the number of buckets of a histogram, 1 for most others.
        bucket_size: how wide the buckets of LINEAR_HIST are; 0 for all else.
        offset: where its first integer is, in bytes from the beginning of the data.
    """

    name: str
    kind: Kind = Kind.CUMULATIVE
    unit: Unit = Unit.NONE
    base: int = 10
    exponent: int = 0
    size: int = 1
    bucket_size: int = 0
    offset: int = 0

    @property
    def end(self) -> int:
        """Where its integers end, in bytes from the beginning of the data."""
        return self.offset + _SLOT * self.size


@dataclass(frozen=True, slots=True)
class Layout:
    """What does not change while the integers do; made by `make_layout` and `decode_layout`.

    Attributes:
        id: the name of what has the statistics.
        name_size: how many bytes the id string has, and each name.
        id_offset, desc_offset, data_offset: where the blocks begin.
        data_size: how many bytes of data the descriptors need.
    """

    id: str
    descriptors: tuple[Descriptor, ...]
    name_size: int
    id_offset: int
    desc_offset: int
    data_offset: int
    data_size: int = field(init=False)
    _struct: struct.Struct = field(init=False, repr=False, compare=False)
    _stored: list[int] = field(init=False, repr=False, compare=False)
    _pick: _Pick = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        descriptors = self.descriptors
        # In the order of the data, which need not be that of the descriptors.
        stored = sorted(range(len(descriptors)), key=lambda index: descriptors[index].offset)
        layout, end = "=", 0
        for index in stored:
            layout += f"{descriptors[index].offset - end}x{descriptors[index].size}Q"
            end = descriptors[index].end
        put = partial(object.__setattr__, self)
        put("data_size", end)
        put("_struct", struct.Struct(layout))
        put("_stored", stored)
        put("_pick", _make_pick(descriptors, stored))

    @property
    def desc_end(self) -> int:
        """Where the descriptors end: a segment has its own block there, the kernel its data."""
        return self.desc_offset + len(self.descriptors) * (_DESCRIPTOR.size + self.name_size)

    def numbers(self, data: Data) -> tuple[Number, ...]:
        """Return the integers of a block of data, by descriptor; FormatError if it is too short.

        They are unsigned and of 64 bits; a list of them for each histogram, and for all else of
        another size than 1.
        """
        try:
            return self._pick(self._struct.unpack_from(data))
        except struct.error:
            raise FormatError(
                f"{count_of(len(data), 'byte')} of data, not {self.data_size}", len(data)
            ) from None

    def data(self, numbers: Sequence[Number]) -> bytes:
        """Return the block of data of these integers modulo 2^64; FormatError for a wrong size."""
        sizes = [len(one) if isinstance(one, list) else 1 for one in numbers]
        wanted = [one.size for one in self.descriptors]
        if sizes != wanted:
            raise FormatError(
                f"{count_of(sum(sizes), 'integer')} in {len(sizes)}, "
                f"not {sum(wanted)} in {len(wanted)}",
                numbers,
            )
        flat: list[int] = []
        for number in map(numbers.__getitem__, self._stored):
            if isinstance(number, list):
                flat += number
            else:
                flat.append(number)
        try:
            return self._struct.pack(*flat)
        except struct.error:
            # An integer is below 0 or beyond 64 bits.
            return self._struct.pack(*(number & _U64 for number in flat))

    def head(self) -> bytes:
        """Return all but the data: header, id string and descriptors, with zeros between."""
        ends = (_HEADER.size, self.id_offset + self.name_size, self.desc_end)
        head = bytearray(max(ends))
        offsets = (self.id_offset, self.desc_offset, self.data_offset)
        _HEADER.pack_into(head, 0, 0, self.name_size, len(self.descriptors), *offsets)
        id = self.id.encode()
        head[self.id_offset : self.id_offset + len(id)] = id
        packed = b"".join(_pack_descriptor(one, self.name_size) for one in self.descriptors)
        head[self.desc_offset : self.desc_end] = packed
        return bytes(head)


def _make_pick(descriptors: Sequence[Descriptor], stored: Sequence[int]) -> _Pick:
    # What makes a row of the integers in the order of the data, at C speed.
    picked: list[int | slice] = [0] * len(descriptors)
    begin = 0
    for index in stored:
        one, end = descriptors[index], begin + descriptors[index].size
        whole = one.size != 1 or one.kind in (Kind.LINEAR_HIST, Kind.LOG_HIST)
        picked[index] = slice(begin, end) if whole else begin
        begin = end
    if picked == list(range(len(picked))):
        return tuple
    if len(picked) == 1:
        return lambda numbers: (list(numbers),)
    pick = operator.itemgetter(*picked)
    # Slices of a list are lists.
    return lambda numbers: pick(list(numbers))


def _pack_descriptor(one: Descriptor, name_size: int) -> bytes:
    flags = one.kind.value | one.unit.value << 4 | _POWERS.index(one.base) << 8
    fixed = _DESCRIPTOR.pack(flags, one.exponent, one.size, one.offset, one.bucket_size)
    return fixed + one.name.encode().ljust(name_size, b"\0")


@dataclass(frozen=True, slots=True)
class Statistics:
    """What `decode` returns: a layout and the data of one moment."""

    layout: Layout
    data: bytes

    @property
    def id(self) -> str:
        """The name of what has the statistics."""
        return self.layout.id

    @property
    def descriptors(self) -> tuple[Descriptor, ...]:
        """What there is."""
        return self.layout.descriptors

    @property
    def numbers(self) -> tuple[Number, ...]:
        """The integers, by descriptor; lists for histograms."""
        return self.layout.numbers(self.data)


# Making


def describe(value: Value, name: str | None = None) -> Descriptor:
    """Return the descriptor of a value, to be placed by `make_layout`.

    The format has no histograms with bounds of their own: they are several CUMULATIVE integers.

    Args:
        value: the value; one of its aggregates is described as it is.
        name: the name, if another than the value's.
    """
    return Descriptor(
        name or value.name,
        Kind.CUMULATIVE if value.kind is Kind.HIST else value.kind,
        value.unit,
        value.base,
        value.exponent,
        value.size,
        value.bucket_size,
    )


def make_layout(
    id: str, descriptors: Iterable[Descriptor], data_offset: int | None = None
) -> Layout:
    """Return the layout that a kernel would give to descriptors.

    Args:
        descriptors: they are placed one after another, whatever their `offset`.
        data_offset: where the data begins, if not right behind the descriptors.

    Raises:
        FormatError: two names are equal, or one is empty, not UTF-8 or has a NUL; a field does not
            fit; `data_offset` is not a multiple of 8 behind the descriptors.
    """
    placed: list[Descriptor] = []
    for one in descriptors:
        placed.append(replace(one, offset=placed[-1].end if placed else 0))
    texts = (id, *(one.name for one in placed))
    name_size = _fit_name(max(len(_encode_text(text)) for text in texts))
    desc_offset = _HEADER.size + name_size
    end = desc_offset + len(placed) * (_DESCRIPTOR.size + name_size)
    start = end if data_offset is None else data_offset
    if start < end or start % _SLOT:
        raise FormatError(f"invalid data_offset {start}", start)
    _check_descriptors(placed)
    layout = Layout(id, tuple(placed), name_size, _HEADER.size, desc_offset, start)
    try:
        layout.head()
    except struct.error as error:
        raise FormatError(f"a field does not fit: {error}", layout) from error
    return layout


def _fit_name(length: int) -> int:
    # The name_size for a text of so many bytes: the kernel's, or the next that keeps all aligned.
    return max(_NAME_SIZE, (length // _SLOT + 1) * _SLOT)


def _encode_text(text: str) -> bytes:
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise FormatError(f"not valid UTF-8: {text[:40]!r}", text) from None
    if b"\0" in encoded:
        raise FormatError(f"a NUL in {text[:40]!r}", text)
    return encoded


def encode(statistics: Statistics) -> bytes:
    """Return the bytes of an object; what lies between its blocks is zero."""
    layout, data = statistics.layout, statistics.data
    head = layout.head()
    before, after = head[: layout.data_offset], head[layout.data_offset + len(data) :]
    return b"".join((before.ljust(layout.data_offset, b"\0"), data, after))


@lru_cache(maxsize=16)
def _prepare(files: tuple[tuple[str, Value], ...], id: str) -> tuple[Layout, bytes]:
    # Thousands of directories have the same files: what they have in common is made once.
    layout = make_layout(id, [describe(value, name) for name, value in files])
    return layout, layout.head()[layout.desc_offset :]


def render(path: str, files: Iterable[tuple[str, Value, Number]]) -> bytes:
    """Return a directory's files, each a name, a value and a number or buckets, as an object.

    Raises:
        FormatError: two files have one name, or a histogram has other buckets than its value; the
            path, which becomes the id string, has a NUL or is not UTF-8.
    """
    listed = list(files)
    id = _encode_text(path)
    # Another path of no other length stands in, so that few directories have a layout of their own.
    size = _fit_name(len(id))
    small = sum(value.size for _, value, _ in listed) <= _CACHED_MAX
    prepare = _prepare if small else _prepare.__wrapped__
    layout, descriptors = prepare(
        tuple((name, value) for name, value, _ in listed), "x" * (size - 1)
    )
    offsets = (layout.id_offset, layout.desc_offset, layout.data_offset)
    header = _HEADER.pack(0, layout.name_size, len(listed), *offsets)
    data = layout.data([number for _, _, number in listed])
    return b"".join((header, id.ljust(layout.name_size, b"\0"), descriptors, data))


# Reading


def decode(encoded: Data) -> Statistics:
    """Decode an object; raise FormatError if it is invalid."""
    encoded = bytes(encoded)
    layout = decode_layout(encoded)
    start, end = layout.data_offset, layout.data_offset + layout.data_size
    data = encoded[start:end]
    if end > len(encoded):
        raise FormatError(f"the data ends at {end}, the object at {len(encoded)}", end)
    return Statistics(layout, data)


def decode_layout(encoded: Data) -> Layout:
    """Decode all of an object but its data, which need not be there."""
    encoded = bytes(encoded)
    if len(encoded) < _HEADER.size:
        raise FormatError(f"{count_of(len(encoded), 'byte')}, too few for a header", len(encoded))
    header = _HEADER.unpack_from(encoded)
    flags, name_size, count, *offsets = header
    if flags:
        raise FormatError(f"unknown flags {flags:#x}", flags)
    if not name_size or name_size % _SLOT:
        raise FormatError(f"invalid name_size {name_size}", name_size)
    for name, offset in zip(("id_offset", "desc_offset", "data_offset"), offsets, strict=True):
        if offset < _HEADER.size or offset % _SLOT:
            raise FormatError(f"invalid {name} {offset}", offset)
    id_offset, desc_offset, data_offset = offsets
    step = _DESCRIPTOR.size + name_size
    blocks = [(0, _HEADER.size), (id_offset, name_size), (desc_offset, count * step)]
    _check_blocks(blocks, len(encoded))
    descriptors = tuple(
        _decode_descriptor(encoded, offset, name_size)
        for offset in range(desc_offset, desc_offset + count * step, step)
    )
    _check_descriptors(descriptors)
    id = _decode_text(encoded, id_offset, name_size)
    layout = Layout(id, descriptors, name_size, id_offset, desc_offset, data_offset)
    _check_blocks([*blocks, (data_offset, layout.data_size)], None)
    return layout


def _check_blocks(where: Iterable[tuple[int, int]], length: int | None) -> None:
    # Each block has a place of its own, within the object's length if that matters.
    blocks = sorted((start, start + size, size) for start, size in where)
    for (_, end, _), (start, _, _) in pairwise(block for block in blocks if block[2]):
        if start < end:
            raise FormatError(f"blocks overlap at {start}", start)
    end = max(block[1] for block in blocks)
    if length is not None and end > length:
        raise FormatError(f"a block ends at {end}, the object at {length}", end)


def _decode_descriptor(encoded: bytes, start: int, name_size: int) -> Descriptor:
    flags, exponent, size, offset, bucket_size = _DESCRIPTOR.unpack_from(encoded, start)
    name = _decode_text(encoded, start + _DESCRIPTOR.size, name_size)
    kind, unit = _KINDS.get(flags & 0xF), _UNITS.get(flags >> 4 & 0xF)
    power = flags >> 8 & 0xF
    if kind is None or unit is None or power >= len(_POWERS) or flags & ~_FLAGS:
        raise FormatError(f"{name[:40]!r} has unknown flags {flags:#x}", flags)
    return Descriptor(name, kind, unit, _POWERS[power], exponent, size, bucket_size, offset)


def _decode_text(encoded: bytes, start: int, name_size: int) -> str:
    end = encoded.find(b"\0", start, start + name_size)
    if end < 0:
        raise FormatError(f"a text at {start} has no NUL", start)
    text = encoded[start:end]
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise FormatError(f"not valid UTF-8: {text[:40]!r}", text) from None


def _check_descriptors(descriptors: Sequence[Descriptor]) -> None:
    names = set()
    for one in descriptors:
        if not one.name or one.name in names:
            how = "twice" if one.name else "without a name"
            raise FormatError(f"a descriptor is there {how}: {one.name[:40]!r}", one)
        names.add(one.name)
        if one.size < 1 or one.offset % _SLOT:
            raise FormatError(
                f"{one.name[:40]!r} has {count_of(one.size, 'integer')} at offset {one.offset}", one
            )
        if (one.bucket_size > 0) is not (one.kind is Kind.LINEAR_HIST):
            raise FormatError(
                f"{one.name[:40]!r} is {one.kind}, with buckets of {one.bucket_size}", one
            )
    placed = sorted(descriptors, key=operator.attrgetter("offset"))
    for before, after in pairwise(placed):
        if after.offset < before.end:
            raise FormatError(f"{after.name[:40]!r} overlaps {before.name[:40]!r}", after)
