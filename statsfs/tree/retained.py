"""Retained rows: what sources keep of what left their subtrees, and where that counts.

Threading: all but the records' rows changes in steps of a change, under the tree's lock. A row is
never changed but replaced.
"""

import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from statsfs.model.arrays import Array
from statsfs.model.columns import wrap_sum
from statsfs.model.counts import count_of
from statsfs.model.values import Kind, Value
from statsfs.tree.index import ArrayIndex, Entry
from statsfs.tree.lock import TreeChange
from statsfs.tree.rows import KeptPlan, RetainedRow, add_numbers, add_retained

if TYPE_CHECKING:
    from statsfs.tree.directory import Directory
    from statsfs.tree.source import Source

__all__ = [
    "Retained",
    "add_kept",
    "add_records",
    "check_row",
    "fill_row",
    "find_record",
    "find_records",
    "read_retained",
    "restore_row",
]


_get_own: Final = operator.attrgetter("own")
_get_shares: Final = operator.attrgetter("shares")


def fill_row(array: Array, row: RetainedRow, *, copy: bool = True) -> tuple[Any, ...]:
    """Return a row with 0, or empty buckets, where nothing is retained; other buckets are copied.

    With `copy` false they are those of the row.
    """
    return tuple(
        value.zero if number is None else list(number) if copy and value.histogram else number
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
    if not hasattr(row, "__len__"):
        raise TypeError(f"row is not a sequence of numbers: {row!r}")
    if len(row) != len(array.values):
        raise ValueError(
            f"{count_of(len(row), 'number')} for {count_of(len(array.values), 'value')}"
        )
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
        raise ValueError(f"{count_of(len(number), 'bucket')} of {value.name!r}, not {value.size}")
    return [wrap_sum(operator.index(bucket), value.type) for bucket in number]


class Retained:
    """What one source retains of one array.

    Attributes:
        limit: an ancestor that does not count the row, nor do its own ancestors: what left has
            moved to another part of its subtree. None: all ancestors count the row.
        lent: the sources and entries that left and may come back, while they are alive: their parts
            of the row, and how often each value had been cleared then.
        shares: the source's other records of the array, by their limits.
        deducted: the record at the limit that subtracts the row from the totals there.
    """

    __slots__ = ("_clears", "array", "deducted", "lent", "limit", "row", "shares", "source")

    def __init__(self, source: "Source", array: Array, limit: "Source | None" = None) -> None:
        self.source = source
        self.array = array
        self.limit = limit
        self.row: RetainedRow = array.plan(KeptPlan).nothing
        self.lent: dict[ref[Any], tuple[RetainedRow, dict[int, int]]] = {}
        self.shares: dict[Source, Retained] | None = None
        self.deducted = None if limit is None else _Deducted(limit, self)
        self._clears: dict[int, int] = {}

    # Each of these adds steps to a change.

    def clear(self, change: TreeChange, index: int) -> None:
        """Forget what is retained of one value; with a histogram goes its sum."""
        nothing = self.array.plan(KeptPlan).nothing
        row, clears = list(self.row), self._clears.copy()
        for one in {index, self.array.sums.get(index, index)}:
            row[one] = nothing[one]
            clears[one] = clears.get(one, 0) + 1
        change.set(self, "row", tuple(row))
        change.set(self, "_clears", clears)

    def lend(self, change: TreeChange, lender: "Source | Entry", counted: RetainedRow) -> None:
        """Note how much of the row is of what leaves."""
        lent = self.lent

        def forget(dead: ref[Any]) -> None:
            lent.pop(dead, None)

        change.do(lent.__setitem__, ref(lender, forget), (counted, self._clears))

    def take_back(
        self, change: TreeChange, lender: "Source | Entry", counted: RetainedRow
    ) -> RetainedRow:
        """Forget what is retained of what comes back, where it has as much as it had; return it."""
        lent, clears = self.lent[ref(lender)]
        row, back = list(self.row), list(self.array.plan(KeptPlan).nothing)
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
            back[index] = lent[index]
            row[index] = _subtract(value, row[index], lent[index])
        change.set(self, "row", tuple(row))
        change.do(self.lent.pop, ref(lender), None)
        return tuple(back)

    def share(self, change: TreeChange, limit: "Source") -> "Retained":
        """Return the record of the source that has a limit; a new one is placed."""
        shares = self.shares = self.shares or {}
        share = shares.get(limit)
        if share is None:
            share = Retained(self.source, self.array, limit)
            change.do(shares.__setitem__, limit, share)
            _place(change, share, self.source)
            assert share.deducted is not None
            _place(change, share.deducted, limit)
        return share


class _Deducted(Retained):
    # A record of a limit: minus what another one has. It has no state of its own, and is cleared
    # with the other.

    __slots__ = ("_of",)

    def __init__(self, source: "Source", of: Retained) -> None:
        self.source, self.array, self.limit, self.lent = source, of.array, None, {}
        self._of = of

    @property
    def row(self) -> RetainedRow:  # type: ignore[override]
        nothing = self.array.plan(KeptPlan).nothing
        return tuple(map(_negate, self.array.values, nothing, self._of.row))

    def clear(self, change: TreeChange, index: int) -> None:
        """Do nothing."""


def _negate(value: Value, nothing: Any, number: Any) -> Any:
    if number is None or value.kind is Kind.PEAK:
        return nothing
    return _subtract(value, value.zero, number)


def _has_grown(value: Value, kept: Any, lent: Any, counted: Any) -> bool:
    # Else it was reset. A peak stays what it was, with or without the source.
    if None in (kept, lent, counted) or value.kind is Kind.PEAK:
        return False
    return all(map(operator.ge, counted, lent)) if value.histogram else bool(counted >= lent)


def _subtract(value: Value, kept: Any, lent: Any) -> Any:
    if not value.histogram:
        return wrap_sum(kept - lent, value.type)
    return [wrap_sum(total, value.type) for total in map(operator.sub, kept, lent)]


def find_record(change: TreeChange, source: "Source", array: Array) -> Retained:
    """Return the record of a source; a new one is placed."""
    index = source._directory.index.get(array)
    if index is not None and index.own is not None:
        return index.own
    record = Retained(source, array)
    change.set(_place(change, record, source), "own", record)
    return record


def _place(change: TreeChange, record: Retained, source: "Source") -> ArrayIndex:
    # Puts a record into the index of a source, which is returned, and into those above.
    indexes = []
    for directory in source._directory.lineage():
        index = directory.index.get(record.array)
        if index is None:
            index = ArrayIndex(record.array)
            change.do(directory.index.__setitem__, record.array, index)
        index.retain(change, record)
        indexes.append(index)
    return indexes[0]


def restore_row(
    change: TreeChange, lineage: "Sequence[Source]", array: Array, row: RetainedRow
) -> "list[Directory]":
    """Add to what the first source of a lineage retains; return the directories that change."""
    if not array.retained:
        return []
    stale = [one._directory for one in lineage if not one._directory.count_below(array)]
    for directory in stale:
        directory.make_stale(change)
    record = find_record(change, lineage[0], array)
    change.set(record, "row", add_retained(array, [record.row, row]))
    return stale


def find_records(source: "Source") -> list[Retained]:
    """Return all records of a source; to be called under the lock."""
    # In C: thousands of sources are asked when one of them changed.
    records = list(filter(None, map(_get_own, source._directory.index.values())))
    for shares in list(filter(None, map(_get_shares, records))):
        records += shares.values()
    return records


def add_records(records: Iterable[Retained]) -> dict[Array, RetainedRow]:
    """Return the sums of one source's records, by array; a single row is not copied."""
    rows: dict[Array, list[RetainedRow]] = {}
    for record in records:
        rows.setdefault(record.array, []).append(record.row)
    return {array: add_retained(array, some) for array, some in rows.items()}


def read_retained(source: "Source") -> dict[tuple[Value, ...], tuple[Any, ...]]:
    """Return what a source retains, by array; to be called under the lock."""
    found = add_records(find_records(source))
    return {array.values: fill_row(array, row) for array, row in found.items()}
