"""What the directories of a snapshot show: their files, numbers and totals.

Only what was sampled is used, as the tree may have changed since.

Threading: pure, except that a layout that had to be worked out is kept for the next reader.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from statsfs.model.arrays import Array, File
from statsfs.model.layout import Layout, make_layout
from statsfs.tree.index import Entry
from statsfs.tree.pauses import take_slowly
from statsfs.tree.rows import Addends, RetainedRow, Row, Totals, TotalsPlan, add_totals, find_plans

if TYPE_CHECKING:
    from statsfs.tree.registry import Registry
    from statsfs.tree.snapshot import Snapshot
    from statsfs.tree.source import Source

__all__ = ["SnapshotDirectory", "make_directories", "make_directory"]

# Thousands of directories are leaves, which share these: making an empty list for each would take
# longer than all else. Nothing is ever added to them.
_NONE: Final[list[Any]] = []
_NO_TOTALS: Final[Mapping[Array, Totals]] = {}
_NO_FILES: Final = make_layout((), (), (), bool)


class SnapshotDirectory:
    """What one directory shows.

    Attributes:
        source: the source; the `Registry` for the root of a mount.
        layout: which files it shows.
        own: the rows that the source itself shows.
        declared: the arrays that it shows with base None.
        totals: the aggregates of each array; a leaf has none, its rows go to the parent's addends.
        subordinates: the visible subdirectories.
    """

    __slots__ = (
        "_addends",
        "_leaf",
        "_silent",
        "declared",
        "layout",
        "own",
        "source",
        "subordinates",
        "totals",
    )

    def __init__(
        self, source: "Source | Registry", addends: defaultdict[Array, Addends] | None = None
    ) -> None:
        self.source: Any = source
        self.layout = _NO_FILES
        self.own: dict[Array, Row] = {}
        self._silent = False
        self._leaf = addends is not None
        self._addends = defaultdict(Addends) if addends is None else addends
        self.declared: list[Array] = _NONE if self._leaf else []
        self.totals = _NO_TOTALS
        self.subordinates: list[SnapshotDirectory] = _NONE if self._leaf else []

    def number(self, file: File) -> Any:
        """Return the number of a file; None if its base was broken, or a refresh failed."""
        if self._silent:
            return None
        if file.kind is None:
            row = self.own.get(file.array)
            return None if row is None else row[file.index]
        covered = self.layout.covered.get(file)
        if covered is None:
            totals = self.totals.get(file.array)
            return file.value.zero if totals is None else totals.value(file, file.index)
        found = [(self.totals.get(array), place) for array, place in covered]
        return add_totals(file, [(totals, place) for totals, place in found if totals is not None])

    def files(self) -> Iterator[tuple[File, Any]]:
        """Return each file that has a number, and the number."""
        for file in self.layout.files.values():
            number = self.number(file)
            if number is not None:
                yield file, number

    # Making it: first subordinates are placed, then rows are added, then totals from the bottom up

    def place(self, source: "Source", leaf: bool) -> "SnapshotDirectory":
        """Add and return the directory of a subordinate."""
        child = SnapshotDirectory(source, self._addends if leaf else None)
        if not source.hidden:
            self.subordinates.append(child)
        return child

    def add(self, entry: Entry, row: Row) -> None:
        """Add what was sampled of one base of the source."""
        if not (entry.hidden or entry.silent):
            self.own[entry.array] = row
        addends = self._addends[entry.array]
        addends.rows.append(row)
        if self._leaf:
            addends.below = True

    def declare(self, entry: Entry) -> None:
        """Add an array without a base; not to a leaf."""
        if not entry.hidden:
            self.declared.append(entry.array)
        self._addends.setdefault(entry.array, Addends())

    def add_below(self, array: Array, rows: Iterable[Row]) -> None:
        """Add what was sampled of an array in the subtree, in place of the subordinates."""
        addends = self._addends[array]
        addends.rows += rows
        addends.below = True

    def retain(self, array: Array, row: RetainedRow) -> None:
        """Add what the source retains; not to a leaf."""
        addends = self._addends[array]
        addends.retained.append(row)
        addends.below = True

    def adopt(self, child: "SnapshotDirectory") -> None:
        """Add the totals of a subordinate that is complete."""
        for array, totals in child.totals.items():
            addends = self._addends[array]
            addends.parts.append(totals)
            addends.below = True

    def complete(self, snapshot: "Snapshot", plans: Mapping[Array, TotalsPlan]) -> None:
        """Work out the files, and the totals if it is not a leaf."""
        version, cached = snapshot.states[self.source]
        if cached is not None and cached[0] == version:
            self.layout = cached[1]
        else:
            directory = self.source._directory
            self.layout = directory.layout_at(version) or self._make_layout(snapshot)
        if not self._leaf:
            self.totals = {
                array: addends.add_up(plans[array]) for array, addends in self._addends.items()
            }

    def _make_layout(self, snapshot: "Snapshot") -> Layout:
        # The source has changed since it was sampled.
        below = next((some for one, some in snapshot.subordinates if one is self.source), ())
        names = {source.name for source in below if not source.hidden}
        arrays = {} if self._leaf else self._addends
        inner = [array for array, addends in arrays.items() if addends.below]
        return make_layout(list(self.own), self.declared, inner, names.__contains__, arrays)

    def silence(self) -> None:
        """Show no numbers; called when the directories above have theirs."""
        self.own, self.totals, self._silent = {}, _NO_TOTALS, True


def make_directories(snapshot: "Snapshot") -> SnapshotDirectory:
    """Return what the root of a snapshot shows, with all in its subtree."""
    plans = find_plans(samples.array for samples in snapshot.arrays.values())
    summed: set[Source | Registry] = {parent for parent, _ in snapshot.subordinates}
    summed.update(entry.source for entry in snapshot.declared)
    summed.update(record.source for record, _ in snapshot.retained)
    root = SnapshotDirectory(snapshot.root)
    directories: dict[Source | Registry, SnapshotDirectory] = {snapshot.root: root}
    for parent, subordinates in snapshot.subordinates:
        place = directories[parent].place
        for source in take_slowly(subordinates):
            directories[source] = place(source, source not in summed)
    # A signal handler's snapshot may meet a change half made, and entries of a source that is just
    # leaving: they go nowhere.
    nowhere = SnapshotDirectory(snapshot.root)
    for entry in snapshot.declared:
        directories.get(entry.source, nowhere).declare(entry)
    for record, held in snapshot.retained:
        directories.get(record.source, nowhere).retain(record.array, held)
    for entries, rows in snapshot.decoded():
        for entry, row in zip(take_slowly(entries), rows, strict=True):
            directories.get(entry.source, nowhere).add(entry, row)
    # Parents come first, so backwards every subordinate is complete when it is adopted.
    for parent, subordinates in reversed(snapshot.subordinates):
        adopt = directories[parent].adopt
        for source in take_slowly(subordinates):
            directory = directories[source]
            directory.complete(snapshot, plans)
            if directory.totals:
                adopt(directory)
    if snapshot.lineage:
        root.complete(snapshot, plans)
    for silent in snapshot.find_silent():
        directories.get(silent, nowhere).silence()
    return root


def make_directory(snapshot: "Snapshot") -> SnapshotDirectory:
    """Return what the root of a snapshot, a source, shows, without its subtree."""
    root = SnapshotDirectory(snapshot.root)
    for entry in snapshot.declared:
        if entry.source is snapshot.root:
            root.declare(entry)
        else:
            root.add_below(entry.array, ())
    for entries, rows in snapshot.decoded():
        below = []
        for entry, row in zip(take_slowly(entries), rows, strict=True):
            if entry.source is snapshot.root:
                root.add(entry, row)
            else:
                below.append(row)
        if below:
            root.add_below(entries[0].array, below)
    for record, held in snapshot.retained:
        root.retain(record.array, held)
    root.complete(snapshot, find_plans(samples.array for samples in snapshot.arrays.values()))
    if snapshot.root in snapshot.find_silent():
        root.silence()
    return root
