"""Signals that stop a command: SIGTERM, SIGINT, SIGHUP.

Owns the signal handlers. A handler that raises could hit the middle of an unmount, and one that
sets an Event could deadlock with a wait for it; so ours sets a flag, and wakes commands by a pipe.
Threading: main thread only, as Python's signal handlers are; `Stop.tell` from any thread.
"""

import math
import os
import select
import signal
import time
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
        self._stopping = False
        # Never closed: another file with the number of ours would get the handler's byte.
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._interrupt = False
        for number in _SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._told)

    def tell(self) -> None:
        """Tell it to stop."""
        self._stopping = True
        try:
            os.write(self._write, b"!")
        except BlockingIOError:
            pass  # full: it will wake up

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

    def wait(self, timeout: float = math.inf) -> bool:
        """Wait until told to stop (True) or for `timeout` seconds (False)."""
        end = time.monotonic() + timeout
        # After SIGSTOP and SIGCONT the kernel gives a signal to any thread, but Python's handler
        # runs in this one, which nothing else would wake. Not for longer: programs have their own.
        before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        try:
            while not self._stopping:
                left = None if timeout == math.inf else max(0.0, end - time.monotonic())
                if not select.select([self._read], [], [], left)[0]:
                    break
                os.read(self._read, 4096)
        finally:
            signal.set_wakeup_fd(before)
        return self._stopping

    def release(self) -> None:
        """Let the next signal end the process: nothing is left to clean up."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
