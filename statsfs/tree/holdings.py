"""Holdings: what a source has: arrays over bases, and what it retains.

Owns where a source is, adding and revoking bases, and rows that are retained. What is in a base is
the business of `bases`, and the tree that of `sources`.

Threading: changed under the lock of `changes`, from any thread.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, Self

from statsfs.exceptions import BaseMismatchError, DuplicateNameError
from statsfs.model.arrays import Array, Entry, intern_array
from statsfs.model.stats import Stats, values_of
from statsfs.model.values import Value
from statsfs.tree.folds import Folding, find_retaining, make_folding, restore_row
from statsfs.tree.index import Flat
from statsfs.tree.lock import Listening, Operation, apply_change, count_under_lock
from statsfs.tree.references import Counted
from statsfs.tree.retention import check_row, fill_row

__all__ = ["Holder", "note_files", "registry_of"]


class Holder(Counted):
    """Who has arrays and a place in the tree; `Source` is the one subclass.

    Args:
        retain: whether it keeps what others below it have counted when they leave.

    Attributes:
        place: the number of its stay under its parent, 0 without one.
        placed, changed: when it got there, and when its files last changed, in nanoseconds.
    """

    __slots__ = ("_parent", "changed", "place", "placed", "retain")

    def __init__(self, retain: bool) -> None:
        super().__init__()
        self.retain: Final = retain
        self._parent: Any = None
        self.place = 0
        self.placed = self.changed = time.time_ns()

    def _lineage(self) -> Iterator[Self]:
        # This source, its parent, and so on to the top.
        source: Any = self
        while source is not None and not isinstance(source, Listening):
            yield source
            source = source._parent

    # Values

    def add_values(
        self,
        values: type[Stats] | Sequence[Value],
        base: object,
        *,
        hidden: bool = False,
    ) -> None:
        """Show an array of values that are held by a base.

        Args:
            values: a `Stats` class, or any sequence of `Value`s; equal arrays belong together.
            base: where the integers are: a writable buffer if the values have offsets, else a
                mapping read by key or anything else read by attribute; None declares the
                aggregates of the values here and above, before any base of theirs is there.
            hidden: no files here, but counted above.

        Raises:
            BaseMismatchError: the base lacks a value, or is not of the sort the values want.
            DuplicateNameError: a name is twice in the array, or the source shows the array already,
                or has it over the same base.
            ReleasedError: the source was released.
            TypeError, ValueError: `values` is no array.
        """
        self.check()
        try:
            array = intern_array(values_of(values) if isinstance(values, type) else values)
            reader, bound = (None, None) if base is None else array.binder.bind(base)
        except (BaseMismatchError, DuplicateNameError) as error:
            raise type(error)(f"{self.path}: {error}", error.offender) from error
        entry = Entry(self, array, reader, bound, base, hidden)

        def add(operation: Operation) -> None:
            self.check()
            self._check_entry(entry)
            revoked = self._find_revoked(entry) if self._revoked else []
            stale = self._add_entry(entry)
            for old in revoked:
                self._remove_entry(old, operation)
            note_files(operation, list(self._lineage()), stale)

        apply_change(add)

    def _check_entry(self, entry: Entry) -> None:
        shown = self._entries.get((entry.array, "own"))
        hidden = self._entries.get((entry.array, id(entry.origin)))
        if hidden is not None or (shown is not None and shown.origin is entry.origin):
            how = "over the same base"
        elif entry.key in self._entries:
            how = "over base None" if entry.declared else "and would be shown twice"
        else:
            return
        name = entry.array.values[0].name
        raise DuplicateNameError(
            f"{self.path}: the array of {name!r} is there already, {how}", entry.array.values
        )

    def _find_revoked(self, entry: Entry) -> list[Entry]:
        # Whose place the entry takes. A hidden base shows nothing in the place of what was shown.
        return [
            old
            for old in self._entries.values()
            if old.revoked and old.array is entry.array and (old.hidden or not entry.hidden)
        ]

    def _add_entry(self, entry: Entry) -> list[Self]:
        # Returns the sources of which the files change by it.
        self._entries[entry.key] = entry
        self._revoked += entry.revoked
        stale = []
        for source in self._lineage():
            flat = source._flats.get(entry.array)
            if flat is None:
                flat = source._flats[entry.array] = Flat()
            if source is self or not flat.below:
                stale.append(source)
            flat.below += source is not self
            flat.add(entry)
            source.version += source is self or flat.below == 1
        return stale

    def _remove_entry(self, entry: Entry, operation: Operation) -> None:
        # Only ever done where another entry of the array takes its place, so no file goes.
        del self._entries[entry.key]
        self._revoked -= entry.revoked
        operation.garbage.append((entry.base, entry.origin))
        for source in self._lineage():
            flat = source._flats[entry.array]
            flat.discard(entry)
            flat.below -= source is not self
        self.version += 1

    def revoke(self) -> None:
        """Drop the bases of this source alone, as when their memory goes away.

        Its arrays stay as if their base were None: names here and above remain, and read 0. Open
        files read 0. An array may be added again.

        Raises:
            ReleasedError: it was released.
        """

        def drop(operation: Operation, folding: Folding) -> None:
            self.check()
            lineage = list(self._lineage())
            leaving: dict[Array, Flat] = {}
            for entry in self._entries.values():
                if not entry.declared:
                    leaving.setdefault(entry.array, Flat()).add(entry)
            # What it drops itself it does not retain: only who is above.
            folding.take_out(find_retaining(lineage[1:]), leaving, lambda: self._drop(operation))
            note_files(operation, lineage, [self])

        make_folding(drop)

    def _drop(self, operation: Operation) -> None:
        for entry in [entry for entry in self._entries.values() if not entry.declared]:
            kept = Entry(self, entry.array, None, None, None, entry.hidden, revoked=True)
            # First the new, then the old: no ancestor ever lacks the array in between.
            self._add_entry(kept)
            self._remove_entry(entry, operation)
            entry.base = entry.origin = None

    # What it retains

    @property
    def retained(self) -> dict[tuple[Value, ...], tuple[Any, ...]]:
        """What it has kept of subordinates that left, by array.

        A row has for each value a sum, a peak or buckets, and 0 where nothing is retained.

        Raises:
            ReleasedError: it was released.
        """

        def collect() -> list[tuple[tuple[Value, ...], tuple[Any, ...]]]:
            self.check()
            retentions = [flat.retention for flat in self._flats.values()]
            records = [one.own for one in retentions if one is not None and one.own is not None]
            return [(one.array.values, fill_row(one.array, one.row)) for one in records]

        return dict(count_under_lock(collect))

    def restore(self, values: type[Stats] | Sequence[Value], row: Sequence[Any]) -> None:
        """Add to what it retains, as if a subordinate had left that counted so much.

        Args:
            values: an array, as for `add_values`.
            row: as `retained` has it; only what is retained is taken of it, and no PEAK of 0.

        Raises:
            ValueError: the source does not retain, or the row is of another length.
            TypeError: something in the row is no number.
            ReleasedError: it was released.
        """
        self.check()
        if not self.retain:
            raise ValueError(f"{self.path} does not retain")
        array = intern_array(values_of(values) if isinstance(values, type) else values)
        found = check_row(array, row)

        def add(operation: Operation) -> None:
            self.check()
            lineage = list(self._lineage())
            stale = restore_row(lineage, array, found)
            for source in stale:
                source.version += 1
            note_files(operation, lineage, stale)

        apply_change(add)


def registry_of(lineage: Sequence[Holder]) -> Listening | None:
    """Return what a source is registered in, if anything; to be told of its changes.

    Args:
        lineage: the source, its parent, and so on to the top.
    """
    top = lineage[-1]._parent
    return top if isinstance(top, Listening) else None


def note_files(operation: Operation, lineage: Sequence[Holder], stale: Sequence[Holder]) -> None:
    """Note which sources of a lineage do not show the files that they did."""
    registry = registry_of(lineage)
    for source in stale:
        source.changed = time.time_ns()
        operation.touch(registry, source.place)
