"""The bases: the objects of a producer in which the integers are.

Owns how a base is recognised, checked, read, cleared and sampled; there is one `Reader` for each
array and each way of holding integers. It knows nothing of sources. What a reader returns is raw:
converting to the declared type is the business of `aggregates`.

Threading: readers have no state that changes. Reading a *plain* base runs no Python code, so the
interpreter does not switch threads in it; that is what makes a sample one moment. Properties,
`__getattr__` and mappings of one's own are *dynamic*: they run the user's code, and are read
outside every lock.
"""

import ctypes
import operator
import struct
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, repeat
from types import GetSetDescriptorType, MemberDescriptorType, ModuleType, SimpleNamespace
from typing import Any, ClassVar, Final
from weakref import WeakKeyDictionary

from statsfs.exceptions import BaseMismatchError, ReadOnlyValueError
from statsfs.histograms import Histogram, convert_buckets
from statsfs.values import Type, Value

__all__ = [
    "AttributeReader",
    "Binder",
    "BufferReader",
    "MappingReader",
    "Reader",
    "SlotBuffer",
    "SlotReader",
    "check_offsets",
    "convert_number",
    "describe_number",
]

# A mapping of one of these types is read in C; `__missing__` alone would run Python code, and that
# only after a key was deleted that was there when the base was added.
_PLAIN_MAPPINGS: Final = (dict, OrderedDict, defaultdict, Counter)
_PLAIN_GETATTRIBUTES: Final[tuple[object, ...]] = (
    object.__getattribute__,
    type.__getattribute__,
    ModuleType.__getattribute__,
    SimpleNamespace.__getattribute__,
)


class SlotBuffer(ctypes.Structure):
    """The root of the classes that `Stats.from_buffer` makes: attributes over shared memory.

    A subclass has one native 64-bit field per value and `stats_values`, the array it was made for.
    """

    __slots__ = ()
    stats_values: ClassVar[tuple[Value, ...]] = ()


class _Probe(ctypes.Structure):
    _fields_: ClassVar = [("field", ctypes.c_uint64)]


# Descriptors in C: reading through them runs no Python code.
_C_DESCRIPTORS: Final = (MemberDescriptorType, GetSetDescriptorType, type(_Probe.field))


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


class _KeyReader(Reader):
    # Attributes and items are alike but for the getter: `attrgetter` or `itemgetter`. A histogram
    # is a list, or a `Histogram`, which `wrapped` has the indices of.
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


class AttributeReader(_KeyReader):
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


class MappingReader(_KeyReader):
    """Reads mappings by key."""

    __slots__ = ()
    _getter = operator.itemgetter

    def clear(self, base: Any, index: int) -> None:
        try:
            if index in self._histograms:
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
    return int(value.type.convert(operator.index(number)))  # type: ignore[arg-type]  # the question


def describe_number(value: Value) -> str:
    """Say what a base must hold for a value, for messages."""
    return f"list of {value.size} integers" if value.histogram else "integer"


def check_offsets(values: Sequence[Value]) -> bool:
    """Tell whether the values of an array have offsets.

    Raises:
        BaseMismatchError: some have and some have not, or one is not aligned to its width, or two
            overlap.
    """
    placed = sorted(
        ((value.offset, value) for value in values if value.offset is not None),
        key=operator.itemgetter(0),
    )
    if not placed:
        return False
    if len(placed) != len(values):
        bare = next(value.name for value in values if value.offset is None)
        raise BaseMismatchError(f"value {bare!r} has no offset, but others of its array have", bare)
    end, before = 0, ""
    for offset, value in placed:
        if offset % value.type.width:
            raise BaseMismatchError(
                f"value {value.name!r} ({value.type}) is not aligned at offset {offset}", value
            )
        if offset < end:
            raise BaseMismatchError(
                f"value {value.name!r} at offset {offset} overlaps {before!r}", value
            )
        end, before = offset + value.width, value.name
    return True


def _bind_buffer(values: Sequence[Value], base: Any) -> object:
    end = max((value.offset or 0) + value.width for value in values)
    last = max(values, key=lambda value: value.offset or 0).name
    try:
        # shared_memory.SharedMemory is no buffer itself, but has one.
        buffer = base if _is_buffer(base) else getattr(base, "buf", base)
        view = memoryview(buffer)
    except (TypeError, ValueError) as error:
        raise BaseMismatchError(
            f"{last!r} has an offset and wants a writable buffer, not {type(base).__name__}",
            base,
        ) from error
    with view:
        if view.readonly:
            raise BaseMismatchError(f"the buffer for {last!r} is read-only", base)
        if not view.c_contiguous:
            raise BaseMismatchError(f"the buffer for {last!r} is not contiguous", base)
        if view.nbytes < end:
            raise BaseMismatchError(
                f"the buffer has {view.nbytes} bytes, too small for {last!r}, which ends at {end}",
                base,
            )
    # A ctypes array is a view of bytes over a buffer of any format (a memoryview is not), and the
    # export that it holds keeps a bytearray from shrinking under the readers.
    return (ctypes.c_char * end).from_buffer(buffer)


def _is_raw_buffer(base: object) -> bool:
    # A ctypes structure has fields, and is read by attribute as any object.
    return not isinstance(base, ctypes.Structure | ctypes.Union) and _is_buffer(base)


def _is_buffer(base: object) -> bool:
    try:
        memoryview(base).release()  # type: ignore[arg-type]  # that is the question
    except TypeError:
        return False
    except (ValueError, BufferError):  # closed, or not to be had just now: a buffer all the same
        return True
    return True


def _find_attribute(cls: type, name: str) -> object:
    for klass in cls.__mro__:
        if name in vars(klass):
            return vars(klass)[name]
    return None


def _is_plain_class(cls: type, names: Sequence[str]) -> bool:
    if cls.__getattribute__ not in _PLAIN_GETATTRIBUTES:
        return False
    if _find_attribute(cls, "__getattr__") is not None:
        return False
    return _has_plain_attributes(cls, names) and not any("." in name for name in names)


def _has_plain_attributes(cls: type, names: Iterable[str]) -> bool:
    found = (_find_attribute(cls, name) for name in names)
    return all(
        isinstance(attribute, _C_DESCRIPTORS) or not hasattr(type(attribute), "__get__")
        for attribute in found
    )


def _is_plain_mapping(cls: type) -> bool:
    return cls in _PLAIN_MAPPINGS or (
        issubclass(cls, dict)
        and cls.__getitem__ is dict.__getitem__
        and not hasattr(cls, "__missing__")
    )


class Binder:
    """What recognises the bases of one array.

    Args:
        values: the array.

    Raises:
        BaseMismatchError: the offsets of the array are wrong.
    """

    # It keeps which classes are plain for its names: looking 47 names up in a class takes longer
    # than all the rest of `bind`.
    __slots__ = ("_plain_classes", "_readers", "has_offsets", "values")

    def __init__(self, values: tuple[Value, ...]) -> None:
        self.values = values
        self.has_offsets = check_offsets(values)
        self._readers: dict[tuple[object, ...], Any] = {}
        self._plain_classes: WeakKeyDictionary[type, bool] = WeakKeyDictionary()

    def _reader(self, cls: type[Reader], *args: object) -> Any:
        reader = self._readers.get((cls, *args))
        if reader is None:
            reader = self._readers.setdefault((cls, *args), cls(self.values, *args))  # type: ignore[arg-type]
        return reader

    def _key_reader(self, cls: type[_KeyReader], plain: bool, base: object) -> Reader:
        reader: _KeyReader = self._reader(cls, plain)
        wrapped = reader.find_wrapped(base)
        return self._reader(cls, plain, wrapped) if wrapped else reader

    def _is_plain(self, base: object) -> bool:
        plain = self._plain_classes.get(type(base))
        if plain is None:
            plain = _is_plain_class(type(base), [value.name for value in self.values])
            self._plain_classes[type(base)] = plain
        if plain and isinstance(base, type):
            # A class used as a base may have descriptors that answer for itself.
            return _has_plain_attributes(base, (value.name for value in self.values))
        return plain

    def bind(self, base: object) -> tuple[Reader, Any]:
        """Return the reader for a base, and what to give that reader in the base's place.

        Raises:
            BaseMismatchError: the base lacks a value, or is a raw buffer where none is meant, or
                one too small or read-only.
        """
        if self.has_offsets:
            return self._reader(BufferReader), _bind_buffer(self.values, base)
        if isinstance(base, SlotBuffer) and base.stats_values == self.values:
            return self._reader(SlotReader), base
        if isinstance(base, Mapping):
            reader = self._key_reader(MappingReader, _is_plain_mapping(type(base)), base)
        elif _is_raw_buffer(base):
            raise BaseMismatchError(
                f"a {type(base).__name__} is a raw buffer: the values need offsets "
                f"({self.values[0].name!r} has none)",
                base,
            )
        else:
            reader = self._key_reader(AttributeReader, self._is_plain(base), base)
        self._check(reader, base)
        return reader, base

    def _check(self, reader: Reader, base: object) -> None:
        try:
            row = reader.decode([[reader.sample(base)]])[0]
            list(map(convert_number, self.values, row))
        except Exception:
            self._blame(reader, base)

    def _blame(self, reader: Reader, base: object) -> None:
        for index, value in enumerate(self.values):
            try:
                convert_number(value, reader.read(base, index))
            except Exception as error:
                lacks = isinstance(error, AttributeError | LookupError)
                how = "has no" if lacks else f"holds no {describe_number(value)} for"
                raise BaseMismatchError(
                    f"the {type(base).__name__} {how} value {value.name!r}", base
                ) from error
