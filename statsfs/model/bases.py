"""The bases: the objects of a producer in which the integers are, and which reader each gets.

Threading: what is found out about a class is kept, and stays true. Properties, `__getattr__` and
mappings of one's own are *dynamic*: they run the user's code, and are read outside every lock; all
else is *plain*.
"""

import ctypes
import operator
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import GetSetDescriptorType, MemberDescriptorType, ModuleType, SimpleNamespace
from typing import Any, ClassVar, Final
from weakref import WeakKeyDictionary

from statsfs.exceptions import BaseMismatchError
from statsfs.model.baselines import BaselineReader
from statsfs.model.buffers import SlotBuffer
from statsfs.model.counts import count_of
from statsfs.model.external import Numbers
from statsfs.model.foreign import foreign
from statsfs.model.histograms import find_sums
from statsfs.model.packed import PackedNumbers, PlaceReader
from statsfs.model.readers import (
    AttributeReader,
    BufferReader,
    ClearingReader,
    KeyReader,
    MappingReader,
    Reader,
    ReplacedReader,
    SlotReader,
    convert_number,
    describe_number,
)
from statsfs.model.values import Value

__all__ = ["Binder", "check_offsets"]

# A mapping of one of these types is read in C; `__missing__` alone would run Python code, and that
# only after a key was deleted that was there when the base was added.
_PLAIN_MAPPINGS: Final = (dict, OrderedDict, defaultdict, Counter)
_PLAIN_GETATTRIBUTES: Final[tuple[object, ...]] = (
    object.__getattribute__,
    type.__getattribute__,
    ModuleType.__getattribute__,
    SimpleNamespace.__getattribute__,
)


class _Probe(ctypes.Structure):
    _fields_: ClassVar = [("field", ctypes.c_uint64)]


# Descriptors in C: reading through them runs no Python code.
_C_DESCRIPTORS: Final = (MemberDescriptorType, GetSetDescriptorType, type(_Probe.field))


def check_offsets(values: Sequence[Value]) -> bool:
    """Tell whether the values of an array have offsets; BaseMismatchError if these are wrong."""
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
                f"the buffer has {count_of(view.nbytes, 'byte')}, too small for {last!r}, "
                f"which ends at {end}",
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
    except (TypeError, ValueError, BufferError) as error:
        # One that is closed, or locked just now, is a buffer all the same.
        return not isinstance(error, TypeError)
    return True


def _find_attribute(cls: type, name: str) -> object:
    return next((vars(klass)[name] for klass in cls.__mro__ if name in vars(klass)), None)


def _is_plain_class(cls: type, names: Sequence[str]) -> bool:
    if _find_attribute(cls, "__getattr__") is not None or any("." in name for name in names):
        return False
    return cls.__getattribute__ in _PLAIN_GETATTRIBUTES and _has_plain_attributes(cls, names)


def _has_plain_attributes(cls: type, names: Iterable[str]) -> bool:
    return all(
        isinstance(attribute, _C_DESCRIPTORS) or not hasattr(type(attribute), "__get__")
        for attribute in (_find_attribute(cls, name) for name in names)
    )


def _is_plain_mapping(cls: type) -> bool:
    return cls in _PLAIN_MAPPINGS or (
        issubclass(cls, dict)
        and cls.__getitem__ is dict.__getitem__
        and not hasattr(cls, "__missing__")
    )


class Binder:
    """What recognises the bases of one array; BaseMismatchError if its offsets are wrong."""

    # It keeps which classes are plain for its names: looking 47 names up in a class takes longer
    # than all the rest of `bind`.
    __slots__ = ("_attributes", "_plain_classes", "_readers", "has_offsets", "values")

    def __init__(self, values: tuple[Value, ...]) -> None:
        self.values = values
        self.has_offsets = check_offsets(values)
        # A sum is an attribute of its histogram.
        sums = find_sums(values).values()
        self._attributes = [one.name for index, one in enumerate(values) if index not in sums]
        self._readers: dict[tuple[object, ...], Any] = {}
        self._plain_classes: WeakKeyDictionary[type, bool] = WeakKeyDictionary()

    def _reader(self, cls: type[Reader], *args: object) -> Any:
        reader = self._readers.get((cls, *args))
        if reader is None:
            reader = self._readers.setdefault((cls, *args), cls(self.values, *args))  # type: ignore[arg-type]
        return reader

    def _key_reader(self, cls: type[KeyReader], plain: bool, base: object) -> Reader:
        reader: KeyReader = self._reader(cls, plain)
        plain = plain and reader.has_plain_sums(base)
        found: Reader = self._reader(cls, plain, reader.find_wrapped(base))
        return found

    def _is_plain(self, base: object) -> bool:
        plain = self._plain_classes.get(type(base))
        if plain is None:
            plain = _is_plain_class(type(base), self._attributes)
            self._plain_classes[type(base)] = plain
        if plain and isinstance(base, type):
            # A class used as a base may have descriptors that answer for itself.
            return _has_plain_attributes(base, self._attributes)
        return plain

    def bind(self, base: object) -> tuple[Reader, Any]:
        """Return the reader for a base, and what to give that reader in the base's place.

        Raises:
            BaseMismatchError: the base lacks a value, or is a buffer of the wrong sort.
        """
        if self.has_offsets:
            return self._reader(BufferReader), _bind_buffer(self.values, base)
        if isinstance(base, SlotBuffer) and base.stats_values == self.values:
            return self._reader(SlotReader), base
        if isinstance(base, PackedNumbers):
            return self._reader(PlaceReader, base.offsets(self.values)), base
        if isinstance(base, Numbers):
            reader = self._reader(ReplacedReader)
        elif isinstance(base, Mapping):
            clears = hasattr(type(base), "clear_value")
            cls = ClearingReader if clears else MappingReader
            reader = self._key_reader(cls, _is_plain_mapping(type(base)), base)
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

    def subtract_baselines(self, reader: Reader) -> BaselineReader:
        """Return the reader of what another one reads, less the baselines."""
        found: BaselineReader = self._reader(BaselineReader, reader)
        return found

    def _check(self, reader: Reader, base: object) -> None:
        try:
            row = reader.decode([[reader.sample(base)]])[0]
            [convert_number(*pair) for pair in zip(self.values, row, strict=True)]
        except foreign():
            self._blame(reader, base)

    def _blame(self, reader: Reader, base: object) -> None:
        for index, value in enumerate(self.values):
            try:
                convert_number(value, reader.read(base, index))
            except foreign() as error:
                lacks = isinstance(error, AttributeError | LookupError)
                how = "has no" if lacks else f"holds no {describe_number(value)} for"
                what = f"class {base.__name__}" if isinstance(base, type) else type(base).__name__
                hint = "; a base is an object of a class" if isinstance(base, type) else ""
                # A property's own error says more, and where a list is wrong; others do not.
                cause = (
                    None if lacks or (type(error) is TypeError and not value.histogram) else error
                )
                raise BaseMismatchError(
                    f"the {what} {how} value {value.name!r}{hint}", base
                ) from cause
