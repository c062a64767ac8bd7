"""The filesystem without FUSE: names, attributes, and the bytes of files.

Owns what a name leads to, what stat(2) tells, and what may be opened. `inodes` knows what the
kernel knows, `handles` what is open; `value_files` and `views` make the texts.

Threading: all methods are for the serving thread but `find_stale`, which is for the thread that
changed the tree. What `prepare_read` and `prepare_write` yield runs in any, as does the removal
that `prepare_rmdir` returns.
"""

import stat
from collections.abc import Callable, Iterator, Mapping
from os import O_ACCMODE, O_RDONLY
from threading import get_ident
from typing import Any, Final

from statsfs.exceptions import ReadOnlyValueError, SegmentError, StatsfsError
from statsfs.filesystem.event_files import EVENTS, OpenEvents
from statsfs.filesystem.handles import Handles, OpenDirectory, OpenFile, OpenView
from statsfs.filesystem.inodes import Inodes, Stale
from statsfs.filesystem.known import (
    ABSENT,
    ROOT,
    Attributes,
    BusyDirectoryError,
    FixedDirectoryError,
    Known,
    NoSuchAttributeError,
    NoSuchFileError,
    Numbered,
    check_access,
)
from statsfs.filesystem.reading import Reading, UnrecordedError
from statsfs.filesystem.serving_stats import ServingStats
from statsfs.filesystem.value_files import FILE_SIZE, is_integer
from statsfs.filesystem.works import Work
from statsfs.formats.views import BINARY, VIEWS, View
from statsfs.model.arrays import File
from statsfs.tree.access import Access, Owner
from statsfs.tree.asking import find_asking
from statsfs.tree.clearing import check_writable
from statsfs.tree.events import Events
from statsfs.tree.lock import ChangeNotice
from statsfs.tree.references import hold, unhold
from statsfs.tree.refresh import Refresher, Refreshing
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source, rmdir_of

__all__ = ["Vfs"]


class Vfs:
    """The tree of a registry as a filesystem.

    Methods that take an inode raise NoSuchFileError if there is no such file, or it is gone.

    Args:
        registry: whose sources the root shows.
        top: the name of the one top-level source that is the root instead.
        owner: the user and the group of all that has no other owner.

    Attributes:
        removing: the threads that remove a directory for the kernel, which has locked it, and those
            above it, until it is answered.
        asking: how many lookups and listings wait for refreshes, with their directories locked.
        stats: the counters of the requests.
    """

    def __init__(
        self, registry: Registry, *, top: str | None = None, owner: Owner = (0, 0)
    ) -> None:
        self.removing: Final[set[int]] = set()
        self.asking = 0
        self.stats: Final = ServingStats()
        self._registry = registry
        self._top = top
        self._events = Events(top)
        self._inodes = Inodes(registry, top, owner)
        self._handles = Handles(self._inodes.left_open)
        self._files = self._handles.files
        self._reading = Reading(self._handles, registry, self.stats)
        # Not a method: each read comes here.
        self.read_at_once: Final = self._reading.read_at_once
        # The subordinates of the root, where that is not a source.
        self._top_level: Mapping[str, Source] = registry.by_name if top is None else {}

    # Names

    def lookup(self, parent: int, name: bytes) -> Attributes:
        """Find a name, which the kernel then knows until `forget`; return its attributes.

        Where one source is the root, they may be `ABSENT`.
        """
        self._note_root(parent)
        known, file = self._inodes.find(parent)
        if file is not None:
            raise NoSuchFileError(f"{file.name!r} is not a directory", file.name)
        text = name.decode(errors="surrogateescape")  # our names have no surrogates
        try:
            return self._lookup(known, text)
        except NoSuchFileError:
            self._inodes.note_miss(known, name)
            if not self._inodes.note_absent(known, name):
                raise
        try:
            return self._lookup(known, text)
        except NoSuchFileError:
            if not known.alive or self._inodes.find(parent)[0] is not known:
                raise
            return ABSENT

    def _lookup(self, known: Known, name: str) -> Attributes:
        attributes = self._lookup_cached(known, name)
        # A removed directory may have been added elsewhere, so the name may lead to a living one.
        while attributes is None and known.alive:
            source = self._subordinate(known, name)
            if source is not None:
                attributes = self._lookup_directory(known, source, name)
            else:
                attributes = self._lookup_file(known, name)
        if attributes is None:
            raise NoSuchFileError(f"directory {known.name!r} was removed", known.name)
        return attributes

    def _subordinate(self, known: Known, name: str) -> Source | None:
        if known.directory is None:
            source = self._top_level.get(name)
        else:
            source = known.directory.subordinates.get(name)
        return None if source is None or source.hidden else source

    # Each of these notes the name, looks again, and returns None if it has changed: see `inodes`.

    def _lookup_cached(self, known: Known, name: str) -> Attributes | None:
        # Fast path: the cached layout. Whatever would hide the file changes the version.
        directory = known.directory
        cached = directory.cached if directory is not None else None
        file = cached[1].files.get(name) if cached is not None else None
        if file is None or directory is None or cached is None or not self._lists(known, file):
            return None
        inode = known.note_file(file)
        if directory.version == cached[0] and known.alive:
            return known.value_attributes(file)
        self.forget(inode, 1)
        return None

    def _lookup_directory(self, known: Known, source: Source, name: str) -> Attributes | None:
        child = self._inodes.note_directory(known, source, name)
        if child is None:
            return None
        if self._subordinate(known, name) is source and child.parent is known and child.alive:
            return self._directory_attributes(child)
        self.forget(child.inode, 1)
        return None

    def _lookup_file(self, known: Known, name: str) -> Attributes | None:
        found: File | View | None = VIEWS.get(name) or known.files_now.get(name)
        file: Numbered = found or EVENTS
        if name == EVENTS.name and known.parent is None:
            known = self._inodes.bare  # the same one, whichever source is the root
        elif found is None or not self._lists(known, found):
            raise NoSuchFileError(f"{known.name}: no {name!r}", name)
        inode = known.note_file(file)
        if self._shows(known, file) and self._subordinate(known, name) is None:
            return self._file_attributes(known, file, None)
        self.forget(inode, 1)
        return None

    def _lists(self, known: Known, file: File | View) -> bool:
        if isinstance(file, View):
            # The binary view is of one directory's own values; an empty root has none at all.
            return known.source is not None or (file is not BINARY and self._top is None)
        # Where one source is the root, its own files are integers: kvm_stat reads all that it
        # finds there as such, and dies of anything else.
        return known.parent is not None or is_integer(file)

    @staticmethod
    def _shows(known: Known, file: Numbered) -> bool:
        shown = not isinstance(file, File) or known.files_now.get(file.name) is file
        return shown and known.alive

    def prepare_lookup(self, parent: int) -> Refreshing | None:
        """Return what must run before `lookup` finds a name that a directory lacks, or None."""
        known, file = self._inodes.find(parent)
        return _find_asking(known) if file is None else None

    def forget(self, inode: int, lookups: int) -> None:
        """Take back that the kernel knows an inode, as often as it says; never raises."""
        self._inodes.forget(inode, lookups)

    def find_stale(self, change: ChangeNotice) -> Stale:
        """Return what the kernel must forget after a change; for the thread that made it."""
        return self._inodes.find_stale(change)

    # Attributes

    def forget_root(self) -> None:
        """Note that the kernel has no attributes of the root yet, as of a fresh mount.

        It has them when it looks for a name there, or lists it: it asks for permissions before.
        """
        self._inodes.root_known = False

    def _note_root(self, inode: int) -> None:
        if inode == ROOT:
            self._inodes.root_known = True

    def attributes(self, inode: int, client: int | None = None) -> Attributes:
        """Return the attributes of an inode, even of one that is gone; a client's are its own."""
        known, file = self._inodes.find(inode)
        if file is None:
            return self._directory_attributes(known)
        attributes = self._file_attributes(known, file, client)
        return attributes if self._shows(known, file) else attributes._replace(links=0)

    def _directory_attributes(self, known: Known) -> Attributes:
        mode, changed = stat.S_IFDIR | 0o755, self._inodes.changed
        if known.parent is None:
            known = self._inodes.root  # which may be another by now
        directory = known.directory
        live = known.parent is None and not self._inodes.root_known
        if directory is None:
            visible = sum(not source.hidden for source in list(self._top_level.values()))
            return Attributes(ROOT, mode, 2 + visible, 0, changed, known.owner, live)
        links = 2 + directory.visible if known.alive else 0
        moment = directory.changed if known.parent is not None else max(directory.changed, changed)
        return Attributes(known.inode, mode, links, 0, moment, known.owner, live)

    def _file_attributes(self, known: Known, file: Numbered, client: int | None) -> Attributes:
        if isinstance(file, File):
            return known.value_attributes(file)
        directory = known.directory
        since = self._inodes.changed if directory is None else directory.placed
        # Never rendered, it has the size of any file, since some tools never read an empty one.
        size, moment = self._handles.find_rendered(known, file, client) or (FILE_SIZE, since)
        if file is EVENTS:
            size, moment = self._events.written or (0, since)
        return known.view_attributes(file, size, moment)

    def check_truncate(self, inode: int) -> None:
        """Raise ReadOnlyValueError unless a file may be truncated: without effect, as in sysfs."""
        known, file = self._inodes.find(inode)
        if isinstance(file, File) and known.directory is not None:
            check_writable(known.directory, file)
        elif file is not None:
            raise ReadOnlyValueError(f"{file.name!r} cannot be written", file.name)

    def extended_attributes(self, inode: int) -> dict[bytes, bytes]:
        """Return the extended attributes of an inode that the kernel knows."""
        return Known.extended_attributes(*self._inodes.find(inode))

    def extended_attribute(self, inode: int, name: bytes) -> bytes:
        """Return one extended attribute; raise NoSuchAttributeError if there is none."""
        # The kernel asks for security.capability before each write.
        ours = name.startswith(b"user.statsfs.")
        found = self.extended_attributes(inode).get(name) if ours else None
        if found is None:
            raise NoSuchAttributeError(f"no attribute {name!r}", name)
        return found

    # Directories

    def open_directory(self, inode: int, user: int = 0) -> int:
        """Open a directory for `list_directory`; return its handle."""
        self._note_root(inode)
        return self._handles.add_directory(OpenDirectory(self._inodes.living(inode), user))

    def user_of_directory(self, handle: int) -> int:
        """Return who opened a directory."""
        return self._handles.directories[handle].user

    def prepare_listing(self, handle: int) -> Refreshing | None:
        """Return what must run before `list_directory` begins, or None."""
        known = self._handles.directories[handle].known
        return _find_asking(self._inodes.root if known.parent is None else known)

    def list_directory(
        self, handle: int, start: int, reply: Callable[[bytes, Attributes, int], bool]
    ) -> None:
        """List an open directory.

        The names are those at offset 0, so that a change meanwhile makes no name come twice, and no
        name that stays is missed. A name that has gone by the time its turn comes is left out.

        Args:
            handle: from `open_directory`.
            start: 0, or an offset that was replied.
            reply: called with a name, its attributes and the offset that follows; says whether it
                was taken. The kernel then knows the name, but for "." and "..".
        """
        opened = self._handles.directories[handle]
        if start == 0 or opened.names is None:
            if opened.known.parent is None:
                opened.known = self._inodes.root
            names = self._names(opened.known) if opened.known.alive else []
            self._handles.set_names(opened, names)
        for index, name in enumerate((opened.names or [])[start:], start):
            try:
                attributes = self._lookup_listed(opened.known, name)
            except StatsfsError:
                continue
            if not reply(name, attributes, index + 1):
                if name not in (b".", b".."):
                    self.forget(attributes.inode, 1)
                return

    def _lookup_listed(self, known: Known, name: bytes) -> Attributes:
        if name in (b".", b".."):
            return self._directory_attributes((name == b".." and known.parent) or known)
        return self._lookup(known, name.decode())

    def _names(self, known: Known) -> list[bytes]:
        # Files before the directories and once more after them: a name that turns from one into the
        # other meanwhile is not missed, and comes once.
        before = known.files_now
        source = known.source
        below = list(self._top_level.values()) if source is None else source.subordinates
        directories = [found.name for found in below if not found.hidden]
        after = known.files_now
        return [name.encode() for name in dict.fromkeys((".", "..", *directories, *before, *after))]

    def close_directory(self, handle: int) -> None:
        """Close an open directory."""
        self._handles.remove_directory(handle)

    def prepare_rmdir(self, parent: int, name: bytes, user: int) -> Callable[[], None]:
        """Check that a user may remove a directory; return what does so, and may take long.

        Raises:
            FixedDirectoryError: it is the program's, or another user's.
            BusyDirectoryError: it is not empty; only the removal raises it.
            UnrecordedError: it cannot be recorded; only the removal raises it.
        """
        known, _ = self._inodes.find(parent)
        source = self._subordinate(known, name.decode(errors="surrogateescape"))
        if source is None or not known.alive:
            raise NoSuchFileError(f"{known.name}: no {name!r}", name)
        rmdir, owner = rmdir_of(source), source.owner or known.owner
        if rmdir is None or user not in (0, owner[0]):
            raise FixedDirectoryError(f"{source.path} cannot be removed", source)

        def remove() -> None:
            thread = get_ident()
            self.removing.add(thread)
            try:
                if not rmdir(source):
                    raise BusyDirectoryError(f"{source.path} is in use", source)
            except SegmentError as error:
                raise UnrecordedError(error.message, error.offender) from error
            finally:
                self.removing.discard(thread)

        return remove

    # Files

    def open(self, inode: int, flags: int, *, user: Owner = (0, 0), client: int = 0) -> int:
        """Open a file; return its handle.

        A view leaves out values whose files the user cannot read. Truncation has no effect, as in
        sysfs. Where the mode has no bit for the flags, even root gets ReadOnlyValueError.
        """
        if (handle := self.open_value(inode, flags, user[0])) is not None:
            return handle
        known, file = self._inodes.find(inode)
        if file is EVENTS:
            check_access(EVENTS, 0o444, flags)
            self._registry.tell(self._events)
            return self._add(OpenEvents(known, self._events, user[0]))
        if not isinstance(file, View) or not known.alive:
            raise NoSuchFileError(f"inode {inode} is gone", inode)
        check_access(file, 0o444, flags)
        reader = Access(*user, known.owner)
        return self._add(OpenView(known, known.source, file, reader, client))

    def end_events(self) -> None:
        """End the notes of changes that opening `.events` began."""
        self._registry.tell_no_more(self._events)

    def _add(self, opened: OpenFile | OpenView | OpenEvents) -> int:
        if opened.source is not None:
            hold(opened.source)
        try:
            return self._handles.add(opened)
        except StatsfsError:
            if opened.source is not None:
                unhold(opened.source)
            raise

    def open_value(self, inode: int, flags: int, user: int = 0) -> int | None:
        """Open the file of a value as `open` does; None if the inode is not of such a file."""
        known, file = self._inodes.find(inode)
        source, directory = known.source, known.directory
        if source is None or directory is None or not isinstance(file, File):
            return None
        if directory.files.get(file.name) is not file or not known.alive:
            raise NoSuchFileError(f"inode {inode} is gone", inode)
        check_access(file, file.value.mode, flags)
        if flags & O_ACCMODE != O_RDONLY:
            check_writable(directory, file)
        entry = directory.entry_of(file)
        return self._add(OpenFile(known, source, directory, file, entry, user))

    @property
    def in_use(self) -> bool:
        """Whether anything is open."""
        return bool(self._files or self._handles.directories)

    def user_of(self, handle: int) -> int:
        """Return who opened a file."""
        return self._files[handle].user

    def locate(self, handle: int) -> tuple[str, Attributes]:
        """Return the path of an open file, below the root, and its attributes."""
        opened = self._files[handle]
        names, known = [opened.file.name], opened.known
        while known.parent is not None:
            names, known = [*names, known.name], known.parent
        return "/".join(reversed(names)), self._file_attributes(opened.known, opened.file, None)

    def prepare_read(self, handle: int, offset: int | None) -> Iterator[Refreshing | Work[Any]]:
        """Yield what must run before an open file is read, as `Reading.prepare` does."""
        return self._reading.prepare(handle, offset)

    def prepare_write(self, handle: int, data: bytes) -> Iterator[Refreshing | Work[None]]:
        """Yield what must run to clear an open file, as `Reading.prepare_clear` does."""
        return self._reading.prepare_clear(handle, data)

    def read(self, handle: int, offset: int, size: int) -> bytes:
        """Read an open file, as `Reading.read` does."""
        return self._reading.read(handle, offset, size)

    def close(self, handle: int) -> None:
        """Close an open file; its source may be released by it."""
        opened = self._handles.remove(handle)
        if opened.source is not None:
            unhold(opened.source)

    def close_all(self) -> None:
        """Forget everything, as when the mount is gone."""
        for handle in list(self._files):
            self.close(handle)
        for handle in list(self._handles.directories):
            self.close_directory(handle)
        self._inodes.forget_all()


def _find_asking(known: Known) -> Refreshing | None:
    home = known.directory
    return find_asking(home) if Refresher.made and home is not None else None
