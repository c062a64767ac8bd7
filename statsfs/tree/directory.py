"""Directories: where a source is, its arrays over their bases, and the files that they make.

Threading: what is here changes under the tree's lock only, and is read without it.
"""

import logging
import sys
import time
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from statsfs.exceptions import BaseMismatchError, DuplicateNameError
from statsfs.model.arrays import Array, File
from statsfs.model.foreign import describe_error, foreign
from statsfs.model.layout import Layout, make_layout
from statsfs.model.readers import convert_number, describe_number
from statsfs.tree.access import Owner
from statsfs.tree.clearing import clear_file
from statsfs.tree.index import ArrayIndex, Entry, Key, Part, make_index, reduce_parts
from statsfs.tree.lock import Listening, TreeChange, lock_tree
from statsfs.tree.log_budget import LogBudget
from statsfs.tree.refresh import Refresher

if TYPE_CHECKING:
    from statsfs.tree.registry import Registry
    from statsfs.tree.source import Source
    from statsfs.tree.syncing import Synced

__all__ = ["UNWEIGHED", "Directory"]

log = logging.getLogger(__name__)

# What leaves and released sources have; nothing is ever added to it.
_NOTHING: Final[dict[Any, Any]] = {}
# Arrays: to weigh so many takes a millisecond.
_MANY: Final = 2000

UNWEIGHED: Final = sys.maxsize - 1
"""The weight of a subtree with many arrays; it may run foreign code, or not."""


@dataclass(slots=True, eq=False, repr=False)
class Directory:
    """What a source is to the rest of the package; programs use the methods of `Source`.

    Attributes:
        owner: the user and the group, by number; None for those of the directory above.
        subordinates: the sources in it, by name, hidden ones too.
        visible: how many of them are not hidden.
        place: the number of its stay under its parent, never used again; 0 without a parent.
        placed, changed: when it got there, and when its files last changed, in nanoseconds since
            the epoch.
        index: by array, all entries in the subtree.
        refreshers: all in the subtree, in the order in which they were added.
        synced: the subordinates that `Source.sync` made.
        lent: whether a source retained what this one had counted when it left.
        version: changes when the files may not be as they were.
        cached: the layout of a version, if it was worked out.
    """

    name: str
    owner: Owner | None = None
    parent: "Source | Registry | None" = None
    subordinates: "dict[str, Source]" = field(default_factory=lambda: _NOTHING)
    visible: int = 0
    place: int = 0
    placed: int = field(default_factory=time.time_ns)
    changed: int = field(default_factory=time.time_ns)
    entries: dict[Key, Entry] = field(default_factory=dict)
    index: dict[Array, ArrayIndex] = field(default_factory=dict)
    refresher: Refresher | None = None
    refreshers: dict[Refresher, None] | None = None
    synced: "Synced | None" = None
    lent: bool = False
    version: int = 0
    cached: tuple[int, Layout] | None = None
    _revoked: int = 0
    _complaints: set[object] | None = None

    def lineage(self) -> "list[Directory]":
        """Return this directory, the one that it is in, and so on to the top."""
        lineage = [self]
        parent = self.parent
        while parent is not None and not isinstance(parent, Listening):
            lineage.append(parent._directory)
            parent = parent.parent
        return lineage

    @property
    def path(self) -> str:
        """The names from the top of the tree to the source, joined by "/"."""
        return "/".join([directory.name for directory in reversed(self.lineage())])

    def warn(self, logger: logging.Logger, text: str, *args: object) -> None:
        """Log a warning about the source, within what its owner may cause in a registry."""
        lineage = self.lineage()
        top = lineage[-1].parent
        budget = top.log_budget if isinstance(top, Listening) else LogBudget()
        user = next((one.owner[0] for one in lineage if one.owner is not None), None)
        budget.log(user, logger, f"%s: {text}", self.path, *args)

    def complain(self, key: object, message: str) -> None:
        """Log a warning about the source, once for each `key`."""
        if self._complaints is None:
            self._complaints = set()
        if key not in self._complaints:
            self._complaints.add(key)
            self.warn(log, "%s", message)

    # Which files it shows

    @property
    def files(self) -> Mapping[str, File]:
        """The files that the directory shows, by name."""
        return self.layout.files

    @property
    def layout(self) -> Layout:
        """The files that the directory shows, those that it does not, and what they cover."""
        cached = self.cached
        # The version is read before the tree is looked at, so that a layout made of what changes
        # at the same moment is made again.
        version = self.version
        if cached is not None and cached[0] == version:
            return cached[1]
        layout = self._make_layout(version)
        self._complain_of_losses(layout)
        return layout

    def layout_at(self, version: int) -> Layout | None:
        """Return the layout of a version, or None if the version is another by now."""
        layout = lock_tree(lambda: self._make_layout(version) if self.version == version else None)
        if layout is not None:
            self._complain_of_losses(layout)
        return layout

    def _make_layout(self, version: int) -> Layout:
        entries = list(self.entries.values())
        own = Counter([entry.array for entry in entries])
        shown = [entry for entry in entries if not entry.hidden]
        layout = make_layout(
            [entry.array for entry in shown if not entry.declared],
            [entry.array for entry in shown if entry.declared],
            [array for array, index in self.index.copy().items() if len(index) > own[array]],
            self.shows_directory,
            [entry.array for entry in entries if entry.hidden],
        )
        self.cached = (version, layout)
        return layout

    def _complain_of_losses(self, layout: Layout) -> None:
        for loss in layout.losses:
            name, shown = loss.files[0].value.name, loss.winner
            if shown is None:
                message = f"{name!r} is not shown: a subdirectory has {loss.name!r}"
            elif shown.kind is None:
                message = f"{name!r} is not shown: another array has {loss.name!r}"
            else:
                message = (
                    f"the total {loss.name!r} does not cover another value of that name: its "
                    f"{shown.value.describe_difference(loss.files[0].value)}"
                )
            self.complain((loss.files, loss.winner), message)

    def shows_directory(self, name: str) -> bool:
        """Tell whether a name is that of a visible subordinate."""
        source = self.subordinates.get(name)
        return source is not None and not source.hidden

    # Reading and clearing

    def entry_of(self, file: File) -> Entry | None:
        """Return the entry that an own value is read from; None for an aggregate."""
        return self.entries.get((file.array, "own")) if file.kind is None else None

    def find_hidden(self, name: str) -> tuple[File, Entry] | None:
        """Return a hidden value of the source itself, and its entry."""
        for entry in list(self.entries.values()):
            for file in entry.array.own if not entry.declared else ():
                if file.name == name and (entry.hidden or file.value.hidden):
                    return file, entry
        return None

    def read(self, file: File, entry: Entry | None) -> Any:
        """Read a file, even one that is shown no longer; `entry` is what `entry_of` returned.

        Raises:
            UnavailableError: a refresh of this source or one above it failed, or the number of an
                own value is unknown.
            BaseMismatchError: the base does not hold an integer for an own value.
        """
        if Refresher.made:
            self.check_refreshed()
        if file.kind is None:
            base = entry and entry.base
            if entry is None or base is None or entry.reader is None:
                shown = self._find_successor(file)
                entry = None if shown is None else self.entry_of(shown)
                if shown is None or entry is None:
                    return file.value.zero
                return self.read(shown, entry)
            entry.check_known(file)
            try:
                return convert_number(file.value, entry.reader.read(base, file.index))
            except foreign() as error:
                wanted, why = describe_number(file.value), describe_error(error)
                raise BaseMismatchError(
                    f"{self.path}: {file.name!r} holds no {wanted}: {why}", base
                ) from error
        number, broken = reduce_parts(file, self.parts(file))
        if file.array not in self.index and (shown := self._find_successor(file)) is not None:
            return self.read(shown, None)
        if broken is not None:
            # The broken source keeps the complaint: it may be the first to go.
            name = file.value.name
            broken.source._directory.complain(
                ("left out", broken, name),
                f"left out of aggregates: {name!r} holds no {describe_number(file.value)}",
            )
        return number

    def _find_successor(self, file: File) -> File | None:
        # The file in the place of one whose values have other read bits now.
        shown = self.files.get(file.name)
        if shown is None or shown.kind is not file.kind:
            return None
        values = (replace(one.value, mode=0) for one in (shown, file))
        return shown if len({value.identity for value in values}) == 1 else None

    def clear(self, file: File, entry: Entry | None) -> None:
        """Write 0 into a file, as `clear_file` does; the arguments as for `read`."""
        clear_file(self, file, entry)

    def parts(self, file: File) -> Sequence[Part]:
        """Return what an aggregate covers: one array, or all in which values belong together."""
        covered = self.layout.covered.get(file)
        places = ((file.array, file.index),) if covered is None else covered
        indexes = [(self.index.get(array), place) for array, place in places]
        return [(index, place) for index, place in indexes if index is not None]

    def check_refreshed(self) -> None:
        """Raise UnavailableError if the last refresh of this source or one above it failed."""
        for directory in self.lineage():
            if directory.refresher is not None:
                directory.refresher.check()

    def find_refresher(self) -> Refresher | None:
        """Return the refresher of this source, or else of the nearest one above, or None."""
        return next((one.refresher for one in self.lineage() if one.refresher is not None), None)

    def find_refreshers(self) -> list[Refresher]:
        """Return the refreshers of this source, its descendants and its ancestors."""
        above = [directory.refresher for directory in self.lineage()[1:]]
        return [*(self.refreshers or ()), *(one for one in above if one is not None)]

    def weigh(self) -> int:
        """Return how many numbers the subtree has; `sys.maxsize` if reading runs foreign code.

        Where that would take long, too, it is `UNWEIGHED`.
        """
        if len(self.index) > _MANY:
            return UNWEIGHED
        indexes = self.index.copy()
        if not all(reader.plain for one in indexes.values() for reader in one.groups.copy()):
            return sys.maxsize
        return sum(len(index) * array.size for array, index in indexes.items())

    # Changing, under the lock

    def check_entry(self, entry: Entry) -> None:
        """Raise DuplicateNameError if the source has the entry's array or base already."""
        shown = self.entries.get((entry.array, "own"))
        hidden = self.entries.get((entry.array, id(entry.origin)))
        if hidden is not None or (shown is not None and shown.origin is entry.origin):
            how = "over the same base"
        elif entry.key in self.entries:
            how = "over base None" if entry.declared else "and would be shown twice"
        else:
            return
        name = entry.array.values[0].name
        raise DuplicateNameError(
            f"{self.path}: the array of {name!r} is there already, {how}", entry.array.values
        )

    def find_revoked(self, entry: Entry) -> list[Entry]:
        """Return the revoked entries that a new one replaces; a hidden one replaces hidden ones."""
        if not self._revoked:
            return []
        return [
            old
            for old in self.entries.values()
            if old.revoked and old.array is entry.array and (old.hidden or not entry.hidden)
        ]

    # Each of these adds steps to a change.

    def count_below(self, array: Array) -> int:
        """Return how many entries and records of an array are not the source's own entries."""
        index = self.index.get(array)
        return 0 if index is None else len(index) - self._count_own(array)

    def _count_own(self, array: Array) -> int:
        return len([entry for entry in self.entries.values() if entry.array is array])

    def make_stale(self, change: TreeChange) -> None:
        """Note that the files may not be as they were."""
        change.set(self, "version", self.version + 1)

    def add_entry(
        self, change: TreeChange, entry: Entry, replaced: Sequence[Entry]
    ) -> "list[Directory]":
        """Add an entry here and to the indexes above, in place of revoked ones of its array.

        Return the directories of which the files change.
        """
        change.do(self.entries.__setitem__, entry.key, entry)
        for old in replaced:
            change.do(self.entries.pop, old.key)
        change.set(self, "_revoked", self._revoked - len(replaced))
        change.garbage += replaced
        leaving = ArrayIndex(entry.array, declared=dict.fromkeys(replaced))
        stale = []
        for directory in self.lineage():
            if directory is self or not directory.count_below(entry.array):
                directory.make_stale(change)
                stale.append(directory)
            index = directory.index.get(entry.array)
            if index is None:
                index = ArrayIndex(entry.array)
                change.do(directory.index.__setitem__, entry.array, index)
            index.add(change, entry)
            index.subtract(change, leaving)
        return stale

    def replace_entry(self, change: TreeChange, entry: Entry, new: Entry) -> None:
        """Put an entry in the place of another one, for the same array over the same base."""
        leaving = make_index(entry)
        change.do(self.entries.__setitem__, new.key, new)
        for directory in self.lineage():
            index = directory.index[entry.array]
            index.subtract(change, leaving)
            index.add(change, new)
        entry.drop(change)

    def revoke_entries(self, change: TreeChange, revoked: Mapping[Entry, Entry]) -> None:
        """Replace entries by those that stay of them without a base."""
        leaving: dict[Array, ArrayIndex] = {}
        for entry, kept in revoked.items():
            index = leaving.setdefault(entry.array, ArrayIndex(entry.array))
            assert entry.reader is not None
            index.groups.setdefault(entry.reader, {})[entry] = None
            change.do(self.entries.pop, entry.key)
            change.do(self.entries.__setitem__, kept.key, kept)
            entry.drop(change)
        change.set(self, "_revoked", self._revoked + len(revoked))
        for directory in self.lineage():
            for array, gone in leaving.items():
                index = directory.index[array]
                index.subtract(change, gone)
                for entry, kept in revoked.items():
                    if entry.array is array:
                        index.add(change, kept)
        self.make_stale(change)

    def exchange_refreshers(
        self,
        change: TreeChange,
        coming: Mapping[Refresher, None],
        leaving: Iterable[Refresher] = (),
    ) -> None:
        """Add refreshers of the subtree, and remove others."""
        self.refreshers = self.refreshers or {}
        for refresher in leaving:
            change.do(self.refreshers.pop, refresher)
        change.do(self.refreshers.update, coming)

    def exchange(
        self,
        change: TreeChange,
        coming: Mapping[Array, ArrayIndex],
        leaving: Mapping[Array, ArrayIndex],
        retained: Container[Array] = (),
    ) -> bool:
        """Add what comes to the subtree, remove what leaves it; tell whether the files change.

        `retained` are the arrays of which something that leaves is retained here, or in the
        subtree.
        """
        stale = False
        for array in {**coming, **leaving} if coming else leaving:
            mine, joins, parts = self.index.get(array), coming.get(array), leaving.get(array)
            if mine is None:
                assert joins is not None
                change.do(self.index.__setitem__, array, joins.copy())
                stale = True
                continue
            own, left = self._count_own(array), len(mine)
            before = left - own
            if parts is not None:
                mine.subtract(change, parts, joins)
                left -= len(parts)
            if joins is not None:
                mine.update(change, joins)
                left += len(joins)
            if array in retained:
                continue
            stale = stale or (before > 0) is not (left > own)
            if not left:
                change.do(self.index.pop, array)
                change.garbage.append(mine)
        if stale:
            self.make_stale(change)
        return stale

    def drop(self, change: TreeChange) -> None:
        """Drop all as the source is released."""
        for entry in self.entries.values():
            entry.drop(change)
        for name in ("subordinates", "entries", "index"):
            change.drop(self, name, _NOTHING)
        for name in ("refresher", "refreshers", "synced", "cached"):
            change.drop(self, name)
        self.make_stale(change)
