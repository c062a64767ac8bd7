"""Retention: a source that retains keeps the numbers of what leaves its subtree.

What leaves is read, added to what the nearest retaining source keeps, and taken back when it
returns. No reader sees a total fall or count twice.

Threading: a fold is part of a change of the tree, under its lock. A row is never changed but
replaced, in one step. Bases that run a user's code (they are dynamic, or hold foreign integers) are
read outside of the lock, after a first attempt found them; what they count between that and the
second attempt is lost.
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
    "folding_change",
    "restore_row",
]

_S = TypeVar("_S")
_T = TypeVar("_T")
_P = ParamSpec("_P")

_INTEGERS: Final = {int, bool}

_Unread = tuple[Reader, Entry, Any]


def fill_row(array: Array, row: RetainedRow) -> tuple[Any, ...]:
    """Return a copy of a row with 0, or empty buckets, where nothing is retained."""
    return tuple(
        value.zero if number is None else list(number) if value.histogram else number
        for value, number in zip(array.values, row, strict=True)
    )


def add_kept(array: Array, row: Sequence[Any] | None, kept: RetainedRow) -> tuple[Any, ...]:
    """Return the sum of a converted row, if there is one, and a retained row."""
    if row is None:
        return fill_row(array, kept)
    return tuple(
        number if more is None else add_numbers(value, [number, more])
        for value, number, more in zip(array.values, row, kept, strict=True)
    )


def check_row(array: Array, row: Sequence[Any]) -> RetainedRow:
    """Return what is retained by a row that `fill_row` made, or raise ValueError or TypeError."""
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
        """Forget what is retained of a source that comes back, where it has as much as it had."""
        lent, clears = self.lent.pop(source)
        row = list(self.row)
        same = {
            file.index: file.value
            for file in self.array.retained
            if self._clears.get(file.index) == clears.get(file.index)
            and _has_grown(file.value, row[file.index], lent[file.index], counted[file.index])
        }
        for histogram, summed in self.array.sums.items():
            if not same.keys() >= {histogram, summed}:
                same.pop(histogram, None)
                same.pop(summed, None)
        for index, value in same.items():
            row[index] = _subtract(value, row[index], lent[index])
        self.row = tuple(row)


def _has_grown(value: Value, kept: Any, lent: Any, counted: Any) -> bool:
    # Else it was reset. A peak stays what it was, with or without the source.
    if None in (kept, lent, counted) or value.kind is Kind.PEAK:
        return False
    return all(map(operator.ge, counted, lent)) if value.histogram else bool(counted >= lent)


def _subtract(value: Value, kept: Any, lent: Any) -> Any:
    if not value.histogram:
        return wrap_sum(kept - lent, value.type)
    return [wrap_sum(total, value.type) for total in map(operator.sub, kept, lent)]


def folding_change(
    method: "Callable[Concatenate[_S, TreeChange, Folding, _P], None]",
) -> Callable[Concatenate[_S, _P], None]:
    """Make a method a change of the tree in which entries may leave a source that retains.

    Where its `Folding` finds bases that have to be read outside of the lock, the method must return
    before it changes anything, and is called again.
    """

    @wraps(method)
    def make(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        folding = Folding()

        def attempt(change: TreeChange) -> None:
            method(self, change, folding, *args, **kwargs)

        apply_change(attempt)
        # From here on, and for a change that was queued behind another, unread bases are left out.
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
                    name = file.value.name
                    entry.source._directory.complain(
                        ("left out", entry, name),
                        f"left out of what is retained: {name!r} holds no "
                        f"{describe_number(file.value)}: {error}",
                    )
            self._known[entry] = tuple(row)

    def take_out(
        self,
        lineage: "Sequence[Source]",
        leaving: Mapping[Array, ArrayIndex],
        part: Callable[[], _T],
        source: "Source | None" = None,
    ) -> _T | None:
        """Take entries out of the first source of a lineage, and keep what they counted.

        `source` is what leaves, if it may come back. Return what `part` does, or None where nothing
        was done, as a base is unread.
        """
        above = _find_retaining(lineage)
        if not above:
            return part()
        kept = {
            array: index
            for array, index in leaving.items()
            if (index.groups or index.records) and array.retained
        }

        def retain(fold: Fold, counted: dict[Array, RetainedRow]) -> None:
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

        return self._fold(leaving, kept, retain, part)

    def take_in(self, lineage: "Sequence[Source]", source: "Source") -> list[Directory] | None:
        """Put a source into the first of a lineage, and take back what is retained since it left.

        Return the directories of which the files change, or None as `take_out` does.
        """
        directory, above = source._directory, _find_retaining(lineage)

        def join() -> list[Directory]:
            return [one._directory for one in lineage if one._directory.join(directory)]

        if not above:
            return join()
        found = [_find_lender(above, array, source) for array in directory.index]
        lenders = [one for one in found if one is not None]

        def take_back(fold: Fold, counted: dict[Array, RetainedRow]) -> None:
            # Until all is done, totals are what they were.
            fold.after = {record.array: (record, record.row) for record in lenders}
            for record in lenders:
                record.take_back(source, counted[record.array])

        return self._fold(
            directory.index,
            {record.array: directory.index[record.array] for record in lenders},
            take_back,
            join,
        )

    def _fold(
        self,
        moving: Mapping[Array, ArrayIndex],
        counting: Mapping[Array, ArrayIndex],
        move: Callable[[Fold, dict[Array, RetainedRow]], None],
        change: Callable[[], _T],
    ) -> _T | None:
        # Adds up what some indexes counted, moves that from or to what is retained, and changes the
        # tree.
        if not counting:
            return change()
        fold = Fold(moving)
        try:
            # First of all: a clear that comes after a base was read must see it.
            set_fold(fold)
            counted = self._add_up(counting)
            if counted is None:
                return None
            move(fold, counted)
            return change()
        finally:
            set_fold(None)

    def _add_up(self, indexes: Mapping[Array, ArrayIndex]) -> dict[Array, RetainedRow] | None:
        # What the entries of some indexes counted, and their records; None where a base is unread.
        unread: list[_Unread] = []
        counted = {}
        for array, index in indexes.items():
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
    """Add to what the first source of a lineage retains; return the directories that change."""
    if not array.retained:
        return []
    stale = []
    for directory in lineage[0]._directory.lineage():
        if not directory.index.setdefault(array, ArrayIndex(array)).below:
            directory.version += 1
            stale.append(directory)
    record = _find_record(lineage[0], array)
    record.row = add_retained(array, [record.row, row])
    _place(record, lineage)
    return stale


def _find_retaining(lineage: "Sequence[Source]") -> "Sequence[Source]":
    # The nearest source that retains and all above it, or nothing.
    for place, source in enumerate(lineage):
        if source.retain:
            return lineage[place:]
    return ()


def _find_lender(above: "Iterable[Source]", array: Array, source: "Source") -> Retained | None:
    # The nearest record of which a part is the source's.
    for retaining in above:
        index = retaining._directory.index.get(array)
        if index is not None and index.own is not None and source in index.own.lent:
            return index.own
    return None


def _find_record(source: "Source", array: Array) -> Retained:
    # A new one is not in its place yet.
    return source._directory.index[array].own or Retained(source, array)


def _place(record: Retained, lineage: "Sequence[Source]") -> None:
    lineage[0]._directory.index[record.array].own = record
    for source in lineage:
        index = source._directory.index[record.array]
        if record not in (index.records or ()):
            index.retain(record)
