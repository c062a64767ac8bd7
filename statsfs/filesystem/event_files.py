"""Event files: `.events` of the root, which tells what comes and leaves, and how it is read.

Owns what a late reader gets. The size of the file is the size of all lines ever written, so
clients that follow it see it grow; only the newest lines are kept, and the number of the others.

Threading: for the serving thread.
"""

from dataclasses import dataclass
from typing import ClassVar, Final

from statsfs.filesystem.known import Known
from statsfs.tree.events import EventLine, Events
from statsfs.tree.lock import lock_tree

__all__ = ["EVENTS", "EventFile", "OpenEvents"]

_BEFORE_ALL: Final = EventLine(0, -1, 0, b"")
# The most bytes of one read: longer reads would keep the tree's lock, and other requests waiting.
_READ_MAX: Final = 1 << 14


@dataclass(frozen=True, slots=True)
class EventFile:
    """The file; like views, it is not listed."""

    name: str
    number: int  # no view has it


EVENTS: Final = EventFile(".events", 7)
"""The one of the root, also where the root is one source."""


@dataclass(slots=True, eq=False)
class OpenEvents:
    """An open `.events`; it takes the memory of two lines.

    A read gets the bytes from its offset to the end. If they are not kept any more, it gets a line
    that says how many lines are lost, and then the oldest lines that are kept. No line is torn:
    the rest of a line that was read in part is kept here.
    """

    known: Known
    events: Events
    user: int = 0  # who opened it
    file: ClassVar[EventFile] = EVENTS
    source: ClassVar[None] = None
    text: ClassVar[None] = None
    _line: EventLine = _BEFORE_ALL  # the last one that was read
    _next: int = 0  # where a client goes on that does not seek
    _skipped: int = 0  # how far the next line is behind that, because of lines that are lost

    def read(self, offset: int, size: int) -> bytes:
        """Read up to so many bytes: fewer where lines are lost, none at the end."""
        if offset != self._next:
            self._skipped = 0
        text = self._read(offset + self._skipped, min(size, _READ_MAX))
        self._next = offset + len(text)
        return text

    def _read(self, start: int, size: int) -> bytes:
        line = self._line
        lines = lock_tree(lambda: self.events.lines(start, size))
        if line.start <= start < line.end and lines[0].start > start:
            return line.text[start - line.start :][:size]
        if not lines:
            return b""
        if start < lines[0].start:
            told = self._tell_lost(start, lines[0])
            if told is not None:
                return told[:size]
            start = lines[0].start
        self._line = lines[-1]
        return b"".join([one.text for one in lines])[start - lines[0].start :][:size]

    def _tell_lost(self, start: int, oldest: EventLine) -> bytes | None:
        # The line is as if it had been written just before the oldest, if it has room there: then
        # the file is never longer for this reader than it is. It has, for who does not seek.
        sequential = start == self._line.end
        count = oldest.number - (self._line.number + 1 if sequential else 0)
        text = f'{{"event":"lost","count":{count}}}\n'.encode()
        fits = len(text) <= oldest.start - start
        line = EventLine(oldest.start - len(text), oldest.number - 1, 0, text) if fits else oldest
        self._skipped += line.start - start
        if fits:
            self._line = line
        return text if fits else None
