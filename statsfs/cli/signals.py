"""Signals that stop a command: SIGTERM, SIGINT, SIGHUP.

Owns the signal handlers. A handler that raises could hit the middle of an unmount, and one that
sets an Event could deadlock with a wait for it; so ours writes into a pipe, which commands read.
Threading: main thread only, as Python's signal handlers are; `Stop.tell` from any thread.
"""

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

__all__ = ["Stop", "Stopped"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(BaseException):
    """A signal told the command to stop, see `Stop.interrupting`."""


class Stop:
    """Whether the command is to stop: from now on, signals say so.

    SIGINT counts even where a shell's background job ignores it; SIGHUP does not under nohup.
    """

    def __init__(self) -> None:
        # Never closed: another file with the number of ours would get the handler's byte.
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._interrupt = False
        for number in _SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._told)

    def tell(self) -> None:
        """Tell it to stop."""
        try:
            os.write(self._write, b"!")
        except BlockingIOError:
            pass  # full: it was told already

    def _told(self, _number: int, _frame: FrameType | None) -> None:
        self.tell()
        if self._interrupt:
            self._interrupt = False
            raise Stopped

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Within, a signal raises `Stopped` at once: for foreign code that may never return."""
        self._interrupt = True
        try:
            yield
        finally:
            self._interrupt = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until told to stop (True) or for `timeout` seconds (False), if given."""
        left = None if timeout is None else max(0.0, timeout)
        return bool(select.select([self._read], [], [], left)[0])

    def release(self) -> None:
        """Let the next signal end the process: nothing is left to clean up."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
