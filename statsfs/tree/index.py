"""Flat collections: all bases of one array below a source, its own included.

Owns what makes reading independent of the depth of the tree: each source keeps, for each array, one
dictionary of entries for each way of reading them, so that a total is one C call over its values.

Threading: changed under the tree's lock only; read without it, by copying a dictionary's values in
one C call. What leaves to a source that retains is in the total of every moment, and never twice:
who read while it left reads again.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from statsfs.exceptions import ReadOnlyValueError
from statsfs.model.arrays import Entry, File
from statsfs.model.columns import clean_integers, convert_column, reduce_column, wrap_sum
from statsfs.model.histograms import add_buckets, convert_histograms
from statsfs.model.readers import Reader, convert_number
from statsfs.model.values import Aggregate, Type
from statsfs.tree.lock import Operation, apply_change, count_under_lock, lock_tree
from statsfs.tree.retention import Fold, Retained, Retention, add_numbers, find_plan, is_kept

__all__ = ["Flat"]

log = logging.getLogger(__name__)

_WIDE = (Type.U64, Type.S64)

# How often a total is read without the lock, where what leaves meets each time.
_TRIES = 3

_Found = tuple[Reader, Entry, Any]
_Held = tuple[Entry, Any]


class Flat:
    """All entries of one array in a subtree.

    Attributes:
        groups: by reader, the base of each entry.
        declared: the entries without a base.
        below: how many entries are those of subordinates, and not the source's own; what is
            retained, here or below, counts as some.
        retention: what is retained; None until something is.
    """

    __slots__ = ("below", "declared", "groups", "retention")

    def __init__(self) -> None:
        self.groups: dict[Reader, dict[Entry, Any]] = {}
        self.declared: dict[Entry, None] | None = None
        self.below = 0
        self.retention: Retention | None = None

    def __len__(self) -> int:
        entries = sum(map(len, self.groups.values())) + len(self.declared or ())
        return entries + len(self.records)

    @property
    def records(self) -> Collection[Retained]:
        """What is retained, here and below."""
        return () if self.retention is None else self.retention.records

    def add(self, entry: Entry) -> None:
        """Add one entry."""
        if entry.reader is not None:
            self.groups.setdefault(entry.reader, {})[entry] = entry.base
            return
        if self.declared is None:
            self.declared = {}
        self.declared[entry] = None

    def discard(self, entry: Entry) -> None:
        """Remove one entry that is there."""
        if entry.reader is None:
            assert self.declared is not None
            del self.declared[entry]
            return
        members = self.groups[entry.reader]
        del members[entry]
        if not members:
            del self.groups[entry.reader]

    def update(self, other: "Flat") -> None:
        """Add all entries of a subordinate's collection."""
        for reader, members in other.groups.items():
            self.groups.setdefault(reader, {}).update(members)
        if other.declared:
            self.declared = {**(self.declared or {}), **other.declared}
        for record in other.records:
            self.retain(record)
        self.below += len(other) - len(other.records)

    def subtract(self, other: "Flat") -> None:
        """Remove all entries of a subordinate's collection."""
        for reader, leaving in other.groups.items():
            members = self.groups[reader]
            for entry in leaving:
                del members[entry]
            if not members:
                del self.groups[reader]
        for entry in other.declared or ():
            assert self.declared is not None
            del self.declared[entry]
        for record in other.records:
            assert self.retention is not None
            del self.retention.records[record]
        self.below -= len(other)

    def holds(self, entry: Entry) -> bool:
        """Tell whether an entry with a base is there."""
        return entry.reader is not None and entry in self.groups.get(entry.reader, ())

    def retain(self, record: Retained) -> None:
        """Add what a source retains, this one or one below."""
        if self.retention is None:
            self.retention = Retention()
        self.retention.records[record] = None
        self.below += 1

    def mark(self, fold: Fold) -> None:
        """Have readers wait until a fold is over."""
        if self.retention is None:
            self.retention = Retention()
        self.retention.fold = fold

    def reduce(self, file: File) -> tuple[Any, Entry | None]:
        """Compute one aggregate, without a lock.

        Returns:
            The aggregate, a list for a histogram, and None or an entry that it leaves out, whose
            base holds no integer.
        """
        # Where nothing was ever retained, two looks are all it costs.
        if self.retention is None:
            number, broken = self._reduce_living(file)
            if self.retention is None:
                return file.value.zero if number is None else number, broken
        return self._reduce_retaining(file)

    def _reduce_living(self, file: File) -> tuple[Any, Entry | None]:
        # Without what is retained. Of nothing it is None.
        assert file.kind is not None
        type = file.value.type
        try:
            if file.value.histogram:
                held = [
                    list
                    for reader, bases in self._bases()
                    for list in reader.column(bases, file.index)
                ]
                histograms = convert_histograms(held, file.value)
                if histograms is not None:
                    return add_buckets(histograms, file.value), None
            elif file.kind is Aggregate.SUM and type in _WIDE:
                # Modulo 2^64 it is all the same whether the parts are converted before the sum.
                total = sum(reader.total(bases, file.index) for reader, bases in self._bases())
                if total.__class__ is int:
                    return wrap_sum(total, type), None
            else:
                column: list[int] = []
                for reader, bases in self._bases():
                    column += reader.column(bases, file.index)
                if clean_integers(column):
                    return _reduce(convert_column(column, type), file), None
        except Exception:
            # Something among thousands is broken; find out what, one by one.
            log.debug("aggregate %r: reading one by one", file.name, exc_info=True)
        return _reduce_each(_read_each(self._entries(), file), file)

    def _reduce_retaining(self, file: File) -> tuple[Any, Entry | None]:
        retention = self.retention
        assert retention is not None
        for _ in range(_TRIES):
            fold = retention.fold
            if fold is None or fold.done:
                number, broken = self._reduce_living(file)
                retained = retention.numbers(file.index) if is_kept(file) else []
                if retention.fold is fold:
                    return _add_up(file, number, retained), broken
            # Whoever folds has the lock.
            count_under_lock(_do_nothing)
        found, later, retained = lock_tree(lambda: self._read_still(file, retention))
        number, broken = _reduce_each([*found, *_read_each(later, file)], file)
        return _add_up(file, number, retained if is_kept(file) else []), broken

    def _read_still(
        self, file: File, retention: Retention
    ) -> tuple[list[_Held], list[_Found], list[Any]]:
        # While nothing leaves, or by a signal handler that came in the middle of that: what plain
        # bases hold, the entries of others, and what is retained.
        entries = list(self._entries())
        rows = {record: record.row for record in self.records}
        fold = retention.fold
        if fold is not None and fold.after is not None:
            leaving = fold.leaving[file.array]
            entries = [found for found in entries if not leaving.holds(found[1])]
            record, row = fold.after[file.array]
            rows = {one: held for one, held in rows.items() if one not in leaving.records}
            rows[record] = row
        found = _read_each([found for found in entries if found[0].plain], file)
        later = [found for found in entries if not found[0].plain]
        numbers = [row[file.index] for row in rows.values()]
        return list(found), later, [number for number in numbers if number is not None]

    def _bases(self) -> Iterator[tuple[Reader, list[Any]]]:
        # Copying is one C call each; without it, a change made meanwhile (a property may let other
        # threads in) would resize the dictionary under the iterator. `list(….items())` would not
        # do: it makes tuples, for which Python 3.11 may collect garbage and run finalizers.
        for reader, members in self.groups.copy().items():
            yield reader, list(members.values())

    def _entries(self) -> Iterator[_Found]:
        # The same, one by one and with the entries.
        for reader, members in self.groups.copy().items():
            for entry, base in members.copy().items():
                yield reader, entry, base

    def clear(
        self, index: int
    ) -> tuple[list[tuple[Entry, ReadOnlyValueError]], dict[Callable[[], object], None]]:
        """Write 0 into every base, and forget what is retained.

        Returns:
            Those that refused, and why; and whom the sources of the others want to be told.
        """
        refused = []
        told: dict[Callable[[], object], None] = {}
        for reader, entry, base in self._entries():
            try:
                reader.clear(base, index)
            except ReadOnlyValueError as error:
                refused.append((entry, error))
            else:
                if entry.source.cleared is not None:
                    told[entry.source.cleared] = None
        # Not only where something is retained: what leaves for the first time may be on its way.
        if self.retention is not None:
            self._clear_retained(index, told)
        return refused, told

    def _clear_retained(self, index: int, told: dict[Callable[[], object], None]) -> None:
        # After the bases: what was read of one before it was cleared has been retained by now.
        def clear(operation: Operation) -> None:
            for record in self.records:
                record.clear(index)

        apply_change(clear)
        for record in list(self.records):
            kept = any(file.index == index for file in find_plan(record.array).files)
            if kept and record.source.cleared is not None:
                told[record.source.cleared] = None


def _do_nothing() -> None:
    """While nobody else has the lock."""


def _read_each(found: Iterable[_Found], file: File) -> Iterator[_Held]:
    # What is broken holds None.
    for reader, entry, base in found:
        try:
            held = reader.read(base, file.index)
        except Exception:
            held = None
        yield entry, list.copy(held) if held.__class__ is list else held


def _reduce_each(held: Iterable[_Held], file: File) -> tuple[Any, Entry | None]:
    # One by one, without the broken ones, of which the first is returned.
    column, broken = [], None
    for entry, number in held:
        try:
            column.append(convert_number(file.value, number))
        except Exception:
            broken = broken or entry
    if file.value.histogram:
        return add_buckets(column, file.value), broken
    return _reduce(column, file), broken


def _reduce(column: Sequence[int], file: File) -> int | None:
    assert file.kind is not None
    return reduce_column(column, file.value.type, file.kind) if column else None


def _add_up(file: File, number: Any, retained: list[Any]) -> Any:
    if not retained:
        return file.value.zero if number is None else number
    return add_numbers(file.value, retained if number is None else [number, *retained])
