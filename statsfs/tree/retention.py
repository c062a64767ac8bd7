"""What is retained: the sums and peaks that sources keep of what has left them.

Owns which aggregates are kept, the numbers of one array that one source retains, and the mark that
a fold leaves where totals are read. Reading a leaving source is the business of `folds`, and what
totals make of it that of `flats` and `totals`.

Threading: changed under the tree's lock only. A row is never changed but replaced, in one step.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final
from weakref import WeakKeyDictionary

from statsfs.model.arrays import Array, File
from statsfs.model.columns import wrap_sum
from statsfs.model.histograms import add_buckets
from statsfs.model.values import Aggregate, Kind, Type, Value

__all__ = [
    "Fold",
    "Plan",
    "Retained",
    "RetainedRow",
    "Retention",
    "add_numbers",
    "add_retained",
    "check_row",
    "fill_row",
    "find_plan",
    "is_kept",
]

RetainedRow = tuple[Any, ...]
"""For each value a sum, a peak or buckets; where nothing is retained a sum is 0, all else None."""

_U64: Final = (1 << 64) - 1
_SUMMED: Final = (Kind.CUMULATIVE, Kind.LINEAR_HIST, Kind.LOG_HIST)


def is_kept(file: File) -> bool:
    """Tell whether an aggregate has a part in it that is retained; the others see the living."""
    if file.kind is Aggregate.SUM:
        return file.value.kind in _SUMMED
    return file.kind is Aggregate.MAX and file.value.kind is Kind.PEAK


class Plan:
    """How the rows of an array are retained.

    Attributes:
        files: the aggregates that are kept, one at most of each value.
        others: those of them that `add_wide` does not add.
        nothing: the row that retains nothing.
        pick: gets the numbers that `add_wide` adds from a row; None if there are none.
    """

    def __init__(self, array: Array) -> None:
        self.files = [file for files in array.aggregates for file in files if is_kept(file)]
        # Nearly all values are such, for which no conversion is needed before a sum.
        wide = [f for f in self.files if f.kind is Aggregate.SUM and f.value.type is Type.U64]
        self._wide = [file.index for file in wide if not file.value.histogram]
        self.others = [file for file in self.files if file.index not in self._wide]
        # Always a tuple, even of one.
        self.pick = operator.itemgetter(*self._wide, *self._wide[:1]) if self._wide else None
        sums = {f.index for f in self.files if f.value.kind is Kind.CUMULATIVE}
        self.nothing = tuple(0 if i in sums else None for i in range(len(array.values)))

    def add_wide(self, rows: Iterable[Sequence[Any]]) -> list[Any]:
        """Return a row with the sums of what `pick` gets, and None for all else."""
        row: list[Any] = [None] * len(self.nothing)
        if self.pick is not None:
            sums = map(sum, zip(*map(self.pick, rows), strict=True))
            for index, total in zip(self._wide, map(_U64.__and__, sums), strict=False):
                row[index] = total
        return row


find_plan: Final = cache(Plan)  # arrays live as long as the process


def add_numbers(value: Value, numbers: Sequence[Any]) -> Any:
    """Return what several numbers of one value are together, each converted to its type.

    Args:
        value: a histogram, of which buckets are added; a PEAK, which is the largest; else a sum.
        numbers: one or more.
    """
    if value.histogram:
        return add_buckets(numbers, value)
    return max(numbers) if value.kind is Kind.PEAK else wrap_sum(sum(numbers), value.type)


def add_retained(array: Array, rows: Sequence[RetainedRow]) -> RetainedRow:
    """Return what several rows are together."""
    plan = find_plan(array)
    if len(rows) < 2:
        return rows[0] if rows else plan.nothing
    row = plan.add_wide(rows)
    for file in plan.others:
        numbers = [one[file.index] for one in rows if one[file.index] is not None]
        if numbers:
            row[file.index] = add_numbers(file.value, numbers)
    return tuple(row)


def _take_back(value: Value, kept: Any, lent: Any, counted: Any) -> Any:
    # A peak stays what it was, with or without the source.
    if None in (kept, lent, counted) or value.kind is Kind.PEAK:
        return kept
    if not value.histogram:
        return wrap_sum(kept - lent, value.type) if counted >= lent else kept
    if not all(map(operator.ge, counted, lent)):
        return kept
    return [wrap_sum(total, value.type) for total in map(operator.sub, kept, lent)]


def fill_row(array: Array, row: RetainedRow) -> tuple[Any, ...]:
    """Return a copy of a row with 0, or empty buckets, where nothing is retained."""
    return tuple(
        value.zero if number is None else list(number) if value.histogram else number
        for value, number in zip(array.values, row, strict=True)
    )


def check_row(array: Array, row: Sequence[Any]) -> RetainedRow:
    """Return what is retained by a row that `fill_row` made.

    Raises:
        ValueError: it, or a histogram in it, is of another length.
        TypeError: something in it is no number.
    """
    if len(row) != len(array.values):
        raise ValueError(f"{len(row)} numbers for {len(array.values)} values")
    plan = find_plan(array)
    found: list[Any] = list(plan.nothing)
    for file in plan.files:
        found[file.index] = _check_number(file.value, row[file.index])
    return tuple(found)


def _check_number(value: Value, number: Any) -> Any:
    if value.kind is Kind.PEAK:
        return value.type.convert(operator.index(number)) or None
    if not value.histogram:
        return wrap_sum(operator.index(number), value.type)
    if len(number) != value.size:
        raise ValueError(f"{len(number)} buckets of {value.name!r}, not {value.size}")
    return [wrap_sum(operator.index(bucket), value.type) for bucket in number]


class Retained:
    """What one source retains of one array.

    Attributes:
        source: whose it is.
        array: what the row is of.
        row: the numbers.
        lent: what is in it of sources that left, as long as they are alive and may come back: their
            rows, and how often each value had been cleared.
    """

    __slots__ = ("_clears", "array", "lent", "row", "source")

    def __init__(self, source: Any, array: Array) -> None:
        self.source = source
        self.array = array
        self.row: RetainedRow = find_plan(array).nothing
        self.lent: WeakKeyDictionary[Any, tuple[RetainedRow, dict[int, int]]] = WeakKeyDictionary()
        self._clears: dict[int, int] = {}

    def clear(self, index: int) -> None:
        """Forget what is retained of one value."""
        nothing = find_plan(self.array).nothing[index]
        self.row = (*self.row[:index], nothing, *self.row[index + 1 :])
        self._clears[index] = self._clears.get(index, 0) + 1

    def lend(self, source: Any, counted: RetainedRow) -> None:
        """Note how much of the row is of a source that leaves."""
        self.lent[source] = (counted, self._clears.copy())

    def take_back(self, source: Any, counted: RetainedRow) -> None:
        """Forget what is retained of a source that comes back.

        Args:
            source: it is among those who have `lent`.
            counted: what it has now; of what is less than it was, nothing is forgotten.
        """
        lent, clears = self.lent.pop(source)
        row = list(self.row)
        for file in find_plan(self.array).files:
            index = file.index
            if self._clears.get(index) == clears.get(index):
                row[index] = _take_back(file.value, row[index], lent[index], counted[index])
        self.row = tuple(row)


class Fold:
    """A change that turns what leaves into what is retained.

    Whoever reads a total meanwhile reads it again. A signal handler cannot wait for what it
    interrupted; it finds here how the total is made up: of what does not leave, and of `after`.

    Attributes:
        leaving: the flat collections that leave, by array.
        after: by array, where it goes and what is retained there then; None until it is known.
        done: whether it is over.
    """

    __slots__ = ("after", "done", "leaving")

    def __init__(self, leaving: Mapping[Array, Any]) -> None:
        self.leaving = leaving
        self.after: dict[Array, tuple[Retained, RetainedRow]] | None = None
        self.done = False

    def finish(self) -> None:
        """Let readers go on."""
        # The first line is what counts: one step for all collections that have the mark.
        self.done = True
        self.leaving = {}
        self.after = None


class Retention:
    """What is retained in a subtree of one array, for a flat collection.

    Attributes:
        records: of all sources that retain some.
        own: that of the source whose collection it is, one of them.
        fold: the last one here; another object with each, so that readers notice.
    """

    __slots__ = ("fold", "own", "records")

    def __init__(self) -> None:
        self.records: dict[Retained, None] = {}
        self.own: Retained | None = None
        self.fold: Fold | None = None

    def numbers(self, index: int) -> list[Any]:
        """Return what is retained of one value, one item for each source that retains some."""
        rows = [record.row[index] for record in list(self.records)]
        return [number for number in rows if number is not None]
