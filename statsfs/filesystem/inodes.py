"""Inodes: what the kernel was told, and what it must forget.

Owns inode numbers, what is the root, and the table of the directories and files that the kernel
knows, which are those it looked up and has not forgotten.

An inode number is a source's place times 2^30 plus the file's number, 0 for the directory: it stays
while the source stays in its place, needs no table, and is never used again. The root is 1,
whatever it shows: a registry, or one source of it, which may come and go.

Threading: all methods are for the serving thread but `find_stale`, which is for the thread that
changed the tree. The rule that keeps stale names out of the kernel's cache: a name is noted as
known *before* it is looked at a second time, so a change either is seen by that second look or sees
the note. (The kernel makes an invalidation wait for a lookup under way in the same directory.)
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from statsfs.exceptions import ExhaustedError, StatsfsError
from statsfs.model.arrays import FILE_NUMBERS, File
from statsfs.tree.access import Owner
from statsfs.tree.lock import ChangeNotice
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source, directory_of

__all__ = [
    "ABSENT_TIMEOUT",
    "ROOT",
    "Inodes",
    "Known",
    "NoSuchFileError",
    "Numbered",
    "Stale",
    "number_inode",
]

ROOT: Final = 1

# Seconds for which the kernel may keep that there is no such name, where one source is the root.
ABSENT_TIMEOUT: Final = 1.0
# Ours are kept for longer: the kernel's second begins when it has the answer.
_ABSENT_FOR: Final = 2 * ABSENT_TIMEOUT
# How many names may be noted so: what looks for ever new ones must not fill the memory.
_ABSENT_MAX: Final = 10_000

# The other 34 bits are 5 years of 100 sources a second, half a year of 1,000.
_FILE_BITS: Final = (FILE_NUMBERS - 1).bit_length()
_PLACES: Final = 1 << (64 - _FILE_BITS)
# Seconds after which the kernel is told once more what it still knows of a removed directory, and
# of how many of these at a change. Nearly always it knows nothing any more.
_LEFT_OVER: Final = 1.0
_AT_ONCE: Final = 8
# Names that are remembered of those that were looked for in a removed directory, in vain.
_MISSED_MAX: Final = 100


class NoSuchFileError(StatsfsError, FileNotFoundError):
    """There is no such name, or it is gone."""


class Numbered(Protocol):
    """What a directory has besides its subdirectories: a `File`, or a view of the subtree.

    The numbers of views are 2 to 7, so that those of the root are not its own.
    """

    @property
    def name(self) -> str: ...

    @property
    def number(self) -> int: ...


def number_inode(place: int, number: int = 0) -> int:
    """Return the inode number of a file in a place; 0 is the directory itself.

    Raises:
        ExhaustedError: it would be that of another.
    """
    if place >= _PLACES or number >= FILE_NUMBERS:
        raise ExhaustedError(f"no inode number is left for place {place}, file {number}", place)
    return place << _FILE_BITS | number


@dataclass(frozen=True, slots=True)
class Stale:
    """What the kernel must forget after a change.

    Attributes:
        names: directory inodes and names in them.
        directories: inodes whose attributes are not as they were, each with the inode and the name
            by which it is known, None for the root.
    """

    names: list[tuple[int, bytes]] = field(default_factory=list)
    directories: list[tuple[int, tuple[int, bytes] | None]] = field(default_factory=list)


class Known:
    """A directory that the kernel knows.

    Attributes:
        source, directory: None for a root that shows a registry, or nothing.
        place: the source's place when it was looked up; the directory is gone when that changes.
        owner: whose it is; None for the mount's owner.
        parent, name: where it was found.
        lookups: by file number, how often the kernel was given it; 0 is the directory itself.
        files: the files that the kernel was given, by number.
        opened: how many open files of each number there are.
        rendered: the length and the moment of a view's newest rendering, by number.
        directories: the subdirectories that the kernel was given, by name.
        missed: names that were looked for after the directory was gone.
        absent: names of which the kernel may keep that there are none, and how long ours are kept.
    """

    __slots__ = (
        "absent",
        "directories",
        "directory",
        "files",
        "lookups",
        "missed",
        "name",
        "opened",
        "owner",
        "parent",
        "place",
        "rendered",
        "source",
    )

    def __init__(
        self, source: Source | None, place: int, parent: "Known | None", name: str
    ) -> None:
        self.source = source
        self.directory = None if source is None else directory_of(source)
        self.place = place
        self.parent = parent
        self.name = name
        self.owner: Owner | None = source.owner if source is not None else None
        if self.owner is None and parent is not None:
            self.owner = parent.owner
        self.lookups: dict[int, int] = {}
        self.files: dict[int, Numbered] = {}
        self.rendered: dict[int, tuple[int, int]] = {}
        self.opened: dict[int, int] = {}
        self.directories: dict[str, Known] = {}
        self.missed: frozenset[bytes] = frozenset()
        self.absent: dict[bytes, float] = {}

    @property
    def inode(self) -> int:
        """Its inode number."""
        return ROOT if self.parent is None else number_inode(self.place)

    @property
    def files_now(self) -> Mapping[str, File]:
        """The files that the source shows, by name."""
        return {} if self.directory is None else self.directory.files

    @property
    def alive(self) -> bool:
        """Whether the path by which the kernel found it still leads to it."""
        known: Known | None = self
        while known is not None and known.directory is not None:
            if known.directory.place != known.place:
                return False
            known = known.parent
        return True


class Inodes:
    """The directories and files that the kernel knows.

    Args:
        registry: what the root shows.
        top: the name of the one top-level source that is the root instead; the root is empty while
            there is none.

    Attributes:
        changed: when a top-level directory last came or went, in nanoseconds since the epoch.
    """

    def __init__(self, registry: Registry, top: str | None = None) -> None:
        self._registry = registry
        self._top = top
        self.changed = time.time_ns()
        self._bare: Final = Known(None, 0, None, "")
        self._root = self._bare
        self._known: dict[int, Known] = {0: self._bare}
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
            return self._bare
        source = self._registry.by_name.get(self._top)
        place = 0 if source is None or source.hidden else directory_of(source).place
        former = self._root
        if former.place != place:
            self._root = Known(source, place, None, "") if place else self._bare
            # To the kernel it is one directory, of which it keeps these.
            self._root.absent = self._bare.absent
            self._known[place] = self._root
            self._prune(former)
        return self._root

    def find(self, inode: int) -> tuple[Known, Numbered | None]:
        """Return a directory, or a directory and a file of it; gone or not.

        Raises:
            NoSuchFileError: the kernel does not know the inode.
        """
        if inode == ROOT:
            return self.root, None
        place, number = divmod(inode, FILE_NUMBERS)
        known = self._known.get(place)
        file = known.files.get(number) if known is not None else None
        if known is None or (number and file is None):
            raise NoSuchFileError(f"no file has inode {inode}", inode)
        return known, file

    def living(self, inode: int) -> Known:
        """Return a directory that is still where it was found.

        Raises:
            NoSuchFileError: it is gone, or no directory.
        """
        known, file = self.find(inode)
        if file is not None or not (known.alive or inode == ROOT):
            raise NoSuchFileError(f"{known.name!r} is no directory any more", known.name)
        return known

    def note_directory(self, parent: Known, source: Source, name: str) -> Known | None:
        """Note that the kernel is given a directory; None if that has just left.

        Raises:
            ExhaustedError: there is no inode number for it.
        """
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

    def note_file(self, known: Known, file: Numbered) -> int:
        """Note that the kernel is given a file; return its inode number."""
        known.files[file.number] = file
        known.lookups[file.number] = known.lookups.get(file.number, 0) + 1
        return number_inode(known.place, file.number)

    def note_miss(self, known: Known, name: bytes) -> None:
        """Note that a name was looked for in vain.

        That a removed directory has no such name the kernel keeps, and the directory for it, until
        its memory is short: whoever looks once more through a descriptor would keep the source.
        """
        if not known.alive and len(known.missed) < _MISSED_MAX:
            known.missed |= {name}

    def note_absent(self, known: Known, name: bytes) -> bool:
        """Note that the kernel is told that there is no such name, for `ABSENT_TIMEOUT`.

        Returns:
            Whether it may be told so: only where one source is the root, and not too often.
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
        place, number = divmod(inode, FILE_NUMBERS)
        known = self._known.get(place)
        if known is None or inode == ROOT:
            return
        left = known.lookups.get(number, 0) - lookups
        if left > 0:
            known.lookups[number] = left
            return
        known.lookups.pop(number, None)
        known.files.pop(number, None)
        known.rendered.pop(number, None)
        self._prune(known)

    def _prune(self, known: Known) -> None:
        # A directory goes when the kernel knows neither it nor anything in it; not the root.
        while not known.lookups and not known.directories:
            if known is self._root or known is self._bare:
                return
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
        self._root = self._bare
        self._known = {0: self._bare}
        self._bare.directories.clear()

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
                    names.update(dict.fromkeys(_all_in(known)))
                names.update(dict.fromkeys(_in_use(known)))
                self._removed.append((time.monotonic(), place))
        for place, touched in change.touched.items():
            known = self._known.get(place)
            if known is None or (known is self._bare and self._top not in (None, *touched)):
                continue
            names.update(dict.fromkeys(self._changed_names(known, touched)))
            if known is self._bare:
                self.changed = time.time_ns()
            parent = known.parent
            by_name = None if parent is None else (parent.inode, known.name.encode())
            stale.directories.append((known.inode, by_name))
        names.update(dict.fromkeys(self._left_over()))
        stale.names.extend(names)
        return stale

    def _left_over(self) -> Iterator[tuple[int, bytes]]:
        # What a client was just walking through when its directory was removed stays in the
        # kernel's cache, and so does what was looked for afterwards.
        now = time.monotonic()
        for _ in range(_AT_ONCE):
            if not self._removed or self._removed[0][0] > now - _LEFT_OVER:
                return
            _, place = self._removed.popleft()
            known = self._known.get(place)
            if known is not None:
                yield from _all_below(known)
                self._removed.append((now, place))

    def _changed_names(self, known: Known, touched: set[str]) -> Iterator[tuple[int, bytes]]:
        source = known.source
        for name in touched:
            if name in known.directories:
                yield known.inode, name.encode()
        if self._top is not None and source is None:
            # The root was empty. Whatever was looked for there, what comes now may have.
            yield from _all_in(known)
        if source is None or not (known.files or known.absent):
            return
        files = known.files_now
        for file in list(known.files.values()):
            # Views stay as long as their directory.
            if isinstance(file, File) and files.get(file.name) is not file:
                yield known.inode, file.name.encode()
        there = [name.encode() for name in (*touched, *files)] if known.absent else ()
        yield from ((known.inode, name) for name in there if name in known.absent)


def _all_in(known: Known) -> Iterator[tuple[int, bytes]]:
    # What the kernel may keep of the root's names when the source that it shows comes or goes:
    # there is no name of the root that would take them along.
    names = [file.name for file in list(known.files.values())] + list(known.directories)
    for name in (*(name.encode() for name in names), *list(known.absent)):
        yield known.inode, name


def _in_use(known: Known) -> Iterator[tuple[int, bytes]]:
    # When a directory's name is invalidated, the kernel drops what is cached below it, but for what
    # is in use: open files, and directories that somebody stands in.
    below = [known]
    for directory in below:
        for number in list(directory.opened):
            file = directory.files.get(number)
            if file is not None:
                yield directory.inode, file.name.encode()
        for name, child in list(directory.directories.items()):
            yield directory.inode, name.encode()
            below.append(child)


def _all_below(known: Known) -> Iterator[tuple[int, bytes]]:
    below = [known]
    for directory in below:
        children = list(directory.directories.items())
        below += [child for _, child in children]
        if directory.parent is None:
            continue  # by these names the root has what it shows now
        missed, directory.missed = directory.missed, frozenset()
        files = [file.name.encode() for file in list(directory.files.values())]
        for name in (*missed, *files, *(child.encode() for child, _ in children)):
            yield directory.inode, name
