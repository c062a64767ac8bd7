"""Switching: how often Python's threads take turns while something is mounted.

Owns the interpreter's switch interval from the mount to the unmount.

Threading: as the caller's; the interval is the whole process's.
"""

import sys

__all__ = ["Switching"]


class Switching:
    """Another switch interval of the interpreter, for a while.

    Args:
        seconds: the interval; None leaves it as it is.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._before: float | None = None

    def begin(self) -> None:
        """Set it."""
        if self._seconds is not None:
            self._before = sys.getswitchinterval()
            sys.setswitchinterval(self._seconds)
            self._seconds = sys.getswitchinterval()  # rounded

    def end(self) -> None:
        """Set the one from before, unless the program has set another meanwhile."""
        if self._before is not None and sys.getswitchinterval() == self._seconds:
            sys.setswitchinterval(self._before)
        self._before = None
