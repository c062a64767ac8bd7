"""Rows: what was read of many bases, converted and added up at C speed.

Rows are added up to the totals of a directory, which come from those of its subdirectories, so that
each number is added once for each level of the tree; and to what a source retains. `index` computes
the total of one file alone.

Threading: pure, but for pauses between a few hundred rows.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Final

from statsfs.model.arrays import Array, File
from statsfs.model.columns import clean_integers, convert_column, divide, wrap_sum
from statsfs.model.foreign import foreign
from statsfs.model.histograms import add_buckets, convert_histograms
from statsfs.model.values import Aggregate, Kind, Type, Value
from statsfs.tree.pauses import take_chunks

__all__ = [
    "Addends",
    "KeptPlan",
    "RetainedRow",
    "Row",
    "Totals",
    "TotalsPlan",
    "add_numbers",
    "add_retained",
    "add_rows",
    "add_totals",
    "convert_items",
    "convert_rows",
    "find_plans",
]

Row = tuple[Any, ...]
"""One item for each value: an integer, or a list of buckets."""

_Numbers = Sequence[Any]

RetainedRow = tuple[Any, ...]
"""For each value a sum, a peak or buckets; where nothing is retained a sum is 0, all else None."""

_U64: Final = (1 << 64) - 1
_WIDE: Final = 12_000  # numbers that are added between two pauses


def convert_items(value: Value, column: Sequence[Any]) -> Sequence[Any] | None:
    """Convert a raw column to a value's type, at C speed; None if it may not be of integers."""
    if value.histogram:
        return _convert_slowly(value, column)
    if not clean_integers(column):
        return None
    try:
        return convert_column(column, value.type)
    except foreign():  # foreign integers may raise anything when they are compared
        return None


def _convert_slowly(value: Value, column: Sequence[Any]) -> Sequence[Any] | None:
    # Not all at once: a column may have millions of buckets, and no other thread runs meanwhile.
    converted: list[Any] = []
    same = True
    for some in take_chunks(column, max(1, _WIDE // value.size)):
        part = convert_histograms(some, value)
        if part is None:
            return None
        same = same and part is some
        converted += part
    return column if same else converted


def convert_rows(rows: list[Row], values: Sequence[Value]) -> list[Row] | None:
    """Convert raw rows as `convert_items` does columns."""
    columns = list(zip(*rows, strict=True))
    converted = list(map(convert_items, values, columns))
    if None in converted:
        return None
    # Nearly always nothing had to be converted.
    same = all(map(operator.is_, columns, converted))
    return rows if same else list(zip(*converted, strict=True))


def add_numbers(value: Value, numbers: Sequence[Any]) -> Any:
    """Return what one or more converted numbers are together: buckets, the largest PEAK, a sum."""
    if value.histogram:
        return add_buckets(numbers, value)
    return max(numbers) if value.kind is Kind.PEAK else wrap_sum(sum(numbers), value.type)


def add_rows(array: Array, rows: Sequence[Row]) -> Row:
    """Return what one or more rows are together, by `add_numbers`."""
    # A few hundred at a time: sums that wrap may be made in any steps.
    total = rows[0]
    for chunk in take_chunks(rows[1:], max(2, _WIDE // array.size)):
        total = tuple(map(add_numbers, array.values, zip(total, *chunk, strict=True)))
    return total


class KeptPlan:
    """How the rows of an array are added to what is retained.

    Attributes:
        others: the retained files that `add_wide` does not add.
        nothing: the row that retains nothing.
        pick: gets the numbers that `add_wide` adds from a row; None if there are none.
    """

    def __init__(self, array: Array) -> None:
        # Nearly all values are such, for which no conversion is needed before a sum.
        wide = [
            file
            for file in array.retained
            if file.value.kind is Kind.CUMULATIVE and file.value.type is Type.U64
        ]
        self._wide = [file.index for file in wide]
        self.others = [file for file in array.retained if file not in wide]
        self.pick = _make_pick(self._wide)
        sums = {file.index for file in array.retained if file.value.kind is Kind.CUMULATIVE}
        self.nothing = tuple(0 if i in sums else None for i in range(len(array.values)))

    def add_wide(self, rows: Iterable[Sequence[Any]]) -> list[Any]:
        """Return a row with the sums of what `pick` gets, and None for all else."""
        row: list[Any] = [None] * len(self.nothing)
        if self.pick is not None:
            sums = map(sum, zip(*map(self.pick, rows), strict=True))
            for index, total in zip(self._wide, map(_U64.__and__, sums), strict=False):
                row[index] = total
        return row


def _make_pick(indices: list[int]) -> Callable[[Any], tuple[Any, ...]] | None:
    # Gets a tuple, even of one: the first comes once more at the end.
    return operator.itemgetter(*indices, indices[0]) if indices else None


def add_retained(array: Array, rows: Sequence[RetainedRow]) -> RetainedRow:
    """Return what several retained rows are together."""
    plan = array.plan(KeptPlan)
    if len(rows) < 2:
        return rows[0] if rows else plan.nothing
    row = plan.add_wide(rows)
    for file in plan.others:
        numbers = [one[file.index] for one in rows if one[file.index] is not None]
        if numbers:
            row[file.index] = add_numbers(file.value, numbers)
    return tuple(row)


class TotalsPlan:
    """How the rows of an array are added to totals, of the kinds of its values or of others."""

    def __init__(self, array: Array, kinds: Aggregate | None = None) -> None:
        self.array = array
        self.kinds = kinds or reduce(operator.or_, (value.aggregate for value in array.values))
        self.min = Aggregate.MIN in self.kinds
        self.max = Aggregate.MAX in self.kinds
        self.zeros = bool(self.kinds & (Aggregate.COUNT_ZERO | Aggregate.COUNT_NONZERO))
        self._scalars = [i for i, value in enumerate(array.values) if not value.histogram]
        self._histograms = [i for i, value in enumerate(array.values) if value.histogram]
        self._pick = _make_pick(self._scalars)

    def fold(self, function: Callable[[Any], Any], rows: Iterable[_Numbers]) -> list[Any]:
        # A function of each column; 0 for histograms.
        if not self._histograms:
            return list(map(function, zip(*rows, strict=True)))
        folded: list[Any] = [0] * len(self.array.values)
        if self._pick is not None:
            columns = zip(*map(self._pick, rows), strict=True)
            for index, column in zip(self._scalars, columns, strict=False):
                folded[index] = function(column)
        return folded

    def add(self, rows: Sequence[_Numbers]) -> list[Any]:
        # The sum of each column; for histograms bucket by bucket.
        sums = self.fold(sum, rows)
        for index in self._histograms:
            sums[index] = add_buckets([row[index] for row in rows], self.array.values[index])
        return sums


def find_plans(arrays: Iterable[Array]) -> dict[Array, TotalsPlan]:
    """Return plans for the totals of a snapshot; values that belong together share their kinds."""
    plans = {array: array.plan(TotalsPlan) for array in arrays}
    if len(plans) == 1:  # nearly always
        return plans
    by_identity: dict[object, Aggregate] = {}
    for array in plans:
        for value in array.values:
            key = value.identity
            by_identity[key] = by_identity.get(key, Aggregate.NONE) | value.aggregate
    for array, plan in plans.items():
        kinds = reduce(operator.or_, (by_identity[value.identity] for value in array.values))
        if kinds != plan.kinds:
            plans[array] = TotalsPlan(array, kinds)
    return plans


@dataclass(frozen=True, slots=True, eq=False)
class Totals:
    """The aggregates of some rows of one array.

    Attributes:
        count: how many rows.
        sums: the exact sum of each value; for a histogram the wrapped sums of its buckets.
        mins, maxs, zeros: of each value; nothing where the array has no such aggregate.
        retained: what sources retain, which is in none of the above; nothing where none does.
    """

    count: int = 0
    sums: _Numbers = ()
    mins: _Numbers = ()
    maxs: _Numbers = ()
    zeros: _Numbers = ()
    retained: RetainedRow = ()

    def value(self, file: File, place: int) -> Any:
        """Return one aggregate, as reading its file would; `place` is the value's in the array."""
        kept = self.retained[place] if self.retained and file.retained else None
        if not self.count:
            return file.value.zero if kept is None else kept
        match file.kind:
            case Aggregate.MIN:
                return self.mins[place]
            case Aggregate.MAX:
                return self.maxs[place] if kept is None else max(self.maxs[place], kept)
            case Aggregate.AVG:
                return divide(self.sums[place], self.count)
            case Aggregate.COUNT_ZERO:
                return self.zeros[place]
            case Aggregate.COUNT_NONZERO:
                return self.count - self.zeros[place]
        total = self.sums[place]
        if file.value.histogram:
            return total if kept is None else add_buckets([total, kept], file.value)
        return wrap_sum(total + (kept or 0), file.value.type)


def add_totals(file: File, parts: Sequence[tuple[Totals, int]]) -> Any:
    """Return one aggregate of several arrays: their totals, and the value's place in each."""
    sums = [totals.sums[place] for totals, place in parts if totals.count]
    mins = [totals.mins[place] for totals, place in parts if totals.mins]
    maxs = [totals.maxs[place] for totals, place in parts if totals.maxs]
    zeros = [totals.zeros[place] for totals, place in parts if totals.zeros]
    kept = [totals.retained[place] for totals, place in parts if totals.retained]
    kept = [number for number in kept if number is not None]
    return Totals(
        sum(totals.count for totals, _ in parts),
        [add_buckets(sums, file.value) if file.value.histogram else sum(sums)],
        [min(mins, default=0)],
        [max(maxs, default=0)],
        [sum(zeros)],
        (add_numbers(file.value, kept),) if kept else (),
    ).value(file, 0)


@dataclass(slots=True, eq=False)
class Addends:
    """What the totals of one array in a directory are made of.

    Attributes:
        rows: those of its source, and of subordinates that have no totals of their own.
        parts: the totals of the subordinates that have.
        retained: what the source retains.
        below: whether the array is anywhere in the subtree besides the source itself.
    """

    rows: list[Row] = field(default_factory=list)
    parts: list[Totals] = field(default_factory=list)
    retained: list[RetainedRow] = field(default_factory=list)
    below: bool = False

    def add_up(self, plan: TotalsPlan) -> Totals:
        """Return the totals."""
        found = [part for part in self.parts if part.count]
        found += [_of_rows(plan, chunk) for chunk in take_chunks(self.rows)]
        while len(found) > 1:
            found = [_merge(plan, chunk) for chunk in take_chunks(found)]
        totals = found[0] if found else Totals()
        kept = [*self.retained, *(part.retained for part in self.parts if part.retained)]
        if not kept:
            return totals
        total = kept[0]
        for chunk in take_chunks(kept[1:]):
            total = add_retained(plan.array, [total, *chunk])
        return replace(totals, retained=total)


def _of_rows(plan: TotalsPlan, rows: Sequence[Row]) -> Totals:
    return Totals(
        len(rows),
        plan.add(rows),
        plan.fold(min, rows) if plan.min else (),
        plan.fold(max, rows) if plan.max else (),
        plan.fold(lambda column: column.count(0), rows) if plan.zeros else (),
    )


def _merge(plan: TotalsPlan, parts: Sequence[Totals]) -> Totals:
    return Totals(
        sum(part.count for part in parts),
        plan.add([part.sums for part in parts]),
        plan.fold(min, [part.mins for part in parts]) if plan.min else (),
        plan.fold(max, [part.maxs for part in parts]) if plan.max else (),
        plan.fold(sum, [part.zeros for part in parts]) if plan.zeros else (),
    )
