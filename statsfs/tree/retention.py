"""Retention: a source that retains keeps the numbers of what leaves its subtree.

What leaves is read, added to what the nearest retaining source keeps, and taken back when it
returns. No reader sees a total fall or count twice.

Threading: a fold is part of a change of the tree, under its lock. A row is never changed but
replaced, in one step. Bases that run a user's code (they are dynamic, or hold foreign integers) are
read outside of the lock, after a first attempt found them; what they count between that and the
second attempt is lost.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from itertools import chain
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar
from weakref import ref

from statsfs.model.arrays import Array
from statsfs.model.columns import convert_column
from statsfs.model.foreign import describe_error, foreign
from statsfs.model.histograms import convert_histograms
from statsfs.model.readers import Reader, convert_number, describe_number
from statsfs.model.values import Value
from statsfs.tree.index import ArrayIndex, Entry, make_index
from statsfs.tree.lineage import find_lineage, note_files
from statsfs.tree.lock import TreeChange, apply_change, tree_change
from statsfs.tree.retained import Retained, find_record
from statsfs.tree.rows import KeptPlan, RetainedRow, add_numbers, add_retained

if TYPE_CHECKING:
    from statsfs.tree.source import Source

__all__ = ["Folding", "folding_change", "forget_row", "spread"]

_S = TypeVar("_S")
_P = ParamSpec("_P")

_INTEGERS: Final = {int, bool}

_Unread = tuple[Reader, Entry, Any]


def folding_change(
    method: "Callable[Concatenate[_S, TreeChange, Folding, _P], None]",
) -> Callable[Concatenate[_S, _P], None]:
    """Make a method a change of the tree in which entries may leave a source that retains.

    Where its `Folding` finds bases that have to be read outside of the lock, the method must return
    before it adds a step, and is called again.
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
                except foreign() as error:
                    name = file.value.name
                    entry.source._directory.complain(
                        ("left out", entry, name),
                        f"left out of what is retained: {name!r} holds no "
                        f"{describe_number(file.value)}: {describe_error(error)}",
                    )
            self._known[entry] = tuple(row)

    # These add steps to a change, but none where a base is unread.

    def retain(
        self,
        change: TreeChange,
        lineage: "Sequence[Source]",
        leaving: "Sequence[Source]",
    ) -> "Mapping[Source, Container[Array]] | None":
        """Keep what some sources counted that leave the first of a lineage.

        Return the arrays of which something is retained, by the sources in whose subtree it is; or
        None where a base is unread.
        """
        above = _find_retaining(lineage)
        if not (above and leaving):
            return {}
        unread: list[_Unread] = []
        rows: dict[Array, dict[Source, RetainedRow]] = {}
        crossing: dict[Source, list[Retained]] = {}
        for source in leaving:
            indexes = source._directory.index
            crossing[source] = [
                one for index in indexes.values() for one in _crossing(index, lineage)
            ]
            kept = {
                array: index
                for array, index in indexes.items()
                if array.retained and (index.groups or index.records)
            }
            for array, row in (self._add_up(kept, crossing[source]) or {}).items():
                rows.setdefault(array, {})[source] = row
            unread += self.unread
        self.unread = unread
        if unread:
            return None
        for array, by_source in rows.items():
            record = find_record(change, above[0], array)
            _keep(change, record, by_source)
            for source in by_source:
                change.set(source._directory, "lent", True)
            for limit in above[1:]:
                shared = _find_shared(array, limit, crossing)
                if shared:
                    _keep(change, record.share(change, limit), shared)
        return dict.fromkeys(above, rows)

    def retain_entries(
        self, change: TreeChange, above: "Sequence[Source]", revoked: Mapping[Entry, Entry]
    ) -> bool:
        """Keep what entries counted that lose their bases, each of which may get it back.

        Return whether all could be read.
        """
        above = _find_retaining(above)
        unread: list[_Unread] = []
        rows: dict[Array, dict[Entry, RetainedRow]] = {}
        for entry in revoked if above else ():
            if entry.array.retained:
                counted = self._add_up({entry.array: make_index(entry)})
                unread += self.unread
                rows.setdefault(entry.array, {})[entry] = (counted or {}).get(entry.array, ())
        self.unread = unread
        if unread:
            return False
        for array, by_entry in rows.items():
            record = find_record(change, above[0], array)
            _keep(change, record, {revoked[entry]: row for entry, row in by_entry.items()})
        return True

    def take_back(self, change: TreeChange, lineage: "Sequence[Source]", source: "Source") -> bool:
        """Take back what is retained since a source left that comes below the first of a lineage.

        Return whether all could be read.
        """
        directory = source._directory
        return not directory.lent or self._take_back(change, lineage, source, directory.index)

    def take_back_entry(
        self,
        change: TreeChange,
        lineage: "Sequence[Source]",
        entry: Entry,
        revoked: "Sequence[Entry]",
    ) -> bool:
        """Take back what is retained since an entry of the first of a lineage lost its base.

        Return whether all could be read.
        """
        for old in revoked:
            if not entry.declared and old.had(entry.origin):
                return self._take_back(change, lineage, old, {entry.array: make_index(entry)})
        return True

    def _take_back(
        self,
        change: TreeChange,
        lineage: "Sequence[Source]",
        lender: "Source | Entry",
        indexes: Mapping[Array, ArrayIndex],
    ) -> bool:
        top = lineage[-1]._directory
        found = [
            record
            for array in indexes
            if (index := top.index.get(array)) is not None
            for record in index.records or ()
            if ref(lender) in record.lent
        ]
        counted = self._add_up({record.array: indexes[record.array] for record in found})
        if counted is None:
            return False
        for record in found:
            row = counted[record.array]
            # The nearest source that counts both what is retained and what comes.
            common: Any = record.source
            excluded = False
            while common not in lineage:
                common = common._directory.parent
                excluded = excluded or common is record.limit
            if not excluded:
                back = record.take_back(change, lender, row)
                if common is not record.source:
                    share = find_record(change, record.source, record.array).share(change, common)
                    _keep(change, share, {lender: back})
        return True

    def _add_up(
        self, indexes: Mapping[Array, ArrayIndex], without: Container[Retained] = ()
    ) -> dict[Array, RetainedRow] | None:
        # What the entries of some indexes counted, and their records; None where a base is unread.
        unread: list[_Unread] = []
        counted = {}
        for array, index in indexes.items():
            rows = [one.row for one in index.records or () if one not in without]
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


def _keep(
    change: TreeChange,
    record: Retained,
    rows: Mapping[Any, RetainedRow],
) -> None:
    # Adds rows to a record, and notes the lender of each.
    change.set(record, "row", add_retained(record.array, [record.row, *rows.values()]))
    for lender, row in rows.items():
        record.lend(change, lender, row)


def _find_shared(
    array: Array, limit: "Source", crossing: "Mapping[Source, Sequence[Retained]]"
) -> "Mapping[Source, RetainedRow]":
    # The rows of sources that are deducted at a limit.
    shared = {}
    for source, records in crossing.items():
        rows = [one.row for one in records if (one.array, one.limit) == (array, limit)]
        if rows:
            shared[source] = add_retained(array, rows)
    return shared


def _sample(array: Array, reader: Reader, bases: list[Any]) -> RetainedRow | None:
    # The sum of what plain bases hold; None where it takes foreign code to find out.
    plan = array.plan(KeptPlan)
    try:
        parts = [list(map(sampler, some)) for sampler, some in reader.parts(bases)]
        rows = reader.decode(parts)
    except foreign():
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


def spread(
    lineage: "Sequence[Source]", indexes: Mapping[Array, ArrayIndex]
) -> Sequence[Mapping[Array, ArrayIndex]]:
    """Return what each of a lineage gets, or loses, with a source that has some indexes.

    That is the same for all, but for records that have a limit in the lineage.
    """
    spread = [indexes] * len(lineage)
    for array, index in indexes.items():
        for record in _crossing(index, lineage):
            for place in range(lineage.index(record.limit), len(lineage)):
                more = spread[place][array].copy()
                assert record.deducted is not None
                more.records = {**(more.records or {}), record.deducted: None}
                spread[place] = {**spread[place], array: more}
    return spread


def _crossing(index: ArrayIndex, lineage: "Sequence[Source]") -> list[Retained]:
    return [one for one in index.records or () if one.limit in lineage]


def _find_retaining(lineage: "Sequence[Source]") -> "Sequence[Source]":
    # The nearest source that retains and all above it, or nothing.
    for place, source in enumerate(lineage):
        if source.retain:
            return lineage[place:]
    return ()


@tree_change
def forget_row(source: "Source", change: TreeChange, array: Array) -> None:
    """Forget what a source's subtree retains of an array; a source above that retains keeps it."""
    index = source._directory.index.get(array)
    if index is None or not index.records:
        return
    lineage = find_lineage(source)
    above = lineage[1:]
    below = [source]
    for one in below:
        below += one.subordinates
    retaining = _find_retaining(above)
    gone = {array: ArrayIndex(array, records=index.records.copy())}
    stale = [one._directory for one in below if _forget(one, change, array, None)]
    stale += [
        one._directory
        for one, indexes in zip(above, spread(above, gone), strict=True)
        if _forget(one, change, array, indexes[array], one in retaining)
    ]
    if retaining:
        crossing = _crossing(index, above)
        rows = [record.row for record in index.records if record not in crossing]
        record = find_record(change, retaining[0], array)
        change.set(record, "row", add_retained(array, [record.row, *rows]))
    note_files(change, lineage, stale)


def _forget(
    source: "Source",
    change: TreeChange,
    array: Array,
    gone: ArrayIndex | None,
    retained: bool = False,
) -> bool:
    # Takes records out of an index, by default all; returns whether there were any.
    directory = source._directory
    index = directory.index.get(array)
    if index is None or not index.records:
        return False
    if gone is None:
        gone = ArrayIndex(array, records=index.records.copy())
        change.drop(index, "own")
    index.subtract(change, gone)
    if len(index) == len(gone) and not retained:
        change.do(directory.index.pop, array)
        change.garbage.append(index)
    directory.make_stale(change)
    return True
