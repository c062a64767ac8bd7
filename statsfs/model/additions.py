"""Additions for the length of a block: what `Stats.adding` returns.

Threading: as for any increment; the stats have one writer.
"""

import operator
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

from statsfs.model.histograms import find_sums
from statsfs.model.values import Kind, Value

__all__ = ["Addition", "find_addable"]


def find_addable(values: Sequence[Value]) -> dict[str, bool]:
    """Return the counters and gauges of an array by name, and whether each is a gauge."""
    sums = find_sums(values).values()
    return {
        value.name: value.kind is Kind.INSTANT
        for index, value in enumerate(values)
        if value.kind in (Kind.CUMULATIVE, Kind.INSTANT) and index not in sums
    }


class Addition(AbstractContextManager[None]):
    """Adds to gauges for as long as its block runs, and to counters when it ends.

    >>> class HttpStats(Stats):
    ...     in_flight = gauge("Requests being answered")
    >>> stats = HttpStats()
    >>> def answering() -> Addition:
    ...     return stats.adding(in_flight=1)
    >>> with answering():
    ...     stats.in_flight
    1
    >>> stats.in_flight
    0

    Args:
        stats: the numbers, with an attribute for each value.
        gauges: what `find_addable` returns for the values.
        numbers: how much to add, by the names of values.

    Raises:
        TypeError: no such value, a peak, a histogram, or not an integer.
    """

    __slots__ = ("_gauges", "_numbers", "_stats")

    def __init__(self, stats: Any, gauges: Mapping[str, bool], numbers: Mapping[str, int]) -> None:
        for name, number in numbers.items():
            if name not in gauges:
                raise TypeError(f"adding({name}=…): no counter or gauge has that name")
            if type(number) is not int:
                _check_integer(name, number)
        self._stats = stats
        self._gauges = gauges
        self._numbers = numbers

    def __enter__(self) -> None:
        stats, gauges = self._stats, self._gauges
        for name, number in self._numbers.items():
            if gauges[name]:
                setattr(stats, name, getattr(stats, name) + number)

    def __exit__(self, *_: object) -> None:
        stats, gauges = self._stats, self._gauges
        for name, number in self._numbers.items():
            setattr(stats, name, getattr(stats, name) + (-number if gauges[name] else number))


def _check_integer(name: str, number: object) -> None:
    try:
        operator.index(cast(Any, number))
    except TypeError as error:
        raise TypeError(f"adding({name}={number!r}): {error}") from None
