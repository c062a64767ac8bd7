"""Watching: what happens in directories, told by the kernel.

Owns inotify, through the library `inotify_simple`. A producer's death is an event too: that of
closing what it had open for writing, a mapping included. What has become of a file is for others to
find out; a name that is told says that something happened to it, no more.

Threading: for the collector's thread alone, but for `wake`, which any thread may call.
"""

import os
import select
from dataclasses import dataclass, field
from typing import Any, Final

from statsfs.exceptions import SegmentError

__all__ = ["Events", "Watch"]


@dataclass(slots=True)
class Events:
    """What happened since the last time.

    Attributes:
        names: of files and directories, by the key of the directory in which they are, in the order
            in which something first happened to them.
        gone: the keys of directories that are watched no longer, as they are no longer there.
        lost: whether there was more than the kernel kept, so that one has to look for oneself.
    """

    names: dict[str, dict[str, None]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    lost: bool = False


class Watch:
    """A watch on directories, each of which has a key.

    Raises:
        SegmentError: the library is missing, or the kernel gives no more watches; the message is
            one line that says what to do.
    """

    def __init__(self) -> None:
        try:
            import inotify_simple  # type: ignore[import-untyped]  # it says nothing of its types
        except ModuleNotFoundError as error:
            raise SegmentError(
                f"{error.name} is missing: pip install 'statsfs[segments]'", error.name
            ) from error
        self._flags: Final[Any] = inotify_simple.flags
        flags = inotify_simple.flags
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

    def close(self) -> None:
        """Give all watches back."""
        self._inotify.close()
        # Who wakes it later must not write to what has the number then.
        fd, self._wakeup = self._wakeup, -1
        os.close(fd)

    def add(self, key: str, fd: int) -> None:
        """Watch a directory that is open; the key must be free.

        Raises:
            OSError: it cannot be watched.
        """
        # Exactly what is open, whatever its name leads to by now.
        self._keys[self._inotify.add_watch(f"/proc/self/fd/{fd}", self._here)] = key

    def remove(self, key: str) -> None:
        """Watch a directory no longer; nothing happens if it is not watched."""
        for number in [number for number, known in self._keys.items() if known == key]:
            del self._keys[number]
            try:
                self._inotify.rm_watch(number)
            except OSError:  # it went by itself
                pass

    def wake(self) -> None:
        """Have `wait` return; it may be closed at the same moment."""
        try:
            os.eventfd_write(self._wakeup, 1)
        except (OSError, ValueError):
            pass

    def wait(self, seconds: float) -> Events:
        """Wait for events, or for `wake`, or for the time to pass; return what happened.

        Args:
            seconds: how long; it sleeps all the time if nothing happens.
        """
        # Rounded up: a poll that returns a moment too early would be repeated.
        self._poll.poll(max(0.0, seconds * 1000 + 1))
        try:
            os.eventfd_read(self._wakeup)
        except BlockingIOError:
            pass
        return self._sort(self._inotify.read(timeout=0))

    def _sort(self, told: list[Any]) -> Events:
        events = Events()
        for number, mask, _, name in told:
            key = self._keys.get(number)
            if mask & self._flags.Q_OVERFLOW:
                events.lost = True
            elif key is None:
                continue  # of a directory that was given up meanwhile
            elif mask & self._self:
                events.gone.add(key)
                self.remove(key)
            elif name and not self._is_unfinished(mask):
                events.names.setdefault(key, {})[name] = None
        return events

    def _is_unfinished(self, mask: int) -> bool:
        # A new file is of interest when it is closed, or gets its name by being moved.
        return bool(mask & self._flags.CREATE) and not mask & self._flags.ISDIR
