"""Contents: what the directories of a snapshot show.

Owns the way from the rows of a snapshot to directories with their files, numbers and totals; how
that becomes text is the business of `formats`. It works on what was sampled alone: the tree may
have changed since.

Threading: pure, but that it keeps a layout that it had to work out for the next reader.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from statsfs.model.arrays import Array, Entry, File, Layout, make_layout
from statsfs.tree.retention import Retained, RetainedRow
from statsfs.tree.rows import Totals, add_up

__all__ = ["Content", "Pause", "Row", "Tree", "make_content", "make_contents", "no_pause"]

Pause = Callable[[], None]
"""Called every few hundred rows or lines, so that other threads get their turn."""

Row = tuple[Any, ...]

_CHUNK: Final = 256  # rows or directories between two pauses

_T = TypeVar("_T")


def no_pause() -> None:
    """Go on at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """The sources of a subtree, as they stood.

    Attributes:
        root: the source, or the registry, that was sampled.
        lineage: the sources from the top-level one to the root; none for a registry.
        subordinates: each source that has some, and those, hidden ones too; parents come first.
        states: the version and the cached layout of each source.
        unavailable: the sources that were asked in vain; what is below has no numbers either.
    """

    root: Any
    lineage: tuple[Any, ...]
    subordinates: list[tuple[Any, list[Any]]]
    states: Mapping[Any, tuple[int, tuple[int, Layout] | None]]
    unavailable: frozenset[Any] = frozenset()

    def find_silent(self) -> set[Any]:
        """Return all sources that have no numbers, for they or one above them are unavailable."""
        silent = set(self.unavailable)
        if not silent.isdisjoint(self.lineage):
            silent.add(self.root)
        for parent, subordinates in self.subordinates if silent else ():
            if parent in silent:
                silent.update(subordinates)
        return silent


class _Sums:
    # What the totals of a directory are made of, by array: the rows of its source and of those
    # below that have no totals of their own, the totals of those that have, and what the source
    # retains. `parts` has a key for each array that is anywhere below, or retained.
    __slots__ = ("parts", "retained", "rows")

    def __init__(self) -> None:
        self.rows: dict[Array, list[Row]] = {}
        self.parts: dict[Array, list[Totals]] = {}
        self.retained: dict[Array, list[RetainedRow]] = {}


_NO_TOTALS: Final[Mapping[Array, Totals]] = {}


class Content:
    """What one directory shows.

    Attributes:
        source: whose directory it is; a `Registry` for the root of a mount.
        layout: which files it shows; None where it shows none.
        own: the rows that the source itself shows.
        declared: the arrays that it shows with base None.
        totals: the aggregates of each array, of a source that shows some.
        subordinates: the visible subdirectories.
    """

    __slots__ = (
        "_above",
        "_silent",
        "_sums",
        "declared",
        "layout",
        "own",
        "source",
        "subordinates",
        "totals",
    )

    def __init__(self, source: Any, sums: _Sums, *, above: bool = False) -> None:
        self.source = source
        self.layout: Layout | None = None
        self._silent = False
        self.own: dict[Array, Row] = {}
        # Thousands of directories have no totals; `above` says that their rows go into the sums of
        # the parent. They share what is empty: making it would take longer than all else.
        self._sums = sums
        self._above = above
        self.declared: list[Array] | tuple[()] = () if above else []
        self.totals = _NO_TOTALS
        self.subordinates: Sequence[Content] = () if above else []

    def number(self, file: File) -> Any:
        """Return the number of one file of `layout`, or a histogram's buckets.

        It is None for an own value whose base was broken, and where nobody answers.
        """
        if self._silent:
            return None
        if file.kind is None:
            row = self.own.get(file.array)
            return None if row is None else row[file.index]
        totals = self.totals.get(file.array)
        return file.value.zero if totals is None else totals.value(file)

    def files(self) -> Iterator[tuple[File, Any]]:
        """Return each file with its number, but for those that have none."""
        for file in self.layout.files.values() if self.layout is not None else ():
            number = self.number(file)
            if number is not None:
                yield file, number

    def silence(self) -> None:
        """Show no numbers, once those above have what they need."""
        self.own, self.totals, self._silent = {}, _NO_TOTALS, True

    def place(self, source: Any, sums: _Sums | None) -> "Content":
        """Add and return the directory of a subordinate.

        Args:
            source: the subordinate; a hidden one is not shown.
            sums: for its totals, if it shows some.
        """
        child = Content(source, sums or self._sums, above=sums is None)
        if not source.hidden:
            cast(list[Content], self.subordinates).append(child)
        return child

    def add(self, entry: Entry, row: Row) -> None:
        """Add what was sampled of one base of the source."""
        array = entry.array
        if not entry.hidden:
            self.own[array] = row
        sums = self._sums
        rows = sums.rows.get(array)
        if rows is None:
            rows = sums.rows[array] = []
        rows.append(row)
        if self._above and array not in sums.parts:
            sums.parts[array] = []

    def declare(self, entry: Entry) -> None:
        """Add an array without a base, to a source that has sums of its own."""
        if not entry.hidden:
            cast(list[Array], self.declared).append(entry.array)
        self._sums.rows.setdefault(entry.array, [])

    def add_below(self, array: Array, rows: Sequence[Row]) -> None:
        """Add what was sampled of an array here and below, in place of all that is below."""
        self._sums.rows.setdefault(array, []).extend(rows)
        self._sums.parts.setdefault(array, [])

    def retain(self, array: Array, row: RetainedRow) -> None:
        """Add what is retained, to a source that has sums of its own."""
        self._sums.retained.setdefault(array, []).append(row)
        self._sums.parts.setdefault(array, [])

    def complete(self, tree: Tree, pause: Pause) -> None:
        """Work out the files, and the totals of a source that shows some."""
        version, cached = tree.states[self.source]
        if cached is not None and cached[0] == version:
            self.layout = cached[1]
        else:
            self.layout = self.source.layout_at(version) or self._make_layout(tree)
        if not self._above:
            rows, parts, retained = self._sums.rows, self._sums.parts, self._sums.retained
            self.totals = {
                array: add_up(
                    array, rows.get(array, ()), parts.get(array, ()), pause, retained.get(array, ())
                )
                for array in dict.fromkeys((*rows, *parts))
            }

    def _make_layout(self, tree: Tree) -> Layout:
        # The source has changed since it was sampled.
        below = next((below for parent, below in tree.subordinates if parent is self.source), ())
        names = {source.name for source in below if not source.hidden}
        arrays = () if self._above else self._sums.parts
        return make_layout(list(self.own), self.declared, arrays, names.__contains__)

    def adopt(self, child: "Content") -> None:
        """Add the totals of a subordinate that is complete."""
        for array, totals in child.totals.items():
            self._sums.parts.setdefault(array, []).append(totals)


def _take(items: Sequence[_T], pause: Pause) -> Iterator[_T]:
    # With a pause now and then, the last one at the end.
    for start in range(0, len(items), _CHUNK):
        yield from items[start : start + _CHUNK]
        pause()


def make_contents(
    tree: Tree,
    declared: Iterable[Entry],
    rows: Iterable[tuple[Sequence[Entry], Sequence[Row]]],
    pause: Pause = no_pause,
    retained: Sequence[tuple[Retained, RetainedRow]] = (),
) -> Content:
    """Return what the root of a sampled subtree shows, with all that is below.

    Args:
        tree: the sources.
        declared: the entries that had no base.
        rows: entries, and what was sampled of each.
        pause: called every few hundred rows.
        retained: what sources retain, and how much that was.
    """
    declared = list(declared)
    summed = {parent for parent, _ in tree.subordinates} | {entry.source for entry in declared}
    summed.update(record.source for record, _ in retained)
    contents: dict[Any, Content] = {tree.root: Content(tree.root, _Sums())}
    for parent, subordinates in tree.subordinates:
        place = contents[parent].place
        for source in _take(subordinates, pause):
            contents[source] = place(source, _Sums() if source in summed else None)
    # A signal handler's snapshot may meet a change half made, and entries of a source that is
    # just leaving: they go nowhere.
    nowhere = Content(None, _Sums())
    for entry in declared:
        contents.get(entry.source, nowhere).declare(entry)
    for record, row in retained:
        contents.get(record.source, nowhere).retain(record.array, row)
    for entries, found in rows:
        for entry, row in zip(_take(entries, pause), found, strict=True):
            contents.get(entry.source, nowhere).add(entry, row)
    # Parents come first, so backwards every subordinate is complete when it is adopted.
    for parent, subordinates in reversed(tree.subordinates):
        adopt = contents[parent].adopt
        for source in _take(subordinates, pause):
            content = contents[source]
            content.complete(tree, pause)
            if content.totals:
                adopt(content)
    root = contents[tree.root]
    if tree.lineage:
        root.complete(tree, pause)
    for source in tree.find_silent():
        contents.get(source, nowhere).silence()
    return root


def make_content(
    tree: Tree,
    declared: Iterable[Entry],
    rows: Iterable[tuple[Sequence[Entry], Sequence[Row]]],
    pause: Pause = no_pause,
    retained: Sequence[tuple[Retained, RetainedRow]] = (),
) -> Content:
    """Return what the root of a sampled subtree shows, without what is below.

    The arguments are those of `make_contents`; the root is a source.
    """
    root = Content(tree.root, _Sums())
    for entry in declared:
        if entry.source is tree.root:
            root.declare(entry)
        else:
            root.add_below(entry.array, ())
    for entries, found in rows:
        below = []
        for entry, row in zip(_take(entries, pause), found, strict=True):
            if entry.source is tree.root:
                root.add(entry, row)
            else:
                below.append(row)
        if below:
            root.add_below(entries[0].array, below)
    for record, held in retained:
        root.retain(record.array, held)
    root.complete(tree, pause)
    if tree.root in tree.find_silent():
        root.silence()
    return root
