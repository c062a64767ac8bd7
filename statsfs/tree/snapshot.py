"""Snapshots: one pass over a subtree, and what it found.

The pass runs under the tree's lock. Its copy is decoded when it is used, under no lock.
`snapshot_directories` works out what the directories show.

Threading: the pass is made under the tree's lock. A snapshot never changes; decoding it in two
threads at once does the same work twice.
"""

import logging
import operator
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, compress, islice
from typing import TYPE_CHECKING, Any, Final

from statsfs.model.arrays import Array
from statsfs.model.layout import Layout
from statsfs.model.readers import Reader, convert_number
from statsfs.model.values import Aggregate, Value
from statsfs.tree.index import ArrayIndex, Entry
from statsfs.tree.lock import lock_tree
from statsfs.tree.pauses import pause
from statsfs.tree.refresh import Refresher
from statsfs.tree.retention import Retained
from statsfs.tree.rows import RetainedRow, Row, convert_rows, find_kinds
from statsfs.tree.snapshot_directories import SnapshotDirectory, make_directories, make_directory

if TYPE_CHECKING:
    from statsfs.tree.directory import Directory
    from statsfs.tree.registry import Registry
    from statsfs.tree.source import Source

__all__ = ["Samples", "Snapshot", "take_snapshot"]

log = logging.getLogger(__name__)

_CHUNK: Final = 256  # rows that are decoded between two pauses


@dataclass(slots=True, eq=False)
class _Group:
    # What one reader is to sample, or sampled: entries, their bases, and what the reader's `parts`
    # gave for all bases, or its `sample` for each, undecoded.
    array: Array
    reader: Reader
    entries: list[Entry]
    bases: Collection[Any]
    parts: list[list[Any]] = field(default_factory=list)


def _complain(entry: Entry, error: Exception) -> None:
    entry.source._directory.complain(("left out", entry), f"left out of snapshots: {error}")


class _Pass:
    # One pass over indexes; made under the tree's lock, and finished under none.

    def __init__(self, indexes: Sequence[Mapping[Array, ArrayIndex]]) -> None:
        found = [pair for arrays in indexes for pair in arrays.items()]
        self.arrays = dict.fromkeys(array for array, _ in found)
        self.declared = [entry for _, index in found for entry in index.declared or ()]
        self.retained = [(one, one.row) for _, index in found for one in index.records or ()]
        groups = [
            _Group(array, reader, list(members), members.values())
            for array, index in found
            for reader, members in index.groups.items()
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
                # Another base just broke: the rows that were read one by one have to do.
                log.debug("a snapshot was read one by one", exc_info=True)
        self.moment = time.time_ns()
        self._dynamic = [
            _Group(group.array, group.reader, group.entries, list(group.bases))
            for group in groups
            if not group.reader.plain
        ]

    @staticmethod
    def _take(groups: list[_Group]) -> None:
        parts = [group.reader.parts(group.bases) for group in groups]
        samplers, bases = zip(*chain.from_iterable(parts), strict=True) if parts else ((), ())
        # One C call: nothing else runs in this process until everything is read.
        taken = iter(list(map(list, map(map, samplers, bases))))
        for group, several in zip(groups, parts, strict=True):
            group.parts = list(islice(taken, len(several)))

    def _mend(self, group: _Group) -> _Group:
        # The group without what cannot be sampled.
        entries, bases, samples = [], [], []
        for entry, base in zip(group.entries, list(group.bases), strict=True):
            try:
                sample = group.reader.sample(base)
            except Exception as error:
                self._broken.append((entry, error))
            else:
                entries.append(entry)
                bases.append(base)
                samples.append(sample)
        return _Group(group.array, group.reader, entries, bases, [samples])

    def finish(self) -> "dict[tuple[Value, ...], Samples]":
        # Reads the bases that run a user's code, one by one and after the lock: that code may use
        # the tree. Returns all that was found.
        groups = self._plain + [self._mend(group) for group in self._dynamic]
        for entry, error in self._broken:
            _complain(entry, error)
        samples = {array: Samples(array) for array in self.arrays}
        for group in groups:
            # A kept snapshot must not keep the producers' memory.
            group.bases = ()
            samples[group.array]._groups.append(group)
        return {array.values: found for array, found in samples.items()}


class Samples:
    """The rows of one array in a snapshot.

    Attributes:
        array, values: the array.
    """

    __slots__ = ("_decoded", "_groups", "array", "values")

    def __init__(self, array: Array) -> None:
        self.array = array
        self.values = array.values
        self._groups: list[_Group] = []
        self._decoded: tuple[list[Entry], list[Row]] | None = None

    def decode(self) -> tuple[list[Entry], list[Row]]:
        """Decode what was sampled, if it is not yet; return `entries` and `rows`."""
        if self._decoded is None:
            entries: list[Entry] = []
            rows: list[Row] = []
            for group in self._groups:
                for start in range(0, len(group.entries), _CHUNK):
                    chunk = slice(start, start + _CHUNK)
                    raw = group.reader.decode([part[chunk] for part in group.parts])
                    _decode_rows(group.entries[chunk], raw, entries, rows)
                    pause()
            self._decoded = (entries, rows)
        return self._decoded

    @property
    def entries(self) -> list[Entry]:
        """What each row was read from."""
        return self.decode()[0]

    @property
    def sources(self) -> "list[Source]":
        """The source of each row; one that has the array over two bases is there twice."""
        return [entry.source for entry in self.decode()[0]]

    @property
    def rows(self) -> list[Row]:
        """One tuple a source, with one item for each of `values`, converted to its type.

        An item is an integer, or a list of integers for a histogram.
        """
        return self.decode()[1]


def _decode_rows(
    found: Sequence[Entry], raw: list[Row], entries: list[Entry], rows: list[Row]
) -> None:
    # Adds the rows of some entries of one array to `entries` and `rows`, without the broken ones.
    values = found[0].array.values
    converted = convert_rows(raw, values)
    if converted is not None:
        entries += found
        rows += converted
        return
    for entry, row in zip(found, raw, strict=True):
        try:
            rows.append(tuple(map(convert_number, values, row)))
        except Exception as error:  # whatever foreign objects raise
            _complain(entry, error)
        else:
            entries.append(entry)


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """What one uninterrupted pass over a subtree found.

    Attributes:
        moment: when the pass ended, in nanoseconds since the epoch (`time.time_ns`).
        arrays: the `Samples` of each array, by the tuple of its values (`values_of`).
        root: the source, or the registry, that was sampled.
        lineage: the sources from the top-level one to the root; none for a registry.
        subordinates: each source that has some, and those, hidden ones too; parents come first.
        states: the version and the cached layout of each source.
        unavailable: the sources whose refresh failed; their subtrees have no numbers either.
        declared: the entries that had no base.
        retained: what sources retained, and how much that was.
        kinds: which aggregates the totals of each array have.
    """

    moment: int
    arrays: dict[tuple[Value, ...], Samples]
    root: "Source | Registry"
    lineage: "tuple[Source, ...]"
    subordinates: "list[tuple[Source | Registry, list[Source]]]"
    states: "Mapping[Source, tuple[int, tuple[int, Layout] | None]]"
    unavailable: "frozenset[Source]"
    declared: list[Entry]
    retained: list[tuple[Retained, RetainedRow]]
    kinds: dict[Array, Aggregate]

    def find_silent(self) -> "set[Source | Registry]":
        """Return all sources that have no numbers: a refresh of them, or above them, failed."""
        silent: set[Source | Registry] = set(self.unavailable)
        if not silent.isdisjoint(self.lineage):
            silent.add(self.root)
        for parent, subordinates in self.subordinates if silent else ():
            if parent in silent:
                silent.update(subordinates)
        return silent

    def directories(self) -> SnapshotDirectory:
        """Return what the directory of the root shows, with all in its subtree."""
        return make_directories(self)

    def directory(self) -> SnapshotDirectory:
        """Return what the directory of the root shows, itself alone; the root is a source."""
        return make_directory(self)

    def decoded(self) -> list[tuple[list[Entry], list[Row]]]:
        """Decode all that was sampled; return the entries and rows of each array."""
        return [samples.decode() for samples in self.arrays.values()]

    def to_dict(self) -> dict[str, Any]:
        """Return the subtree as nested dictionaries of what its directories show.

        Returns:
            `{"values": {name: int}, "subordinates": {name: {…the same…}}}`, aggregates included,
            all of the snapshot's one moment; a histogram is a list. Hidden sources have no
            dictionary, but count.
        """
        root = self.directories()
        whole = _to_dict(root)
        pending = [(root, whole)]
        for directory, shown in pending:
            for child in directory.subordinates:
                below = shown["subordinates"][child.source.name] = _to_dict(child)
                pending.append((child, below))
        return whole


def _to_dict(directory: SnapshotDirectory) -> dict[str, Any]:
    values = {
        file.name: list(map(int, number)) if file.value.histogram else int(number)
        for file, number in directory.files()
    }
    return {"values": values, "subordinates": {}}


# In C: thousands of sources are looked at under the lock.
_directory_of: Final = operator.attrgetter("_directory")
_subordinates_of: Final = operator.attrgetter("subordinates")
_state_of: Final = operator.attrgetter("version", "cached")


def take_snapshot(
    root: "Source | Registry",
    find_tops: "Callable[[], tuple[tuple[Source, ...], Sequence[Source]]]",
) -> Snapshot:
    """Sample subtrees in one pass.

    Args:
        root: the source, or the registry.
        find_tops: called under the lock; returns the sources from the top to the root (none for a
            registry), and the topmost sources to be sampled.
    """

    def take() -> tuple[_Pass, dict[str, Any]]:
        lineage, tops = find_tops()
        subordinates: list[tuple[Source | Registry, list[Source]]] = []
        if not lineage:
            subordinates.append((root, list(tops)))
        sources: list[Source] = []
        directories: list[Directory] = []
        level = list(tops)
        while level:
            here = list(map(_directory_of, level))
            inner = list(compress(level, map(_subordinates_of, here)))
            sources += level
            directories += here
            level = []
            for source in inner:
                below = list(source._directory.subordinates.values())
                subordinates.append((source, below))
                level += below
        states = map(_state_of, directories)
        tree = {
            "root": root,
            "lineage": lineage,
            "subordinates": subordinates,
            "states": dict(zip(sources, states, strict=True)),
            "unavailable": _find_unavailable(lineage, tops),
        }
        return _Pass([top._directory.index for top in tops]), tree

    done, tree = lock_tree(take)
    arrays = done.finish()
    return Snapshot(
        done.moment,
        arrays,
        **tree,
        declared=done.declared,
        retained=done.retained,
        kinds=find_kinds(done.arrays),
    )


def _find_unavailable(lineage: "Sequence[Source]", tops: "Sequence[Source]") -> "frozenset[Source]":
    if not Refresher.made:
        return frozenset()
    found = [source._directory.refresher for source in lineage]
    found += chain.from_iterable(source._directory.refreshers or () for source in tops)
    return frozenset(one.source for one in found if one is not None and one.failure is not None)
