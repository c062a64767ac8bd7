"""Placement: sources are put into others, and taken out of them.

Threading: all of it adds steps to changes, under the tree's lock.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Final

from statsfs.exceptions import DuplicateNameError, TreeError
from statsfs.model.arrays import Array
from statsfs.tree.directory import Directory
from statsfs.tree.events import ADDED, REMOVED
from statsfs.tree.index import ArrayIndex, Entry, make_index, merge_indexes
from statsfs.tree.lineage import find_lineage, note_files
from statsfs.tree.lock import Listening, TreeChange
from statsfs.tree.references import check, drop_hold
from statsfs.tree.refresh import Refresher
from statsfs.tree.retention import Folding, folding_change, spread

if TYPE_CHECKING:
    from statsfs.tree.registry import Registry
    from statsfs.tree.source import Source

__all__ = [
    "add",
    "check_orphan",
    "check_sibling",
    "exchange",
    "leave",
    "note_events",
    "remove",
    "renumber",
    "replace",
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
    check_sibling(parent._directory.subordinates, source, parent.path)
    if folding.take_back(change, lineage, source):
        exchange(change, folding, lineage, coming=[source])


@folding_change
def remove(parent: "Source", change: TreeChange, folding: Folding, source: "Source") -> None:
    """Take a source out of another; the errors are those of `Source.remove_subordinate`."""
    check(parent)
    check(source)
    if source.parent is not parent:
        raise TreeError(f"{source.path!r} is not a subordinate of {parent.path!r}", source)
    exchange(change, folding, find_lineage(parent), leaving=[source])


@folding_change
def replace(
    parent: "Source", change: TreeChange, folding: Folding, old: "Source", new: "Source"
) -> None:
    """Put a source in the place of another one, whose numbers it has: they are not retained."""
    check(parent)
    check_orphan(new)
    exchange(change, None, find_lineage(parent), coming=[new], leaving=[old])


def exchange(
    change: TreeChange,
    folding: Folding | None,
    lineage: "Sequence[Source]",
    *,
    coming: "Sequence[Source]" = (),
    leaving: "Sequence[Source]" = (),
    entries: Sequence[Entry] = (),
) -> bool:
    """Put sources into the first of a lineage, and take others out; all was checked.

    Args:
        change: gets the steps; no other of its steps may concern what these sources count.
        folding: that of the change; None if nothing is to be retained.
        lineage: of the parent.
        coming: none of them is in `leaving`, but one may have the name of one that leaves.
        leaving: subordinates of the parent.
        entries: the new ones of subordinates that stay; their own directories are not changed here.

    Returns:
        Whether all could be read; else there are no steps.
    """
    retaining = {} if folding is None else folding.retain(change, lineage, leaving)
    if retaining is None:
        return False
    joining = _join_indexes(coming, entries)
    parting = _join_indexes(leaving)
    levels = zip(lineage, spread(lineage, joining), spread(lineage, parting), strict=True)
    stale = [
        one._directory
        for one, joins, parts in levels
        if one._directory.exchange(change, joins, parts, retaining.get(one, ()))
    ]
    here, top = lineage[0]._directory, lineage[-1].parent
    note_events(change, REMOVED, top, lineage, leaving)
    note_events(change, ADDED, top, lineage, coming)
    new: dict[Refresher, None] = {}
    gone: list[Refresher] = []
    visible, names = here.visible, set()
    for source in leaving:
        change.do(here.subordinates.pop, source.name)
        change.leave(top, source._directory.place)
        leave(source, change)
        gone += source._directory.refreshers or ()
        if not source.hidden:
            visible -= 1
            names.add(source.name)
    if coming and not here.subordinates:
        here.subordinates = {}  # leaves share an empty one: a snapshot has less memory to visit
    for source in coming:
        change.do(here.subordinates.__setitem__, source.name, source)
        settle(source, lineage[0], change)
        new |= source._directory.refreshers or {}
        if not source.hidden:
            visible += 1
            names.add(source.name)
    change.set(here, "visible", visible)
    if new or gone:
        for one in lineage:
            one._directory.exchange_refreshers(change, new, gone)
    _note(change, lineage, names, stale)
    return True


def note_events(
    change: TreeChange,
    event: str,
    top: object,
    lineage: "Sequence[Source]",
    sources: "Sequence[Source]",
) -> None:
    """Note that sources, and all in them, come or leave: the visible ones, if there are events.

    Those that come are in the order of a walk, those that leave in the order of a removal.
    """
    if not (isinstance(top, Listening) and top.events) or any(one.hidden for one in lineage):
        return
    above = "".join(f"{one.name}/" for one in reversed(lineage))
    paths: list[str] = []
    moving = [(above, source) for source in reversed(sources)]
    while moving:
        above, source = moving.pop()
        if not source.hidden:
            paths.append(above + source.name)
            below = reversed(source._directory.subordinates.values())
            moving += [(f"{above}{source.name}/", one) for one in below]
    change.tell(top, event, paths[::-1] if event == REMOVED else paths)


def _join_indexes(
    sources: "Sequence[Source]", entries: Sequence[Entry] = ()
) -> Mapping[Array, ArrayIndex]:
    # The indexes of sources and entries together.
    indexes = [one._directory.index for one in sources]
    for entry in entries:
        indexes.append({entry.array: make_index(entry)})
    return merge_indexes(indexes)


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
    change: TreeChange, lineage: "Sequence[Source]", names: set[str], stale: Sequence[Directory]
) -> None:
    # The directories that changed: this one, where subdirectories came or went, and those above
    # whose files did.
    here = lineage[0]._directory
    if names:
        change.set(here, "changed", time.time_ns())
        # A file may have a subdirectory's name, or claim it. Where the cached layout is not of this
        # version, a reader that saw no such subdirectory may be making one.
        layout = here.cached
        if layout is None or layout[0] != here.version or names & layout[1].claimed:
            here.make_stale(change)
    for name in names:
        change.touch(lineage[-1].parent, here.place, name)
    note_files(change, lineage, stale)
