"""Retention: a source that retains keeps the numbers of what leaves its subtree.

Here what leaves is read, added to what the nearest retaining source keeps, and taken back when it
returns, in an order of steps by which no reader sees a total fall or count twice.

Reading some bases runs a user's code: they are dynamic, or hold foreign integers. They are read
outside of the lock, after a first attempt found them; what they count between that and the second
attempt is lost. All others are read inside the change.

Threading: a fold is part of a change of the tree, under its lock. A row is never changed but
replaced, in one step.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from itertools import chain
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from statsfs.model.arrays import Array
from statsfs.model.columns import convert_column, wrap_sum
from statsfs.model.histograms import convert_histograms
from statsfs.model.readers import Reader, convert_number, describe_number
from statsfs.model.values import Kind, Value
from statsfs.tree.directory import Directory
from statsfs.tree.index import ArrayIndex, Entry, Fold, set_fold
from statsfs.tree.lock import TreeChange, apply_change
from statsfs.tree.rows import KeptPlan, RetainedRow, add_numbers, add_retained

if TYPE_CHECKING:
    from statsfs.tree.source import Source

__all__ = [
    "Folding",
    "Retained",
    "add_kept",
    "check_row",
    "fill_row",
    "find_retaining",
    "folding_change",
    "restore_row",
]

_S = TypeVar("_S")
_T = TypeVar("_T")
_P = ParamSpec("_P")

_INTEGERS: Final = {int, bool}

_Unread = tuple[Reader, Entry, Any]


# Rows


def fill_row(array: Array, row: RetainedRow) -> tuple[Any, ...]:
    """Return a copy of a row with 0, or empty buckets, where nothing is retained."""
    return tuple(
        value.zero if number is None else list(number) if value.histogram else number
        for value, number in zip(array.values, row, strict=True)
    )


def add_kept(array: Array, row: Sequence[Any] | None, kept: RetainedRow) -> tuple[Any, ...]:
    """Return a converted row, if there is one, together with what is retained."""
    if row is None:
        return fill_row(array, kept)
    return tuple(
        number if more is None else add_numbers(value, [number, more])
        for value, number, more in zip(array.values, row, kept, strict=True)
    )


def check_row(array: Array, row: Sequence[Any]) -> RetainedRow:
    """Return what is retained by a row that `fill_row` made.

    Raises:
        ValueError: it, or a histogram in it, is of another length.
        TypeError: something in it is not a number.
    """
    if len(row) != len(array.values):
        raise ValueError(f"{len(row)} numbers for {len(array.values)} values")
    found: list[Any] = list(array.plan(KeptPlan).nothing)
    for file in array.retained:
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
        source: the source.
        array: what the row is of.
        row: the numbers.
        lent: by each source that left and may come back its part of the row, and how often each
            value had been cleared then; as long as the source is alive.
    """

    __slots__ = ("_clears", "array", "lent", "row", "source")

    def __init__(self, source: "Source", array: Array) -> None:
        self.source = source
        self.array = array
        self.row: RetainedRow = array.plan(KeptPlan).nothing
        self.lent: WeakKeyDictionary[Source, tuple[RetainedRow, dict[int, int]]] = (
            WeakKeyDictionary()
        )
        self._clears: dict[int, int] = {}

    def clear(self, index: int) -> None:
        """Forget what is retained of one value; with a histogram goes its sum."""
        nothing = self.array.plan(KeptPlan).nothing
        row = list(self.row)
        for one in {index, self.array.sums.get(index, index)}:
            row[one] = nothing[one]
            self._clears[one] = self._clears.get(one, 0) + 1
        self.row = tuple(row)

    def lend(self, source: "Source", counted: RetainedRow) -> None:
        """Note how much of the row is of a source that leaves."""
        self.lent[source] = (counted, self._clears.copy())

    def take_back(self, source: "Source", counted: RetainedRow) -> None:
        """Forget what is retained of a source that comes back.

        Args:
            source: one of `lent`.
            counted: what it has now; where that is less than it was, nothing is forgotten.
        """
        lent, clears = self.lent.pop(source)
        row = list(self.row)
        same = {
            file.index: file.value
            for file in self.array.retained
            if self._clears.get(file.index) == clears.get(file.index)
            and _has_grown(file.value, lent[file.index], counted[file.index])
        }
        for histogram, summed in self.array.sums.items():
            if not same.keys() >= {histogram, summed}:
                same.pop(histogram, None)
                same.pop(summed, None)
        for index, value in same.items():
            row[index] = _take_back(value, row[index], lent[index])
        self.row = tuple(row)


def _has_grown(value: Value, lent: Any, counted: Any) -> bool:
    # Else it was reset. A peak stays what it was, with or without the source.
    if None in (lent, counted) or value.kind is Kind.PEAK:
        return False
    return all(map(operator.ge, counted, lent)) if value.histogram else bool(counted >= lent)


def _take_back(value: Value, kept: Any, lent: Any) -> Any:
    if kept is None:
        return None
    if not value.histogram:
        return wrap_sum(kept - lent, value.type)
    return [wrap_sum(total, value.type) for total in map(operator.sub, kept, lent)]


# Folds


def find_retaining(lineage: "Sequence[Source]") -> "Sequence[Source]":
    """Return the nearest source that retains and all above it, or nothing."""
    for place, source in enumerate(lineage):
        if source.retain:
            return lineage[place:]
    return ()


def folding_change(
    method: "Callable[Concatenate[_S, TreeChange, Folding, _P], None]",
) -> Callable[Concatenate[_S, _P], None]:
    """Make a method a change of the tree in which entries may leave a source that retains.

    It is called with the change and with a `Folding`. Where that finds bases that have to be read
    outside of the lock, the method must return before it changes anything, and is called again.
    """

    @wraps(method)
    def make(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        folding = Folding()

        def attempt(change: TreeChange) -> None:
            method(self, change, folding, *args, **kwargs)

        apply_change(attempt)
        # From here on, and for a change that was queued behind another, what is unread is left out.
        folding.strict = False
        if folding.unread:
            folding.read()
            apply_change(attempt)

    return make


class Folding:
    """What one change folds.

    Attributes:
        strict: whether bases may still be read outside of the lock; else they are left out.
        unread: those bases.
    """

    def __init__(self) -> None:
        self.strict = True
        self.unread: list[_Unread] = []
        self._known: dict[Entry, RetainedRow] = {}

    def read(self) -> None:
        """Read what is unread one by one, under no lock; what is broken is logged and left out."""
        for reader, entry, base in self.unread:
            row: list[Any] = list(entry.array.plan(KeptPlan).nothing)
            for file in entry.array.retained:
                try:
                    row[file.index] = convert_number(file.value, reader.read(base, file.index))
                except Exception as error:
                    _complain(entry, file.value, error)
            self._known[entry] = tuple(row)

    def take_out(
        self,
        above: "Sequence[Source]",
        leaving: Mapping[Array, ArrayIndex],
        part: Callable[[], _T],
        source: "Source | None" = None,
    ) -> _T | None:
        """Take something out of the tree, and keep what it counted.

        Args:
            above: the source that is to retain it, and all above that; nothing where none does.
            leaving: the entries that leave, and what they retain.
            part: takes them out.
            source: what leaves, if it may come back.

        Returns:
            What `part` returns; None where nothing was done, as a base is unread.
        """
        kept = {
            array: index
            for array, index in (leaving.items() if above else ())
            if (index.groups or index.records) and array.retained
        }
        if not kept:
            return part()
        fold = Fold(leaving)
        try:
            # First of all: a clear that comes after a base was read must see it.
            set_fold(fold)
            counted = self._add_up(kept)
            if counted is None:
                return None
            records = [_find_record(above[0], array) for array in kept]
            fold.after = {
                one.array: (one, add_retained(one.array, [one.row, counted[one.array]]))
                for one in records
            }
            for record, row in fold.after.values():
                record.row = row
                _place(record, above)
                if source is not None:
                    record.lend(source, counted[record.array])
            return part()
        finally:
            set_fold(None)

    def take_in(
        self, above: "Sequence[Source]", source: "Source", join: Callable[[], _T]
    ) -> _T | None:
        """Put a source into the tree, and take back what is retained of it since it left.

        Where it has less than it had, it counts anew, and what it had is retained.

        Args:
            above: the nearest source that retains, and all above that; nothing where none does.
            source: what comes.
            join: puts it in.

        Returns:
            What `join` returns; None where nothing was done, as a base is unread.
        """
        coming = source._directory.index
        lenders = [one for array in coming for one in _find_lenders(above, array, source)]
        if not lenders:
            return join()
        fold = Fold(coming)
        try:
            set_fold(fold)
            # Until all is done, totals are what they were.
            fold.after = {record.array: (record, record.row) for record in lenders}
            counted = self._add_up({record.array: coming[record.array] for record in lenders})
            if counted is None:
                return None
            for record in lenders:
                record.take_back(source, counted[record.array])
            return join()
        finally:
            set_fold(None)

    def _add_up(self, leaving: Mapping[Array, ArrayIndex]) -> dict[Array, RetainedRow] | None:
        # What the entries of some indexes counted, and their records; None where a base is unread.
        unread: list[_Unread] = []
        counted = {}
        for array, index in leaving.items():
            rows = [one.row for one in index.records or ()]
            for reader, members in index.groups.items():
                rows += self._read_members(array, reader, members, unread)
            counted[array] = add_retained(array, rows)
        self.unread = unread if self.strict else []
        return None if self.unread else counted

    def _read_members(
        self, array: Array, reader: Reader, members: Mapping[Entry, Any], unread: list[_Unread]
    ) -> Iterator[RetainedRow]:
        if reader.plain and self._known.keys().isdisjoint(members):
            row = _sample(array, reader, list(members.values()))
            if row is not None:
                yield row
                return
        for entry, base in members.items():
            row = self._known.get(entry)
            if row is None and reader.plain:
                row = _sample(array, reader, [base])
            if row is None:
                unread.append((reader, entry, base))
            else:
                yield row


def _complain(entry: Entry, value: Value, error: Exception) -> None:
    entry.source._directory.complain(
        ("left out", entry, value.name),
        f"left out of what is retained: {value.name!r} holds no {describe_number(value)}: {error}",
    )


def _sample(array: Array, reader: Reader, bases: list[Any]) -> RetainedRow | None:
    # The sum of what plain bases hold; None where it takes foreign code to find out.
    plan = array.plan(KeptPlan)
    try:
        parts = [list(map(sampler, some)) for sampler, some in reader.parts(bases)]
        rows = reader.decode(parts)
    except Exception:
        return None
    if plan.pick is not None and not _are_integers(chain.from_iterable(map(plan.pick, rows))):
        return None
    row = plan.add_wide(rows)
    for file in plan.others:
        column = _convert(file.value, [one[file.index] for one in rows])
        if column is None:
            return None
        row[file.index] = add_numbers(file.value, column)
    return tuple(row)


def _are_integers(numbers: Iterable[Any]) -> bool:
    # Only types are compared: any operation of a foreign integer may run foreign code.
    return {*map(type, numbers)} <= _INTEGERS


def _convert(value: Value, column: Sequence[Any]) -> Sequence[Any] | None:
    if not value.histogram:
        return convert_column(column, value.type) if _are_integers(column) else None
    return convert_histograms(column, value) if _are_integers(chain.from_iterable(column)) else None


def restore_row(lineage: "Sequence[Source]", array: Array, row: RetainedRow) -> list[Directory]:
    """Add a row to what a source retains, inside a change.

    Args:
        lineage: the source, its parent, and so on to the top.
        array: what the row is of.
        row: the numbers.

    Returns:
        The directories of which the files change by it.
    """
    if not array.retained:
        return []
    stale = []
    for directory in [source._directory for source in lineage]:
        if not directory.index.setdefault(array, ArrayIndex(array)).below:
            directory.version += 1
            stale.append(directory)
    record = _find_record(lineage[0], array)
    record.row = add_retained(array, [record.row, row])
    _place(record, lineage)
    return stale


def _find_lenders(above: "Iterable[Source]", array: Array, source: "Source") -> Iterator[Retained]:
    for retaining in above:
        index = retaining._directory.index.get(array)
        if index is not None and index.own is not None and source in index.own.lent:
            yield index.own
            return


def _find_record(source: "Source", array: Array) -> Retained:
    # A new one is not in its place yet.
    return source._directory.index[array].own or Retained(source, array)


def _place(record: Retained, lineage: "Iterable[Source]") -> None:
    for source in lineage:
        index = source._directory.index[record.array]
        if record not in (index.records or ()):
            index.retain(record)
        if source is record.source:
            index.own = record
