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
from statsfs.model.histograms import Histogram, convert_buckets
from statsfs.model.values import Type, Value

__all__ = [
    "AttributeReader",
    "BufferReader",
    "KeyReader",
    "MappingReader",
    "Reader",
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
    """

    __slots__ = ("plain", "sample", "values")

    sample: Callable[[Any], Any]

    def __init__(self, values: tuple[Value, ...], plain: bool = True) -> None:
        self.values = values
        self.plain = plain

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
        """Write 0 into the base.

        Raises:
            ReadOnlyValueError: the base refuses.
        """
        raise NotImplementedError

    def _refuse(self, base: object, index: int, error: Exception) -> ReadOnlyValueError:
        name = self.values[index].name
        kind = type(base).__name__
        return ReadOnlyValueError(f"the {kind} with {name!r} cannot be cleared: {error}", name)


_get_buckets: Final = operator.attrgetter("buckets")


class KeyReader(Reader):
    """Reads attributes or items, which are alike but for the getter.

    Args:
        values: the array.
        plain: whether reading runs no Python code.
        wrapped: which histograms are a `Histogram`, and no list.
    """

    __slots__ = ("_getters", "_histograms", "_row", "_wrapped")

    _getter: ClassVar[Callable[..., Callable[[Any], Any]]]

    def __init__(
        self, values: tuple[Value, ...], plain: bool = True, wrapped: frozenset[int] = frozenset()
    ) -> None:
        super().__init__(values, plain)
        make = type(self)._getter
        self._getters = tuple(make(value.name) for value in values)
        self._row = make(*(value.name for value in values))
        self._histograms = [index for index, value in enumerate(values) if value.histogram]
        self._wrapped = wrapped
        self.sample = self._sample_copies if self._histograms else self._row

    def find_wrapped(self, base: Any) -> frozenset[int]:
        """Return which values a base holds as a `Histogram`; what it lacks is not our business."""
        try:
            return frozenset(
                index
                for index in self._histograms
                if isinstance(self._getters[index](base), Histogram)
            )
        except Exception:
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
        if index in self._histograms:
            return list(map(list.copy, self._buckets(bases, index)))
        return list(map(self._getters[index], bases))

    def total(self, bases: Iterable[Any], index: int) -> Any:
        return sum(map(self._getters[index], bases))

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
        buckets = _unwrap(self._getters[index](base))
        buckets[:] = [0] * len(buckets)


def _unwrap(held: Any) -> Any:
    return held.buckets if isinstance(held, Histogram) else held


def _attribute_getter(*names: str) -> Callable[[Any], Any]:
    # `attrgetter` would take "a.b" for the attribute b of the attribute a.
    if not any("." in name for name in names):
        return operator.attrgetter(*names)
    if len(names) == 1:
        return lambda base: getattr(base, names[0])
    return lambda base: tuple(getattr(base, name) for name in names)


class AttributeReader(KeyReader):
    """Reads objects by attribute."""

    __slots__ = ()
    _getter = _attribute_getter

    def clear(self, base: Any, index: int) -> None:
        try:
            if index in self._histograms:
                self._empty(base, index)
            else:
                setattr(base, self.values[index].name, 0)
        except Exception as error:
            raise self._refuse(base, index, error) from error


class MappingReader(KeyReader):
    """Reads mappings by key.

    One with a method `clear_value` is cleared by it, with the value's name; others are assigned to.
    """

    __slots__ = ()
    _getter = operator.itemgetter

    def clear(self, base: Any, index: int) -> None:
        try:
            if hasattr(type(base), "clear_value"):
                base.clear_value(self.values[index].name)
            elif index in self._histograms:
                self._empty(base, index)
            else:
                base[self.values[index].name] = 0
        except Exception as error:
            raise self._refuse(base, index, error) from error


class _PackedReader(Reader):
    # A base is sampled as its bytes.
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


class SlotReader(_PackedReader):
    """Reads what `Stats.from_buffer` returns: one value by attribute, a row as its bytes."""

    __slots__ = ("_getters",)

    def __init__(self, values: tuple[Value, ...]) -> None:
        codes = (f"{value.size}{'q' if value.type.signed else 'Q'}" for value in values)
        super().__init__(values, "=" + "".join(codes), range(len(values)))
        self._getters = [operator.attrgetter(value.name) for value in values]

    def read(self, base: Any, index: int) -> object:
        held = self._getters[index](base)
        return list(held) if self.values[index].histogram else held

    def column(self, bases: Iterable[Any], index: int) -> list[Any]:
        held = map(self._getters[index], bases)
        return list(map(list, held) if self.values[index].histogram else held)

    def total(self, bases: Iterable[Any], index: int) -> Any:
        return sum(map(self._getters[index], bases))

    def clear(self, base: Any, index: int) -> None:
        value = self.values[index]
        setattr(base, value.name, (0,) * value.size if value.histogram else 0)


class BufferReader(_PackedReader):
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

    def clear(self, base: Any, index: int) -> None:
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
    return f"list of {value.size} integers" if value.histogram else "integer"
