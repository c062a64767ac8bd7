"""Flat collections: all bases of one array below a source, its own included.

Owns what makes reading independent of the depth of the tree: each source keeps, for each array, one
dictionary of entries for each way of reading them, so that a total is one C call over its values.

Threading: changed under the tree's lock only; read without it, by copying a dictionary's values in
one C call.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

from statsfs.aggregates import clean_integers, convert_column, reduce_column, wrap_sum
from statsfs.arrays import Entry, File
from statsfs.exceptions import ReadOnlyValueError
from statsfs.histograms import add_buckets, convert_histograms
from statsfs.readers import Reader, convert_number
from statsfs.values import Aggregate, Type

__all__ = ["Flat"]

log = logging.getLogger(__name__)

_WIDE = (Type.U64, Type.S64)


class Flat:
    """All entries of one array in a subtree.

    Attributes:
        groups: by reader, the base of each entry.
        declared: the entries without a base.
        below: how many entries are those of subordinates, and not the source's own.
    """

    __slots__ = ("below", "declared", "groups")

    def __init__(self) -> None:
        self.groups: dict[Reader, dict[Entry, Any]] = {}
        self.declared: dict[Entry, None] | None = None
        self.below = 0

    def __len__(self) -> int:
        return sum(map(len, self.groups.values())) + len(self.declared or ())

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
        self.below += len(other)

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
        self.below -= len(other)

    def reduce(self, file: File) -> tuple[Any, Entry | None]:
        """Compute one aggregate, without a lock.

        Returns:
            The aggregate, a list for a histogram, and None or an entry that it leaves out, whose
            base holds no integer.
        """
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
                    return reduce_column(convert_column(column, type), type, file.kind), None
        except Exception:
            # Something among thousands is broken; find out what, one by one.
            log.debug("aggregate %r: reading one by one", file.name, exc_info=True)
        return self._reduce_slowly(file)

    def _bases(self) -> Iterator[tuple[Reader, list[Any]]]:
        # Copying is one C call each; without it, a change made meanwhile (a property may let other
        # threads in) would resize the dictionary under the iterator. `list(….items())` would not
        # do: it makes tuples, for which Python 3.11 may collect garbage and run finalizers.
        for reader, members in self.groups.copy().items():
            yield reader, list(members.values())

    def _entries(self) -> Iterator[tuple[Reader, Entry, Any]]:
        # The same, one by one and with the entries.
        for reader, members in self.groups.copy().items():
            for entry, base in members.copy().items():
                yield reader, entry, base

    def _reduce_slowly(self, file: File) -> tuple[Any, Entry | None]:
        assert file.kind is not None
        column, broken = [], None
        for reader, entry, base in self._entries():
            try:
                column.append(convert_number(file.value, reader.read(base, file.index)))
            except Exception:
                broken = broken or entry
        if file.value.histogram:
            return add_buckets(column, file.value), broken
        return reduce_column(column, file.value.type, file.kind), broken

    def clear(
        self, index: int
    ) -> tuple[list[tuple[Entry, ReadOnlyValueError]], dict[Callable[[], object], None]]:
        """Write 0 into every base.

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
        return refused, told
