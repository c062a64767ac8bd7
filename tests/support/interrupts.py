"""Signal handlers that run in the middle of statsfs."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import statsfs

__all__ = ["interrupted_everywhere"]

PACKAGE = os.path.dirname(statsfs.__file__)


@contextmanager
def interrupted_everywhere(handler: Callable[[], None]) -> Iterator[list[str]]:
    """Run a signal handler wherever Python looks for signals in statsfs, this thread's only.

    Yields the names of the functions in which it ran.
    """
    where: list[str] = []
    previous = signal.signal(signal.SIGUSR1, lambda number, frame: handler())

    def is_queued(frame: FrameType | None) -> bool:
        # Or else each handler would bring the next for ever.
        while frame is not None and frame.f_code.co_name != "_apply_waiting":
            frame = frame.f_back
        return frame is not None

    def profile(frame: FrameType, event: str, argument: object) -> None:
        # Python looks for signals where a function begins and where one in C has returned.
        if event not in ("call", "c_return") or is_queued(frame):
            return
        if frame.f_code.co_filename.startswith(PACKAGE):
            where.append(frame.f_code.co_name)
            # Handlers of signals run at the next moment at which Python looks for them: here.
            sys.setprofile(None)
            signal.raise_signal(signal.SIGUSR1)
            sys.setprofile(profile)

    sys.setprofile(profile)
    try:
        yield where
    finally:
        sys.setprofile(None)
        signal.signal(signal.SIGUSR1, previous)
