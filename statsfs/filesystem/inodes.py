"""Inodes: which directories and files the kernel knows, and what it must forget.

Owns the table of known directories, and what is the root: a registry, or one source of it, which
may come and go. The kernel knows what it looked up and has not forgotten.

Threading: all methods are for the serving thread but `find_stale`, which is for the thread that
changed the tree. The rule that keeps stale names out of the kernel's cache: a name is noted as
known *before* it is looked at a second time, so a change either is seen by that second look or sees
the note. (The kernel makes an invalidation wait for a lookup under way in the same directory.)
"""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from statsfs.filesystem.known import (
    FILE_BITS,
    FILE_MASK,
    ROOT,
    Known,
    NoSuchFileError,
    Numbered,
    number_inode,
)
from statsfs.model.arrays import File
from statsfs.tree.access import Owner
from statsfs.tree.lock import ChangeNotice
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source, directory_of

__all__ = ["ABSENT_TIMEOUT", "Inodes", "Stale"]

# Seconds for which the kernel may cache a name as missing, where one source is the root.
ABSENT_TIMEOUT: Final = 1.0
# Ours are kept for longer: the kernel's second begins when it has the answer.
_ABSENT_FOR: Final = 2 * ABSENT_TIMEOUT
# How many missing names are noted: a client that looks for ever new ones must not fill the memory.
_ABSENT_MAX: Final = 10_000
# Seconds after which the kernel is told once more to forget the names of a removed directory, and
# of how many directories at a change. Nearly always it knows none any more.
_LEFT_OVER: Final = 1.0
_AT_ONCE: Final = 8
# How many missing names are noted in each removed directory.
_MISSED_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Stale:
    """What the kernel must forget after a change."""

    names: list[tuple[int, bytes]] = field(default_factory=list)  # directory inodes, names in them
    # Those whose attributes changed, each with the inode and the name by which it is known.
    directories: list[tuple[int, tuple[int, bytes] | None]] = field(default_factory=list)


class Inodes:
    """The directories and files that the kernel knows; the arguments are those of `Vfs`."""

    def __init__(self, registry: Registry, top: str | None = None, owner: Owner = (0, 0)) -> None:
        self._registry = registry
        self._top = top
        self._owner = owner
        self.changed = time.time_ns()  # when a top-level directory last came or went
        # Where not, the kernel keeps no attributes of the root and is told nothing of them: it has
        # no permissions there yet, and an invalidation would discard the answer that brings them.
        self.root_known = True
        self.bare: Final = Known(None, 0, None, "", owner)
        self._root = self.bare
        self._known: dict[int, Known] = {0: self.bare}
        # Removed directories of which files were open, until somebody takes them from here.
        self.left_open: Final[deque[Known]] = deque()
        # The places of removed directories that the kernel knew, and when it was told last.
        self._removed: deque[tuple[float, int]] = deque()
        # Of all absent names the places of their directories, the first to go first.
        self._absent: deque[tuple[float, int, bytes]] = deque()

    def __len__(self) -> int:
        return sum(len(known.lookups) for known in self._known.values())

    @property
    def root(self) -> Known:
        """The root as it is now; where it is one source, that has one for each of its stays."""
        if self._top is None:
            return self.bare
        source = self._registry.by_name.get(self._top)
        place = 0 if source is None or source.hidden else directory_of(source).place
        former = self._root
        if former.place != place:
            self._root = Known(source, place, None, "", self._owner) if place else self.bare
            # To the kernel it is one directory, of which it keeps these.
            self._root.absent = self.bare.absent
            self._known[place] = self._root
            self._prune(former)
        return self._root

    def find(self, inode: int) -> tuple[Known, Numbered | None]:
        """Return a directory, or a directory and a file of it, even if they are gone.

        An inode that the kernel does not know raises NoSuchFileError.
        """
        if inode == ROOT:
            return self.root, None
        known, number = self._known.get(inode >> FILE_BITS), inode & FILE_MASK
        file = known.files.get(number) if known is not None else None
        if known is None or (number and file is None):
            raise NoSuchFileError(f"unknown inode {inode}", inode)
        return known, file

    def living(self, inode: int) -> Known:
        """Return a directory that is still where it was found; raise NoSuchFileError otherwise."""
        known, file = self.find(inode)
        if file is not None or not (known.alive or inode == ROOT):
            raise NoSuchFileError(f"{known.name!r} is not a directory any more", known.name)
        return known

    def note_directory(self, parent: Known, source: Source, name: str) -> Known | None:
        """Note that the kernel is given a directory; return it, or None if it has just left."""
        place = directory_of(source).place
        if not place:
            return None
        child = self._known.get(place)
        if child is None:
            number_inode(place)
            child = self._known[place] = Known(source, place, parent, name)
        parent.directories[name] = child
        child.lookups[0] = child.lookups.get(0, 0) + 1
        return child

    def note_miss(self, known: Known, name: bytes) -> None:
        """Note that a name was looked for in vain.

        The kernel caches it as missing in a removed directory, and keeps the directory for it until
        memory is short: a lookup through a descriptor would keep the source.
        """
        if not known.alive and len(known.missed) < _MISSED_MAX:
            known.missed |= {name}

    def note_absent(self, known: Known, name: bytes) -> bool:
        """Tell whether the kernel may cache a name as missing, for `ABSENT_TIMEOUT`; note it then.

        It may where one source is the root, and not for too many names.
        """
        if self._top is None or not known.alive:
            return False
        now = time.monotonic()
        while self._absent and self._absent[0][0] <= now:
            self._drop_absent(*self._absent.popleft())
        if len(self._absent) >= _ABSENT_MAX:
            return False
        end = known.absent[name] = now + _ABSENT_FOR
        self._absent.append((end, 0 if known.parent is None else known.place, name))
        return True

    def _drop_absent(self, end: float, place: int, name: bytes) -> None:
        known = self._known.get(place)
        # It may have been noted once more since.
        if known is not None and known.absent.get(name) == end:
            del known.absent[name]

    def forget(self, inode: int, lookups: int) -> None:
        """Take back that the kernel knows an inode, as often as it says; never raises."""
        known = self._known.get(inode >> FILE_BITS)
        if known is not None and inode != ROOT:
            known.forget(inode & FILE_MASK, lookups)
            self._prune(known)

    def _prune(self, known: Known) -> None:
        # A directory goes when the kernel knows neither it nor anything in it; not the root.
        while not (known.lookups or known.directories or known in (self._root, self.bare)):
            if self._known.get(known.place) is known:
                del self._known[known.place]
            parent = known.parent
            if parent is None:
                return
            if parent.directories.get(known.name) is known:
                del parent.directories[known.name]
            known = parent

    def forget_all(self) -> None:
        """Forget everything, as when the mount is gone."""
        self._root = self.bare
        self._known = {0: self.bare}
        self.bare.directories.clear()

    # What the kernel must forget

    def find_stale(self, change: ChangeNotice) -> Stale:
        """Return what the kernel must forget after a change; for the thread that made it."""
        stale = Stale()
        names: dict[tuple[int, bytes], None] = {}
        for place in change.left:
            known = self._known.get(place)
            if known is not None:
                if known.parent is not None:
                    names[known.parent.inode, known.name.encode()] = None
                else:
                    # The root has no name that would take those in it along.
                    names.update(dict.fromkeys(known.names()))
                names.update(dict.fromkeys(known.names_in_use()))
                if known.opened:
                    self.left_open.append(known)
                self._removed.append((time.monotonic(), place))
        for place, touched in change.touched.items():
            known = self._known.get(place)
            if known is None or (known is self.bare and self._top not in (None, *touched)):
                continue
            names.update(dict.fromkeys(self._changed_names(known, touched)))
            if known is self.bare:
                self.changed = time.time_ns()
            parent = known.parent
            by_name = None if parent is None else (parent.inode, known.name.encode())
            if parent is not None or self.root_known:
                stale.directories.append((known.inode, by_name))
        names.update(dict.fromkeys(self._left_over()))
        stale.names.extend(names)
        return stale

    def _changed_names(self, known: Known, touched: set[str]) -> Iterator[tuple[int, bytes]]:
        for name in touched:
            if name in known.directories:
                yield known.inode, name.encode()
        if self._top is not None and known.source is None:
            # The root was empty. The source that comes now may have any name looked for there.
            yield from known.names()
        if known.source is None or not (known.files or known.absent):
            return
        files = known.files_now
        for file in list(known.files.values()):
            # Views stay as long as their directory.
            if isinstance(file, File) and files.get(file.name) is not file:
                yield known.inode, file.name.encode()
        there = [name.encode() for name in (*touched, *files)] if known.absent else ()
        yield from ((known.inode, name) for name in there if name in known.absent)

    def _left_over(self) -> Iterator[tuple[int, bytes]]:
        # If a client was just walking through a directory when it was removed, the names stay in
        # the kernel's cache, and so do those that were looked for afterwards.
        now = time.monotonic()
        for _ in range(_AT_ONCE):
            if not self._removed or self._removed[0][0] > now - _LEFT_OVER:
                return
            _, place = self._removed.popleft()
            known = self._known.get(place)
            if known is not None:
                yield from known.take_names()
                self._removed.append((now, place))
