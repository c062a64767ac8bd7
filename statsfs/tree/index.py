"""The index: all bases of one array in a subtree, kept by its root.

Each source keeps, for each array that is anywhere in its subtree, one dictionary of entries for
each way of reading them. A total is one C call over its values, however deep the tree is.

Threading: changed under the tree's lock, and read without it. A total of which something is
retained is read under it: what leaves is in the total of every moment, and never twice.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any
from weakref import ref

from statsfs.exceptions import ReadOnlyValueError, UnavailableError
from statsfs.model.arrays import Array, File
from statsfs.model.columns import reduce_column, wrap_sum
from statsfs.model.foreign import foreign
from statsfs.model.histograms import add_buckets
from statsfs.model.readers import Reader, convert_number
from statsfs.model.values import Aggregate, Type, Value
from statsfs.tree.lock import TreeChange, apply_change, is_changing, lock_tree, number_changes
from statsfs.tree.rows import add_numbers, convert_items

if TYPE_CHECKING:
    from statsfs.tree.retained import Retained
    from statsfs.tree.source import Source

__all__ = [
    "ArrayIndex",
    "ClearRecorder",
    "Entry",
    "Key",
    "Part",
    "list_entries",
    "make_index",
    "merge_indexes",
    "record_clear",
    "reduce_parts",
]

log = logging.getLogger(__name__)

_WIDE = (Type.U64, Type.S64)

Key = tuple[Array, str | int]


@dataclass(slots=True, weakref_slot=True, eq=False, repr=False)
class Entry:
    """An array of one source over one base.

    Attributes:
        base: what to give the reader; None once revoked or released.
        origin: the object that the producer gave, which `base` may be a view of; once revoked a
            weak reference to it, or its id where there is none.
        hidden: counted above, but not shown.
        revoked: had a base; the array may be added again, and then this entry goes.
        silent: its numbers are unknown for now: the source shows none, totals have the last ones.
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
    silent: bool = False
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

    def revoke(self, hidden: bool = False) -> "Entry":
        """Return what stays of it without the base, and without its names here if hidden."""
        try:
            origin: object = ref(self.origin)
        except TypeError:
            origin = id(self.origin)
        hidden = hidden or self.hidden
        return Entry(self.source, self.array, None, None, origin, hidden, revoked=True)

    def check_known(self, file: File) -> None:
        """Raise UnavailableError if the number of an own value is unknown for now."""
        if self.silent:
            text = f"{self.source.path}: {file.name!r} is unavailable: the last sync() lacks it"
            raise UnavailableError(text, self.source)

    def had(self, origin: object) -> bool:
        """Tell whether a revoked entry had the base that a producer gives."""
        known = self.origin() if isinstance(self.origin, ref) else self.origin
        return known is origin or known == id(origin)

    def drop(self, change: TreeChange) -> None:
        """Drop the base, as a step of a change."""
        change.drop(self, "base")
        change.drop(self, "origin")


_Found = tuple[Reader, Entry, Any, int]  # the last is the place of a value in its array
_Held = tuple[Entry, Any]


@dataclass(slots=True, eq=False, repr=False)
class ArrayIndex:
    """All entries of one array in a subtree.

    Attributes:
        groups: by reader, the base of each entry.
        declared: the entries without a base.
        records: what is retained, by the source and those in its subtree; None until something is.
        own: what the source itself retains, one of `records`.
    """

    array: Array
    groups: dict[Reader, dict[Entry, Any]] = field(default_factory=dict)
    declared: dict[Entry, None] | None = None
    records: "dict[Retained, None] | None" = None
    own: "Retained | None" = None

    def __len__(self) -> int:
        # Copied in one call: without the lock, a change may come between two.
        entries = sum(map(len, list(self.groups.values())))
        return entries + len(self.declared or ()) + len(self.records or ())

    def copy(self) -> "ArrayIndex":
        """Return an index with the same entries and records, for a directory above."""
        groups = {reader: members.copy() for reader, members in self.groups.items()}
        declared = self.declared.copy() if self.declared else None
        return ArrayIndex(self.array, groups, declared, self.records and self.records.copy())

    def merge(self, other: "ArrayIndex") -> None:
        """Add what another index has, at once: this one is in no directory yet."""
        for reader, members in other.groups.items():
            self.groups.setdefault(reader, {}).update(members)
        if other.declared:
            self.declared = {**(self.declared or {}), **other.declared}
        if other.records:
            self.records = {**(self.records or {}), **other.records}

    # Changing: each adds steps to a change. An empty dictionary is no change, and made at once.

    def add(self, change: TreeChange, entry: Entry) -> None:
        """Add one entry."""
        if entry.reader is None:
            self._update_declared(change, {entry: None})
        else:
            self._update_group(change, entry.reader, {entry: entry.base})

    def update(self, change: TreeChange, other: "ArrayIndex") -> None:
        """Add all entries and records of a subordinate's index."""
        for reader, members in other.groups.items():
            self._update_group(change, reader, members)
        if other.declared:
            self._update_declared(change, other.declared)
        for record in other.records or ():
            self.retain(change, record)

    def _update_group(
        self, change: TreeChange, reader: Reader, members: Mapping[Entry, Any]
    ) -> None:
        change.do(self.groups.setdefault(reader, {}).update, members)

    def _update_declared(self, change: TreeChange, entries: Mapping[Entry, None]) -> None:
        if self.declared is None:
            self.declared = {}
        change.do(self.declared.update, entries)

    def subtract(
        self, change: TreeChange, other: "ArrayIndex", coming: "ArrayIndex | None" = None
    ) -> None:
        """Remove all entries and records of a subordinate's index; `coming` is then added."""
        for reader, leaving in other.groups.items():
            # An empty group may be left of a change that a signal handler ended.
            members = self.groups.get(reader)
            stays = coming is not None and reader in coming.groups
            if members is not None and len(members) == len(leaving) and not stays:
                change.do(self.groups.pop, reader)
                change.garbage.append(members)
            else:
                _remove(change, members, leaving)
        if other.declared:
            _remove(change, self.declared, other.declared)
        if other.records:
            _remove(change, self.records, other.records)

    def retain(self, change: TreeChange, record: "Retained") -> None:
        """Add what a source retains, this one or one in its subtree."""
        if self.records is None:
            self.records = {}
        change.do(self.records.__setitem__, record, None)

    def clear(
        self,
        index: int,
        told: dict[Callable[[], object] | None, None],
        check: Callable[[Entry], object] = id,
    ) -> list[tuple[Entry, ReadOnlyValueError]]:
        """Write 0 into every base, and forget what is retained; return what refused, and why.

        Args:
            index: the place of the value in the array.
            told: gets the `cleared` of each source that was cleared, None too.
            check: raises ReadOnlyValueError for an entry that is not to be cleared.
        """
        refused = []
        for reader, entry, base, _ in list(list_entries([(self, index)])):
            try:
                check(entry)
                reader.clear(base, index)
            except ReadOnlyValueError as error:
                refused.append((entry, error))
            else:
                told[entry.source._cleared] = None
        # A change may have read a base before it was cleared, and retain it afterwards.
        if self.records is not None or is_changing():
            apply_change(lambda change: self._clear_retained(change, index))
            for record in list(self.records or ()):
                if any(file.index == index for file in record.array.retained):
                    told[record.source._cleared] = None
        return refused

    def _clear_retained(self, change: TreeChange, index: int) -> None:
        for record in self.records or ():
            record.clear(change, index)


def make_index(entry: Entry) -> ArrayIndex:
    """Return an index of one entry that has a base."""
    assert entry.reader is not None
    return ArrayIndex(entry.array, {entry.reader: {entry: entry.base}})


def merge_indexes(
    indexes: Sequence[Mapping[Array, ArrayIndex]],
) -> Mapping[Array, ArrayIndex]:
    """Return one index for each array of several sources; those of one source are not copied."""
    if len(indexes) == 1:
        return indexes[0]
    merged: dict[Array, ArrayIndex] = {}
    for one in indexes:
        for array, index in one.items():
            mine = merged.get(array)
            if mine is None:
                mine = merged[array] = ArrayIndex(array)
            mine.merge(index)
    return merged


def _remove(change: TreeChange, things: dict[Any, Any] | None, leaving: Any) -> None:
    if leaving:
        assert things is not None
        # In C: what has gone already, as a record that was folded, is left alone.
        change.do(deque, map(things.pop, leaving, repeat(None)), 0)


Part = tuple[ArrayIndex, int]
"""An index, and the place of a value in its array."""

ClearRecorder = Callable[[Sequence[Part], Callable[[], object]], object]
"""Records a clear: it is called with the parts to clear and the function that clears them."""


def record_clear(parts: Sequence[Part], clear: Callable[[], object]) -> None:
    """Clear some parts by calling `clear`, through each recorder of their sources once."""
    found = dict.fromkeys([entry.source._recorder for _, entry, _, _ in list_entries(parts)])
    for index, _ in parts:
        found |= dict.fromkeys([one.source._recorder for one in list(index.records or ())])
    for recorder in found:
        clear = clear if recorder is None else partial(recorder, parts, clear)
    clear()


def reduce_parts(file: File, parts: Sequence[Part]) -> tuple[Any, Entry | None]:
    """Compute one aggregate; return it, and an entry that it leaves out as its base is broken."""
    if not _is_retained(file, parts):
        (numbers,) = number_changes
        number, broken = _reduce_living(file, parts)
        # Something may have left for the first time meanwhile, or numbers came with a change.
        if number_changes[0] is numbers and not _is_retained(file, parts):
            return _combine(file, number, []), broken
    return _reduce_locked(file, parts)


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
    except foreign():
        # A base among thousands is broken.
        log.debug("aggregate %r: reading one by one", file.name, exc_info=True)
    return _reduce_each(_read_each(list_entries(parts)), file)


def _reduce_locked(file: File, parts: Sequence[Part]) -> tuple[Any, Entry | None]:
    taken = lock_tree(lambda: _take(parts))
    if taken is not None:
        column, retained = taken
        try:
            return _combine(file, _reduce_column(column, file), retained), None
        except foreign():
            log.debug("aggregate %r: reading one by one", file.name, exc_info=True)
    held, later, retained = lock_tree(lambda: _take_each(parts))
    number, broken = _reduce_each([*held, *_read_each(later)], file)
    return _combine(file, number, retained), broken


def _take(parts: Sequence[Part]) -> tuple[list[Any], list[Any]] | None:
    # What the bases hold, and what is retained, while nothing leaves. None where some bases have to
    # be read outside of the lock, or one by one.
    column: list[Any] = []
    retained: list[Any] = []
    for index, place in parts:
        # Copied: a signal handler may change the tree here.
        for reader, members in index.groups.copy().items():
            if not reader.plain:
                return None
            try:
                column += reader.column(members.values(), place)
            except foreign():
                return None
        retained += [record.row[place] for record in list(index.records or ())]
    return column, retained


def _take_each(parts: Sequence[Part]) -> tuple[list[_Held], list[_Found], list[Any]]:
    # The same one by one: what plain bases hold, the entries of others, and what is retained.
    found: list[_Found] = []
    retained: list[Any] = []
    for index, place in parts:
        found += list_entries([(index, place)])
        retained += [record.row[place] for record in list(index.records or ())]
    held = list(_read_each([one for one in found if one[0].plain]))
    return held, [one for one in found if not one[0].plain], retained


def _bases(parts: Sequence[Part]) -> Iterator[tuple[Reader, list[Any], int]]:
    # Copying is one C call each; without it, a change made meanwhile (a property may let other
    # threads in) would resize the dictionary under the iterator. `list(….items())` would not do: it
    # makes tuples, for which Python 3.11 may collect garbage and run finalizers.
    for index, place in parts:
        for reader, members in index.groups.copy().items():
            yield reader, list(members.values()), place


def list_entries(parts: Sequence[Part]) -> Iterator[_Found]:
    """Yield all bases of some parts, with their readers and entries, one by one."""
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
        except foreign():
            held = None
        yield entry, list.copy(held) if held.__class__ is list else held


def _reduce_each(held: Iterable[_Held], file: File) -> tuple[Any, Entry | None]:
    # One by one, without the broken ones, of which the first is returned.
    column, broken = [], None
    for entry, number in held:
        try:
            column.append(convert_number(file.value, number))
        except foreign():
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
    if not retained or not file.retained:
        return file.value.zero if number is None else number
    numbers = [one for one in (number, *retained) if one is not None]
    return add_numbers(file.value, numbers) if numbers else file.value.zero
