"""Histograms: lists of buckets, and what puts an observation into one.

Owns what `Stats` makes for values of LINEAR_HIST and LOG_HIST, and the checks and conversions of a
list that a producer holds. A producer may as well keep a plain list, and count in it by itself.

Threading: as for any attribute of a producer; `observe` is one increment of one item.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

from statsfs.model.columns import clean_integers, convert_column, wrap_sum
from statsfs.model.values import Kind, Value

__all__ = [
    "Histogram",
    "LinearHistogram",
    "LogHistogram",
    "add_buckets",
    "convert_buckets",
    "convert_histograms",
    "make_histogram",
    "make_observe",
]


class Histogram:
    """The buckets of one histogram: integers that all start at 0.

    It reads and writes as the list of them, which is `buckets`.

    Args:
        size: how many buckets.
    """

    # No subclass of list: Python 3.11 indexes a plain list twice as fast.
    __slots__ = ("buckets",)

    def __init__(self, size: int) -> None:
        self.buckets = [0] * size

    def observe(self, value: int) -> None:
        """Count one observation.

        Args:
            value: what was observed, in the value's unit; 0 or more.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.buckets)

    def __getitem__(self, index: Any) -> Any:
        return self.buckets[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self.buckets)

    def __setitem__(self, index: Any, counts: Any) -> None:
        self.buckets[index] = counts

    def __eq__(self, other: object) -> bool:
        return self.buckets == (other.buckets if isinstance(other, Histogram) else other)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return repr(self.buckets)


class LogHistogram(Histogram):
    """Buckets that begin at 0, 1, 2, 4, 8 and so on; the last has no upper end."""

    __slots__ = ()

    # No comparison with the number of buckets: what is beyond them is rare, and pays for itself.
    def observe(self, value: int) -> None:
        try:
            self.buckets[value.bit_length()] += 1
        except IndexError:
            self.buckets[-1] += 1


class LinearHistogram(Histogram):
    """Buckets that are all equally wide, the first from 0; the last has no upper end.

    Args:
        size: how many buckets.
        bucket_size: how wide they are, in the value's unit.
    """

    __slots__ = ("bucket_size",)

    def __init__(self, size: int, bucket_size: int) -> None:
        super().__init__(size)
        self.bucket_size = bucket_size

    def observe(self, value: int) -> None:
        try:
            self.buckets[value // self.bucket_size] += 1
        except IndexError:
            self.buckets[-1] += 1


def make_histogram(value: Value) -> Histogram:
    """Return the empty buckets of a value."""
    if value.kind is Kind.LINEAR_HIST:
        return LinearHistogram(value.size, value.bucket_size)
    return LogHistogram(value.size)


def make_observe(value: Value) -> Callable[[Any, int], None]:
    """Return the `observe` method of a class whose instances are the buckets of a value."""
    if value.kind is Kind.LOG_HIST:

        def observe(self: Any, value: int) -> None:
            try:
                self[value.bit_length()] += 1
            except IndexError:
                self[-1] += 1

    else:
        width = value.bucket_size

        def observe(self: Any, value: int) -> None:
            try:
                self[value // width] += 1
            except IndexError:
                self[-1] += 1

    return observe


def convert_buckets(buckets: object, value: Value) -> list[int]:
    """Convert what a base holds for a histogram to its type.

    Raises:
        TypeError: no list, or something in it is no integer.
        ValueError: it has more or fewer buckets than the value.
    """
    if not isinstance(buckets, list):
        raise TypeError(f"a {type(buckets).__name__} is no list of buckets")
    if len(buckets) != value.size:
        raise ValueError(f"{len(buckets)} buckets, not {value.size}")
    # The producer goes on counting: a copy is of one moment.
    return [int(value.type.convert(operator.index(bucket))) for bucket in list.copy(buckets)]


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
    flat = list(chain.from_iterable(column))
    if not clean_integers(flat):
        return None
    try:
        converted = convert_column(flat, value.type)
    except Exception:  # whatever foreign integers raise when they are compared
        return None
    if converted is flat:
        return column
    return list(map(list, _chunks(converted, value.size)))


def _chunks(flat: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (flat[start : start + size] for start in range(0, len(flat), size))


def add_buckets(column: Sequence[Sequence[int]], value: Value) -> list[int]:
    """Sum converted histograms bucket by bucket; of none, every bucket is 0."""
    if not column:
        return [0] * value.size
    return [wrap_sum(total, value.type) for total in map(sum, zip(*column, strict=True))]
