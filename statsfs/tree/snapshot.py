"""Snapshots: one pass over a subtree, and what it found.

Threading: the pass is made under the tree's lock. Its copy is decoded when it is used, under no
lock; decoding it in two threads at once does the same work twice.
"""

import logging
import operator
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final

from statsfs.model.arrays import Array
from statsfs.model.foreign import describe_error, foreign
from statsfs.model.layout import Layout
from statsfs.model.readers import Reader, convert_number
from statsfs.model.values import Value
from statsfs.tree.index import Entry
from statsfs.tree.lineage import find_lineage
from statsfs.tree.lock import Listening, lock_tree
from statsfs.tree.pauses import pause
from statsfs.tree.references import check
from statsfs.tree.refresh import Refresher
from statsfs.tree.retained import Retained
from statsfs.tree.rows import RetainedRow, Row, convert_rows
from statsfs.tree.snapshot_directories import SnapshotDirectory, make_directories

if TYPE_CHECKING:
    from statsfs.tree.registry import Registry
    from statsfs.tree.source import Source

    _Subordinates = list[tuple[Source | Registry, list[Source]]]
    _States = Mapping[Source, tuple[int, tuple[int, Layout] | None]]

__all__ = ["Samples", "Snapshot", "take_snapshot"]

log = logging.getLogger(__name__)

_CHUNK: Final = 256  # rows that are decoded between two pauses
_WIDE: Final = 12_000  # and numbers


@dataclass(slots=True, eq=False)
class _Group:
    # What one reader is to sample, or sampled: entries, their bases, and what the reader's `parts`
    # gave for all bases, or its `sample` for each, undecoded.
    array: Array
    reader: Reader
    entries: list[Entry]
    bases: Collection[Any]
    parts: list[list[Any]] = field(default_factory=list)


_Broken = list[tuple[Entry, BaseException]]


def _complain(entry: Entry, error: BaseException) -> None:
    message = f"left out of snapshots: {describe_error(error)}"
    entry.source._directory.complain(("left out", entry), message)


def _sample_plain(groups: list[_Group], broken: _Broken) -> list[_Group]:
    try:
        _sample_at_once(groups)
    except foreign():
        # Once more without the broken ones: the others are still of one moment.
        groups = [_sample_each(group, broken) for group in groups]
        try:
            _sample_at_once(groups)
        except foreign():
            # Another base just broke: the rows that were read one by one have to do.
            log.debug("a snapshot was read one by one", exc_info=True)
    return groups


def _sample_at_once(groups: list[_Group]) -> None:
    parts = [group.reader.parts(group.bases) for group in groups]
    samplers, bases = zip(*chain.from_iterable(parts), strict=True) if parts else ((), ())
    # One C call: nothing else runs in this process until everything is read.
    taken = iter(list(map(list, map(map, samplers, bases))))
    for group, several in zip(groups, parts, strict=True):
        group.parts = list(islice(taken, len(several)))


def _sample_each(group: _Group, broken: _Broken) -> _Group:
    # Returns the group without what cannot be sampled.
    entries, bases, samples = [], [], []
    for entry, base in zip(group.entries, list(group.bases), strict=True):
        try:
            sample = group.reader.sample(base)
        except foreign() as error:
            broken.append((entry, error))
        else:
            entries.append(entry)
            bases.append(base)
            samples.append(sample)
    return _Group(group.array, group.reader, entries, bases, [samples])


class Samples:
    """The rows of one array in a snapshot, and its values.

    >>> app, values = Source("app"), (Value("jobs"), Value("errors"))
    >>> app.add_values(values, {"jobs": 5, "errors": 1})
    >>> samples = app.snapshot().arrays[values]
    >>> samples.rows
    [(5, 1)]
    >>> [source.name for source in samples.sources]
    ['app']
    >>> [value.name for value in samples.values]
    ['jobs', 'errors']
    """

    __slots__ = ("_decoded", "_groups", "array", "values")

    def __init__(self, array: Array) -> None:
        self.array = array
        self.values = array.values
        self._groups: list[_Group] = []
        self._decoded: tuple[list[Entry], list[Row]] | None = None

    def decode(self) -> tuple[list[Entry], list[Row]]:
        """Return `entries` and rows; they are decoded once. Others have the rows' lists, too."""
        if self._decoded is None:
            entries: list[Entry] = []
            rows: list[Row] = []
            most = max(1, min(_CHUNK, _WIDE // self.array.size))
            for group in self._groups:
                for start in range(0, len(group.entries), most):
                    chunk = slice(start, start + most)
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
        rows = self.decode()[1]
        if any(value.histogram for value in self.values):
            return [tuple(list(n) if isinstance(n, list) else n for n in row) for row in rows]
        return rows


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
            rows.append(tuple([convert_number(*pair) for pair in zip(values, row, strict=True)]))
        except foreign() as error:  # whatever foreign objects raise
            _complain(entry, error)
        else:
            entries.append(entry)


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """What one uninterrupted pass over a subtree found.

    >>> class WorkerStats(Stats):
    ...     jobs = counter("Jobs done")
    >>> app = Source("app")
    >>> app.add_values(WorkerStats, WorkerStats(jobs=5))
    >>> snapshot = app.snapshot()
    >>> snapshot.arrays[values_of(WorkerStats)].rows
    [(5,)]

    Attributes:
        moment: when the pass ended, in nanoseconds since the epoch (`time.time_ns`).
        arrays: the `Samples` of each array, by the tuple of its values (`values_of`).
        root: the source, or the registry, that was sampled.
        lineage: the sources from the top-level one to the root; none for a registry.
        subordinates: each source that has some, and those, hidden ones too; parents come first.
        states: the version and the cached layout of each source.
        unavailable: the sources whose refresh failed; their subtrees have no numbers either.
        tops: the top-level sources, or the root, and the arrays that are in the subtree of each.
        declared: the entries that had no base.
        retained: what sources retained, and how much that was.
        prefix: that of the registry, or None.
    """

    moment: int
    arrays: dict[tuple[Value, ...], Samples]
    root: "Source | Registry"
    lineage: "tuple[Source, ...]"
    subordinates: "_Subordinates"
    states: "_States"
    unavailable: "frozenset[Source]"
    tops: "dict[Source, list[Array]]"
    declared: list[Entry]
    retained: list[tuple[Retained, RetainedRow]]
    prefix: str | None

    def find_silent(self) -> "set[Source | Registry]":
        """Return all sources that have no numbers: a refresh of them, or above them, failed."""
        silent: set[Source | Registry] = set(self.unavailable)
        if not silent.isdisjoint(self.lineage):
            silent.add(self.root)
        for parent, subordinates in self.subordinates if silent else ():
            if parent in silent:
                silent.update(subordinates)
        return silent

    def decoded(self) -> list[tuple[list[Entry], list[Row]]]:
        """Decode all that was sampled; return the entries and rows of each array."""
        return [samples.decode() for samples in self.arrays.values()]

    def to_dict(self) -> dict[str, Any]:
        """Return the subtree as nested dictionaries of what its directories show.

        >>> app, worker = Source("app"), Source("worker3")
        >>> worker.add_values([Value("jobs", aggregate=Aggregate.SUM)], {"jobs": 5})
        >>> app.add_subordinate(worker)
        >>> app.snapshot().to_dict()["values"]
        {'jobs': 5}
        >>> app.snapshot().to_dict()["subordinates"]
        {'worker3': {'values': {'jobs': 5}, 'subordinates': {}}}

        Returns:
            `{"values": {name: int}, "subordinates": {name: {…the same…}}}`, aggregates included,
            all of the snapshot's one moment; a histogram is a list. Hidden sources have no
            dictionary, but count.
        """
        root = make_directories(self)
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
_subordinates_of: Final = operator.attrgetter("_directory.subordinates")
_state_of: Final = operator.attrgetter("version", "cached")


def take_snapshot(root: "Source | Registry") -> Snapshot:
    """Sample a subtree in one pass; the errors are those of `Source.snapshot`."""
    broken: _Broken = []
    snapshot, groups = lock_tree(lambda: _pass(root, broken))
    for group in groups:
        # These bases run a user's code, which may use the tree: they are read under no lock.
        done = group if group.reader.plain else _sample_each(group, broken)
        # A kept snapshot must not keep the producers' memory.
        done.bases = ()
        snapshot.arrays[done.array.values]._groups.append(done)
    for entry, error in broken:
        _complain(entry, error)
    return snapshot


def _pass(root: "Source | Registry", broken: _Broken) -> tuple[Snapshot, list[_Group]]:
    # Returns a snapshot without numbers, and those of plain bases; other bases are not read yet.
    lineage: tuple[Source, ...] = ()
    registry: Registry | Source | None
    if isinstance(root, Listening):
        registry, tops = root, root.sources
    else:
        check(root)
        lineage, tops = tuple(reversed(find_lineage(root))), (root,)
        registry = lineage[0].parent
    subordinates, states = _walk(tops)
    if not lineage:
        subordinates.insert(0, (root, list(tops)))
    unavailable = _find_unavailable(lineage, tops)
    found = [pair for top in tops for pair in top._directory.index.items()]
    declared = [entry for _, index in found for entry in list(index.declared or ())]
    retained = [(record, record.row) for _, index in found for record in list(index.records or ())]
    groups = [
        _Group(array, reader, list(members), members.values())
        for array, index in found
        for reader, members in index.groups.copy().items()
    ]
    plain = _sample_plain([group for group in groups if group.reader.plain], broken)
    moment = time.time_ns()
    dynamic = [group for group in groups if not group.reader.plain]
    for group in dynamic:
        group.bases = list(group.bases)
    arrays = {array.values: Samples(array) for array, _ in found}
    snapshot = Snapshot(
        moment,
        arrays,
        root,
        lineage,
        subordinates,
        states,
        unavailable,
        {top: list(top._directory.index) for top in tops},
        declared,
        retained,
        registry.prefix if isinstance(registry, Listening) else None,
    )
    return snapshot, plain + dynamic


def _walk(tops: "Sequence[Source]") -> "tuple[_Subordinates, _States]":
    subordinates: _Subordinates = []
    sources = list(tops)
    for source in filter(_subordinates_of, sources):
        below = list(source._directory.subordinates.values())
        subordinates.append((source, below))
        sources += below
    states = map(_state_of, map(_directory_of, sources))
    return subordinates, dict(zip(sources, states, strict=True))


def _find_unavailable(lineage: "Sequence[Source]", tops: "Sequence[Source]") -> "frozenset[Source]":
    if not Refresher.made:
        return frozenset()
    found = [source._directory.refresher for source in lineage]
    found += chain.from_iterable(source._directory.refreshers or () for source in tops)
    return frozenset(one.source for one in found if one is not None and one.failure is not None)
