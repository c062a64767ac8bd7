"""Snapshots: one pass over a subtree, and what it found.

Owns the pass and the decoding of what it copied, which happens only when somebody asks: the pass
costs the tree's lock, decoding costs nobody but the reader.

Threading: a pass is made under the tree's lock, by `Source.snapshot`. A snapshot never changes;
decoding it in two threads at once does the same work twice.
"""

import logging
import operator
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from statsfs.aggregates import clean_integers, convert_column, reduce_column
from statsfs.arrays import Array, Entry, File, make_layout
from statsfs.bases import Reader
from statsfs.flats import Flat
from statsfs.values import Value

__all__ = ["Group", "Row", "Samples", "Sampling", "Snapshot", "Tree"]

log = logging.getLogger(__name__)

Row = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """The sources of a subtree, as they stood.

    Attributes:
        root: the source that was sampled.
        subordinates: each source that has some, and those, hidden ones too; parents come first.
    """

    root: Any
    subordinates: list[tuple[Any, list[Any]]]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """What one reader is to sample, or sampled: entries, their bases, their rows undecoded."""

    array: Array
    reader: Reader
    entries: list[Entry]
    bases: Collection[Any]
    samples: list[Any] = field(default_factory=list)


def _complain(entry: Entry, error: Exception) -> None:
    entry.source.complain(("left out", entry), f"left out of snapshots: {error}")


class Sampling:
    """One pass over a subtree; to be made under the tree's lock, and finished under none.

    Args:
        tree: the subtree's sources.
        flats: its entries.
    """

    def __init__(self, tree: Tree, flats: Mapping[Array, Flat]) -> None:
        self._tree = tree
        self._arrays = list(flats)
        self._declared = [entry for flat in flats.values() for entry in flat.declared or ()]
        groups = [
            Group(array, reader, list(members), members.values())
            for array, flat in flats.items()
            for reader, members in flat.groups.items()
        ]
        self._plain = [group for group in groups if group.reader.plain]
        self._broken: list[tuple[Entry, Exception]] = []
        try:
            self._take(self._plain)
        except Exception:
            # Once more without the broken ones: the others are still of one moment.
            self._plain = [self._mend(group) for group in self._plain]
            try:
                self._take(self._plain)
            except Exception:
                # Another one just broke: what was read one by one has to do.
                log.debug("a snapshot was read one by one", exc_info=True)
        self._moment = time.time_ns()
        self._dynamic = [
            Group(group.array, group.reader, group.entries, list(group.bases))
            for group in groups
            if not group.reader.plain
        ]

    @staticmethod
    def _take(groups: list[Group]) -> None:
        samplers = [group.reader.sample for group in groups]
        bases = [group.bases for group in groups]
        # One C call: nothing else runs in this process until everything is read.
        taken = list(map(list, map(map, samplers, bases)))
        for group, samples in zip(groups, taken, strict=True):
            group.samples[:] = samples

    def _mend(self, group: Group) -> Group:
        # The group without what cannot be sampled.
        sound = Group(group.array, group.reader, [], [])
        bases = []
        for entry, base in zip(group.entries, list(group.bases), strict=True):
            try:
                sample = group.reader.sample(base)
            except Exception as error:
                self._broken.append((entry, error))
            else:
                sound.entries.append(entry)
                sound.samples.append(sample)
                bases.append(base)
        return Group(group.array, group.reader, sound.entries, bases, sound.samples)

    def finish(self) -> "Snapshot":
        """Read the bases that run the user's code, and return all that was found."""
        # One by one, and after the lock: whatever they run may want the tree.
        groups = self._plain + [self._mend(group) for group in self._dynamic]
        for entry, error in self._broken:
            _complain(entry, error)
        by_array: dict[Array, list[Group]] = {array: [] for array in self._arrays}
        for group in groups:
            # A snapshot that somebody keeps must not keep the producers' memory.
            done = Group(group.array, group.reader, group.entries, (), group.samples)
            by_array[group.array].append(done)
        arrays = {
            array.values: Samples(array.values, tuple(found)) for array, found in by_array.items()
        }
        return Snapshot(self._moment, arrays, self._tree, self._declared)


def _convert_rows(rows: list[tuple[Any, ...]], values: Sequence[Value]) -> list[Row] | None:
    # By columns, at C speed; None where something is no int.
    columns: list[Sequence[int]] = []
    for value, column in zip(values, zip(*rows, strict=True), strict=True):
        if not clean_integers(column):
            return None
        try:
            columns.append(convert_column(column, value.type))
        except Exception:  # whatever foreign integers raise when they are compared
            return None
    return list(zip(*columns, strict=True))


def _convert_row(row: tuple[Any, ...], entry: Entry) -> Row | None:
    try:
        numbers = [int(operator.index(item)) for item in row]
    except Exception as error:  # whatever foreign objects raise
        _complain(entry, error)
        return None
    types = (value.type for value in entry.array.values)
    return tuple(type.convert(number) for type, number in zip(types, numbers, strict=True))


@dataclass(frozen=True, eq=False)
class Samples:
    """The rows of one array in a snapshot.

    Attributes:
        values: the array.
        groups: what each reader sampled, undecoded.
    """

    values: tuple[Value, ...]
    groups: tuple[Group, ...]

    @property
    def _decoded(self) -> tuple[list[Entry], list[Row]]:
        # No cached_property: Python 3.11 has one lock for all of a class, and this may run the
        # user's code.
        known: tuple[list[Entry], list[Row]] | None = self.__dict__.get("_known")
        if known is None:
            known = self.__dict__["_known"] = self._decode()
        return known

    def _decode(self) -> tuple[list[Entry], list[Row]]:
        entries: list[Entry] = []
        rows: list[Row] = []
        for group in self.groups:
            raw = group.reader.decode(group.samples)
            converted = _convert_rows(raw, self.values) if raw else []
            if converted is not None:
                entries += group.entries
                rows += converted
                continue
            for entry, row in zip(group.entries, raw, strict=True):
                numbers = _convert_row(row, entry)
                if numbers is not None:
                    entries.append(entry)
                    rows.append(numbers)
        return entries, rows

    @property
    def entries(self) -> list[Entry]:
        """What each row was read from."""
        return self._decoded[0]

    @property
    def sources(self) -> list[Any]:
        """The `Source` of each row; one that has the array over two bases is there twice."""
        return [entry.source for entry in self._decoded[0]]

    @property
    def rows(self) -> list[Row]:
        """One tuple a source, with one integer for each of `values`, converted to its type."""
        return self._decoded[1]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What one uninterrupted pass over a subtree found.

    Attributes:
        moment: when the pass ended, in nanoseconds since the epoch (`time.time_ns`).
        arrays: the `Samples` of each array, by the tuple of its values (`values_of`).
        tree: the sources of the subtree, as they stood.
        declared: the entries that had no base.
    """

    moment: int
    arrays: dict[tuple[Value, ...], Samples]
    tree: Tree
    declared: list[Entry]

    def to_dict(self) -> dict[str, Any]:
        """Return the subtree as nested dictionaries of what its directories show.

        Returns:
            `{"values": {name: int}, "subordinates": {name: {…the same…}}}`, aggregates included,
            all of the snapshot's one moment. Hidden sources have no dictionary, but count.
        """
        directories = {id(self.tree.root): _Directory()}
        for _, subordinates in self.tree.subordinates:
            directories.update((id(source), _Directory()) for source in subordinates)
        # A signal handler's snapshot may meet a change half made, and entries of a source that is
        # just leaving: they go nowhere.
        nowhere = _Directory()
        for entry in self.declared:
            directories.get(id(entry.source), nowhere).declared.append(entry)
        for samples in self.arrays.values():
            for entry, row in zip(samples.entries, samples.rows, strict=True):
                directories.get(id(entry.source), nowhere).own.append((entry, row))
        # Parents come first, so backwards every subordinate is complete when it is needed.
        for source, subordinates in reversed(self.tree.subordinates):
            for subordinate in subordinates:
                directories[id(source)].adopt(subordinate, directories[id(subordinate)])
        return directories[id(self.tree.root)].to_dict()


class _Directory:
    # One directory of `Snapshot.to_dict`: what it has itself, and the rows of all that is below.
    __slots__ = ("below", "declared", "own", "subordinates")

    def __init__(self) -> None:
        self.own: list[tuple[Entry, Row]] = []
        self.declared: list[Entry] = []
        self.below: dict[Array, list[Row]] = {}
        self.subordinates: dict[str, dict[str, Any]] = {}

    def adopt(self, source: Any, directory: "_Directory") -> None:
        for array, rows in directory.subtree().items():
            self.below.setdefault(array, []).extend(rows)
        if not source.hidden:
            self.subordinates[source.name] = directory.to_dict()

    def subtree(self) -> dict[Array, list[Row]]:
        rows = {array: list(found) for array, found in self.below.items()}
        for entry, row in self.own:
            rows.setdefault(entry.array, []).append(row)
        for entry in self.declared:
            rows.setdefault(entry.array, [])
        return rows

    def to_dict(self) -> dict[str, Any]:
        shown = {entry.array: row for entry, row in self.own if not entry.hidden}
        layout = make_layout(
            list(shown),
            [entry.array for entry in self.declared if not entry.hidden],
            self.below,
            self.subordinates.__contains__,
        )
        subtree = self.subtree()
        values = {
            name: _reduce(subtree[file.array], file)
            if file.kind is not None
            else int(shown[file.array][file.index])
            for name, file in layout.files.items()
        }
        return {"values": values, "subordinates": self.subordinates}


def _reduce(rows: list[Row], file: File) -> int:
    assert file.kind is not None
    column = list(map(operator.itemgetter(file.index), rows))
    return reduce_column(column, file.value.type, file.kind)
