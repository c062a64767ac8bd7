"""Fields: the functions that declare the values of a `Stats` class.

Owns what a field is by default: its aggregate is that of its kind.

Threading: pure.
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypedDict, Unpack, cast

from statsfs.model.histograms import Histogram, make_sum
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value

__all__ = [
    "FIELD_FUNCTIONS",
    "Field",
    "FieldArguments",
    "HistogramArguments",
    "boolean",
    "counter",
    "gauge",
    "hist",
    "linear_hist",
    "log_hist",
    "peak",
    "s8",
    "s16",
    "s32",
    "s64",
    "u8",
    "u16",
    "u32",
    "u64",
]


class HistogramArguments(TypedDict, total=False):
    """The further arguments of a histogram: those of `Value`.

    >>> from typing import Unpack
    >>> def time_hist(**kwargs: Unpack[HistogramArguments]) -> Histogram:
    ...     return log_hist(40, unit=Unit.SECONDS, exponent=-9, **kwargs)
    >>> class DiskStats(Stats):
    ...     latency = time_hist(description="How long reads take")
    >>> values_of(DiskStats)[0].unit
    <Unit.SECONDS: 2>
    """

    mode: int | None
    unit: Unit
    base: int
    exponent: int
    description: str
    hidden: bool


class FieldArguments(TypedDict, total=False):
    """The further arguments of a counter, a gauge or a peak: those of `Value`.

    >>> from typing import Unpack
    >>> def byte_counter(description: str, **kwargs: Unpack[FieldArguments]) -> int:
    ...     return counter(description, unit=Unit.BYTES, **kwargs)
    >>> class LinkStats(Stats):
    ...     sent = byte_counter("Bytes sent", hidden=True)
    >>> values_of(LinkStats)[0].unit
    <Unit.BYTES: 1>
    """

    aggregate: Aggregate | None
    mode: int | None
    unit: Unit
    base: int
    exponent: int
    hidden: bool
    show: Callable[[int], str] | None


class Field:
    """What a field function returns; `Stats` makes a slot and a value of it.

    Args:
        make: returns the value of this name.
        summed: whether it is a histogram that has a sum, which is a value of its own.
    """

    __slots__ = ("make", "summed")

    def __init__(self, make: Callable[[str], Value], summed: bool = False) -> None:
        self.make = make
        self.summed = summed

    def values(self, name: str) -> tuple[Value, ...]:
        """Return the value of this name, and its sum if it has one."""
        value = self.make(name)
        return (value, make_sum(value)) if self.summed else (value,)


class _FieldFunction(Protocol):
    # What type checkers know of `u64` and the like.
    def __call__(
        self,
        aggregate: Aggregate | None = None,
        mode: int | None = None,
        *,
        kind: Kind = ...,
        unit: Unit = ...,
        base: int = ...,
        exponent: int = ...,
        description: str = ...,
        hidden: bool = ...,
        show: Callable[[int], str] | None = ...,
        size: int = ...,
        bucket_size: int = ...,
        bounds: Sequence[int] = ...,
    ) -> int: ...


def _choose_aggregate(kind: Kind, show: Callable[[int], str] | None) -> Aggregate:
    if show is not None:
        return Aggregate.NONE  # the sum of states is no state
    return Aggregate.MAX if kind is Kind.PEAK else Aggregate.SUM


def _field_function(type: Type) -> _FieldFunction:
    def declare(
        aggregate: Aggregate | None = None,
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
                _choose_aggregate(kind, show) if aggregate is None else aggregate,
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
        return cast(int, Field(make))

    declare.__name__ = declare.__qualname__ = "boolean" if type is Type.BOOL else type.label
    above = type.maximum + 1
    declare.__doc__ = f"""Declare a {type.label} value of a `Stats` class, named as its attribute.

    The arguments are those of `Value`. By default its aggregate is that of its kind: MAX of PEAK,
    SUM of anything else, and NONE with a `show`.

    >>> class ExampleStats(Stats):
    ...     number = {declare.__name__}()
    >>> source = Source("example")
    >>> source.add_values(ExampleStats, ExampleStats(number={above}))
    >>> source.get_value("number")  # as C converts it
    {type.convert(above)}
    """
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


def counter(description: str = "", **kwargs: Unpack[FieldArguments]) -> int:
    """Declare what only grows, until it is cleared: a u64, CUMULATIVE, whose totals are sums.

    >>> class HttpStats(Stats):
    ...     requests = counter("Requests answered")
    >>> stats = HttpStats()
    >>> stats.requests += 1
    >>> stats
    HttpStats(requests=1)

    Args:
        description: one line for people.
        kwargs: further arguments of `Value`.
    """
    return u64(description=description, **kwargs)


def gauge(description: str = "", **kwargs: Unpack[FieldArguments]) -> int:
    """Declare what goes up and down: an s64, INSTANT, whose totals are sums.

    It may go below 0 and come back: where one thread adds and another one subtracts, each has a
    number of its own, and their sum is right.

    >>> class QueueStats(Stats):
    ...     length = gauge("Jobs that wait")
    >>> stats = QueueStats()
    >>> stats.length -= 1
    >>> stats
    QueueStats(length=-1)

    Args:
        description: one line for people.
        kwargs: further arguments of `Value`.
    """
    return s64(kind=Kind.INSTANT, description=description, **kwargs)


def peak(description: str = "", **kwargs: Unpack[FieldArguments]) -> int:
    """Declare the largest number since it was cleared: a u64, PEAK, whose totals are maxima.

    >>> class HttpStats(Stats):
    ...     largest = peak("Largest body", unit=Unit.BYTES)
    >>> stats = HttpStats()
    >>> stats.largest = max(stats.largest, len("a body"))
    >>> stats
    HttpStats(largest=6)

    Args:
        description: one line for people.
        kwargs: further arguments of `Value`.
    """
    return u64(kind=Kind.PEAK, description=description, **kwargs)


def log_hist(
    size: int, aggregate: Aggregate | None = None, **kwargs: Unpack[HistogramArguments]
) -> Histogram:
    """Declare a histogram of a `Stats` class, of kind LOG_HIST, and its sum.

    Its buckets begin at 0, 1, 2, 4, 8 and so on. The attribute is a list of them with an `observe`
    method. The sum of what `latency` observes is a second value, `latency.sum`.

    >>> class DiskStats(Stats):
    ...     latency = log_hist(40, unit=Unit.SECONDS, exponent=-9)
    >>> stats = DiskStats()
    >>> stats.latency.observe(1500)
    >>> stats.latency.buckets.index(1)  # from 1,024 ns
    11

    Args:
        size: the number of buckets, 64-bit counts; 65 hold every u64.
        aggregate: SUM, by default, or NONE.
        kwargs: further arguments of `Value`.
    """
    return _declare_summed(u64(aggregate, kind=Kind.LOG_HIST, size=size, **kwargs))


def linear_hist(
    size: int,
    bucket_size: int,
    aggregate: Aggregate | None = None,
    **kwargs: Unpack[HistogramArguments],
) -> Histogram:
    """Declare a histogram of a `Stats` class, of kind LINEAR_HIST, and its sum: see `log_hist`.

    >>> class DiskStats(Stats):
    ...     queue = linear_hist(4, 10)  # from 0, 10, 20 and 30
    >>> stats = DiskStats()
    >>> stats.queue.observe(25)
    >>> stats.queue
    [0, 0, 1, 0]

    Args:
        size: the number of buckets, 64-bit counts.
        bucket_size: how wide each is, in the value's unit; the last has no upper end.
        aggregate: SUM, by default, or NONE.
        kwargs: further arguments of `Value`.
    """
    kind = Kind.LINEAR_HIST
    return _declare_summed(u64(aggregate, kind=kind, size=size, bucket_size=bucket_size, **kwargs))


def hist(
    bounds: Sequence[int],
    aggregate: Aggregate | None = None,
    **kwargs: Unpack[HistogramArguments],
) -> Histogram:
    """Declare a histogram of a `Stats` class, of kind HIST, and its sum: see `log_hist`.

    `hist([100, 300, 1000])` has four buckets: up to 100, up to 300, up to 1,000, and above. As the
    buckets of Prometheus do, each includes its bound.

    >>> class HttpStats(Stats):
    ...     answer = hist([100, 300, 1000], unit=Unit.SECONDS, exponent=-3)
    >>> stats = HttpStats()
    >>> stats.answer.observe(300)
    >>> stats.answer
    [0, 1, 0, 0]

    Args:
        bounds: 1 to 1,024 growing integers, 0 or more, in the value's unit.
        aggregate: SUM, by default, or NONE.
        kwargs: further arguments of `Value`.
    """
    return _declare_summed(u64(aggregate, kind=Kind.HIST, bounds=bounds, **kwargs))


def _declare_summed(field: object) -> Histogram:
    return cast(Histogram, Field(cast(Field, field).make, summed=True))


FIELD_FUNCTIONS: Final = (
    *(boolean, u8, u16, u32, u64, s8, s16, s32, s64),
    *(counter, gauge, peak, log_hist, linear_hist, hist),
)
