"""Watching: events in directories, as told by the kernel.

Owns inotify, through the library `inotify_simple`. A producer's death is an event as well: the
kernel closes what it had open for writing, mappings included. An event says that something happened
to a name, no more.

Threading: for the collector's thread alone, but for `wake`, which any thread may call.
"""

import os
import select
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from statsfs.exceptions import SegmentError

__all__ = ["FLOOD", "Events", "Watch"]

FLOOD: Final = 8192  # events of one directory, in a second; the kernel keeps twice as many
_SECOND: Final = 1.0


@dataclass(slots=True)
class Events:
    """What happened since the last time.

    Attributes:
        names: of files and directories, by the key of their directory, in the order of events.
        created: the same, of new files, which are looked at when they are closed or renamed; a new
            name of a file has no other event.
        gone: the keys of directories that do not exist any more, and are not watched.
        lost: whether the kernel dropped events, so that everything is to be looked at.
        floods: the keys of directories with too many events.
    """

    names: dict[str, dict[str, None]] = field(default_factory=dict)
    created: dict[str, dict[str, None]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    lost: bool = False
    floods: set[str] = field(default_factory=set)


class Watch:
    """A watch on directories, each of which has a key. A SegmentError says what is missing."""

    def __init__(self) -> None:
        try:
            import inotify_simple  # type: ignore[import-untyped]  # it says nothing of its types
        except ModuleNotFoundError as error:
            raise SegmentError(
                f"{error.name} is missing: pip install 'statsfs[segments]'", error.name
            ) from error
        flags = inotify_simple.flags
        self._flags: Final[Any] = flags
        self._here: Final = (
            flags.CLOSE_WRITE | flags.MOVED_TO | flags.MOVED_FROM | flags.CREATE | flags.DELETE
            | flags.ATTRIB | flags.DELETE_SELF | flags.MOVE_SELF | flags.ONLYDIR
        )  # fmt: skip
        self._self: Final = flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT | flags.IGNORED
        try:
            self._inotify: Final = inotify_simple.INotify()
        except OSError as error:
            raise SegmentError(
                f"no inotify instance: {error.strerror}; raise fs.inotify.max_user_instances", None
            ) from error
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll: Final = select.poll()
        self._poll.register(self._inotify.fileno(), select.POLLIN)
        self._poll.register(self._wakeup, select.POLLIN)
        self._keys: Final[dict[int, str]] = {}
        # Since a moment, how many events each directory had.
        self._counts: Final[Counter[str]] = Counter()
        self._since = 0.0

    def close(self) -> None:
        """Give all watches back."""
        self._inotify.close()
        # A later `wake` must not write to a file that gets this number.
        fd, self._wakeup = self._wakeup, -1
        os.close(fd)

    def add(self, key: str, fd: int, calm: bool = False) -> None:
        """Watch an open directory, or raise OSError; the key must be free, or its.

        Args:
            calm: tell nothing but its end; of "" all but attributes, which are those of directories
                that users change as they like.
        """
        # The open directory, wherever its name leads by now.
        mask = self._here
        if calm:
            mask &= self._self if key else ~self._flags.ATTRIB
        self._keys[self._inotify.add_watch(f"/proc/self/fd/{fd}", mask)] = key

    def remove(self, key: str) -> None:
        """End the watch on a directory, if there is one."""
        for number in [number for number, known in self._keys.items() if known == key]:
            del self._keys[number]
            try:
                self._inotify.rm_watch(number)
            except OSError:  # the kernel has ended it
                pass

    def wake(self) -> None:
        """Have `wait` return; another thread may be closing the watch."""
        try:
            os.eventfd_write(self._wakeup, 1)
        except (OSError, ValueError):
            pass

    def wait(self, seconds: float) -> Events:
        """Wait for events or `wake`, at most so many seconds; return the events."""
        # Rounded up: after a poll that is too short there would be another.
        self._poll.poll(max(0.0, seconds * 1000 + 1))
        try:
            os.eventfd_read(self._wakeup)
        except BlockingIOError:
            pass
        return self._sort(self._inotify.read(timeout=0))

    def _sort(self, told: list[Any]) -> Events:
        events, flags = Events(), self._flags
        if time.monotonic() > self._since + _SECOND:
            self._since = time.monotonic()
            self._counts.clear()
        for number, mask, _, name in told:
            key = self._keys.get(number)
            if mask & flags.Q_OVERFLOW:
                events.lost = True
            elif key is None:
                continue  # its watch has ended
            elif mask & self._self:
                events.gone.add(key)
                self.remove(key)
            elif not name and key and mask & flags.ATTRIB:
                # The directory itself. It may be outside of ours: then a link leads to it.
                self._counts[key] += 1
                events.names.setdefault("", {})[key.removesuffix("/")] = None
            elif name:
                self._counts[key] += 1
                new = mask & flags.CREATE and not mask & flags.ISDIR
                (events.created if new else events.names).setdefault(key, {})[name] = None
        for key in [key for key, count in self._counts.items() if count > FLOOD]:
            events.floods.add(key)
            del self._counts[key]
        return events
