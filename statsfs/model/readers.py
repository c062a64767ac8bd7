"""Readers: how the integers of one array are read, cleared and sampled in a base.

Owns the ways of holding integers: attributes, keys, slots and buffers. Which of them a base needs
is the business of `bases`; it knows nothing of sources. What a reader returns is raw: converting to
the declared type is the business of `convert_number` and `aggregates`.

Threading: readers have no state that changes. Reading a *plain* base runs no Python code, so the
interpreter does not switch threads in it; that is what makes a sample one moment.
"""

import operator
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import accumulate, chain, repeat
from typing import Any, ClassVar, Final

from statsfs.exceptions import ReadOnlyValueError
from statsfs.model.buffers import name_fields
from statsfs.model.counts import count_of
from statsfs.model.foreign import describe_error, foreign
from statsfs.model.histograms import PLAIN_HISTOGRAMS, Histogram, convert_buckets, find_sums
from statsfs.model.values import Type, Value

__all__ = [
    "AttributeReader",
    "BufferReader",
    "ClearingReader",
    "KeyReader",
    "MappingReader",
    "PackedReader",
    "Reader",
    "ReplacedReader",
    "SlotReader",
    "convert_number",
    "describe_number",
]


class Reader:
    """How the integers of one array are read and cleared in one sort of base.

    Args:
        values: the array.
        plain: whether reading runs no Python code.

    Attributes:
        sample: called with a base, returns its row undecoded.
        subtracts: whether a clear writes nothing, but keeps what a number was as its baseline.
    """

    __slots__ = ("_sums", "plain", "sample", "values")

    sample: Callable[[Any], Any]
    subtracts: ClassVar[bool] = False

    def __init__(self, values: tuple[Value, ...], plain: bool = True) -> None:
        self.values = values
        self.plain = plain
        self._sums = find_sums(values)

    def read(self, base: Any, index: int) -> object:
        """Return what the base holds for the value at `index` of the array."""
        raise NotImplementedError

    def parts(self, bases: Collection[Any]) -> list[tuple[Callable[[Any], Any], Iterable[Any]]]:
        """Return what is to be mapped over what, in one C call, to sample many bases.

        For plain bases nothing of it runs Python code.
        """
        return [(self.sample, bases)]

    def column(self, bases: Iterable[Any], index: int) -> list[Any]:
        """Return what many bases hold for one value, in one C call for plain bases."""
        raise NotImplementedError

    def total(self, bases: Iterable[Any], index: int) -> Any:
        """Return the sum of what many bases hold for one value."""
        return sum(self.column(bases, index))

    def decode(self, parts: Sequence[list[Any]]) -> list[tuple[Any, ...]]:
        """Return the rows of what was sampled: an integer, or a list of buckets, per value.

        Args:
            parts: what mapping each of `parts` returned, or what `sample` returned, in one list.
        """
        raise NotImplementedError

    def clear(self, base: Any, index: int) -> None:
        """Write 0 into the base; with a histogram goes its sum.

        Raises:
            ReadOnlyValueError: the base refuses.
        """
        try:
            # The sum first: what refuses that keeps its buckets, too.
            if index in self._sums:
                self._clear(base, self._sums[index])
            self._clear(base, index)
        except foreign() as error:
            name = self.values[index].name
            kind, why = type(base).__name__, describe_error(error)
            raise ReadOnlyValueError(
                f"the {kind} with {name!r} cannot be cleared: {why}", name
            ) from error

    def _clear(self, base: Any, index: int) -> None:
        raise NotImplementedError


_Getter = Callable[[Any], Any]

_get_buckets: Final = operator.attrgetter("buckets")


class KeyReader(Reader):
    """Reads attributes or items, which are alike but for the getter.

    Args:
        values: the array.
        plain: whether reading runs no Python code.
        wrapped: which histograms are a `Histogram`, and no list.
    """

    __slots__ = ("_getters", "_histograms", "_row", "_wrapped")

    def __init__(
        self, values: tuple[Value, ...], plain: bool = True, wrapped: frozenset[int] = frozenset()
    ) -> None:
        super().__init__(values, plain)
        self._getters, self._row = self._make_getters()
        self._histograms = [index for index, value in enumerate(values) if value.histogram]
        self._wrapped = wrapped
        self.sample = self._sample_copies if self._histograms else self._row

    def _make_getters(self) -> tuple[Sequence[_Getter], _Getter]:
        # Of each value, and of all together.
        raise NotImplementedError

    def has_plain_sums(self, base: Any) -> bool:
        """Tell whether reading the sums of histograms runs no Python code of the base's."""
        return True

    def find_wrapped(self, base: Any) -> frozenset[int]:
        """Return which values a base holds as a `Histogram`; what it lacks is not our business."""
        try:
            return frozenset(
                index
                for index in self._histograms
                if isinstance(self._getters[index](base), Histogram)
            )
        except foreign():
            return frozenset()

    def _sample_copies(self, base: Any) -> Any:
        row = self._row(base)
        if len(self.values) == 1:
            return list.copy(_unwrap(row))
        copied = list(row)
        for index in self._histograms:
            copied[index] = list.copy(_unwrap(copied[index]))
        return tuple(copied)

    def _buckets(self, bases: Iterable[Any], index: int) -> Iterator[Any]:
        held = map(self._getters[index], bases)
        return map(_get_buckets, held) if index in self._wrapped else held

    def parts(self, bases: Collection[Any]) -> list[tuple[Callable[[Any], Any], Iterable[Any]]]:
        # Copies: in the lists themselves the producer goes on counting. `list.copy` takes nothing
        # but lists, and runs no Python code of their subclasses.
        copies = [(list.copy, self._buckets(bases, index)) for index in self._histograms]
        return [(self._row, bases), *copies]

    def read(self, base: Any, index: int) -> object:
        held = self._getters[index](base)
        return _unwrap(held) if index in self._histograms else held

    def column(self, bases: Iterable[Any], index: int) -> list[Any]:
        if not self.plain:
            # Not by `map`: a StopIteration of foreign code would end it, and leave out the others.
            held: list[Any] = [self.read(base, index) for base in bases]
            return list(map(list.copy, held)) if index in self._histograms else held
        if index in self._histograms:
            return list(map(list.copy, self._buckets(bases, index)))
        return list(map(self._getters[index], bases))

    def total(self, bases: Iterable[Any], index: int) -> Any:
        return sum(map(self._getters[index], bases) if self.plain else self.column(bases, index))

    def decode(self, parts: Sequence[list[Any]]) -> list[tuple[Any, ...]]:
        samples, *copies = parts
        # A getter of one name returns the bare value, one of several a tuple.
        if len(self.values) == 1:
            return list(zip(copies[0] if copies else samples, strict=True))
        if not copies:
            return samples
        columns: list[Sequence[Any]] = list(zip(*samples, strict=True))
        for index, copied in zip(self._histograms, copies, strict=True):
            columns[index] = copied
        return list(zip(*columns, strict=True))

    def _empty(self, base: Any, index: int) -> None:
        # In place: the producer may have the list at hand.
        held = self._getters[index](base)
        buckets = _unwrap(held)
        buckets[:] = [0] * len(buckets)
        if held is not buckets:
            held.sum = 0


def _unwrap(held: Any) -> Any:
    return held.buckets if isinstance(held, Histogram) else held


class AttributeReader(KeyReader):
    """Reads objects by attribute; a sum is the attribute `sum` of its histogram."""

    __slots__ = ()

    def _make_getters(self) -> tuple[Sequence[_Getter], _Getter]:
        # To `attrgetter`, "a.b" is the attribute b of the attribute a: that is what a sum is.
        names = [value.name for value in self.values]
        sums = self._sums.values()
        if not any("." in name for index, name in enumerate(names) if index not in sums):
            return list(map(operator.attrgetter, names)), operator.attrgetter(*names)
        getters = [
            _get_sum(names[index - 1]) if index in sums else _get_attribute(name)
            for index, name in enumerate(names)
        ]
        if len(getters) == 1:
            return getters, getters[0]
        return getters, lambda base: tuple(getter(base) for getter in getters)

    def has_plain_sums(self, base: Any) -> bool:
        try:
            return all(type(self._getters[one](base)) in PLAIN_HISTOGRAMS for one in self._sums)
        except foreign():
            return False

    def _clear(self, base: Any, index: int) -> None:
        if index in self._histograms:
            self._empty(base, index)
        elif index in self._sums.values():
            self._getters[index - 1](base).sum = 0
        else:
            setattr(base, self.values[index].name, 0)


def _get_attribute(name: str) -> _Getter:
    # `attrgetter` takes no name with a dot in it.
    return (lambda base: getattr(base, name)) if "." in name else operator.attrgetter(name)


def _get_sum(histogram: str) -> _Getter:
    return lambda base: getattr(base, histogram).sum


class MappingReader(KeyReader):
    """Reads mappings by key."""

    __slots__ = ()

    def _make_getters(self) -> tuple[Sequence[_Getter], _Getter]:
        names = [value.name for value in self.values]
        return list(map(operator.itemgetter, names)), operator.itemgetter(*names)

    def _clear(self, base: Any, index: int) -> None:
        if index in self._histograms:
            self._empty(base, index)
        else:
            base[self.values[index].name] = 0


class ClearingReader(MappingReader):
    """Reads mappings that have a method `clear_value`, which is called with a value's name."""

    __slots__ = ()

    subtracts = True

    def _clear(self, base: Any, index: int) -> None:
        base.clear_value(self.values[index].name)


class ReplacedReader(ClearingReader):
    """Reads mappings whose lists are replaced and never changed: they are not copied."""

    __slots__ = ()

    def __init__(self, values: tuple[Value, ...]) -> None:
        super().__init__(values)
        self.sample = self._row

    def parts(self, bases: Collection[Any]) -> list[tuple[Callable[[Any], Any], Iterable[Any]]]:
        return [(self._row, bases)]

    def column(self, bases: Iterable[Any], index: int) -> list[Any]:
        return list(map(self._getters[index], bases))


class PackedReader(Reader):
    """Reads bases that are sampled as bytes, from which a `struct` takes the integers.

    Args:
        values: the array.
        layout: the format of the struct.
        stored: the values by their place in the array, in the order of the struct.
    """

    __slots__ = ("_pick", "_starts", "_struct")

    def __init__(self, values: tuple[Value, ...], layout: str, stored: Sequence[int]) -> None:
        super().__init__(values)
        self.sample = bytes
        self._struct = struct.Struct(layout)
        # Where each value begins among the integers that `layout` gives, in the order `stored`.
        ends = accumulate(values[index].size for index in stored)
        begins = {index: end - values[index].size for index, end in zip(stored, ends, strict=True)}
        self._starts = [begins[index] for index in range(len(values))]
        in_order = self._starts == list(range(len(values)))
        self._pick = None if in_order else operator.itemgetter(*self._starts)

    def decode(self, parts: Sequence[list[Any]]) -> list[tuple[Any, ...]]:
        (samples,) = parts
        rows = map(self._struct.unpack, samples)
        if any(value.histogram for value in self.values):
            return [tuple(self._split(row)) for row in rows]
        return list(map(self._pick, rows) if self._pick else rows)

    def _split(self, row: tuple[int, ...]) -> Iterator[int | list[int]]:
        for value, start in zip(self.values, self._starts, strict=True):
            yield list(row[start : start + value.size]) if value.histogram else row[start]


class SlotReader(PackedReader):
    """Reads what `Stats.from_buffer` returns: one value by its field, a row as its bytes."""

    __slots__ = ("_fields", "_getters")

    def __init__(self, values: tuple[Value, ...]) -> None:
        codes = (f"{value.size}{'q' if value.type.signed else 'Q'}" for value in values)
        super().__init__(values, "=" + "".join(codes), range(len(values)))
        self._fields = name_fields(values)
        self._getters = list(map(_get_attribute, self._fields))

    def read(self, base: Any, index: int) -> object:
        held = self._getters[index](base)
        return list(held) if self.values[index].histogram else held

    def column(self, bases: Iterable[Any], index: int) -> list[Any]:
        held = map(self._getters[index], bases)
        return list(map(list, held) if self.values[index].histogram else held)

    def total(self, bases: Iterable[Any], index: int) -> Any:
        return sum(map(self._getters[index], bases))

    def _clear(self, base: Any, index: int) -> None:
        value = self.values[index]
        setattr(base, self._fields[index], (0,) * value.size if value.histogram else 0)


class BufferReader(PackedReader):
    """Reads values at their offsets in a buffer, each as wide as its type, in native byte order."""

    __slots__ = ("_fields",)

    def __init__(self, values: tuple[Value, ...]) -> None:
        # BOOL is read as a byte: any bit makes it true, as `_Bool` from foreign memory would.
        types = ["B" if value.type is Type.BOOL else value.type.code for value in values]
        codes = [f"{value.size}{code}" for value, code in zip(values, types, strict=True)]
        self._fields = tuple(struct.Struct("=" + code) for code in codes)
        by_offset = sorted(range(len(values)), key=lambda index: values[index].offset or 0)
        layout, end = "=", 0
        for index in by_offset:
            offset = values[index].offset or 0
            layout += f"{offset - end}x{codes[index]}"
            end = offset + values[index].width
        super().__init__(values, layout, by_offset)

    def _offset(self, index: int) -> int:
        return self.values[index].offset or 0

    def read(self, base: Any, index: int) -> object:
        held = self._fields[index].unpack_from(base, self._offset(index))
        return list(held) if self.values[index].histogram else held[0]

    def column(self, bases: Iterable[Any], index: int) -> list[Any]:
        fields = map(self._fields[index].unpack_from, bases, repeat(self._offset(index)))
        if self.values[index].histogram:
            return list(map(list, fields))
        return list(chain.from_iterable(fields))

    def _clear(self, base: Any, index: int) -> None:
        self._fields[index].pack_into(base, self._offset(index), *(0,) * self.values[index].size)


def convert_number(value: Value, number: object) -> Any:
    """Convert what a base holds to the value's type: an integer, or a list of buckets.

    Raises:
        TypeError, ValueError: it is something else.
    """
    if value.histogram:
        return convert_buckets(number, value)
    wanted = value.type
    if type(number) is int and wanted.minimum <= number <= wanted.maximum:
        return number  # nearly always, and several times as fast
    return int(wanted.convert(operator.index(number)))  # type: ignore[arg-type]  # the question


def describe_number(value: Value) -> str:
    """Say what a base must hold for a value, for messages."""
    return f"list of {count_of(value.size, 'integer')}" if value.histogram else "integer"
