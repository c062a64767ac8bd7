"""Contents: what the directories of a snapshot show.

Owns the way from the rows of a snapshot to directories with their files, numbers and totals; how
that becomes text is the business of `formats`. It works on what was sampled alone: the tree may
have changed since.

Threading: pure, but that it keeps a layout that it had to work out for the next reader.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from statsfs.arrays import Array, Entry, File, Layout, make_layout
from statsfs.totals import Totals, add_up

__all__ = ["Content", "Pause", "Row", "Tree", "make_content", "make_contents", "no_pause"]

Pause = Callable[[], None]
"""Called every few hundred rows or lines, so that other threads get their turn."""

Row = tuple[Any, ...]

_CHUNK: Final = 256  # directories between two pauses


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
    """

    root: Any
    lineage: tuple[Any, ...]
    subordinates: list[tuple[Any, list[Any]]]
    states: Mapping[Any, tuple[int, tuple[int, Layout] | None]]


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
        "_arrays",
        "_below",
        "_inner",
        "_rows",
        "declared",
        "layout",
        "own",
        "source",
        "subordinates",
        "totals",
    )

    def __init__(self, source: Any) -> None:
        self.source = source
        self.layout: Layout | None = None
        self.own: dict[Array, Row] = {}
        self.declared: list[Array] = []
        self.totals: dict[Array, Totals] = {}
        self.subordinates: list[Content] = []
        # The rows of this source, and of those below that have no subordinates; then the totals
        # of those below that have some, by array: all arrays below are there.
        self._rows: dict[Array, list[Row]] = {}
        self._below: dict[Array, list[Totals]] = {}
        self._arrays: dict[Array, None] = {}
        self._inner = False

    def number(self, file: File) -> Any:
        """Return the number of one file of `layout`, or a histogram's buckets.

        It is None for an own value whose base was broken.
        """
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

    def add(self, entry: Entry, row: Row) -> None:
        """Add what was sampled of one base of the source."""
        if not entry.hidden:
            self.own[entry.array] = row
        self._arrays[entry.array] = None
        self._rows.setdefault(entry.array, []).append(row)

    def declare(self, entry: Entry) -> None:
        """Add an array without a base."""
        if not entry.hidden:
            self.declared.append(entry.array)
        self._arrays[entry.array] = None

    def adopt(self, child: "Content") -> None:
        """Add a subordinate that is complete."""
        self._inner = True
        if not child.source.hidden:
            self.subordinates.append(child)
        for array in child._arrays:
            self._arrays[array] = None
            below = self._below.setdefault(array, [])
            if child._inner:
                below.append(child.totals[array])
            else:
                self._rows.setdefault(array, []).extend(child._rows.get(array, ()))

    def add_below(self, entry: Entry, row: Row) -> None:
        """Add what was sampled of a base anywhere below, in place of all that `adopt` does."""
        self._inner = True
        self._arrays[entry.array] = None
        self._below.setdefault(entry.array, [])
        self._rows.setdefault(entry.array, []).append(row)

    def declare_below(self, entry: Entry) -> None:
        """Add an array without a base anywhere below, in place of all that `adopt` does."""
        self._inner = True
        self._arrays[entry.array] = None
        self._below.setdefault(entry.array, [])

    def complete(self, tree: Tree, pause: Pause) -> None:
        """Work out the files, and the totals of a source that shows some."""
        version, cached = tree.states[self.source]
        if cached is not None and cached[0] == version:
            self.layout = cached[1]
        else:
            self.layout = self.source.layout_at(version) or self._make_layout(tree)
        if self._inner or self.declared:
            for array in self._arrays:
                rows, below = self._rows.get(array, ()), self._below.get(array, ())
                self.totals[array] = add_up(array, rows, below, pause)

    def _make_layout(self, tree: Tree) -> Layout:
        # The source has changed since it was sampled.
        below = next((below for parent, below in tree.subordinates if parent is self.source), ())
        names = {source.name for source in below if not source.hidden}
        return make_layout(list(self.own), self.declared, self._below, names.__contains__)


def make_contents(
    tree: Tree,
    declared: Iterable[Entry],
    rows: Iterable[tuple[Sequence[Entry], Sequence[Row]]],
    pause: Pause = no_pause,
) -> Content:
    """Return what the root of a sampled subtree shows, with all that is below.

    Args:
        tree: the sources.
        declared: the entries that had no base.
        rows: entries, and what was sampled of each.
        pause: called every few hundred rows.
    """
    contents: dict[Any, Content] = {tree.root: Content(tree.root)}
    for _, subordinates in tree.subordinates:
        contents.update((source, Content(source)) for source in subordinates)
        pause()
    # A signal handler's snapshot may meet a change half made, and entries of a source that is
    # just leaving: they go nowhere.
    nowhere = Content(None)
    for entry in declared:
        contents.get(entry.source, nowhere).declare(entry)
    for entries, found in rows:
        for number, (entry, row) in enumerate(zip(entries, found, strict=True)):
            contents.get(entry.source, nowhere).add(entry, row)
            if number % _CHUNK == 0:
                pause()
    # Parents come first, so backwards every subordinate is complete when it is adopted.
    for parent, subordinates in reversed(tree.subordinates):
        adopt = contents[parent].adopt
        for number, source in enumerate(subordinates):
            contents[source].complete(tree, pause)
            adopt(contents[source])
            if number % _CHUNK == 0:
                pause()
    root = contents[tree.root]
    if tree.lineage:
        root.complete(tree, pause)
    return root


def make_content(
    tree: Tree,
    declared: Iterable[Entry],
    rows: Iterable[tuple[Sequence[Entry], Sequence[Row]]],
    pause: Pause = no_pause,
) -> Content:
    """Return what the root of a sampled subtree shows, without what is below.

    The arguments are those of `make_contents`; the root is a source.
    """
    root = Content(tree.root)
    for entry in declared:
        (root.declare if entry.source is tree.root else root.declare_below)(entry)
    for entries, found in rows:
        for number, (entry, row) in enumerate(zip(entries, found, strict=True)):
            (root.add if entry.source is tree.root else root.add_below)(entry, row)
            if number % _CHUNK == 0:
                pause()
    root.complete(tree, pause)
    return root
