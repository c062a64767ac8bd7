"""The filesystem without FUSE: names, inodes, attributes, and the bytes of files.

Owns what a name leads to, what stat(2) tells, and open files. Which inodes the kernel knows is the
business of `inodes`, what files say that of `texts` and `views`, the FUSE protocol that of `fuse`.

Threading: all methods are for the serving thread but `find_stale`, which is for the thread that
changed the tree, and `stop_waiting`, which is for any.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Final, NamedTuple

from statsfs.arrays import Entry, File
from statsfs.changes import Change
from statsfs.exceptions import ReadOnlyValueError, StatsfsError
from statsfs.inodes import ROOT, Inodes, Known, NoSuchFileError, Numbered, Stale, number_inode
from statsfs.registry import Registry
from statsfs.sources import Source
from statsfs.texts import (
    FILE_SIZE,
    BrokenValueError,
    NotZeroError,
    check_zero,
    describe_file,
    find_size,
    render_file,
)
from statsfs.views import BINARY, VIEWS, Rendering, View

__all__ = [
    "FILE_SIZE",
    "NAME_MAX",
    "ROOT",
    "Attributes",
    "BrokenValueError",
    "NoSuchAttributeError",
    "NoSuchFileError",
    "NotZeroError",
    "Stale",
    "TooMuchOpenError",
    "Vfs",
]

NAME_MAX: Final = 255

# What the texts of open views may take together, in bytes: without an end, any reader could have
# the program killed for want of memory. A view of 300,000 values has some 10 MB.
_TEXTS_MAX: Final = 1 << 28


class NoSuchAttributeError(StatsfsError, KeyError):
    """A file has no such extended attribute."""


class TooMuchOpenError(StatsfsError, OSError):
    """The texts of all open views take too much memory for one more."""


class Attributes(NamedTuple):
    """What stat(2) tells of a file; times in nanoseconds since the epoch.

    What is `live` changes without our saying so, and is not to be cached.
    """

    inode: int
    mode: int
    links: int
    size: int
    modified: int
    live: bool = False


@dataclass(slots=True)
class _OpenFile:
    known: Known
    source: Source
    file: File
    entry: Entry | None
    text: bytes | None = None


@dataclass(slots=True, eq=False)
class _OpenView:
    # `client` is whoever opened it; `fresh` until it is read from the beginning.
    known: Known
    source: Source | None
    file: View
    mask: int
    client: int
    text: bytes = b""
    moment: int = 0
    fresh: bool = True


@dataclass(slots=True)
class _OpenDirectory:
    known: Known
    names: list[bytes] | None = None


def _decode(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise NoSuchFileError(f"no name here is {name!r}", name) from None


class Vfs:
    """The tree of a registry as a filesystem.

    Args:
        registry: whose sources the root shows.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._inodes = Inodes()
        self._files: dict[int, _OpenFile | _OpenView] = {}
        # Of each inode those that are open, the newest rendering last.
        self._views: dict[int, list[_OpenView]] = {}
        self._texts = 0  # the bytes of all open views
        self._directories: dict[int, _OpenDirectory] = {}
        self._handles = count(1)
        self._stopped = False
        self._waiting: set[Callable[[], object]] = set()

    # Inodes

    def _subordinate(self, known: Known, name: str) -> Source | None:
        if known.source is None:
            source = self._registry.by_name.get(name)
        else:
            source = known.source.find_subordinate(name)
        return None if source is None or source.hidden else source

    def lookup(self, parent: int, name: bytes) -> Attributes:
        """Find a name; the kernel then knows it until `forget`.

        Raises:
            NoSuchFileError: there is none.
        """
        known, file = self._inodes.find(parent)
        if file is not None:
            raise NoSuchFileError(f"{file.name!r} is no directory", file.name)
        try:
            return self._lookup(known, _decode(name))
        except NoSuchFileError:
            self._inodes.note_miss(known, name)
            raise

    def _lookup(self, known: Known, text: str) -> Attributes:
        attributes = self._lookup_file(known, text)
        if attributes is not None:
            return attributes
        if text.startswith("."):
            return self._lookup_view(known, text)
        # What was removed may have been added elsewhere, and lead to what lives there.
        while known.alive:
            source = self._subordinate(known, text)
            if source is not None:
                child = self._inodes.note_directory(known, source, text)
                if child is not None:
                    here = self._subordinate(known, text) is source and child.parent is known
                    if here and child.alive:
                        return self._directory_attributes(child)
                    self.forget(child.inode, 1)
            else:
                file = known.source.files.get(text) if known.source is not None else None
                if file is None:
                    raise NoSuchFileError(f"{known.name}: no {text!r}", text)
                inode = self._inodes.note_file(known, file)
                if self._shows(known, file) and self._subordinate(known, text) is None:
                    return self._file_attributes(known, file)
                self.forget(inode, 1)
        raise NoSuchFileError(f"directory {known.name!r} was removed", known.name)

    def _lookup_file(self, known: Known, name: str) -> Attributes | None:
        # The short way, for what is looked up most: a file of a layout that was worked out already.
        # What stands in its way changes the version, and so the second look sees it.
        source = known.source
        cached = source.cached if source is not None else None
        file = cached[1].files.get(name) if cached is not None else None
        if file is None or source is None or cached is None:
            return None
        inode = self._inodes.note_file(known, file)
        if source.version == cached[0] and known.alive:
            return self._file_attributes(known, file)
        self.forget(inode, 1)
        return None

    def _lookup_view(self, known: Known, name: str) -> Attributes:
        view = VIEWS.get(name)
        if view is None or (view is BINARY and known.source is None):
            raise NoSuchFileError(f"{known.name}: no {name!r}", name)
        inode = self._inodes.note_file(known, view)
        if known.alive:
            return self._view_attributes(known, view, None)
        self.forget(inode, 1)
        raise NoSuchFileError(f"directory {known.name!r} was removed", known.name)

    @staticmethod
    def _shows(known: Known, file: Numbered) -> bool:
        if isinstance(file, View):
            return known.alive
        return (
            known.source is not None and known.source.files.get(file.name) is file and known.alive
        )

    def forget(self, inode: int, lookups: int) -> None:
        """Take back that the kernel knows an inode, as often as it says; never raises."""
        self._inodes.forget(inode, lookups)

    def find_stale(self, change: Change) -> Stale:
        """Return what the kernel must forget after a change; for the thread that made it."""
        return self._inodes.find_stale(change)

    # Attributes

    def _directory_attributes(self, known: Known) -> Attributes:
        mode = stat.S_IFDIR | 0o755
        source = known.source
        if source is None:
            visible = sum(not source.hidden for source in self._registry.sources)
            return Attributes(ROOT, mode, 2 + visible, 0, self._inodes.changed)
        links = 2 + source.visible if known.alive else 0
        return Attributes(known.inode, mode, links, 0, source.changed)

    def _file_attributes(self, known: Known, file: File) -> Attributes:
        assert known.source is not None
        value = file.value
        return Attributes(
            number_inode(known.place, file.number),
            stat.S_IFREG | value.mode,
            1,
            FILE_SIZE if value.size == 1 else find_size(value),
            known.source.placed,
        )

    def _view_attributes(self, known: Known, view: View, client: int | None) -> Attributes:
        # As long as a client has it open, the size is that of what the client reads: tar and cp
        # rely on it, and somebody else may have opened it since. Never rendered, it has the size
        # of any file, since some tools never read what has none.
        inode = number_inode(known.place, view.number)
        since = self._inodes.changed if known.source is None else known.source.placed
        size, moment = known.rendered.get(view.number, (FILE_SIZE, since))
        for opened in reversed(self._views.get(inode, ())):
            if opened.client == client and opened.moment:
                size, moment = len(opened.text), opened.moment
                break
        return Attributes(inode, stat.S_IFREG | 0o444, 1, size, moment, live=True)

    def attributes(self, inode: int, client: int | None = None) -> Attributes:
        """Return the attributes of an inode that the kernel knows, gone or not.

        Args:
            inode: the file's.
            client: the process that asks, as for `open`.

        Raises:
            NoSuchFileError: there is none.
        """
        known, file = self._inodes.find(inode)
        if file is None:
            return self._directory_attributes(known)
        if isinstance(file, File):
            attributes = self._file_attributes(known, file)
        else:
            attributes = self._view_attributes(known, VIEWS[file.name], client)
        return attributes if self._shows(known, file) else attributes._replace(links=0)

    def check_truncate(self, inode: int) -> None:
        """Check that a file may be truncated; nothing happens to it then, as in sysfs.

        Raises:
            NoSuchFileError: there is none.
            ReadOnlyValueError: it cannot be written.
        """
        _, file = self._inodes.find(inode)
        if file is not None and not (isinstance(file, File) and file.value.writable):
            raise ReadOnlyValueError(f"{file.name!r} cannot be written", file.name)

    def extended_attributes(self, inode: int) -> dict[bytes, bytes]:
        """Return the extended attributes of an inode: what a value is, or a source's label."""
        known, file = self._inodes.find(inode)
        if file is not None:
            return describe_file(file.value) if isinstance(file, File) else {}
        label = known.source.label if known.source is not None else None
        return {} if label is None else {b"user.statsfs.label": label.encode()}

    def extended_attribute(self, inode: int, name: bytes) -> bytes:
        """Return one extended attribute.

        Raises:
            NoSuchAttributeError: the inode has none of that name.
        """
        # The kernel asks for security.capability before each write.
        ours = name.startswith(b"user.statsfs.")
        try:
            return self.extended_attributes(inode if ours else ROOT)[name]
        except KeyError:
            raise NoSuchAttributeError(f"no attribute {name!r}", name) from None

    # Directories

    def open_directory(self, inode: int) -> int:
        """Open a directory for `list_directory`; return its handle.

        Raises:
            NoSuchFileError: it is gone.
        """
        handle = next(self._handles)
        self._directories[handle] = _OpenDirectory(self._inodes.living(inode))
        return handle

    def list_directory(
        self, handle: int, start: int, reply: Callable[[bytes, Attributes, int], bool]
    ) -> None:
        """List an open directory.

        The names are those at offset 0, so that what changes meanwhile makes no name come twice
        and lets none that stays be missed. What has gone by the time its turn comes is left out.

        Args:
            handle: from `open_directory`.
            start: 0, or an offset that was replied.
            reply: called with a name, its attributes and the offset that follows; says whether it
                was taken. The kernel then knows the name, but for "." and "..".
        """
        opened = self._directories[handle]
        if start == 0 or opened.names is None:
            opened.names = self._names(opened.known) if opened.known.alive else []
        for index in range(start, len(opened.names)):
            name, offset = opened.names[index], index + 1
            if name in (b".", b".."):
                known = opened.known.parent or opened.known if name == b".." else opened.known
                if not reply(name, self._directory_attributes(known), offset):
                    return
                continue
            try:
                attributes = self._lookup(opened.known, name.decode())
            except StatsfsError:
                continue
            if not reply(name, attributes, offset):
                self.forget(attributes.inode, 1)
                return

    def _names(self, known: Known) -> list[bytes]:
        source = known.source
        # Files before the directories and once more after them: a name that turns from one into the
        # other meanwhile is not missed, and comes once.
        before = source.files if source is not None else ()
        below = self._registry.sources if source is None else source.subordinates
        directories = [found.name for found in below if not found.hidden]
        after = source.files if source is not None else ()
        return [name.encode() for name in dict.fromkeys((".", "..", *directories, *before, *after))]

    def close_directory(self, handle: int) -> None:
        """Close an open directory."""
        del self._directories[handle]

    # Files

    def open(self, inode: int, flags: int, *, mask: int = 0o444, client: int = 0) -> int:
        """Open a file; return its handle.

        Args:
            inode: the file's.
            flags: those of open(2); truncation has no effect, as in sysfs.
            mask: the permission bits of which a value must have one for this client to read it; it
                keeps out of a view what its file would not tell.
            client: the process that opens it.

        Raises:
            NoSuchFileError: it is gone.
            ReadOnlyValueError: its mode has no bit for what is wanted, whoever asks.
        """
        known, file = self._inodes.find(inode)
        if file is None or not self._shows(known, file):
            raise NoSuchFileError(f"inode {inode} is gone", inode)
        mode = file.value.mode if isinstance(file, File) else 0o444
        access = flags & os.O_ACCMODE
        if access != os.O_RDONLY and not mode & 0o222:
            raise ReadOnlyValueError(f"{file.name!r} cannot be written", file.name)
        if access != os.O_WRONLY and not mode & 0o444:
            raise ReadOnlyValueError(f"{file.name!r} cannot be read", file.name)
        source = known.source
        if source is not None:
            source.hold()
        handle = next(self._handles)
        if isinstance(file, View):
            opened = _OpenView(known, source, file, mask, client)
            self._files[handle] = opened
            self._views.setdefault(inode, []).insert(0, opened)
        else:
            assert isinstance(file, File)
            assert source is not None
            self._files[handle] = _OpenFile(known, source, file, source.entry_of(file))
        known.opened[file.number] = known.opened.get(file.number, 0) + 1
        return handle

    def rendering(self, handle: int, offset: int | None = None) -> Rendering | None:
        """Return what must be done before a file that was opened can be read, if anything.

        Args:
            handle: from `open`.
            offset: where it is to be read; None right after `open`.
        """
        opened = self._files[handle]
        if isinstance(opened, _OpenFile):
            return None
        if offset is not None and (offset or opened.fresh):
            opened.fresh = opened.fresh and offset != 0
            return None
        top = self._registry if opened.source is None else opened.source
        return Rendering(opened.file, top, opened.mask)

    def finish(self, handle: int, rendering: Rendering) -> None:
        """Let a view that is open be read as it was rendered.

        Raises:
            TooMuchOpenError: all that is open would take too much memory; it is as it was.
        """
        opened = self._files.get(handle)
        if not isinstance(opened, _OpenView):
            return
        texts = self._texts + len(rendering.text) - len(opened.text)
        if texts > _TEXTS_MAX:
            raise TooMuchOpenError(f"open views take {self._texts} bytes", opened.file.name)
        self._texts = texts
        opened.text, opened.moment = rendering.text, rendering.moment
        known, number = opened.known, opened.file.number
        known.rendered[number] = (len(opened.text), opened.moment)
        views = self._views[number_inode(known.place, number)]
        views.remove(opened)
        views.append(opened)

    @contextlib.contextmanager
    def waiting(self, give_up: Callable[[], object]) -> Iterator[None]:
        """Have a function called, in any thread, when the end of the mount is not to be held up.

        Args:
            give_up: makes the body end early; called once or more, at once if it is too late.
        """
        self._waiting.add(give_up)
        try:
            if self._stopped:
                give_up()
            yield
        finally:
            self._waiting.discard(give_up)

    def stop_waiting(self) -> None:
        """Say that the mount is about to end: what is being rendered is not waited for."""
        self._stopped = True
        for give_up in self._waiting.copy():
            give_up()

    def read(self, handle: int, offset: int, size: int) -> bytes:
        """Read an open file: computed at offset 0, and then the same text at every other.

        A view is read as it was last rendered.

        Raises:
            BrokenValueError: there is no number, or no text for it; logged once for each file.
        """
        opened = self._files[handle]
        if isinstance(opened, _OpenView):
            return opened.text[offset : offset + size]
        if offset == 0 or opened.text is None:
            opened.text = render_file(opened.source, opened.file, opened.entry)
        return opened.text[offset : offset + size]

    def write(self, handle: int, data: bytes) -> int:
        """Clear an open file if what is written is 0; return how much was written.

        Raises:
            NotZeroError: it is something else; nothing changes.
            ReadOnlyValueError: the base refuses.
        """
        opened = self._files[handle]
        if isinstance(opened, _OpenView):
            raise ReadOnlyValueError(f"{opened.file.name!r} cannot be written", opened.file.name)
        check_zero(opened.file, data)
        opened.source.clear_file(opened.file, opened.entry)
        return len(data)

    def close(self, handle: int) -> None:
        """Close an open file; its source may be released by it."""
        opened = self._files.pop(handle)
        number, known = opened.file.number, opened.known
        if isinstance(opened, _OpenView):
            self._texts -= len(opened.text)
            inode = number_inode(known.place, number)
            self._views[inode].remove(opened)
            if not self._views[inode]:
                del self._views[inode]
        known.opened[number] -= 1
        if not known.opened[number]:
            del known.opened[number]
        if opened.source is not None:
            opened.source.unhold()

    def close_all(self) -> None:
        """Forget everything, as when the mount is gone."""
        for handle in list(self._files):
            self.close(handle)
        self._directories.clear()
        self._inodes.forget_all()
