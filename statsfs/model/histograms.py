"""Histograms: lists of buckets with a sum, and what puts an observation into them.

Owns what `Stats` makes for histograms, the values of their sums, and the checks and conversions of
a list that a producer holds. A producer may as well keep a plain list, and count in it by itself.

The sum of what a histogram observes is a value of its own, directly behind the histogram in the
same array: `latency.sum` behind `latency`. `log_hist`, `linear_hist` and `hist` declare both, and
so may any array. A histogram without one, as a kernel's, has buckets only.

Threading: as for any attribute of a producer; `observe` is two increments, of one item and of the
sum, and a reader may come between them.
"""

import operator
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from fractions import Fraction
from functools import lru_cache
from itertools import chain, islice, pairwise
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final, Self

from statsfs.model.columns import clean_integers, convert_column
from statsfs.model.counts import count_of
from statsfs.model.foreign import foreign
from statsfs.model.values import Kind, Type, Unit, Value

__all__ = [
    "PLAIN_HISTOGRAMS",
    "BoundedHistogram",
    "Histogram",
    "LinearHistogram",
    "LogHistogram",
    "add_buckets",
    "check_observed",
    "convert_buckets",
    "convert_counts",
    "convert_histograms",
    "find_sums",
    "find_time_scale",
    "make_histogram",
    "make_sum",
]


class Histogram:
    """The buckets of one histogram, integers that all start at 0, and the sum of what it observed.

    It reads and writes as the list of its buckets.

    >>> class DiskStats(Stats):
    ...     latency = log_hist(4)  # from 0, 1, 2 and 4
    >>> stats = DiskStats()
    >>> stats.latency.observe(3)
    >>> stats.latency.buckets, stats.latency.sum
    ([0, 0, 1, 0], 3)
    >>> stats.latency[2], len(stats.latency)
    (1, 4)

    Attributes:
        buckets: the list of them; over a buffer an array.
        sum: the sum.
        time_scale: how many of the value's units a nanosecond is, as a fraction; None if its unit
            is not SECONDS.
    """

    # No subclass of list: Python 3.11 indexes a plain list twice as fast. The subclasses have the
    # slots, for over a buffer `sum` is a field of ctypes; mypy would forbid to assign it.
    if not TYPE_CHECKING:  # pragma: no branch
        __slots__ = ()

    buckets: Any
    sum: int
    time_scale: tuple[int, int] | None

    def observe(self, value: int) -> None:
        """Count one observation, and add it to the sum.

        >>> class HttpStats(Stats):
        ...     answer = hist([100, 300], unit=Unit.SECONDS, exponent=-3)
        >>> stats = HttpStats()
        >>> for milliseconds in (100, 101, 5000):
        ...     stats.answer.observe(milliseconds)
        >>> stats.answer.buckets, stats.answer.sum
        ([1, 1, 1], 5201)

        Args:
            value: what was observed, in the value's unit. What is below 0 is counted in the first
                bucket, and makes the sum smaller.

        Raises:
            TypeError: it is not an integer.
        """
        raise NotImplementedError

    def time(self) -> AbstractContextManager[None]:
        """Return a context manager that observes how long its block takes, also if it raises.

        A time is rounded down to the histogram's unit, so nanoseconds (exponent -9) are best.

        >>> class HttpStats(Stats):
        ...     answer = log_hist(40, unit=Unit.SECONDS, exponent=-9)
        >>> stats = HttpStats()
        >>> with stats.answer.time():
        ...     text = "an answer".upper()
        >>> sum(stats.answer.buckets), stats.answer.sum > 0
        (1, True)

        Raises:
            TypeError: the unit of the histogram is not SECONDS.
        """
        return _Timer(self)

    def __len__(self) -> int:
        return len(self.buckets)

    def __getitem__(self, index: Any) -> Any:
        return self.buckets[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self.buckets)

    def __setitem__(self, index: Any, counts: Any) -> None:
        self.buckets[index] = counts

    def __eq__(self, other: object) -> bool:
        return list(self) == (list(other) if isinstance(other, Histogram) else other)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return repr(list(self))

    def __copy__(self) -> Self:
        return deepcopy(self)

    def _observe_otherwise(self, value: Any) -> None:
        # What is below 0, beyond the buckets, or not an `int`; nothing of it was counted yet.
        number = check_observed(value)
        if number is not value:
            self.observe(number)
            return
        self.buckets[0 if number < 0 else -1] += 1
        self.sum += number


class _Timer(AbstractContextManager[None]):
    __slots__ = ("_begun", "_histogram", "_scale")

    def __init__(self, histogram: Histogram) -> None:
        if histogram.time_scale is None:
            raise TypeError("time() needs a histogram with unit=Unit.SECONDS")
        self._histogram = histogram
        self._scale = histogram.time_scale

    def __enter__(self) -> None:
        self._begun = perf_counter_ns()

    def __exit__(self, *_: object) -> None:
        taken = perf_counter_ns() - self._begun
        numerator, denominator = self._scale
        self._histogram.observe(taken * numerator // denominator)


def check_observed(value: Any) -> int:
    """Return what was observed as an `int`.

    Raises:
        TypeError: it is not an integer.
    """
    try:
        return operator.index(value)
    except TypeError:
        kind = type(value).__name__
        raise TypeError(
            f"observe takes an integer, in the histogram's unit, not a {kind}"
        ) from None


class LogHistogram(Histogram):
    """Buckets that begin at 0, 1, 2, 4, 8 and so on; the last has no upper end.

    Args:
        size: how many buckets.
    """

    __slots__ = ("buckets", "sum", "time_scale")

    def __init__(self, size: int) -> None:
        self.buckets = [0] * size
        self.sum = 0
        self.time_scale = None

    # No comparison with the number of buckets and no check of the type: what is rare pays for
    # itself. `self.sum += value` would take one instruction more.
    def observe(self, value: int) -> None:
        try:
            if value >= 0:
                self.buckets[value.bit_length()] += 1
                self.sum = self.sum + value
                return
        except (IndexError, TypeError, AttributeError):
            pass
        self._observe_otherwise(value)


class LinearHistogram(Histogram):
    """Buckets that are all equally wide, the first from 0; the last has no upper end.

    Args:
        size: how many buckets.
        bucket_size: how wide they are, in the value's unit.
    """

    __slots__ = ("bucket_size", "buckets", "sum", "time_scale")

    def __init__(self, size: int, bucket_size: int) -> None:
        self.buckets = [0] * size
        self.sum = 0
        self.time_scale = None
        self.bucket_size = bucket_size

    def observe(self, value: int) -> None:
        try:
            if value >= 0:
                self.buckets[value // self.bucket_size] += 1
                self.sum = self.sum + value
                return
        except (IndexError, TypeError):
            pass
        self._observe_otherwise(value)


class BoundedHistogram(Histogram):
    """Buckets that each end with a bound, which they include; the last has no upper end.

    Args:
        bounds: the bounds of all buckets but the last, in the value's unit.
    """

    __slots__ = ("bounds", "buckets", "sum", "time_scale")

    def __init__(self, bounds: Sequence[int]) -> None:
        self.buckets = [0] * (len(bounds) + 1)
        self.sum = 0
        self.time_scale = None
        self.bounds = bounds

    def observe(self, value: int) -> None:
        if type(value) is not int:
            value = check_observed(value)
        self.buckets[bisect_left(self.bounds, value)] += 1
        self.sum += value


PLAIN_HISTOGRAMS: Final = (LogHistogram, LinearHistogram, BoundedHistogram)
"""Their buckets and sums are read without running Python code."""


def make_histogram(value: Value) -> Histogram:
    """Return the empty buckets of a value."""
    made: Histogram
    if value.kind is Kind.LINEAR_HIST:
        made = LinearHistogram(value.size, value.bucket_size)
    else:
        made = BoundedHistogram(value.bounds) if value.bounds else LogHistogram(value.size)
    made.time_scale = find_time_scale(value)
    return made


def find_time_scale(value: Value) -> tuple[int, int] | None:
    """Return how many of a value's units a nanosecond is, as a fraction; None if not a time."""
    if value.unit is not Unit.SECONDS or abs(value.exponent) > _EXPONENTS:
        return None
    return _divide_nanosecond(value.base, value.exponent)


_EXPONENTS: Final = 64  # no clock has larger or smaller units


@lru_cache(maxsize=2 * (2 * _EXPONENTS + 1))
def _divide_nanosecond(base: int, exponent: int) -> tuple[int, int]:
    return (Fraction(base) ** -exponent / 10**9).as_integer_ratio()


# Sums


_SUM_TYPES: Final = (Type.U8, Type.U16, Type.U32, Type.U64)


def make_sum(histogram: Value) -> Value:
    """Return the value of the sum of what a histogram observes."""
    about = f": {histogram.description}" if histogram.description else ""
    return Value(
        f"{histogram.name}.sum",
        aggregate=histogram.aggregate,
        mode=histogram.mode & 0o444,
        unit=histogram.unit,
        base=histogram.base,
        exponent=histogram.exponent,
        description=f"Sum of {histogram.name}{about}",
        hidden=histogram.hidden,
    )


def find_sums(values: Sequence[Value]) -> dict[int, int]:
    """Return which values of an array are the sums of histograms: by the histogram's index its own.

    The sum of `latency` is directly behind it, is called `latency.sum`, and is CUMULATIVE and of an
    unsigned type; its aggregate, unit, base, exponent, visibility and read permissions are those of
    `latency`.
    """
    return {
        index: index + 1
        for index, (histogram, value) in enumerate(pairwise(values))
        if histogram.histogram
        and value.name == f"{histogram.name}.sum"
        and value.kind is Kind.CUMULATIVE
        and value.type in _SUM_TYPES
        and _describe(value) == _describe(histogram)
    }


def _describe(value: Value) -> tuple[object, ...]:
    # What a histogram and its sum have in common.
    read = value.mode & 0o444
    return value.aggregate, value.unit, value.base, value.exponent, value.hidden, read


# Buckets

_ADDED: Final = 1 << 15  # numbers that one call of C adds, in 2 ms


def convert_buckets(buckets: object, value: Value) -> list[int]:
    """Convert what a base holds for a histogram to its type.

    Raises:
        TypeError: no list, or something in it is no integer.
        ValueError: it has more or fewer buckets than the value.
    """
    if not isinstance(buckets, list):
        raise TypeError(f"a {type(buckets).__name__} is no list of buckets")
    if len(buckets) != value.size:
        raise ValueError(f"{count_of(len(buckets), 'bucket')}, not {value.size}")
    # The producer goes on counting: a copy is of one moment.
    copied = list.copy(buckets)
    converted = convert_histograms([copied], value)
    if converted is not None:
        return converted[0]
    return [int(value.type.convert(operator.index(bucket))) for bucket in copied]


def convert_counts(counts: Any, size: int) -> list[int]:
    """Return the counts of all buckets of a histogram as a list of integers.

    Raises:
        TypeError: it is not a sequence of integers.
        ValueError: it has another length.
    """
    listed = [operator.index(count) for count in counts]
    if len(listed) != size:
        raise ValueError(f"{count_of(len(listed), 'bucket')}, not {size}")
    return listed


def convert_histograms(column: Sequence[Any], value: Value) -> Sequence[list[int]] | None:
    """Convert what many bases hold for a histogram, at C speed.

    Args:
        column: lists, of which nothing else is known; they are not changed.
        value: what they are.

    Returns:
        Lists of integers converted to the value's type, or None where a list is of another length
        or has something else than integers.
    """
    if {*map(len, column)} - {value.size}:
        return None
    flat = column[0] if len(column) == 1 else list(chain.from_iterable(column))
    if not clean_integers(flat):
        return None
    try:
        converted = convert_column(flat, value.type)
    except foreign():  # whatever foreign integers raise when they are compared
        return None
    if converted is flat:
        return column
    return list(map(list, _chunks(converted, value.size)))


def _chunks(flat: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (flat[start : start + size] for start in range(0, len(flat), size))


def add_buckets(column: Sequence[Sequence[int]], value: Value) -> list[int]:
    """Sum converted histograms bucket by bucket; of none, every bucket is 0."""
    if len(column) < 2:
        return list(column[0]) if column else [0] * value.size
    totals = map(operator.add, *column) if len(column) == 2 else map(sum, zip(*column, strict=True))
    most = max(1, _ADDED // len(column))
    added: list[int] = []
    # No more at once, as no other thread runs meanwhile.
    while some := list(islice(totals, most)):
        added += convert_column(some, Type.S64 if value.type.signed else Type.U64)
    return added
