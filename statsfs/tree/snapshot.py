"""Snapshots: one pass over a subtree, and what it found.

Owns the pass and the decoding of what it copied, which happens only when somebody asks: the pass
costs the tree's lock, decoding costs nobody but the reader.

Threading: a pass is made under the tree's lock, by `Source.snapshot`. A snapshot never changes;
decoding it in two threads at once does the same work twice.
"""

import logging
import operator
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, Final

from statsfs.model.arrays import Array, Entry
from statsfs.model.columns import clean_integers, convert_column
from statsfs.model.histograms import convert_histograms
from statsfs.model.readers import Reader, convert_number
from statsfs.model.values import Value
from statsfs.tree.index import Flat
from statsfs.tree.refresh import Refresher
from statsfs.tree.retention import Retained, RetainedRow
from statsfs.tree.snapshot_directories import (
    Content,
    Pause,
    Row,
    Tree,
    make_content,
    make_contents,
    no_pause,
)

__all__ = [
    "Group",
    "Pause",
    "Row",
    "Samples",
    "Sampling",
    "Snapshot",
    "no_pause",
    "sample_tree",
]

log = logging.getLogger(__name__)

_CHUNK: Final = 256  # rows that are decoded between two pauses


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """What one reader is to sample, or sampled: entries, their bases, their rows undecoded.

    Attributes:
        parts: what the reader's `parts` gave for all bases, or its `sample` for each.
    """

    array: Array
    reader: Reader
    entries: list[Entry]
    bases: Collection[Any]
    parts: list[list[Any]] = field(default_factory=list)


def _complain(entry: Entry, error: Exception) -> None:
    entry.source.complain(("left out", entry), f"left out of snapshots: {error}")


class Sampling:
    """One pass over a subtree; to be made under the tree's lock, and finished under none.

    Args:
        tree: the subtree's sources.
        tops: the entries below each of its topmost sources, by array.
    """

    def __init__(self, tree: Tree, tops: Iterable[Mapping[Array, Flat]]) -> None:
        self._tree = tree
        flats = [(array, flat) for top in tops for array, flat in top.items()]
        self._arrays = dict.fromkeys(array for array, _ in flats)
        self._declared = [entry for _, flat in flats for entry in flat.declared or ()]
        self._retained = [(record, record.row) for _, flat in flats for record in flat.records]
        groups = [
            Group(array, reader, list(members), members.values())
            for array, flat in flats
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
        parts = [group.reader.parts(group.bases) for group in groups]
        samplers, bases = zip(*chain.from_iterable(parts), strict=True) if parts else ((), ())
        # One C call: nothing else runs in this process until everything is read.
        taken = iter(list(map(list, map(map, samplers, bases))))
        for group, several in zip(groups, parts, strict=True):
            group.parts[:] = islice(taken, len(several))

    def _mend(self, group: Group) -> Group:
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
        return Group(group.array, group.reader, entries, bases, [samples])

    def finish(self) -> "Snapshot":
        """Read the bases that run the user's code, and return all that was found."""
        # One by one, and after the lock: whatever they run may want the tree.
        groups = self._plain + [self._mend(group) for group in self._dynamic]
        for entry, error in self._broken:
            _complain(entry, error)
        by_array: dict[Array, list[Group]] = {array: [] for array in self._arrays}
        for group in groups:
            # A snapshot that somebody keeps must not keep the producers' memory.
            done = Group(group.array, group.reader, group.entries, (), group.parts)
            by_array[group.array].append(done)
        arrays = {
            array.values: Samples(array.values, tuple(found)) for array, found in by_array.items()
        }
        return Snapshot(self._moment, arrays, self._tree, self._declared, self._retained)


def sample_tree(root: Any, lineage: tuple[Any, ...], tops: Sequence[Any]) -> Sampling:
    """Sample subtrees in one pass, under the tree's lock.

    Args:
        root: the one source, or the registry of the sources.
        lineage: the sources from the top to the root; none for a registry.
        tops: the one source, or the sources of the registry.
    """
    subordinates: list[tuple[Any, list[Any]]] = [] if lineage else [(root, list(tops))]
    sources = list(tops)
    has_some = operator.attrgetter("_subordinates")
    for source in filter(has_some, sources):
        below = list((source._subordinates or {}).values())
        subordinates.append((source, below))
        sources += below
    states = zip(sources, map(operator.attrgetter("version", "cached"), sources), strict=True)
    tree = Tree(root, lineage, subordinates, dict(states), _find_unavailable(lineage, tops))
    return Sampling(tree, [source._flats for source in tops])


def _find_unavailable(lineage: Sequence[Any], tops: Sequence[Any]) -> frozenset[Any]:
    if not Refresher.made:
        return frozenset()
    above = [source.refresher for source in lineage if source.refresher is not None]
    below = chain.from_iterable(source.refreshers or () for source in tops)
    return frozenset(one.source for one in chain(above, below) if one.failure is not None)


def _convert_column(value: Value, column: Sequence[Any]) -> Sequence[Any] | None:
    # At C speed; None where something is no int.
    if value.histogram:
        return convert_histograms(column, value)
    if not clean_integers(column):
        return None
    try:
        return convert_column(column, value.type)
    except Exception:  # whatever foreign integers raise when they are compared
        return None


def _convert_rows(rows: list[Row], values: Sequence[Value]) -> list[Row] | None:
    columns = list(zip(*rows, strict=True))
    converted = list(map(_convert_column, values, columns))
    if None in converted:
        return None
    # Nearly always nothing had to be converted.
    same = all(map(operator.is_, columns, converted))
    return rows if same else list(zip(*converted, strict=True))


def _convert_row(row: Row, entry: Entry) -> Row | None:
    try:
        return tuple(map(convert_number, entry.array.values, row))
    except Exception as error:  # whatever foreign objects raise
        _complain(entry, error)
        return None


@dataclass(frozen=True, eq=False)
class Samples:
    """The rows of one array in a snapshot.

    Attributes:
        values: the array.
        groups: what each reader sampled, undecoded.
    """

    values: tuple[Value, ...]
    groups: tuple[Group, ...]

    def decode(self, pause: Pause = no_pause) -> tuple[list[Entry], list[Row]]:
        """Decode what was sampled, if it is not yet; return `entries` and `rows`.

        Args:
            pause: called every few hundred rows.
        """
        # No cached_property: Python 3.11 has one lock for all of a class, and this may run the
        # user's code.
        known: tuple[list[Entry], list[Row]] | None = self.__dict__.get("_known")
        if known is not None:
            return known
        entries: list[Entry] = []
        rows: list[Row] = []
        for group in self.groups:
            for start in range(0, len(group.entries), _CHUNK):
                chunk = slice(start, start + _CHUNK)
                raw = group.reader.decode([part[chunk] for part in group.parts])
                _decode_rows(group.entries[chunk], raw, entries, rows)
                pause()
        known = self.__dict__["_known"] = (entries, rows)
        return known

    @property
    def entries(self) -> list[Entry]:
        """What each row was read from."""
        return self.decode()[0]

    @property
    def sources(self) -> list[Any]:
        """The `Source` of each row; one that has the array over two bases is there twice."""
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
    # Adds to `entries` and `rows` what is sound of some entries of one array.
    converted = _convert_rows(raw, found[0].array.values)
    if converted is not None:
        entries += found
        rows += converted
        return
    for entry, row in zip(found, raw, strict=True):
        numbers = _convert_row(row, entry)
        if numbers is not None:
            entries.append(entry)
            rows.append(numbers)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What one uninterrupted pass over a subtree found.

    Attributes:
        moment: when the pass ended, in nanoseconds since the epoch (`time.time_ns`).
        arrays: the `Samples` of each array, by the tuple of its values (`values_of`).
        tree: the sources, as they stood.
        declared: the entries that had no base.
        retained: what sources retained, and how much that was.
    """

    moment: int
    arrays: dict[tuple[Value, ...], Samples]
    tree: Tree
    declared: list[Entry]
    retained: list[tuple[Retained, RetainedRow]]

    def decode(self, pause: Pause = no_pause) -> None:
        """Decode all that was sampled, which otherwise happens when it is first looked at.

        Args:
            pause: called every few hundred rows.
        """
        for samples in self.arrays.values():
            samples.decode(pause)

    def contents(self, pause: Pause = no_pause) -> Content:
        """Return what the directory of the root shows, with all that is below.

        Args:
            pause: called every few hundred rows.
        """
        return make_contents(self.tree, self.declared, self._rows(pause), pause, self.retained)

    def content(self, pause: Pause = no_pause) -> Content:
        """Return what the directory of the root shows, itself alone; the root is a source.

        Args:
            pause: called every few hundred rows.
        """
        return make_content(self.tree, self.declared, self._rows(pause), pause, self.retained)

    def _rows(self, pause: Pause) -> list[tuple[list[Entry], list[Row]]]:
        return [samples.decode(pause) for samples in self.arrays.values()]

    def to_dict(self) -> dict[str, Any]:
        """Return the subtree as nested dictionaries of what its directories show.

        Returns:
            `{"values": {name: int}, "subordinates": {name: {…the same…}}}`, aggregates included,
            all of the snapshot's one moment; a histogram is a list. Hidden sources have no
            dictionary, but count.
        """
        root = self.contents()
        whole = _to_dict(root)
        pending = [(root, whole)]
        for content, shown in pending:
            for child in content.subordinates:
                below = shown["subordinates"][child.source.name] = _to_dict(child)
                pending.append((child, below))
        return whole


def _to_dict(content: Content) -> dict[str, Any]:
    values = {
        file.name: list(map(int, number)) if file.value.histogram else int(number)
        for file, number in content.files()
    }
    return {"values": values, "subordinates": {}}
