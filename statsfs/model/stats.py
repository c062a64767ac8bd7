"""`Stats`: an array of values and the object that holds their integers, as one class.

Owns the class, and its form over a buffer; `fields` has the functions that declare its values.

Threading: an instance is a plain slotted object; counting is Python's own attribute increment, and
an instance has one writer.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, Final, Self, cast, dataclass_transform

from statsfs.exceptions import DuplicateNameError
from statsfs.model.additions import Addition, find_addable
from statsfs.model.buffers import SlotBuffer, make_slot_class
from statsfs.model.fields import FIELD_FUNCTIONS, Field
from statsfs.model.histograms import Histogram, convert_counts, find_sums, make_histogram
from statsfs.model.values import Type, Value

if TYPE_CHECKING:
    from statsfs.model.arrays import Array

__all__ = ["Stats", "make_buffer_class", "values_of"]

_NUMBERS: Final = (bool, complex, float, int)


@dataclass_transform(kw_only_default=True)
class _StatsMeta(type):
    # Slots must be known when a class is made; hence a metaclass and not `__init_subclass__`.
    _stats_values: tuple[Value, ...]
    _stats_array: "Array | None"  # kept by the class, so that sources may come and go
    _stats_buffer_class: type[SlotBuffer] | None
    _stats_names: tuple[str, ...]  # the attributes
    _stats_addable: dict[str, bool]
    _stats_zero: tuple[Callable[[object, int], None], ...]
    _stats_histograms: tuple[tuple[Callable[[object, Histogram], None], Value], ...]

    def __new__(
        mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any
    ) -> "_StatsMeta":
        fields = {key: item for key, item in namespace.items() if isinstance(item, Field)}
        inherited = tuple(
            value for base in bases if isinstance(base, _StatsMeta) for value in base._stats_values
        )
        taken = {value.name for value in inherited}
        reserved = dir(Stats) if bases else ()
        for key, item in namespace.items():
            if key in taken or (key in fields and key in reserved):
                raise DuplicateNameError(f"{name} declares {key!r}, which its base class has", key)
            if item in FIELD_FUNCTIONS:
                raise TypeError(f"{name}.{key} declares no value: write {key} = {item.__name__}()")
            if key not in fields and not (key.isupper() or key.startswith("_")):
                _check_attribute(name, key, item)
        body = {key: item for key, item in namespace.items() if key not in fields}
        body["__slots__"] = (*body.get("__slots__", ()), *fields)
        cls = super().__new__(mcs, name, bases, body, **kwargs)
        cls._stats_values = (
            *inherited,
            *(value for key, field in fields.items() for value in field.values(key)),
        )
        cls._stats_array = None
        cls._stats_buffer_class = None
        sums = find_sums(cls._stats_values).values()  # a histogram has its sum
        held = [value for i, value in enumerate(cls._stats_values) if i not in sums]
        setters = [(getattr(cls, value.name).__set__, value) for value in held]
        cls._stats_zero = tuple(zero for zero, value in setters if not value.histogram)
        cls._stats_histograms = tuple(pair for pair in setters if pair[1].histogram)
        cls._stats_names = tuple(value.name for value in held)
        cls._stats_addable = find_addable(cls._stats_values)
        return cls


def _check_attribute(name: str, key: str, item: object) -> None:
    # A number, a type or a field is meant as a value. Other attributes are allowed.
    inside = [item]
    if isinstance(item, list | tuple | set | frozenset | dict):
        inside = list(item.values() if isinstance(item, dict) else item)
    elif isinstance(item, int | float | complex | None) or any(item is one for one in _NUMBERS):
        inside = [Type.U64]
    if any(isinstance(one, Field | Value | Type) for one in inside):
        raise TypeError(f"{name}.{key} = {item!r:.80} declares no value: write {key} = u64()")


class Stats(metaclass=_StatsMeta):
    """The ergonomic way to declare an array of values: one attribute a value.

    >>> class VcpuStats(Stats):
    ...     exits = counter("VM exits of every kind")
    ...     running = gauge("Whether it runs")
    >>> stats = VcpuStats(running=1)
    >>> stats.exits += 1
    >>> stats
    VcpuStats(exits=1, running=1)
    >>> stats == VcpuStats(exits=1, running=1)
    True

    An instance has one slot for each value and no others; all start at 0, and histograms with empty
    buckets. `values_of` returns the values that the class declares; a subclass has those of its
    bases first. Numbers may be given by name, `VcpuStats(exits=5)`; type checkers know the names of
    fields that have an annotation, `exits: int = u64()`. Instances with the same values and numbers
    are equal, and `copy.copy` makes one that counts by itself.

    An instance has one writer. `stats.sent += sock.send(data)` reads, calls and then writes: what
    other threads count meanwhile is lost, and with an `await` there what other tasks count. So each
    thread has one of its own::

        stats = PerThread(app, SenderStats)

        def work():
            for data in queue:
                stats.mine.sent += sock.send(data)
    """

    __slots__ = ()

    # Type checkers know the arguments by the fields.
    if not TYPE_CHECKING:  # pragma: no branch

        def __new__(cls, *args, **kwargs):
            return cls._make(args, kwargs)

    @classmethod
    def _make(cls, args: Sequence[object], numbers: Mapping[str, object]) -> Self:
        self = object.__new__(cls)
        for zero in cls._stats_zero:
            zero(self, 0)
        for put, value in cls._stats_histograms:
            put(self, make_histogram(value))
        if (args or numbers) and cls.__init__ is object.__init__:
            if args:
                raise TypeError(f"{cls.__name__}() takes numbers by name, as in {_example(cls)}")
            self._take(numbers)
        return self

    def _take(self, numbers: Mapping[str, object]) -> None:
        cls = type(self)
        for name, number in numbers.items():
            if name not in cls._stats_names:
                has = ", ".join(cls._stats_names) or "none"
                raise TypeError(f"{cls.__name__}({name}=…): no such value; it has {has}")
            held = getattr(self, name)
            try:
                if isinstance(held, Histogram):
                    held[:] = convert_counts(number, len(held))
                else:
                    setattr(self, name, operator.index(cast(Any, number)))
            except (TypeError, ValueError) as error:
                raise type(error)(f"{cls.__name__}({name}={number!r}): {error}") from None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Stats | SlotBuffer):
            return NotImplemented
        values = type(self)._stats_values
        theirs = type(other)._stats_values if isinstance(other, Stats) else other.stats_values
        return values == theirs and self.asdict() == other.asdict()

    __hash__ = None  # type: ignore[assignment]  # it changes

    def asdict(self) -> dict[str, Any]:
        """Return all numbers by the names of their values; of a histogram the list of its buckets.

        The sum of a histogram `latency` is `latency.sum`.

        >>> class DiskStats(Stats):
        ...     reads = counter("Reads")
        ...     latency = log_hist(4)
        >>> DiskStats(reads=5).asdict()
        {'reads': 5, 'latency': [0, 0, 0, 0], 'latency.sum': 0}
        """
        numbers: dict[str, Any] = {}
        for value in type(self)._stats_values:
            name, dot, _ = value.name.partition(".")
            held = getattr(self, name)
            numbers[value.name] = held.sum if dot else list(held) if value.histogram else held
        return numbers

    def reset(self) -> None:
        """Set all numbers to 0, buckets and sums of histograms too; for their only writer.

        >>> class DiskStats(Stats):
        ...     reads = counter("Reads")
        >>> stats = DiskStats(reads=5)
        >>> stats.reset()
        >>> stats
        DiskStats(reads=0)
        """
        for zero in type(self)._stats_zero:
            zero(self, 0)
        for _, value in type(self)._stats_histograms:
            held = getattr(self, value.name)
            held[:] = [0] * len(held)
            held.sum = 0

    def adding(self, **numbers: int) -> Addition:
        """Return a context manager that adds to gauges for its block, and to counters at its end.

        Gauges come back, and counters count, also if the block raises.

        >>> class HttpStats(Stats):
        ...     in_flight = gauge("Requests being answered")
        ...     requests = counter("Requests answered")
        >>> stats = HttpStats()
        >>> with stats.adding(in_flight=1, requests=1):
        ...     stats.asdict()
        {'in_flight': 1, 'requests': 0}
        >>> stats.asdict()
        {'in_flight': 0, 'requests': 1}

        Args:
            numbers: how much to add, by the names of values.

        Raises:
            TypeError: no such value, a peak, a histogram, or not an integer.
        """
        return Addition(self, type(self)._stats_addable, numbers)

    def __repr__(self) -> str:
        held = ", ".join(f"{name}={getattr(self, name)!r}" for name in type(self)._stats_names)
        return f"{type(self).__name__}({held})"

    def __getstate__(self) -> object:
        # A copy must not count in the histograms of the original.
        state = super().__getstate__()
        if not isinstance(state, tuple):
            return state
        attributes, slots = state
        return attributes, {
            name: copy(item) if isinstance(item, Histogram) else item
            for name, item in slots.items()
        }

    @classmethod
    def from_buffer(cls, buffer: Any, offset: int = 0) -> Self:
        """Return an object with the same attributes over a writable buffer, as shared memory is.

        Each value has one native 64-bit slot, in order, whatever its type, and a histogram one for
        each bucket; signed values are signed there. The slots keep what they hold, and wrap as C
        does. Histograms are counted in, and not replaced.

        >>> class DiskStats(Stats):
        ...     reads = counter("Reads")
        ...     queued = gauge("Requests in the queue")
        >>> memory = bytearray(16)
        >>> stats = DiskStats.from_buffer(memory)
        >>> stats.queued -= 1
        >>> memory.hex()
        '0000000000000000ffffffffffffffff'

        Args:
            buffer: a writable buffer; it cannot shrink or be closed while the object lives.
            offset: where the first slot is, in bytes.

        Raises:
            TypeError: no buffer, or a read-only one.
            ValueError: fewer than `offset` bytes and 8 for each slot.
            InvalidNameError: a value has a name that a structure cannot have.
        """
        return cast(Self, _buffer_class(cls).from_buffer(buffer, offset))


def _example(cls: type[Stats]) -> str:
    return f"{cls.__name__}({', '.join([f'{name}=1' for name in cls._stats_names[:1]])})"


def _buffer_class(cls: _StatsMeta) -> type[SlotBuffer]:
    if cls._stats_buffer_class is None:
        cls._stats_buffer_class = make_slot_class(cls._stats_values, cls.__name__)
    return cls._stats_buffer_class


def make_buffer_class(
    values: "type[Stats] | Sequence[Value]", name: str = "Stats"
) -> type[SlotBuffer]:
    """Return the class of what `Stats.from_buffer` returns, for any values.

    Args:
        values: a `Stats` class, or values without offsets.
        name: what a class for values is called.

    Raises:
        InvalidNameError: a value has a name that a structure cannot have.
    """
    if isinstance(values, _StatsMeta):
        return _buffer_class(values)
    return make_slot_class(values, name)


def values_of(stats: type[Stats]) -> tuple[Value, ...]:
    """Return the values that a `Stats` class declares, in order.

    >>> class DiskStats(Stats):
    ...     reads = counter("Reads")
    ...     latency = log_hist(4)
    >>> [value.name for value in values_of(DiskStats)]
    ['reads', 'latency', 'latency.sum']

    Raises:
        TypeError: it is no `Stats` class.
    """
    if not isinstance(stats, _StatsMeta):
        raise TypeError(f"not a Stats class: {stats!r}")
    return stats._stats_values
