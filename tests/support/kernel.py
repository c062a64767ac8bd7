"""A stand-in for the kernel: it caches names as Linux does, and forgets them as Linux does.

It has what matters of the dentry cache: a name leads to an inode for as long as nobody invalidates
it; invalidating a directory drops what is cached below, but for what is in use; an inode that no
name leads to is forgotten.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count

from statsfs.exceptions import StatsfsError
from statsfs.filesystem.inodes import ABSENT_TIMEOUT, Stale
from statsfs.filesystem.known import ABSENT, ROOT, Attributes, NoSuchFileError
from statsfs.filesystem.vfs import Vfs
from statsfs.model.arrays import FILE_NUMBERS
from statsfs.tree.lock import ChangeNotice

Name = tuple[int, bytes]


class Kernel:
    """The caches of a kernel that has mounted a `Vfs`; also a listener of its registry.

    Attributes:
        names: the inode that each cached name leads to, by directory inode and name.
        absent: the names that are cached as not being there, and until when.
        links: cached link counts, by inode.
        held: directories that somebody stands in or holds open, with how many do.
        opened: the inode of each open file, by handle.
    """

    def __init__(self, vfs: Vfs) -> None:
        self.vfs = vfs
        self.names: dict[Name, int] = {}
        self.absent: dict[Name, float] = {}
        self.links: dict[int, int] = {}
        self.held: Counter[int] = Counter()
        self.opened: dict[int, int] = {}
        self.told: list[Stale] = []
        self._dropped: set[tuple[Name, int]] = set()
        self._lookups: Counter[int] = Counter()

    def __call__(self, change: ChangeNotice) -> None:
        """Invalidate what a change makes stale."""
        stale = self.vfs.find_stale(change)
        self.told.append(stale)
        for parent, name in stale.names:
            self._invalidate((parent, name))
        for inode, _ in stale.directories:
            self.links.pop(inode, None)
        self._shrink()

    def lookup(self, parent: int, name: bytes) -> int:
        """Walk one step, by the cache if it can; return the inode."""
        inode = self.names.get((parent, name))
        if inode is not None:
            return inode
        if self.absent.get((parent, name), 0.0) > time.monotonic():
            raise NoSuchFileError("it was not there", name)
        attributes = self.vfs.lookup(parent, name)
        if attributes is ABSENT:
            self.absent[parent, name] = time.monotonic() + ABSENT_TIMEOUT
            raise NoSuchFileError("it is not there", name)
        return self._learn((parent, name), attributes)

    def _learn(self, name: Name, attributes: Attributes) -> int:
        self.names[name] = attributes.inode
        self.links[attributes.inode] = attributes.links
        self._lookups[attributes.inode] += 1
        return attributes.inode

    def find(self, path: str) -> int:
        """Walk a path from the root; return its inode."""
        inode = ROOT
        for name in path.split("/"):
            inode = self.lookup(inode, name.encode())
        return inode

    def entries(self, inode: int) -> dict[bytes, int]:
        """List a directory, as readdirplus does; return the inodes by name."""
        found = {}

        def reply(name: bytes, attributes: Attributes, offset: int) -> bool:
            if name not in (b".", b".."):
                found[name] = self._learn((inode, name), attributes)
            return True

        handle = self.vfs.open_directory(inode)
        self.vfs.list_directory(handle, 0, reply)
        self.vfs.close_directory(handle)
        return found

    def walk(self, inode: int = ROOT) -> None:
        """Fill the cache with the whole tree."""
        for child in self.entries(inode).values():
            if self.is_directory(child):
                self.walk(child)

    @staticmethod
    def is_directory(inode: int) -> bool:
        """Tell whether an inode is a directory's: the numbers say so."""
        return inode == ROOT or not inode % FILE_NUMBERS

    def open(self, inode: int, flags: int = 0) -> int:
        """Open a file; return its handle."""
        handle = self.vfs.open(inode, flags)
        self.opened[handle] = inode
        return handle

    def close(self, handle: int) -> None:
        """Close a file."""
        del self.opened[handle]
        self.vfs.close(handle)
        self._shrink()

    def hold(self, inode: int) -> None:
        """Stand in a directory."""
        self.held[inode] += 1

    def release(self, inode: int) -> None:
        """Leave a directory."""
        self.held[inode] -= 1
        self._shrink()

    def drop_caches(self) -> None:
        """Forget all that is not in use."""
        before = -1
        while before != len(self.names):
            # What a dropped directory was in may be free only then.
            before = len(self.names)
            for name in list(self.names):
                if name in self.names:
                    self._shrink_below(name)
            self._shrink()

    def _used(self, inode: int) -> bool:
        return (
            self.held[inode] > 0
            or inode in self.opened.values()
            or any(parent == inode for parent, _ in self.names)
            or any(parent == inode for (parent, _), _ in self._dropped)
        )

    def _invalidate(self, name: Name) -> None:
        # d_invalidate: the name goes even if it is in use, what is below only if it is not.
        self.absent.pop(name, None)
        inode = self.names.get(name)
        if inode is not None:
            self._shrink_below(name)
            if self.names.pop(name, None) is not None:
                self._dropped.add((name, inode))

    def _shrink_below(self, name: Name) -> None:
        inode = self.names[name]
        for missed in [missed for missed in self.absent if missed[0] == inode]:
            del self.absent[missed]
        for below in [below for below in self.names if below[0] == inode]:
            self._shrink_below(below)
        if not self._used(inode):
            del self.names[name]

    def _shrink(self) -> None:
        # Inodes that nothing leads to, and that nobody uses, are forgotten.
        self._dropped = {dropped for dropped in self._dropped if self._used(dropped[1])}
        alive = {ROOT, *self.names.values(), *(inode for _, inode in self._dropped)}
        gone = [inode for inode in self._lookups if inode not in alive]
        for inode in gone:
            self.links.pop(inode, None)
            self.vfs.forget(inode, self._lookups.pop(inode))
        if gone:
            self._shrink()

    def stale_names(self) -> list[Name]:
        """Return the cached names that lead elsewhere than the filesystem says."""
        stale = []
        for (parent, name), inode in self.names.items():
            try:
                found = self.vfs.lookup(parent, name).inode
            except StatsfsError:
                stale.append((parent, name))
                continue
            self.vfs.forget(found, 1)
            if found != inode:
                stale.append((parent, name))
        now = time.monotonic()
        for parent, name in [missed for missed, end in self.absent.items() if end > now]:
            with contextlib.suppress(StatsfsError):
                found = self.vfs.lookup(parent, name).inode
                if found:
                    self.vfs.forget(found, 1)
                    stale.append((parent, name))
        return stale

    def stale_links(self) -> list[int]:
        """Return the directories that a path leads to and whose cached link count is wrong."""
        return [
            inode
            for inode in {ROOT, *self.names.values()}
            if self.is_directory(inode)
            and self.links.get(inode) not in (None, self.vfs.attributes(inode).links)
        ]


def prepare_read(vfs: Vfs, handle: int, offset: int | None = None) -> bool:
    """Do what must be done before a file is read; tell whether that was anything."""
    done = False
    for work in vfs.prepare_read(handle, offset):
        work.run()
        done = True
    return done


def write(vfs: Vfs, handle: int, data: bytes) -> None:
    """Write into an open file."""
    for work in vfs.prepare_write(handle, data):
        work.run()


class _Buffer:
    # What one readdir may fill.
    def __init__(self, room: int) -> None:
        self.room = room
        self.entries: list[tuple[bytes, int, int]] = []

    def __call__(self, name: bytes, attributes: Attributes, offset: int) -> bool:
        if len(self.entries) == self.room:
            return False
        self.entries.append((name, attributes.inode, offset))
        return True


def list_directory(
    vfs: Vfs,
    inode: int,
    room: Sequence[int] = (99,),
    between: Sequence[Callable[[], object]] = (),
) -> list[bytes]:
    """List a directory as a client does; return the names but for "." and "..".

    Args:
        vfs: the filesystem.
        inode: the directory.
        room: how many entries the buffers have, over and over.
        between: what happens after each of the first calls.
    """
    found: list[tuple[bytes, int, int]] = []
    handle = vfs.open_directory(inode)
    for turn in count():
        buffer = _Buffer(room[turn % len(room)])
        vfs.list_directory(handle, found[-1][2] if found else 0, buffer)
        if not buffer.entries:
            break
        found += buffer.entries
        if turn < len(between):
            between[turn]()
    vfs.close_directory(handle)
    assert [name for name, _, _ in found[:2]] in ([], [b".", b".."])
    for _, known, _ in found[2:]:
        vfs.forget(known, 1)
    return [name for name, _, _ in found[2:]]
