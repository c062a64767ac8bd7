"""Sources: the directories, and the tree that they make.

Owns parents, names, lookup, clearing and sampling. What a source has is the business of `holdings`,
who gets which name that of `arrays`, and the lock that of `changes`.

Threading: the tree changes under the lock of `changes`, from any thread. Reading one value or one
aggregate takes no lock; a snapshot takes it for the names of its subtree and for its pass.
"""

import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, Final

from statsfs.exceptions import (
    DuplicateNameError,
    InvalidNameError,
    ReadOnlyValueError,
    TreeError,
    UnknownValueError,
)
from statsfs.model.arrays import Entry, File
from statsfs.model.values import check_name
from statsfs.tree.access import check_owner
from statsfs.tree.folds import Folding, find_retaining, make_folding
from statsfs.tree.holdings import Holder, note_files, registry_of
from statsfs.tree.index import Flat
from statsfs.tree.lock import Listening, Operation, lock_tree
from statsfs.tree.references import Counted
from statsfs.tree.refresh import Refresher, refresh_all
from statsfs.tree.snapshot import Sampling, Snapshot, sample_tree

__all__ = ["Parent", "Source", "check_sibling", "check_source"]

# Every stay of a source under a parent has a number, never used again: inode numbers come of it.
_places: Final = count(1)


class Parent(Listening):
    """What a source may be placed in besides another source: the registry."""


class Source(Holder):
    """A directory of statistics: arrays of values over their bases, and subordinate sources.

    A new source has one reference, its creator's; the tree takes its own when the source is added
    to it. The source is released when the last reference is put. As a context manager it puts
    the creator's reference at the end.

    Args:
        name: the directory's name; `name % args` if there are arguments.
        args: what the name is formatted with, as by printf.
        label: the Prometheus label whose value is this source's name; None for none.
        hidden: no directory, for it nor for what is below; but its values count above.
        retain: keep what subordinates have counted when they leave, so that totals never go back.
        refresh: called before anything in or below the source is read or cleared: it brings the
            numbers of the bases up to date, where they must be asked for.
        blocking: whether `refresh` may take long; it is then called in a thread of its own.
        cleared: called after values of this source were cleared, or what it retains, once for all
            sources of one clear that have it in common, and before that clear returns.
        owner: the user and the group, by number, whose its directory and files are in a mount, and
            those below it that have none of their own; None for that of the source above, or else
            of the mount.

    Raises:
        InvalidNameError: the name is none for a directory, or the arguments do not fit it.
        TypeError, ValueError: the owner is no pair of such numbers.
    """

    __slots__ = (
        "_subordinates",
        "cleared",
        "hidden",
        "label",
        "name",
        "owner",
        "refresher",
        "refreshers",
        "visible",
    )

    def __init__(
        self,
        name: str,
        *args: object,
        label: str | None = None,
        hidden: bool = False,
        retain: bool = False,
        refresh: Callable[[], object] | None = None,
        blocking: bool = True,
        cleared: Callable[[], object] | None = None,
        owner: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(retain)
        if args:
            try:
                name = name % args
            except (TypeError, ValueError) as error:
                raise InvalidNameError(
                    f"a source's name {name!r} % {args!r}: {error}", name
                ) from error
        self.name: Final = check_name(name, "a source's name")
        self.label: Final = None if label is None else check_name(label, "a source's label")
        self.hidden: Final = hidden
        self.refresher = None if refresh is None else Refresher(self, refresh, blocking)
        # Of this source and of all below, in the order in which they were added.
        self.refreshers = None if self.refresher is None else {self.refresher: None}
        self.cleared: Final = cleared
        self.owner: Final = check_owner(owner, f"the owner of {name!r}")
        self._subordinates: dict[str, Source] | None = None
        self.visible = 0

    def __repr__(self) -> str:
        state = " released" if self._released else f" references={self.refcount}"
        return f"<Source {self.path!r}{state}>"

    # What it is, and where

    @property
    def parent(self) -> "Source | Parent | None":
        """The source or registry that this one is in, or None."""
        parent: Source | Parent | None = self._parent
        return parent

    @property
    def subordinates(self) -> tuple["Source", ...]:
        """The sources below this one, hidden ones too, in the order they were added.

        Raises:
            ReleasedError: it was released.
        """
        self.check()
        return tuple((self._subordinates or {}).values())

    @property
    def path(self) -> str:
        """The names from the top of the tree to this source, joined by "/"."""
        return "/".join(source.name for source in reversed(list(self._lineage())))

    def find_subordinate(self, name: str) -> "Source | None":
        """Return the subordinate of that name, hidden or not, or None."""
        return (self._subordinates or {}).get(name)

    def shows_directory(self, name: str) -> bool:
        """Tell whether a name is that of a visible subordinate."""
        source = self.find_subordinate(name)
        return source is not None and not source.hidden

    def _release(self, operation: Operation) -> list[Counted]:
        subordinates = self._subordinates or {}
        operation.garbage += (subordinates, self._entries, self._flats, self.refreshers)
        for entry in self._entries.values():
            operation.garbage.append((entry.base, entry.origin))
            entry.base = entry.origin = None
        for subordinate in subordinates.values():
            subordinate._parent = None
            subordinate.place = 0
        self._subordinates, self._entries, self._flats = None, {}, {}
        self.refresher = self.refreshers = None
        self.version += 1
        self.cached = None
        return list(subordinates.values())

    # The tree

    def add_subordinate(self, source: "Source") -> None:
        """Put a source below this one; the tree takes a reference to it.

        Raises:
            TreeError: it has a parent already, or is this source or an ancestor of it.
            DuplicateNameError: another subordinate has its name.
            ReleasedError: one of the two was released.
            TypeError: it is no source.
        """
        check_source(source)

        def add(operation: Operation, folding: Folding) -> None:
            self.check()
            source.check_orphan()
            lineage = list(self._lineage())
            if source in lineage:
                raise TreeError(
                    f"{source.path!r} cannot be below {self.path!r}, which is below it", source
                )
            if self._subordinates is None:
                self._subordinates = {}
            check_sibling(self._subordinates, source, self)
            stale = folding.take_in(
                find_retaining(lineage),
                source,
                lambda: [ancestor for ancestor in lineage if ancestor._join(source)],
            )
            self._subordinates[source.name] = source
            self.visible += not source.hidden
            source.settle(self)
            self._note(operation, lineage, source, stale)

        make_folding(add)

    def remove_subordinate(self, source: "Source") -> None:
        """Take a source, and with it all that is below, out of this one.

        When this returns, the names are gone from every mount; open files go on reading.

        Raises:
            TreeError: it is no subordinate of this source.
            ReleasedError: one of the two was released.
            TypeError: it is no source.
        """
        check_source(source)

        def remove(operation: Operation, folding: Folding) -> None:
            self.check()
            source.check()
            if source._parent is not self or self._subordinates is None:
                raise TreeError(f"{source.path!r} is no subordinate of {self.path!r}", source)
            lineage = list(self._lineage())
            stale = folding.take_out(
                find_retaining(lineage),
                source._flats,
                lambda: [ancestor for ancestor in lineage if ancestor._part(source)],
                source,
            )
            del self._subordinates[source.name]
            self.visible -= not source.hidden
            operation.leave(registry_of(lineage), source.place)
            self._note(operation, lineage, source, stale)
            source.leave(operation)

        make_folding(remove)

    def check_orphan(self) -> None:
        """Raise ReleasedError or TreeError if the source cannot be placed anywhere."""
        self.check()
        if self._parent is not None:
            raise TreeError(f"source {self.path!r} has a parent already", self)

    def settle(self, parent: "Source | Parent") -> None:
        """Note the place that a parent gave it; for parents, inside a change."""
        self._parent = parent
        self._holds += 1
        self.placed = time.time_ns()
        moved = [self]
        while moved:
            source = moved.pop()
            source.place = next(_places)
            if source._subordinates:
                moved += source._subordinates.values()

    def leave(self, operation: Operation) -> None:
        """Give up its place; for parents, inside a change."""
        self._parent = None
        self.place = 0
        self._drop_hold(operation)

    def _join(self, source: "Source") -> bool:
        # Takes the entries of a new descendant; tells whether the directory's files change by it.
        stale = False
        if source.refreshers:
            self.refreshers = self.refreshers or {}
            self.refreshers.update(source.refreshers)
        for array, flat in source._flats.items():
            mine = self._flats.get(array)
            if mine is None:
                mine = self._flats[array] = Flat()
            stale = stale or not mine.below
            mine.update(flat)
        self.version += stale
        return stale

    def _part(self, source: "Source") -> bool:
        # The reverse of `_join`.
        stale = False
        for refresher in source.refreshers or ():
            assert self.refreshers is not None
            del self.refreshers[refresher]
        for array, flat in source._flats.items():
            mine = self._flats[array]
            mine.subtract(flat)
            stale = stale or not mine.below
            if not len(mine):
                del self._flats[array]
        self.version += stale
        return stale

    def _note(
        self,
        operation: Operation,
        lineage: list["Source"],
        source: "Source",
        stale: list["Source"],
    ) -> None:
        # Tells which directories are not as they were: this one, where a subdirectory came or went,
        # and those above whose files did.
        registry = registry_of(lineage)
        if not source.hidden:
            self.changed = time.time_ns()
            # A subdirectory's name may be one that a file had or wants. Where nobody worked that
            # out since the last change, a reader that saw no such subdirectory may just be at it.
            layout = self.cached
            if layout is None or layout[0] != self.version or source.name in layout[1].claimed:
                self.version += 1
            operation.touch(registry, self.place, source.name)
        note_files(operation, lineage, stale)

    # Files

    def names(self) -> list[str]:
        """Return the file names that the source's directory shows: own values, then aggregates.

        Raises:
            ReleasedError: it was released.
        """
        self.check()
        return list(self.files)

    def find_refreshers(self) -> list[Refresher]:
        """Return who must be asked before anything here or below is read."""
        found = list(self.refreshers or ())
        above = self._parent
        while isinstance(above, Source):
            if above.refresher is not None:
                found.append(above.refresher)
            above = above._parent
        return found

    def check_answers(self) -> None:
        source: object = self
        while isinstance(source, Source):
            if source.refresher is not None:
                source.refresher.check()
            source = source._parent

    def _find(self, name: str) -> tuple[File, Entry | None]:
        self.check()
        file = self.files.get(name)
        if file is not None:
            return file, self.entry_of(file)
        for entry in list(self._entries.values()):
            for hidden in entry.array.own:
                unseen = entry.hidden or hidden.value.hidden
                if hidden.name == name and unseen and not entry.declared:
                    return hidden, entry
        raise UnknownValueError(f"{self.path}: no value {name!r}", name)

    def get_value(self, name: str) -> Any:
        """Read a value or an aggregate now.

        Args:
            name: one of `names()`, or a hidden value of this source itself.

        Returns:
            The integer, converted to its type, and not the text of `show`; of a histogram a list
            of integers, one for each bucket.

        Raises:
            UnknownValueError: there is no such value.
            UnavailableError: who must be asked for it does not answer within a second.
            BaseMismatchError: the base holds no integer for it any more.
            ReleasedError: the source was released.
        """
        file, entry = self._find(name)
        refresh_all([self])
        return self.read_file(file, entry)

    def clear_value(self, name: str) -> None:
        """Write 0 into a value, or into all that an aggregate covers.

        Args:
            name: one of `names()`, or a hidden value of this source itself.

        Raises:
            UnknownValueError: there is no such value.
            UnavailableError: who must be asked what it is now does not answer within a second.
            ReadOnlyValueError: its mode has no write bit, or its base refuses. An aggregate skips
                bases that refuse, and logs them.
            ReleasedError: the source was released.
        """
        file, entry = self._find(name)
        if not file.value.writable:
            raise ReadOnlyValueError(f"{self.path}: {name!r} cannot be cleared", name)
        refresh_all([self])
        self.clear_file(file, entry)

    # Sampling

    def snapshot(self) -> Snapshot:
        """Sample the whole subtree in one uninterrupted pass.

        All numbers are of one moment where the bases are slotted or plain objects, dictionaries,
        or buffers of this process. Bases that run Python code when read (properties,
        `__getattr__`) are read after the pass, one by one. A base that holds no integers any more
        is left out, and logged once.

        What must be asked for is asked for first, for a second at most.

        Raises:
            ReleasedError: it was released.
        """
        self.check()
        refresh_all([self])
        return self.sample()

    def sample(self) -> Snapshot:
        """Sample the whole subtree as `snapshot` does, but ask nobody.

        Raises:
            ReleasedError: it was released.
        """

        def take() -> Sampling:
            self.check()
            lineage = tuple(reversed(list(self._lineage())))
            return sample_tree(self, lineage, [self])

        return lock_tree(take).finish()


def check_source(source: object) -> None:
    """Raise TypeError if something is no source."""
    if not isinstance(source, Source):
        raise TypeError(f"not a Source: {source!r}")


def check_sibling(siblings: Mapping[str, Source], source: Source, parent: object) -> None:
    """Raise DuplicateNameError if a sibling has the name of a source that is to be placed."""
    if source.name in siblings:
        where = parent.path if isinstance(parent, Source) else "the registry"
        raise DuplicateNameError(f"{where}: there is a {source.name!r} already", source.name)
