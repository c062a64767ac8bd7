"""`Stats`: an array of values and the object that holds their integers, as one class.

Owns the field functions (`u64`, `boolean`, `log_hist`, …), the class that they make, and its form
over a buffer. Aggregation and files are the business of others: `sources` knows of this module
nothing but `values_of`.

Threading: an instance is a plain slotted object; counting is Python's own attribute increment, and
an instance has one writer.
"""

from collections.abc import Callable, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, Final, Self, cast

from statsfs.exceptions import DuplicateNameError
from statsfs.model.buffers import SlotBuffer, make_slot_class
from statsfs.model.histograms import Histogram, find_sums, make_histogram, make_sum
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value

if TYPE_CHECKING:
    from statsfs.model.arrays import Array

__all__ = [
    "Stats",
    "boolean",
    "hist",
    "linear_hist",
    "log_hist",
    "make_buffer_class",
    "s8",
    "s16",
    "s32",
    "s64",
    "u8",
    "u16",
    "u32",
    "u64",
    "values_of",
]


class _Field:
    # What a field function returns; the metaclass turns it into a slot and a `Value`, or into two
    # where a histogram has a sum.
    __slots__ = ("make", "summed")

    def __init__(self, make: Callable[[str], Value], summed: bool = False) -> None:
        self.make = make
        self.summed = summed

    def values(self, name: str) -> tuple[Value, ...]:
        value = self.make(name)
        return (value, make_sum(value)) if self.summed else (value,)


def _field_function(type: Type) -> Callable[..., int]:
    def declare(
        aggregate: Aggregate = Aggregate.NONE,
        mode: int | None = None,
        *,
        kind: Kind = Kind.CUMULATIVE,
        unit: Unit = Unit.NONE,
        base: int = 10,
        exponent: int = 0,
        description: str = "",
        hidden: bool = False,
        show: Callable[[int], str] | None = None,
        size: int = 1,
        bucket_size: int = 0,
        bounds: Sequence[int] = (),
    ) -> int:
        def make(name: str) -> Value:
            return Value(
                name,
                type,
                aggregate,
                cast(int, mode),
                kind=kind,
                unit=unit,
                base=base,
                exponent=exponent,
                description=description,
                hidden=hidden,
                show=show,
                size=size,
                bucket_size=bucket_size,
                bounds=bounds,
            )

        # The attribute of an instance is an int; that is what a type checker must see.
        return cast(int, _Field(make))

    declare.__name__ = declare.__qualname__ = "boolean" if type is Type.BOOL else type.label
    declare.__doc__ = (
        f"Declare a {type.label} value of a `Stats` class, named as the attribute it is assigned "
        "to.\n\nThe arguments are those of `Value`."
    )
    return declare


boolean: Final = _field_function(Type.BOOL)
u8: Final = _field_function(Type.U8)
u16: Final = _field_function(Type.U16)
u32: Final = _field_function(Type.U32)
u64: Final = _field_function(Type.U64)
s8: Final = _field_function(Type.S8)
s16: Final = _field_function(Type.S16)
s32: Final = _field_function(Type.S32)
s64: Final = _field_function(Type.S64)


def log_hist(size: int, aggregate: Aggregate = Aggregate.NONE, **kwargs: Any) -> Histogram:
    """Declare a histogram of a `Stats` class, of kind LOG_HIST, and its sum.

    Its buckets begin at 0, 1, 2, 4, 8 and so on. The attribute is a list of them with an `observe`
    method. The sum of what `latency` observes is a second value, `latency.sum`.

    Args:
        size: the number of buckets, 64-bit counts; 65 hold every u64.
        aggregate: NONE or SUM.
        kwargs: further arguments of `Value`.
    """
    return _declare_summed(u64(aggregate, kind=Kind.LOG_HIST, size=size, **kwargs))


def linear_hist(
    size: int, bucket_size: int, aggregate: Aggregate = Aggregate.NONE, **kwargs: Any
) -> Histogram:
    """Declare a histogram of a `Stats` class, of kind LINEAR_HIST, and its sum: see `log_hist`.

    Args:
        size: the number of buckets, 64-bit counts.
        bucket_size: how wide each is, in the value's unit; the last has no upper end.
        aggregate: NONE or SUM.
        kwargs: further arguments of `Value`.
    """
    kind = Kind.LINEAR_HIST
    return _declare_summed(u64(aggregate, kind=kind, size=size, bucket_size=bucket_size, **kwargs))


def hist(bounds: Sequence[int], aggregate: Aggregate = Aggregate.NONE, **kwargs: Any) -> Histogram:
    """Declare a histogram of a `Stats` class, of kind HIST, and its sum: see `log_hist`.

    `hist([100, 300, 1000])` has four buckets: up to 100, up to 300, up to 1,000, and above. As the
    buckets of Prometheus do, each includes its bound.

    Args:
        bounds: 1 to 1,024 growing integers, 0 or more, in the value's unit.
        aggregate: NONE or SUM.
        kwargs: further arguments of `Value`.
    """
    return _declare_summed(u64(aggregate, kind=Kind.HIST, bounds=bounds, **kwargs))


def _declare_summed(field: object) -> Histogram:
    return cast(Histogram, _Field(cast(_Field, field).make, summed=True))


class _StatsMeta(type):
    # Slots must be known when a class is made; hence a metaclass and not `__init_subclass__`.
    _stats_values: tuple[Value, ...]
    _stats_array: "Array | None"  # kept by the class, so that sources may come and go
    _stats_buffer_class: type[SlotBuffer] | None
    _stats_names: tuple[str, ...]  # the attributes
    _stats_zero: tuple[Callable[[object, int], None], ...]
    _stats_histograms: tuple[tuple[Callable[[object, Histogram], None], Value], ...]

    def __new__(
        mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any
    ) -> "_StatsMeta":
        fields = {key: item for key, item in namespace.items() if isinstance(item, _Field)}
        inherited = tuple(
            value for base in bases if isinstance(base, _StatsMeta) for value in base._stats_values
        )
        taken = {value.name for value in inherited}
        reserved = dir(Stats) if bases else ()
        for key in namespace:
            if key in taken or (key in fields and key in reserved):
                raise DuplicateNameError(f"{name} declares {key!r}, which its base class has", key)
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
        return cls


class Stats(metaclass=_StatsMeta):
    """The ergonomic way to declare an array of values: one attribute a value.

    ::

        class VcpuStats(Stats):
            exits = u64(Aggregate.SUM, description="VM exits of every kind")

        stats = VcpuStats()
        stats.exits += 1

    An instance has one slot for each value and no others; all start at 0, and histograms with empty
    buckets. `values_of` returns the values that the class declares; a subclass has those of its
    bases first.

    An instance has one writer. `stats.sent += sock.send(data)` reads, calls and then writes: what
    other threads count meanwhile is lost, and with an `await` there what other tasks count. So each
    thread has one of its own, in a hidden source::

        def work(number):
            stats = SenderStats()
            with Source("sender%d", number, hidden=True) as sender:
                sender.add_values(SenderStats, stats)
                app.add_subordinate(sender)
                for data in queue:
                    stats.sent += sock.send(data)
    """

    __slots__ = ()

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        if (args or kwargs) and cls.__init__ is object.__init__:
            raise TypeError(f"{cls.__name__}() takes no arguments")
        self = super().__new__(cls)
        for zero in cls._stats_zero:
            zero(self, 0)
        for put, value in cls._stats_histograms:
            put(self, make_histogram(value))
        return self

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

        Args:
            buffer: a writable buffer; it cannot shrink or be closed while the object lives.
            offset: where the first slot is, in bytes.

        Raises:
            TypeError: no buffer, or a read-only one.
            ValueError: fewer than `offset` bytes and 8 for each slot.
            InvalidNameError: a value has a name that a structure cannot have.
        """
        return cast(Self, _buffer_class(cls).from_buffer(buffer, offset))


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

    Raises:
        TypeError: it is no `Stats` class.
    """
    if not isinstance(stats, _StatsMeta):
        raise TypeError(f"not a Stats class: {stats!r}")
    return stats._stats_values
