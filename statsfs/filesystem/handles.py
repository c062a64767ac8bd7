"""Handles: the files, views and directories that clients have open.

Owns what is kept of each, and how much memory the texts of all open views may take together.

Threading: for the serving thread.
"""

from dataclasses import dataclass
from itertools import count
from typing import Final

from statsfs.exceptions import StatsfsError
from statsfs.filesystem.known import Known, Numbered
from statsfs.filesystem.value_files import render_file
from statsfs.formats.views import View
from statsfs.model.arrays import File
from statsfs.tree.access import Access
from statsfs.tree.directory import Directory
from statsfs.tree.index import Entry
from statsfs.tree.source import Source

__all__ = ["Handles", "OpenDirectory", "OpenFile", "OpenView", "TooMuchOpenError"]

# In bytes. Without a limit, any reader could have the program killed for want of memory. A view of
# 300,000 values has some 10 MB.
_TEXTS_MAX: Final = 1 << 28


class TooMuchOpenError(StatsfsError, OSError):
    """The texts of all open views take too much memory for one more."""


@dataclass(slots=True)
class OpenFile:
    """The file of a value, and its text when it was last read at offset 0."""

    known: Known
    source: Source
    directory: Directory
    file: File
    entry: Entry | None
    text: bytes | None = None

    def read(self, offset: int, size: int) -> bytes:
        """Read the text; it is made anew at offset 0."""
        if offset == 0 or self.text is None:
            self.text = render_file(self.directory, self.file, self.entry)
        return self.text[offset : offset + size]


@dataclass(slots=True, eq=False)
class OpenView:
    """A view, and its newest text."""

    known: Known
    source: Source | None  # None for the registry
    file: View
    access: Access
    client: int  # the process that opened it
    text: bytes = b""
    moment: int = 0  # when the text was made; 0 until then
    fresh: bool = True  # until it is read from the beginning

    def read(self, offset: int, size: int) -> bytes:
        """Read the text as it was last rendered."""
        return self.text[offset : offset + size]


@dataclass(slots=True)
class OpenDirectory:
    """A directory, and its names when it was last read at offset 0."""

    known: Known
    names: list[bytes] | None = None


class Handles:
    """All that is open, by handle."""

    def __init__(self) -> None:
        self.files: dict[int, OpenFile | OpenView] = {}
        self.directories: dict[int, OpenDirectory] = {}
        self._texts = 0  # the bytes of all open views
        self._numbers = count(1)

    def add(self, opened: OpenFile | OpenView) -> int:
        """Note what was opened; return its handle."""
        handle = next(self._numbers)
        self.files[handle] = opened
        opened.known.opened[handle] = opened.file.number
        return handle

    def add_directory(self, opened: OpenDirectory) -> int:
        """Note a directory that was opened; return its handle."""
        handle = next(self._numbers)
        self.directories[handle] = opened
        return handle

    def remove(self, handle: int) -> OpenFile | OpenView:
        """Forget, and return, a file that was closed."""
        opened = self.files.pop(handle)
        del opened.known.opened[handle]
        if isinstance(opened, OpenView):
            self._texts -= len(opened.text)
        return opened

    def set_text(self, opened: OpenView, text: bytes, moment: int) -> None:
        """Keep what an open view shows; raise TooMuchOpenError if that takes too much memory."""
        texts = self._texts + len(text) - len(opened.text)
        if texts > _TEXTS_MAX:
            raise TooMuchOpenError(f"open views take {self._texts} bytes", opened.file.name)
        self._texts = texts
        opened.text, opened.moment = text, moment
        opened.known.rendered[opened.file.number] = (len(text), moment)

    def find_rendered(
        self, known: Known, view: Numbered, client: int | None
    ) -> tuple[int, int] | None:
        """Return the size and the moment of what a client reads of a view.

        While it has the view open these are its own: tar and cp rely on that, and another client
        may have opened it since. Else they are of the newest rendering; None if there is none.
        """
        opened = [self.files[one] for one, number in known.opened.items() if number == view.number]
        views = [view for view in opened if isinstance(view, OpenView) and view.client == client]
        own = max(((view.moment, len(view.text)) for view in views), default=(0, 0))
        return own[::-1] if own[0] else known.rendered.get(view.number)
