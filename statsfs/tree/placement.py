"""Placement: sources are put into others, and taken out of them.

Threading: all of it adds steps to changes, under the tree's lock.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Final

from statsfs.exceptions import DuplicateNameError, TreeError
from statsfs.tree.directory import Directory
from statsfs.tree.lineage import find_lineage, note_files
from statsfs.tree.lock import TreeChange
from statsfs.tree.references import check, drop_hold
from statsfs.tree.retention import Folding, folding_change, spread

if TYPE_CHECKING:
    from statsfs.tree.registry import Registry
    from statsfs.tree.source import Source

__all__ = [
    "add",
    "check_orphan",
    "check_sibling",
    "leave",
    "remove",
    "renumber",
    "settle",
]

# Every stay of a source under a parent has a number, never used again: inode numbers contain it.
_places: Final = count(1)


@folding_change
def add(parent: "Source", change: TreeChange, folding: Folding, source: "Source") -> None:
    """Put a source into another; the errors are those of `Source.add_subordinate`."""
    check(parent)
    check_orphan(source)
    lineage = find_lineage(parent)
    if source in lineage:
        raise TreeError(
            f"{source.path!r} cannot be below {parent.path!r}, which is below it", source
        )
    here = parent._directory
    check_sibling(here.subordinates, source, parent.path)
    if not folding.take_back(change, lineage, source):
        return
    coming = source._directory
    stale = [
        one._directory
        for one, indexes in zip(lineage, spread(lineage, coming.index), strict=True)
        if one._directory.join(change, coming, indexes)
    ]
    if not here.subordinates:
        here.subordinates = {}  # leaves share an empty one: a snapshot has less memory to visit
    change.do(here.subordinates.__setitem__, source.name, source)
    change.set(here, "visible", here.visible + (not source.hidden))
    settle(source, parent, change)
    _note(change, lineage, source, stale)


@folding_change
def remove(parent: "Source", change: TreeChange, folding: Folding, source: "Source") -> None:
    """Take a source out of another; the errors are those of `Source.remove_subordinate`."""
    check(parent)
    check(source)
    if source.parent is not parent:
        raise TreeError(f"{source.path!r} is not a subordinate of {parent.path!r}", source)
    lineage = find_lineage(parent)
    here, leaving = parent._directory, source._directory
    retaining = folding.retain(change, lineage, leaving.index, source)
    if retaining is None:
        return
    stale = [
        one._directory
        for one, indexes in zip(lineage, spread(lineage, leaving.index), strict=True)
        if one._directory.part(change, leaving, indexes, retaining.get(one, ()))
    ]
    change.do(here.subordinates.pop, source.name)
    change.set(here, "visible", here.visible - (not source.hidden))
    change.leave(lineage[-1].parent, leaving.place)
    _note(change, lineage, source, stale)
    leave(source, change)


def check_orphan(source: "Source") -> None:
    """Raise ReleasedError or TreeError if a source cannot be placed anywhere."""
    check(source)
    if source.parent is not None:
        raise TreeError(f"source {source.path!r} has a parent already", source)


def check_sibling(siblings: "Mapping[str, Source]", source: "Source", where: str) -> None:
    """Raise DuplicateNameError if a sibling has the name of a source that is to be placed."""
    if source.name in siblings:
        raise DuplicateNameError(f"{where}: there is a {source.name!r} already", source.name)


def settle(source: "Source", parent: "Source | Registry", change: TreeChange) -> None:
    """Note the place that a parent gives a source."""
    change.set(source._directory, "parent", parent)
    change.set(source, "_holds", source._holds + 1)
    renumber(source, change)


def renumber(source: "Source", change: TreeChange) -> None:
    """Give a source and its subtree new places: mounts take them for new ones."""
    change.set(source._directory, "placed", time.time_ns())
    moved = [source]
    while moved:
        directory = moved.pop()._directory
        change.set(directory, "place", next(_places))
        moved += directory.subordinates.values()


def leave(source: "Source", change: TreeChange) -> None:
    """Give up the place of a source."""
    change.drop(source._directory, "parent")
    change.set(source._directory, "place", 0)
    drop_hold(source, change)


def _note(
    change: TreeChange, lineage: "Sequence[Source]", source: "Source", stale: Sequence[Directory]
) -> None:
    # The directories that changed: this one, where a subdirectory came or went, and those above
    # whose files did.
    here = lineage[0]._directory
    if not source.hidden:
        change.set(here, "changed", time.time_ns())
        # A file may have the subdirectory's name, or claim it. Where the cached layout is not of
        # this version, a reader that saw no such subdirectory may be making one.
        layout = here.cached
        if layout is None or layout[0] != here.version or source.name in layout[1].claimed:
            here.make_stale(change)
        change.touch(lineage[-1].parent, here.place, source.name)
    note_files(change, lineage, stale)
