"""Switching: how often Python's threads take turns while something is mounted.

Owns the interpreter's switch interval from the mounting to the unmounting, and what can be one.

Threading: as the caller's; the interval is the whole process's.
"""

import sys
from typing import Final

from statsfs.exceptions import MountError

__all__ = ["Switching"]

# What is longer is no interval; Python takes up to 4295 s.
_LONGEST: Final = 100.0


class Switching:
    """The interpreter's switch interval, if it is to be another for a while.

    Args:
        mountpoint: whom it is for.
        seconds: the interval; None leaves it as it is.

    Raises:
        MountError: it is none.
    """

    def __init__(self, mountpoint: str, seconds: float | None) -> None:
        # Python rounds down to microseconds, and 0 is none.
        if seconds is not None and not 1e-6 <= seconds <= _LONGEST:
            raise MountError(
                f"{mountpoint}: a switch interval of {seconds!r} s is not between a microsecond "
                f"and {_LONGEST:g} s",
                mountpoint,
            )
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
