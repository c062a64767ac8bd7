"""Refusals: the files that were refused, and when they are looked at again.

Owns that each is logged once, and looked at again when it changes, but not more often than once a
second: anybody may change a file all the time. Why a file is refused is decided elsewhere.

Threading: for the collector's thread alone.
"""

import logging
import os
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from statsfs.collector.timers import Timers
from statsfs.collector.trusted_directory import Location
from statsfs.exceptions import FormatError, StatsfsError

__all__ = ["Refusals"]

log = logging.getLogger(__name__)

_PAUSE: Final = 1.0  # seconds
_KNOWN_MAX: Final = 10_000


class _Refusal(NamedTuple):
    signature: tuple[int, ...] | None  # None: it may be admitted another time as it is
    moment: float
    logged: bool


class Refusals:
    """The files that were refused, the last 10,000 of them, by key."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self.known: Final[dict[str, _Refusal]] = {}
        self._looking: Final[set[str]] = set()

    def is_due(self, key: str, status: os.stat_result, look: Callable[[], object]) -> bool:
        """Tell whether a file is to be looked at now; if it is later, `look` is called then."""
        known = self.known.get(key)
        if known is None:
            return True
        if known.signature == _sign(status):
            return False
        left = known.moment + _PAUSE - time.monotonic()
        if left > 0 and key not in self._looking:
            self._looking.add(key)
            self._timers.add(left, lambda: self._look(key, look))
        return left <= 0

    def _look(self, key: str, look: Callable[[], object]) -> None:
        self._looking.discard(key)
        look()

    def note(self, location: Location, status: os.stat_result, error: Exception | None) -> None:
        """Note that a file is refused; an error is logged, once."""
        before = self.known.pop(location.key, None)
        logged = before is not None and before.logged
        if len(self.known) >= _KNOWN_MAX:
            del self.known[next(iter(self.known))]
        expected = isinstance(error, StatsfsError | OSError)
        # Only contents stay as bad as they are.
        final = error is None or isinstance(error, FormatError) or not expected
        self.known[location.key] = _Refusal(
            _sign(status) if final else None, time.monotonic(), logged or error is not None
        )
        if error is not None and not logged:
            why = error.strerror if isinstance(error, OSError) and error.errno else error
            log.warning("%s is refused: %s", location, why, exc_info=None if expected else error)


def _sign(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
