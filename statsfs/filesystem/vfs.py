"""The filesystem without FUSE: names, inodes, attributes, and the bytes of files.

Owns what a name leads to, what stat(2) tells, and what may be opened. Which inodes the kernel knows
is the business of `inodes`, what is open that of `handles`, what files say that of `texts` and
`views`, the FUSE protocol that of `fuse`.

Threading: all methods are for the serving thread but `find_stale`, which is for the thread that
changed the tree, and `stop_waiting`, which is for any.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from statsfs.exceptions import ReadOnlyValueError, StatsfsError
from statsfs.filesystem.handles import Handles, OpenDirectory, OpenFile, OpenView, TooMuchOpenError
from statsfs.filesystem.inodes import (
    ROOT,
    Inodes,
    Known,
    NoSuchFileError,
    Numbered,
    Stale,
    number_inode,
)
from statsfs.filesystem.value_files import (
    FILE_SIZE,
    BrokenValueError,
    NotZeroError,
    check_zero,
    describe_file,
    find_size,
    is_integer,
    render_file,
)
from statsfs.formats.views import BINARY, VIEWS, Rendering, View
from statsfs.model.arrays import File
from statsfs.tree.access import Access, Owner
from statsfs.tree.lock import ChangeNotice
from statsfs.tree.references import hold, unhold
from statsfs.tree.refresh import Refresher, Refreshing, find_refreshing
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source, directory_of

__all__ = [
    "FILE_SIZE",
    "ABSENT",
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


class NoSuchAttributeError(StatsfsError, KeyError):
    """A file has no such extended attribute."""


class Attributes(NamedTuple):
    """What stat(2) tells of a file; times in nanoseconds since the epoch.

    What is `live` changes without our saying so, and is not to be cached.
    """

    inode: int
    mode: int
    links: int
    size: int
    modified: int
    owner: Owner
    live: bool = False


ABSENT: Final = Attributes(0, 0, 0, 0, 0, (0, 0))
"""What `lookup` returns where there is no file, and the kernel may keep that for a second."""


def _decode(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise NoSuchFileError(f"no name here is {name!r}", name) from None


class Vfs:
    """The tree of a registry as a filesystem.

    Args:
        registry: whose sources the root shows.
        top: the name of the one top-level source that is the root instead.
        owner: the user and the group of all that has no other owner.
    """

    def __init__(
        self, registry: Registry, *, top: str | None = None, owner: Owner = (0, 0)
    ) -> None:
        self._registry = registry
        self._top = top
        self._owner = owner
        self._inodes = Inodes(registry, top)
        self._handles = Handles()
        self._stopped = False
        self._waiting: set[Callable[[], object]] = set()

    # Inodes

    def _subordinate(self, known: Known, name: str) -> Source | None:
        if known.source is None:
            source = self._registry.by_name.get(name) if self._top is None else None
        else:
            source = directory_of(known.source).subordinates.get(name)
        return None if source is None or source.hidden else source

    def lookup(self, parent: int, name: bytes) -> Attributes:
        """Find a name; the kernel then knows it until `forget`.

        Returns:
            Its attributes; or `ABSENT`, which is possible only where one source is the root.

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
            if not self._inodes.note_absent(known, name):
                raise
        try:
            return self._lookup(known, _decode(name))
        except NoSuchFileError:
            if not known.alive or self._inodes.find(parent)[0] is not known:
                raise
            return ABSENT

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
                file = known.files_now.get(text)
                if file is None or not self._lists(known, file):
                    raise NoSuchFileError(f"{known.name}: no {text!r}", text)
                inode = self._inodes.note_file(known, file)
                if self._shows(known, file) and self._subordinate(known, text) is None:
                    return self._file_attributes(known, file)
                self.forget(inode, 1)
        raise NoSuchFileError(f"directory {known.name!r} was removed", known.name)

    def _lookup_file(self, known: Known, name: str) -> Attributes | None:
        # The short way, for what is looked up most: a file of a layout that was worked out already.
        # What stands in its way changes the version, and so the second look sees it.
        directory = known.directory
        cached = directory.cached if directory is not None else None
        file = cached[1].files.get(name) if cached is not None else None
        if file is None or directory is None or cached is None or not self._lists(known, file):
            return None
        inode = self._inodes.note_file(known, file)
        if directory.version == cached[0] and known.alive:
            return self._file_attributes(known, file)
        self.forget(inode, 1)
        return None

    def _lookup_view(self, known: Known, name: str) -> Attributes:
        view = VIEWS.get(name)
        if view is None or (known.source is None and (view is BINARY or self._top is not None)):
            raise NoSuchFileError(f"{known.name}: no {name!r}", name)
        inode = self._inodes.note_file(known, view)
        if known.alive:
            return self._view_attributes(known, view, None)
        self.forget(inode, 1)
        raise NoSuchFileError(f"directory {known.name!r} was removed", known.name)

    @staticmethod
    def _lists(known: Known, file: File) -> bool:
        # Where one source is the root, its own files are integers: kvm_stat reads all that it
        # finds there as such, and dies of anything else.
        return known.parent is not None or is_integer(file)

    @staticmethod
    def _shows(known: Known, file: Numbered) -> bool:
        if isinstance(file, View):
            return known.alive
        return known.files_now.get(file.name) is file and known.alive

    def forget(self, inode: int, lookups: int) -> None:
        """Take back that the kernel knows an inode, as often as it says; never raises."""
        self._inodes.forget(inode, lookups)

    def find_stale(self, change: ChangeNotice) -> Stale:
        """Return what the kernel must forget after a change; for the thread that made it."""
        return self._inodes.find_stale(change)

    # Attributes

    def _directory_attributes(self, known: Known) -> Attributes:
        mode, changed = stat.S_IFDIR | 0o755, self._inodes.changed
        if known.parent is None:
            known = self._inodes.root  # which may be another by now
        source = known.source
        if source is None:
            shown = self._registry.sources if self._top is None else ()
            visible = sum(not source.hidden for source in shown)
            return Attributes(ROOT, mode, 2 + visible, 0, changed, self._owner)
        directory = directory_of(source)
        links = 2 + directory.visible if known.alive else 0
        moment = directory.changed if known.parent is not None else max(directory.changed, changed)
        return Attributes(known.inode, mode, links, 0, moment, known.owner or self._owner)

    def _file_attributes(self, known: Known, file: File) -> Attributes:
        assert known.source is not None
        value = file.value
        return Attributes(
            number_inode(known.place, file.number),
            stat.S_IFREG | value.mode,
            1,
            FILE_SIZE if value.size == 1 else find_size(value),
            directory_of(known.source).placed,
            known.owner or self._owner,
        )

    def _view_attributes(self, known: Known, view: View, client: int | None) -> Attributes:
        inode = number_inode(known.place, view.number)
        since = self._inodes.changed if known.source is None else directory_of(known.source).placed
        # Never rendered, it has the size of any file, since some tools never read what has none.
        size, moment = self._handles.find_rendered(known, view, client) or (FILE_SIZE, since)
        owner = known.owner or self._owner
        return Attributes(inode, stat.S_IFREG | 0o444, 1, size, moment, owner, live=True)

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
        return self._handles.add_directory(OpenDirectory(self._inodes.living(inode)))

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
        opened = self._handles.directories[handle]
        if start == 0 or opened.names is None:
            if opened.known.parent is None:
                opened.known = self._inodes.root
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
        before = known.files_now
        below = source.subordinates if source is not None else ()
        if source is None and self._top is None:
            below = self._registry.sources
        directories = [found.name for found in below if not found.hidden]
        after = known.files_now
        return [name.encode() for name in dict.fromkeys((".", "..", *directories, *before, *after))]

    def close_directory(self, handle: int) -> None:
        """Close an open directory."""
        del self._handles.directories[handle]

    # Files

    def open(self, inode: int, flags: int, *, user: Owner = (0, 0), client: int = 0) -> int:
        """Open a file; return its handle.

        Args:
            inode: the file's.
            flags: those of open(2); truncation has no effect, as in sysfs.
            user: who opens it, a user and a group; kept out of a view is what that user could not
                read in a file.
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
            hold(source)
        if isinstance(file, View):
            reader = Access(*user, known.owner or self._owner)
            return self._handles.add(OpenView(known, source, file, reader, client))
        assert isinstance(file, File)
        assert source is not None
        return self._handles.add(OpenFile(known, source, file, directory_of(source).entry_of(file)))

    def rendering(self, handle: int, offset: int | None = None) -> Rendering | None:
        """Return what must be done before a file that was opened can be read, if anything.

        Args:
            handle: from `open`.
            offset: where it is to be read; None right after `open`.
        """
        opened = self._handles.files[handle]
        if isinstance(opened, OpenFile):
            return None
        if offset is not None and (offset or opened.fresh):
            opened.fresh = opened.fresh and offset != 0
            return None
        top = self._registry if opened.source is None else opened.source
        return Rendering(opened.file, top, opened.access)

    def refreshing(self, handle: int, offset: int = 0) -> Refreshing | None:
        """Return who must be asked before an open file of a value is read or cleared, if anybody.

        Args:
            handle: from `open`.
            offset: where it is to be read; 0 for clearing it.
        """
        if not Refresher.made:
            return None
        opened = self._handles.files[handle]
        if isinstance(opened, OpenView) or (offset and opened.text is not None):
            return None
        return find_refreshing((opened.source,))

    def finish(self, handle: int, rendering: Rendering) -> None:
        """Let a view that is open be read as it was rendered.

        Raises:
            TooMuchOpenError: all that is open would take too much memory; it is as it was.
        """
        opened = self._handles.files.get(handle)
        if isinstance(opened, OpenView):
            self._handles.set_text(opened, rendering.text, rendering.moment)

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
        opened = self._handles.files[handle]
        if isinstance(opened, OpenView):
            return opened.text[offset : offset + size]
        if offset == 0 or opened.text is None:
            opened.text = render_file(directory_of(opened.source), opened.file, opened.entry)
        return opened.text[offset : offset + size]

    def write(self, handle: int, data: bytes) -> int:
        """Clear an open file if what is written is 0; return how much was written.

        Raises:
            NotZeroError: it is something else; nothing changes.
            ReadOnlyValueError: the base refuses.
        """
        opened = self._handles.files[handle]
        if isinstance(opened, OpenView):
            raise ReadOnlyValueError(f"{opened.file.name!r} cannot be written", opened.file.name)
        check_zero(opened.file, data)
        directory_of(opened.source).clear(opened.file, opened.entry)
        return len(data)

    def close(self, handle: int) -> None:
        """Close an open file; its source may be released by it."""
        opened = self._handles.remove(handle)
        if opened.source is not None:
            unhold(opened.source)

    def close_all(self) -> None:
        """Forget everything, as when the mount is gone."""
        for handle in list(self._handles.files):
            self.close(handle)
        self._handles.directories.clear()
        self._inodes.forget_all()
