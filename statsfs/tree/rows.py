"""Totals: every aggregate of one array at once, for whole directories of a snapshot.

Owns the sums, extremes and counts of many rows, kept so that a directory's come from those of its
subdirectories: each number is added once for each level of the tree. One file at a time is the
business of `flats`.

Threading: pure.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, reduce
from operator import itemgetter, or_
from typing import Any, Final, TypeVar

from statsfs.model.arrays import Array, File
from statsfs.model.columns import divide, wrap_sum
from statsfs.model.histograms import add_buckets
from statsfs.model.values import Aggregate
from statsfs.tree.retention import RetainedRow, add_numbers, add_retained, is_kept

__all__ = ["Totals", "add_up"]

# Rows that are added up between two pauses: a millisecond or less.
_CHUNK: Final = 256
_COUNTS: Final = Aggregate.COUNT_ZERO | Aggregate.COUNT_NONZERO


_Row = Sequence[Any]


class _Plan:
    # What of an array is to be reduced how: which values are integers, which histograms, and which
    # kinds anything asks for.
    def __init__(self, array: Array) -> None:
        self.values = array.values
        self.scalars = [i for i, value in enumerate(self.values) if not value.histogram]
        self.histograms = [i for i, value in enumerate(self.values) if value.histogram]
        # Always a tuple, even of one.
        self.pick = itemgetter(*self.scalars, *self.scalars[:1]) if self.scalars else None
        kinds = reduce(or_, (value.aggregate for value in self.values), Aggregate.NONE)
        self.min = Aggregate.MIN in kinds
        self.max = Aggregate.MAX in kinds
        self.counts = bool(kinds & _COUNTS)

    def fold(self, function: Callable[[Any], Any], rows: Iterable[_Row]) -> list[Any]:
        """Return a function of each column; 0 for histograms."""
        if not self.histograms:
            return list(map(function, zip(*rows, strict=True)))
        folded: list[Any] = [0] * len(self.values)
        if self.pick is not None:
            columns = zip(*map(self.pick, rows), strict=True)
            for index, column in zip(self.scalars, columns, strict=False):
                folded[index] = function(column)
        return folded

    def add(self, rows: Sequence[_Row]) -> list[Any]:
        """Return the sum of each column; for histograms bucket by bucket."""
        sums = self.fold(sum, rows)
        for index in self.histograms:
            sums[index] = add_buckets([row[index] for row in rows], self.values[index])
        return sums


_find_plan: Final = cache(_Plan)  # arrays live as long as the process


def _count_zeros(column: _Row) -> int:
    return column.count(0)


@dataclass(frozen=True, slots=True, eq=False)
class Totals:
    """The aggregates of some rows of one array.

    Attributes:
        count: how many rows.
        sums: the exact sum of each value; for a histogram the sums of its buckets.
        mins, maxs, zeros: of each value; nothing where the array has no such aggregate.
        retained: what sources keep of others that left, which is in none of the above; nothing
            where none does.
    """

    count: int = 0
    sums: _Row = ()
    mins: _Row = ()
    maxs: _Row = ()
    zeros: _Row = ()
    retained: RetainedRow = ()

    def value(self, file: File) -> Any:
        """Return one aggregate, as reading its file would; of nothing it is 0."""
        if not self.retained or not is_kept(file) or self.retained[file.index] is None:
            return self._living(file)
        numbers = [self._living(file)] if self.count else []
        return add_numbers(file.value, [*numbers, self.retained[file.index]])

    @property
    def whole_sums(self) -> _Row:
        """The exact sum of each value, where nothing is retained besides; else nothing."""
        return () if self.retained else self.sums

    def _living(self, file: File) -> Any:
        if not self.count:
            return file.value.zero
        index = file.index
        if file.value.histogram:
            return self.sums[index]
        match file.kind:
            case Aggregate.SUM:
                return wrap_sum(self.sums[index], file.value.type)
            case Aggregate.MIN:
                return self.mins[index]
            case Aggregate.MAX:
                return self.maxs[index]
            case Aggregate.AVG:
                return divide(self.sums[index], self.count)
            case Aggregate.COUNT_ZERO:
                return self.zeros[index]
            case _:
                return self.count - self.zeros[index]


def _of_rows(plan: _Plan, rows: Sequence[_Row]) -> Totals:
    return Totals(
        len(rows),
        plan.add(rows),
        plan.fold(min, rows) if plan.min else (),
        plan.fold(max, rows) if plan.max else (),
        plan.fold(_count_zeros, rows) if plan.counts else (),
    )


def _merge(plan: _Plan, parts: Sequence[Totals]) -> Totals:
    return Totals(
        sum(part.count for part in parts),
        plan.add([part.sums for part in parts]),
        plan.fold(min, [part.mins for part in parts]) if plan.min else (),
        plan.fold(max, [part.maxs for part in parts]) if plan.max else (),
        plan.fold(sum, [part.zeros for part in parts]) if plan.counts else (),
    )


def add_up(
    array: Array,
    rows: Sequence[_Row],
    parts: Sequence[Totals],
    pause: Callable[[], None],
    retained: Sequence[RetainedRow] = (),
) -> Totals:
    """Return the totals of some rows and of what was added up before.

    Args:
        array: what the rows are of.
        rows: one item a value, converted to its type.
        parts: totals of other rows of the array.
        pause: called every few hundred rows.
        retained: what is retained besides.
    """
    plan = _find_plan(array)
    found = [part for part in parts if part.count]
    for chunk in _chunks(rows):
        found.append(_of_rows(plan, chunk))
        pause()
    while len(found) > 1:
        merged = []
        for some in _chunks(found):
            merged.append(_merge(plan, some))
            pause()
        found = merged
    totals = found[0] if found else Totals()
    kept = [*retained, *(part.retained for part in parts if part.retained)]
    return replace(totals, retained=_add_retained(array, kept, pause)) if kept else totals


def _add_retained(
    array: Array, rows: Sequence[RetainedRow], pause: Callable[[], None]
) -> RetainedRow:
    total = rows[0]
    for chunk in _chunks(rows[1:]):
        total = add_retained(array, [total, *chunk])
        pause()
    return total


_T = TypeVar("_T")


def _chunks(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))
