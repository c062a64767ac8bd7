"""Values over a buffer: attributes over shared memory, one native 64-bit slot after another.

Owns the classes that `Stats.from_buffer` and segments use. A value has one slot, a histogram one
for each bucket, and its sum has the next one.

Threading: counting is an increment of an attribute, which is not atomic: a buffer has one writer.
"""

import ctypes
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, Self

from statsfs.exceptions import InvalidNameError
from statsfs.model.additions import Addition, find_addable
from statsfs.model.histograms import Histogram, check_observed, find_sums, find_time_scale
from statsfs.model.values import Kind, Value

__all__ = ["SlotBuffer", "make_slot_class", "name_fields"]

# What these are set to, ctypes takes for a declaration of fields.
_META_NAMES: Final = ("_fields_", "_anonymous_")
_SLOT_SIZE: Final = 8
_METHODS: Final = ("adding", "asdict", "reset")  # a value of such a name takes the method's place

# Buckets compare with lists, and are shown as one, as a histogram does and is.
_LIKE_A_LIST: Final = {
    "__slots__": (),
    "__eq__": Histogram.__eq__,
    "__hash__": None,
    "__repr__": Histogram.__repr__,
}

_Place = Callable[[type[Any], int], Any]  # returns an object of a ctypes class, at an offset


class SlotBuffer(ctypes.Structure):
    """The root of the classes over buffers: a field for each value.

    A histogram is an object that is kept: making one at each access, as ctypes does for a nested
    field, would take as long as to observe.

    Attributes:
        stats_values: the array that the class was made for.
        stats_addable: what `find_addable` returns for it.
    """

    __slots__ = ()
    stats_values: ClassVar[tuple[Value, ...]] = ()
    stats_addable: ClassVar[dict[str, bool]] = {}
    _histograms: ClassVar[tuple["_HistogramField", ...]] = ()

    # No histogram refers to its object, which only the collection of garbage would then release.

    @classmethod
    def from_buffer(cls, source: Any, offset: int = 0) -> Self:
        """Return an object over a writable buffer."""
        ctypes_class: Any = type(cls)  # whose methods these are
        made: Self = ctypes_class.from_buffer(cls, source, offset)
        made._place_histograms(lambda field, start: field.from_buffer(source, offset + start))
        return made

    @classmethod
    def from_address(cls, address: int) -> Self:
        """Return an object over memory that stays where it is."""
        ctypes_class: Any = type(cls)
        made: Self = ctypes_class.from_address(cls, address)
        made._place_histograms(lambda field, start: field.from_address(address + start))
        return made

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SlotBuffer):
            return NotImplemented
        return self.stats_values == other.stats_values and self.asdict() == other.asdict()

    __hash__ = None  # type: ignore[assignment]  # it changes

    def asdict(self) -> dict[str, Any]:
        """Return all numbers by the names of their values, as `Stats.asdict` does."""
        fields = name_fields(self.stats_values)
        numbers = [getattr(self, field) for field in fields]
        return {
            value.name: list(number) if value.histogram else number
            for value, number in zip(self.stats_values, numbers, strict=True)
        }

    def adding(self, **numbers: int) -> Addition:
        """Return a context manager, as `Stats.adding` does."""
        return Addition(self, self.stats_addable, numbers)

    def reset(self) -> None:
        """Set all numbers to 0, as `Stats.reset` does."""
        ctypes.memset(ctypes.addressof(self), 0, ctypes.sizeof(self))

    def _place_histograms(self, place: _Place) -> None:
        for one in self._histograms:
            setattr(self, one.slot, one.place(place))


class _HistogramField:
    # A histogram of a class: its Python slot, and where it is in the buffer.
    def __init__(self, number: int, value: Value, summed: Value | None, start: int) -> None:
        self.slot = f"_histogram{number}"
        self.name = value.name
        self._start = start
        self._array = _slot_type(value) * value.size
        fields: list[tuple[str, type]] = [("_counts", self._array)]
        body: dict[str, Any] = {"__slots__": ("buckets", "sum"), "observe": _make_observe(value)}
        if summed is not None:
            fields.append(("sum", _slot_type(summed)))
            body["__slots__"] = ("buckets",)
        body["_fields_"] = fields
        body["time_scale"] = find_time_scale(value)
        self._class = type("SlotHistogram", (Histogram, ctypes.Structure), body)
        self._buckets = type("Buckets", (self._array,), _LIKE_A_LIST)
        self._summed = summed is not None

    def place(self, place: _Place) -> Histogram:
        made: Histogram = place(self._class, self._start)
        made.buckets = place(self._buckets, self._start)
        if not self._summed:
            made.sum = 0  # of this object alone
        return made


def _slot_type(value: Value) -> type[ctypes.c_int64 | ctypes.c_uint64]:
    return ctypes.c_int64 if value.type.signed else ctypes.c_uint64


def _make_observe(value: Value) -> Callable[[Any, int], None]:
    # As those of `histograms`, but a field takes nothing but an `int`.
    bounds, width = value.bounds, value.bucket_size

    def observe_bounded(self: Any, value: int) -> None:
        if type(value) is not int:
            value = check_observed(value)
        self.buckets[bisect_left(bounds, value)] += 1
        self.sum += value

    def observe_linear(self: Any, value: int) -> None:
        if type(value) is not int:
            value = check_observed(value)
        try:
            self.buckets[value // width if value >= 0 else 0] += 1
        except IndexError:
            self.buckets[-1] += 1
        self.sum += value

    def observe_log(self: Any, value: int) -> None:
        if type(value) is not int:
            value = check_observed(value)
        try:
            self.buckets[value.bit_length() if value >= 0 else 0] += 1
        except IndexError:
            self.buckets[-1] += 1
        self.sum += value

    if bounds:
        return observe_bounded
    return observe_linear if value.kind is Kind.LINEAR_HIST else observe_log


def name_fields(values: Sequence[Value]) -> list[str]:
    """Return the names of the fields of a class over buffers, one for each value of an array.

    That of a histogram has the array of its buckets. No value can have such a name.
    """
    names = [f"{one.name}/buckets" if one.histogram else one.name for one in values]
    for histogram, index in find_sums(values).items():
        names[index] = f"{values[histogram].name}/sum"
    return names


def make_slot_class(values: Sequence[Value], name: str) -> type[SlotBuffer]:
    """Return a class whose objects have an attribute for each value, over a buffer.

    Args:
        values: an array.
        name: the class's.

    Raises:
        InvalidNameError: a value has a name that such an object has for something else.
    """
    sums = find_sums(values)
    start = 0
    fields: list[tuple[str, type]] = []
    histograms: list[_HistogramField] = []
    for index, (field, value) in enumerate(zip(name_fields(values), values, strict=True)):
        if value.histogram:
            summed = values[sums[index]] if index in sums else None
            histograms.append(_HistogramField(len(histograms), value, summed, start))
            fields.append((field, _slot_type(value) * value.size))
        else:
            fields.append((field, _slot_type(value)))
        start += _SLOT_SIZE * value.size
    slots = tuple(one.slot for one in histograms)
    for value in values:
        taken = hasattr(SlotBuffer, value.name) and value.name not in _METHODS
        if taken or value.name in (*_META_NAMES, *slots):
            raise InvalidNameError(
                f"{name}.{value.name}: no value over a buffer can have that name", value.name
            )
    body = {
        # Unknown names must raise, as they do on the slotted object.
        "__slots__": slots,
        "_fields_": fields,
        "stats_values": tuple(values),
        "stats_addable": find_addable(values),
        "_histograms": tuple(histograms),
    }
    made = type(name, (SlotBuffer,), body)
    for one in histograms:
        setattr(made, one.name, vars(made)[one.slot])
    return made
