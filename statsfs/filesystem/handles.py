"""Handles: the files, views and directories that clients have open.

Owns what is kept of each, and each user's share of it: of the number of handles, and of the memory
that texts and lists of names take.

Threading: for the serving thread.
"""

from collections import deque
from dataclasses import dataclass
from itertools import count
from typing import Final

from statsfs.filesystem.event_files import OpenEvents
from statsfs.filesystem.known import Known, Numbered
from statsfs.filesystem.shares import Shares
from statsfs.filesystem.texts import Text
from statsfs.filesystem.value_files import render_file
from statsfs.formats.views import View
from statsfs.model.arrays import File
from statsfs.tree.access import Access
from statsfs.tree.directory import Directory
from statsfs.tree.index import Entry
from statsfs.tree.source import Source, directory_of

__all__ = ["HANDLES_MAX", "TEXTS_MAX", "Handles", "OpenDirectory", "OpenFile", "OpenView"]

HANDLES_MAX: Final = 1 << 16
"""How many handles all users may have together; each takes some 400 bytes."""

TEXTS_MAX: Final = 1 << 28
"""How many bytes their texts and names may have together, small ones aside."""

# In bytes: a text of a few numbers, or a few names, are covered by the number of handles.
_SMALL: Final = 1024
_PER_NAME: Final = 41  # bytes that it takes besides its own
# In bytes: what a source that was removed takes for each array, and for each number.
_PER_ARRAY: Final = 600
_PER_NUMBER: Final = 48


@dataclass(slots=True, eq=False)
class OpenFile:
    """The file of a value, and its text when it was last read at offset 0."""

    known: Known
    source: Source
    directory: Directory
    file: File
    entry: Entry | None
    user: int = 0  # who opened it
    heavy: bool = False  # whether reading it takes too long for the serving thread
    text: bytes | Text | None = None

    def render(self) -> bytes:
        """Return its text as it is now."""
        return render_file(self.directory, self.file, self.entry)


@dataclass(slots=True, eq=False)
class OpenView:
    """A view, and its newest text."""

    known: Known
    source: Source | None  # None for the registry
    file: View
    access: Access
    client: int  # the process that opened it
    text: bytes | Text | None = None
    fresh: bool = True  # until it is read from the beginning

    @property
    def user(self) -> int:
        """Who opened it."""
        return self.access.uid


@dataclass(slots=True, eq=False)
class OpenDirectory:
    """A directory, and its names when it was last read at offset 0."""

    known: Known
    user: int = 0  # who opened it
    names: list[bytes] | None = None
    weight: int = 0  # the memory that the names are counted with


class Handles:
    """All that is open, by handle.

    Methods that keep more than before have the errors of `Shares.take`; then all is as it was.

    Args:
        left_open: where `Inodes` puts removed directories of which files are open. Those files keep
            the source, which counts in the share of each user who has one of them open.
    """

    def __init__(self, left_open: "deque[Known] | None" = None) -> None:
        self.files: dict[int, OpenFile | OpenView | OpenEvents] = {}
        self.directories: dict[int, OpenDirectory] = {}
        self._shares = Shares("handles", HANDLES_MAX)
        self._memory = Shares("bytes of texts and names", TEXTS_MAX)
        self._numbers = count(1)
        self._left_open: deque[Known] = deque() if left_open is None else left_open
        # What is kept of removed sources: for each user, how many files it has open of one, and the
        # memory that is counted for that.
        self._kept: dict[tuple[int, Source], tuple[int, int]] = {}
        # Of each client's open views of one file, by handle, the length and the moment of the text;
        # the newest is last.
        self._rendered: dict[tuple[Known, int, int], dict[int, tuple[int, int]]] = {}

    def add(self, opened: OpenFile | OpenView | OpenEvents) -> int:
        """Note what was opened; return its handle."""
        if self._left_open:
            self._charge_for_removed()
        if self._kept:
            self._memory.check(opened.user)
        self._shares.take(opened.user)
        handle = next(self._numbers)
        self.files[handle] = opened
        opened.known.opened[handle] = opened.file.number
        return handle

    def add_directory(self, opened: OpenDirectory) -> int:
        """Note a directory that was opened; return its handle."""
        self._shares.take(opened.user)
        handle = next(self._numbers)
        self.directories[handle] = opened
        return handle

    def remove(self, handle: int) -> OpenFile | OpenView | OpenEvents:
        """Forget, and return, a file that was closed."""
        opened = self.files.pop(handle)
        del opened.known.opened[handle]
        self._shares.give_back(opened.user)
        if self._kept and opened.source is not None:
            self._let_go(opened.user, opened.source)
        if self._left_open:  # which would keep the source, too
            self._charge_for_removed()
        if isinstance(opened.text, Text):
            self._memory.give_back(opened.user, _weigh(opened.text, 1))
            _note_holder(opened.text, -1)
        if isinstance(opened, OpenView):
            rendered = self._rendered_of(opened)
            rendered.pop(handle, None)
            if not rendered:
                del self._rendered[opened.known, opened.file.number, opened.client]
        return opened

    def remove_directory(self, handle: int) -> None:
        """Forget a directory that was closed."""
        opened = self.directories.pop(handle)
        self._shares.give_back(opened.user)
        if opened.weight:
            self._memory.give_back(opened.user, opened.weight)

    # What is kept of them

    def _charge_for_removed(self) -> None:
        while self._left_open:
            for handle in self._left_open.popleft().opened:
                opened = self.files[handle]
                assert opened.source is not None  # a registry is never removed
                files, weight = self._kept.get((opened.user, opened.source), (0, 0))
                if not files:
                    weight = _weigh_source(opened.source)
                    self._memory.charge(opened.user, weight)
                self._kept[opened.user, opened.source] = (files + 1, weight)

    def _let_go(self, user: int, source: Source) -> None:
        files, weight = self._kept.pop((user, source), (0, 0))
        if files > 1:
            self._kept[user, source] = (files - 1, weight)
        else:
            self._memory.give_back(user, weight)

    def set_names(self, opened: OpenDirectory, names: list[bytes]) -> None:
        """Keep the names that an open directory has."""
        weight = sum(map(len, names)) + _PER_NAME * len(names)
        weight = weight if weight > _SMALL else 0
        if weight or opened.weight:
            self._memory.take(opened.user, weight, opened.weight)
        opened.names, opened.weight = names, weight

    def set_text(self, opened: OpenFile | OpenView, text: bytes | Text) -> None:
        """Keep the text of an open file; several open files of a user may share one `Text`."""
        if isinstance(text, bytes) and len(text) > _SMALL:
            text = Text(text)
        former = opened.text
        if isinstance(text, Text) or isinstance(former, Text):
            self._memory.take(opened.user, _weigh(text, 0), _weigh(former, 1))
            _note_holder(text, 1)
            _note_holder(former, -1)
        opened.text = text

    def set_view(self, handle: int, opened: OpenView, text: Text, moment: int) -> None:
        """Keep the text of an open view, and the moment of its numbers."""
        self.set_text(opened, text)
        rendered = self._rendered_of(opened)
        rendered.pop(handle, None)
        rendered[handle] = (len(text), moment)
        opened.known.rendered[opened.file.number] = (len(text), moment)

    def _rendered_of(self, opened: OpenView) -> dict[int, tuple[int, int]]:
        key = (opened.known, opened.file.number, opened.client)
        return self._rendered.setdefault(key, {})

    def find_rendered(
        self, known: Known, view: Numbered, client: int | None
    ) -> tuple[int, int] | None:
        """Return the size and the moment of what a client reads of a view.

        While it has the view open these are its own: tar and cp rely on that, and another client
        may have opened it since. Else they are of the newest rendering; None if there is none.
        """
        own = None if client is None else self._rendered.get((known, view.number, client))
        return next(reversed(own.values())) if own else known.rendered.get(view.number)


def _weigh_source(source: Source) -> int:
    # The memory that a source takes.
    arrays = list(directory_of(source).index)
    return _PER_ARRAY * len(arrays) + _PER_NUMBER * sum([array.size for array in arrays])


def _weigh(text: bytes | Text | None, holders: int) -> int:
    # The memory that is counted for a text, if it has so many holders.
    return len(text) if isinstance(text, Text) and text.holders == holders else 0


def _note_holder(text: bytes | Text | None, number: int) -> None:
    if isinstance(text, Text):
        text.holders += number
