"""Timers: functions that the collector's thread calls later.

Owns when. Nothing here waits: the thread asks how long it may sleep, and then calls what is due.
Long work is not for timers: it gets turns.

Threading: for one thread alone.
"""

import heapq
import time
from collections.abc import Callable
from itertools import count
from typing import Final

__all__ = ["Timers"]

_TURN: Final = 0.005  # seconds


class Timers:
    """Functions with the moments at which they are to be called."""

    def __init__(self) -> None:
        self._due: Final[list[tuple[float, int, Callable[[], object]]]] = []
        self._numbers: Final = count()

    def add(self, seconds: float, function: Callable[[], object]) -> None:
        """Have a function called once, so many seconds from now."""
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._numbers), function))

    @property
    def seconds_left(self) -> float:
        """The seconds until the next one is due; a year if there is none."""
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else 365 * 86400.0

    def run(self) -> None:
        """Call those that are due now, but not those that they add, for some milliseconds.

        After that, or an error, the rest stays.
        """
        # Those that they add have later moments, or larger numbers.
        now = time.monotonic()
        end = (now, next(self._numbers))
        while self._due and self._due[0] < end:
            heapq.heappop(self._due)[2]()
            if time.monotonic() >= now + _TURN:
                break
