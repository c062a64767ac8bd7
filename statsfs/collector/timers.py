"""Timers: what the collector's thread will do later.

Owns when. Nothing here waits: the thread asks how long it may sleep, and then runs what is due.

Threading: for one thread alone.
"""

import heapq
import time
from collections.abc import Callable
from itertools import count
from typing import Final

__all__ = ["Timers"]


class Timers:
    """Functions to be called at some time."""

    def __init__(self) -> None:
        self._due: Final[list[tuple[float, int, Callable[[], object]]]] = []
        self._numbers: Final = count()

    def add(self, seconds: float, function: Callable[[], object]) -> None:
        """Have a function called once, so many seconds from now."""
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._numbers), function))

    @property
    def seconds_left(self) -> float:
        """Until the next one is due; a year if there is none."""
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else 365 * 86400.0

    def run(self) -> None:
        """Call what is due now; what that adds has its turn another time."""
        now = time.monotonic()
        due = []
        while self._due and self._due[0][0] <= now:
            due.append(heapq.heappop(self._due))
        due.reverse()
        try:
            while due:
                due.pop()[2]()
        finally:
            # What was due behind one that raises.
            for one in due:
                heapq.heappush(self._due, one)
