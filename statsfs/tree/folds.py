"""Folds: what leaves a source that retains is turned into numbers that it keeps.

Owns reading what leaves, adding it to what the nearest source above retains, taking that back when
it returns, and the order of the steps, by which no reader sees a total fall or count twice. Which
sources leave whom is the business of `sources`.

Bases of which reading may run the user's code are read before the change, outside of the lock; what
they count between that and the change is lost. All others are read inside it.

Threading: a fold is part of a change of the tree, under its lock.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final, TypeVar

from statsfs.model.arrays import Array, Entry
from statsfs.model.columns import convert_column
from statsfs.model.histograms import convert_histograms
from statsfs.model.readers import Reader, convert_number, describe_number
from statsfs.model.values import Value
from statsfs.tree.index import Flat
from statsfs.tree.lock import Operation, apply_change
from statsfs.tree.retention import Fold, Retained, RetainedRow, add_numbers, add_retained, find_plan

__all__ = ["Folding", "find_retaining", "make_folding", "restore_row"]

_T = TypeVar("_T")

# How often what leaves may turn out to hold something that must be read outside of the lock.
_TRIES: Final = 3

_INTEGERS: Final = {int, bool}


_Found = tuple[Reader, Entry, Any]


class _UnreadError(Exception):
    # Some bases have to be read outside of the lock first; nothing was changed.
    def __init__(self, found: list[_Found]) -> None:
        super().__init__(found)
        self.found = found


def find_retaining(lineage: Sequence[Any]) -> Sequence[Any]:
    """Return the nearest source that retains and all above it, or nothing."""
    for place, source in enumerate(lineage):
        if source.retain:
            return lineage[place:]
    return ()


def make_folding(change: Callable[[Operation, "Folding"], None]) -> None:
    """Make a change in which entries may leave a source that retains.

    Args:
        change: called with a `Folding`, by which it takes out what leaves; more than once, if what
            leaves has to be read first.
    """
    folding = Folding()

    def try_change(operation: Operation) -> None:
        change(operation, folding)

    for _ in range(_TRIES):
        try:
            apply_change(try_change)
        except _UnreadError as error:
            folding.read(error.found)
        else:
            break
    else:
        folding.strict = False
        apply_change(try_change)
    # A change that is queued behind another (by a signal handler) takes what it can get.
    folding.strict = False


class Folding:
    """What one change folds.

    Attributes:
        strict: whether what must be read outside of the lock may still be; else it is left out.
    """

    def __init__(self) -> None:
        self.strict = True
        self._known: dict[Entry, RetainedRow] = {}

    def read(self, found: Iterable[_Found]) -> None:
        """Read bases one by one, under no lock; what is broken is logged and left out."""
        for reader, entry, base in found:
            plan = find_plan(entry.array)
            row: list[Any] = list(plan.nothing)
            for file in plan.files:
                try:
                    row[file.index] = convert_number(file.value, reader.read(base, file.index))
                except Exception as error:
                    _complain(entry, file.value, error)
            self._known[entry] = tuple(row)

    def take_out(
        self,
        above: Sequence[Any],
        leaving: Mapping[Array, Flat],
        part: Callable[[], _T],
        source: Any = None,
    ) -> _T:
        """Take something out of the tree, and keep what it counted.

        Args:
            above: the source that is to retain it, and all above that; nothing if nobody does.
            leaving: the entries that leave, and what they retain.
            part: takes them out.
            source: what leaves, if it may come back.
        """
        kept = {
            array: flat
            for array, flat in (leaving.items() if above else ())
            if (flat.groups or flat.records) and find_plan(array).files
        }
        if not kept:
            return part()
        fold = Fold(leaving)
        try:
            # First of all: a total that was read after a base is one that the base goes on from.
            _mark(fold, above, kept)
            counted = self._add_up(kept)
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
            fold.finish()

    def take_in(self, above: Sequence[Any], source: Any, join: Callable[[], _T]) -> _T:
        """Put something into the tree; what is retained of it since it left is no longer.

        Where it has less than it had, it counts anew, and what it had is retained.

        Args:
            above: the nearest source that retains, and all above that; nothing if nobody does.
            source: what comes.
            join: puts it in.
        """
        if not above:
            return join()
        coming: dict[Array, Flat] = source._flats
        lenders = [record for array in coming for record in _find_lenders(above, array, source)]
        if not lenders:
            return join()
        fold = Fold(coming)
        try:
            for record in lenders:
                _mark(fold, above[above.index(record.source) :], [record.array])
            # Until all is done, totals are what they were.
            fold.after = {record.array: (record, record.row) for record in lenders}
            counted = self._add_up({record.array: coming[record.array] for record in lenders})
            for record in lenders:
                record.take_back(source, counted[record.array])
            return join()
        finally:
            fold.finish()

    def _add_up(self, flats: Mapping[Array, Flat]) -> dict[Array, RetainedRow]:
        # What everything in some collections has counted, of the aggregates that are kept.
        unread: list[_Found] = []
        counted = {}
        for array, flat in flats.items():
            rows = [one.row for one in flat.records]
            for reader, members in flat.groups.items():
                rows += self._read_members(array, reader, members, unread)
            counted[array] = add_retained(array, rows)
        if unread and self.strict:
            raise _UnreadError(unread)
        return counted

    def _read_members(
        self, array: Array, reader: Reader, members: Mapping[Entry, Any], unread: list[_Found]
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
    wanted = describe_number(value)
    entry.source.complain(
        ("left out", entry, value.name),
        f"left out of what is retained: {value.name!r} holds no {wanted}: {error}",
    )


def _sample(array: Array, reader: Reader, bases: list[Any]) -> RetainedRow | None:
    # What plain bases hold together; None if some hold what only foreign code may tell.
    plan = find_plan(array)
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
    # Types are compared and nothing else: whatever a foreign integer does may be foreign code.
    return {*map(type, numbers)} <= _INTEGERS


def _convert(value: Value, column: Sequence[Any]) -> Sequence[Any] | None:
    if not value.histogram:
        return convert_column(column, value.type) if _are_integers(column) else None
    if not _are_integers(chain.from_iterable(column)):
        return None
    return convert_histograms(column, value)


def restore_row(lineage: Sequence[Any], array: Array, row: RetainedRow) -> list[Any]:
    """Add a row to what a source retains, inside a change.

    Args:
        lineage: the source, its parent, and so on to the top.
        array: what the row is of.
        row: the numbers.

    Returns:
        The sources of which the files change by it.
    """
    if not find_plan(array).files:
        return []
    flats = [source._flats.setdefault(array, Flat()) for source in lineage]
    stale = [source for source, flat in zip(lineage, flats, strict=True) if not flat.below]
    record = _find_record(lineage[0], array)
    record.row = add_retained(array, [record.row, row])
    _place(record, lineage)
    return stale


def _mark(fold: Fold, above: Iterable[Any], arrays: Iterable[Array]) -> None:
    for source in above:
        for array in arrays:
            source._flats[array].mark(fold)


def _find_lenders(above: Iterable[Any], array: Array, source: Any) -> Iterator[Retained]:
    for retaining in above:
        flat = retaining._flats.get(array)
        own = None if flat is None or flat.retention is None else flat.retention.own
        if own is not None and source in own.lent:
            yield own
            return


def _find_record(source: Any, array: Array) -> Retained:
    # A new one is not in its place yet.
    retention = source._flats[array].retention
    own = None if retention is None else retention.own
    return own or Retained(source, array)


def _place(record: Retained, lineage: Iterable[Any]) -> None:
    for source in lineage:
        flat = source._flats[record.array]
        if record not in flat.records:
            flat.retain(record)
        if source is record.source:
            flat.retention.own = record
