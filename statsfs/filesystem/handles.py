"""Handles: the files, views and directories that clients have open.

Owns what is kept of each, and how much the texts of all open views may take together; what is in
those texts is the business of `texts` and `views`, and who may open what that of `vfs`.

Threading: for the serving thread.
"""

from dataclasses import dataclass
from itertools import count
from typing import Final

from statsfs.exceptions import StatsfsError
from statsfs.filesystem.inodes import Known, number_inode
from statsfs.formats.views import View
from statsfs.model.arrays import File
from statsfs.tree.access import Access
from statsfs.tree.index import Entry
from statsfs.tree.source import Source

__all__ = ["Handles", "OpenDirectory", "OpenFile", "OpenView", "TooMuchOpenError"]

# What the texts of open views may take together, in bytes: without an end, any reader could have
# the program killed for want of memory. A view of 300,000 values has some 10 MB.
_TEXTS_MAX: Final = 1 << 28


class TooMuchOpenError(StatsfsError, OSError):
    """The texts of all open views take too much memory for one more."""


@dataclass(slots=True)
class OpenFile:
    """The file of a value: whose it is, and what it said when it was last read at offset 0."""

    known: Known
    source: Source
    file: File
    entry: Entry | None
    text: bytes | None = None


@dataclass(slots=True, eq=False)
class OpenView:
    """A view, and its newest text.

    Attributes:
        source: what it shows; None for the registry.
        access: what its reader may read.
        client: the process that opened it.
        moment: when the text was made; 0 until then.
        fresh: it was not read from the beginning yet.
    """

    known: Known
    source: Source | None
    file: View
    access: Access
    client: int
    text: bytes = b""
    moment: int = 0
    fresh: bool = True

    @property
    def inode(self) -> int:
        """Its inode number."""
        return number_inode(self.known.place, self.file.number)


@dataclass(slots=True)
class OpenDirectory:
    """A directory, and its names when it was last read at offset 0."""

    known: Known
    names: list[bytes] | None = None


class Handles:
    """All that is open, by handle.

    Attributes:
        files: files and views.
        directories: directories.
    """

    def __init__(self) -> None:
        self.files: dict[int, OpenFile | OpenView] = {}
        self.directories: dict[int, OpenDirectory] = {}
        # Of each inode those that are open, the newest rendering last.
        self._views: dict[int, list[OpenView]] = {}
        self._texts = 0  # the bytes of all open views
        self._numbers = count(1)

    def add(self, opened: OpenFile | OpenView) -> int:
        """Note what was opened; return its handle."""
        handle = next(self._numbers)
        self.files[handle] = opened
        if isinstance(opened, OpenView):
            self._views.setdefault(opened.inode, []).insert(0, opened)
        known, number = opened.known, opened.file.number
        known.opened[number] = known.opened.get(number, 0) + 1
        return handle

    def add_directory(self, opened: OpenDirectory) -> int:
        """Note a directory that was opened; return its handle."""
        handle = next(self._numbers)
        self.directories[handle] = opened
        return handle

    def remove(self, handle: int) -> OpenFile | OpenView:
        """Forget, and return, a file that was closed."""
        opened = self.files.pop(handle)
        known, number = opened.known, opened.file.number
        if isinstance(opened, OpenView):
            self._texts -= len(opened.text)
            views = self._views[opened.inode]
            views.remove(opened)
            if not views:
                del self._views[opened.inode]
        known.opened[number] -= 1
        if not known.opened[number]:
            del known.opened[number]
        return opened

    def set_text(self, opened: OpenView, text: bytes, moment: int) -> None:
        """Keep what an open view shows.

        Raises:
            TooMuchOpenError: all that is open would take too much memory; it is as it was.
        """
        texts = self._texts + len(text) - len(opened.text)
        if texts > _TEXTS_MAX:
            raise TooMuchOpenError(f"open views take {self._texts} bytes", opened.file.name)
        self._texts = texts
        opened.text, opened.moment = text, moment
        opened.known.rendered[opened.file.number] = (len(text), moment)
        views = self._views[opened.inode]
        views.remove(opened)
        views.append(opened)

    def find_rendered(self, known: Known, view: View, client: int | None) -> tuple[int, int] | None:
        """Return the size and the moment of what a client reads of a view.

        As long as it has the view open these are its own: tar and cp rely on that, and somebody
        else may have opened it since. Else they are of the newest rendering; None if there is none.
        """
        for opened in reversed(self._views.get(number_inode(known.place, view.number), ())):
            if opened.client == client and opened.moment:
                return len(opened.text), opened.moment
        return known.rendered.get(view.number)
