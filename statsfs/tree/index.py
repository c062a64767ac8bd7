"""The index: all bases of one array in a subtree, kept by its root.

Each source keeps, for each array that is anywhere in its subtree, one dictionary of entries for
each way of reading them. A total is one C call over its values, however deep the tree is.

Threading: changed under the tree's lock, and read without it. A total of which something is
retained is read under it: what leaves is in the total of every moment, and never twice.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from statsfs.exceptions import ReadOnlyValueError
from statsfs.model.arrays import Array, File
from statsfs.model.columns import reduce_column, wrap_sum
from statsfs.model.histograms import add_buckets
from statsfs.model.readers import Reader, convert_number
from statsfs.model.values import Aggregate, Type, Value
from statsfs.tree.lock import apply_change, lock_tree
from statsfs.tree.rows import RetainedRow, add_numbers, convert_items

if TYPE_CHECKING:
    from statsfs.tree.retention import Retained
    from statsfs.tree.source import Source

__all__ = ["ArrayIndex", "Entry", "Fold", "Key", "Part", "reduce_parts", "set_fold"]

log = logging.getLogger(__name__)

_WIDE = (Type.U64, Type.S64)

Key = tuple[Array, str | int]


@dataclass(slots=True, eq=False, repr=False)
class Entry:
    """An array of one source over one base.

    Attributes:
        base: what to give the reader; None once revoked or released.
        origin: the object that the producer gave, which `base` may be a view of.
        hidden: counted above, but not shown.
        revoked: had a base; the array may be added again, and then this entry goes.
        key: unique in its source: the array, and "own" for what the source shows, "declared" for
            base None, or a number.
    """

    source: "Source"
    array: Array
    reader: Reader | None
    base: Any
    origin: Any
    hidden: bool
    revoked: bool = False
    key: Key = field(init=False)

    def __post_init__(self) -> None:
        if self.revoked:
            self.key = (self.array, id(self))
        elif self.reader is None:
            self.key = (self.array, "declared")
        else:
            self.key = (self.array, id(self.origin) if self.hidden else "own")

    @property
    def declared(self) -> bool:
        """Whether it has no base, or has lost it: only the names of its aggregates."""
        return self.reader is None


@dataclass(slots=True)
class Fold:
    """A change that turns entries into what is retained, or back; there is one at a time.

    Readers in other threads wait for the lock. A signal handler in this thread cannot; it finds
    here what a total is made of: of what does not leave, and of `after`.

    Attributes:
        leaving: the indexes that leave or come, by array.
        after: by array, where it is retained and what is retained there then; None until it is
            known, as long as everything is in its old place.
    """

    leaving: "Mapping[Array, ArrayIndex]"
    after: "dict[Array, tuple[Retained, RetainedRow]] | None" = None


_fold: Fold | None = None  # the one being made


def set_fold(fold: Fold | None) -> None:
    """Note that a fold is being made, or that it is over."""
    global _fold
    _fold = fold


_Found = tuple[Reader, Entry, Any, int]  # the last is the place of a value in its array
_Held = tuple[Entry, Any]


@dataclass(slots=True, eq=False, repr=False)
class ArrayIndex:
    """All entries of one array in a subtree.

    Attributes:
        groups: by reader, the base of each entry.
        declared: the entries without a base.
        below: how many entries are subordinates', and not the source's own; each record counts as
            one.
        records: what is retained, by the source and those in its subtree; None until something is.
        own: what the source itself retains, one of `records`.
    """

    array: Array
    groups: dict[Reader, dict[Entry, Any]] = field(default_factory=dict)
    declared: dict[Entry, None] | None = None
    below: int = 0
    records: "dict[Retained, None] | None" = None
    own: "Retained | None" = None

    def __len__(self) -> int:
        entries = sum(map(len, self.groups.values())) + len(self.declared or ())
        return entries + len(self.records or ())

    # Changing, under the lock

    def add(self, entry: Entry) -> None:
        """Add one entry."""
        if entry.reader is not None:
            self.groups.setdefault(entry.reader, {})[entry] = entry.base
            return
        if self.declared is None:
            self.declared = {}
        self.declared[entry] = None

    def discard(self, entry: Entry) -> None:
        """Remove one entry."""
        if entry.reader is None:
            assert self.declared is not None
            del self.declared[entry]
            return
        members = self.groups[entry.reader]
        del members[entry]
        if not members:
            del self.groups[entry.reader]

    def update(self, other: "ArrayIndex") -> None:
        """Add all entries of a subordinate's index."""
        for reader, members in other.groups.items():
            self.groups.setdefault(reader, {}).update(members)
        if other.declared:
            self.declared = {**(self.declared or {}), **other.declared}
        for record in other.records or ():
            self.retain(record)
        self.below += len(other) - len(other.records or ())

    def subtract(self, other: "ArrayIndex") -> None:
        """Remove all entries of a subordinate's index."""
        for reader, leaving in other.groups.items():
            members = self.groups[reader]
            for entry in leaving:
                del members[entry]
            if not members:
                del self.groups[reader]
        for entry in other.declared or ():
            assert self.declared is not None
            del self.declared[entry]
        for record in other.records or ():
            assert self.records is not None
            del self.records[record]
        self.below -= len(other)

    def retain(self, record: "Retained") -> None:
        """Add what a source retains, this one or one in its subtree."""
        if self.records is None:
            self.records = {}
        self.records[record] = None
        self.below += 1

    def clear(
        self, index: int, told: dict[Callable[[], object] | None, None]
    ) -> list[tuple[Entry, ReadOnlyValueError]]:
        """Write 0 into every base, and forget what is retained; return what refused, and why.

        Args:
            index: the place of the value in the array.
            told: gets the `cleared` of each source that was cleared, None too.
        """
        refused = []
        for reader, entry, base, _ in list(_entries([(self, index)])):
            try:
                reader.clear(base, index)
            except ReadOnlyValueError as error:
                refused.append((entry, error))
            else:
                told[entry.source._cleared] = None
        # A fold may have read a base before it was cleared, and retain it afterwards.
        if self.records is not None or _fold is not None:
            apply_change(lambda change: self._clear_retained(index))
            for record in list(self.records or ()):
                if any(file.index == index for file in record.array.retained):
                    told[record.source._cleared] = None
        return refused

    def _clear_retained(self, index: int) -> None:
        for record in self.records or ():
            record.clear(index)


Part = tuple[ArrayIndex, int]
"""An index, and the place of a value in its array."""


def reduce_parts(file: File, parts: Sequence[Part]) -> tuple[Any, Entry | None]:
    """Compute one aggregate; return it, and an entry that it leaves out as its base is broken."""
    if not _is_retained(file, parts):
        number, broken = _reduce_living(file, parts)
        # Something may have left for the first time meanwhile.
        if not _is_retained(file, parts):
            return _combine(file, number, []), broken
    return _reduce_retaining(file, parts)


def _is_retained(file: File, parts: Sequence[Part]) -> bool:
    return file.retained and any(index.records is not None for index, _ in parts)


def _reduce_living(file: File, parts: Sequence[Part]) -> tuple[Any, Entry | None]:
    # Without what is retained. Of nothing it is 0 or None.
    try:
        if file.kind is Aggregate.SUM and _is_wide(file.value):
            total = sum([reader.total(bases, place) for reader, bases, place in _bases(parts)])
            if total.__class__ is int:
                return wrap_sum(total, file.value.type), None
        else:
            column: list[Any] = []
            for reader, bases, place in _bases(parts):
                column += reader.column(bases, place)
            return _reduce_column(column, file), None
    except Exception:
        # A base among thousands is broken.
        log.debug("aggregate %r: reading one by one", file.name, exc_info=True)
    return _reduce_each(_read_each(_entries(parts)), file)


def _reduce_retaining(file: File, parts: Sequence[Part]) -> tuple[Any, Entry | None]:
    taken = lock_tree(lambda: _take(parts))
    if taken is not None:
        column, retained = taken
        try:
            return _combine(file, _reduce_column(column, file), retained), None
        except Exception:
            log.debug("aggregate %r: reading one by one", file.name, exc_info=True)
    held, later, retained = lock_tree(lambda: _take_each(parts))
    number, broken = _reduce_each([*held, *_read_each(later)], file)
    return _combine(file, number, retained), broken


def _take(parts: Sequence[Part]) -> tuple[list[Any], list[Any]] | None:
    # What the bases hold, and what is retained, while nothing leaves. None where some bases have to
    # be read outside of the lock, or one by one, or a fold was interrupted by this.
    column: list[Any] = []
    retained: list[Any] = []
    if _fold is not None:
        return None
    for index, place in parts:
        for reader, members in index.groups.items():
            if not reader.plain:
                return None
            try:
                column += reader.column(members.values(), place)
            except Exception:
                return None
        retained += [record.row[place] for record in index.records or ()]
    return column, retained


def _take_each(parts: Sequence[Part]) -> tuple[list[_Held], list[_Found], list[Any]]:
    # The same one by one: what plain bases hold, the entries of others, and what is retained.
    found: list[_Found] = []
    retained: list[Any] = []
    for index, place in parts:
        entries = list(_entries([(index, place)]))
        rows = {record: record.row for record in index.records or ()}
        array = index.array
        if _fold is not None and _fold.after is not None and array in _fold.after:
            leaving = _fold.leaving[array]
            entries = [one for one in entries if one[1] not in leaving.groups.get(one[0], ())]
            record, row = _fold.after[array]
            rows = {one: held for one, held in rows.items() if one not in (leaving.records or ())}
            rows[record] = row
        found += entries
        retained += [row[place] for row in rows.values()]
    held = list(_read_each([one for one in found if one[0].plain]))
    return held, [one for one in found if not one[0].plain], retained


def _bases(parts: Sequence[Part]) -> Iterator[tuple[Reader, list[Any], int]]:
    # Copying is one C call each; without it, a change made meanwhile (a property may let other
    # threads in) would resize the dictionary under the iterator. `list(….items())` would not do: it
    # makes tuples, for which Python 3.11 may collect garbage and run finalizers.
    for index, place in parts:
        for reader, members in index.groups.copy().items():
            yield reader, list(members.values()), place


def _entries(parts: Sequence[Part]) -> Iterator[_Found]:
    # The same, one by one and with the entries.
    for index, place in parts:
        for reader, members in index.groups.copy().items():
            for entry, base in members.copy().items():
                yield reader, entry, base, place


def _is_wide(value: Value) -> bool:
    # Modulo 2^64 the addends need no conversion before the sum.
    return value.type in _WIDE and not value.histogram


def _read_each(found: Iterable[_Found]) -> Iterator[_Held]:
    # A broken base holds None.
    for reader, entry, base, place in found:
        try:
            held = reader.read(base, place)
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
    return _reduce(column, file), broken


def _reduce_column(column: Sequence[Any], file: File) -> Any:
    # At C speed. It raises where something is not an integer.
    if file.kind is Aggregate.SUM and _is_wide(file.value):
        total = sum(column)
        if total.__class__ is int:
            return wrap_sum(total, file.value.type)
    elif (converted := convert_items(file.value, column)) is not None:
        return _reduce(converted, file)
    raise TypeError(f"{file.name!r}: not only integers")


def _reduce(column: Sequence[Any], file: File) -> Any:
    if not column:
        return None
    if file.value.histogram:
        return add_buckets(column, file.value)
    assert file.kind is not None
    return reduce_column(column, file.value.type, file.kind)


def _combine(file: File, number: Any, retained: list[Any]) -> Any:
    if not retained:
        return file.value.zero if number is None else number
    numbers = [one for one in (number, *retained) if one is not None]
    return add_numbers(file.value, numbers) if numbers else file.value.zero
