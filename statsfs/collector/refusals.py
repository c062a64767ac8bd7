"""Refusals: the files that were not let in, and when to look at them again.

Owns what is said of them, once each, and that they are looked at again when they change; but not
more often than once a second, for a stranger may change them all the time. Why a file is refused is
the business of others.

Threading: for the collector's thread alone.
"""

import logging
import os
import time
from collections.abc import Callable
from typing import Final

from statsfs.exceptions import FormatError, StatsfsError

__all__ = ["Refusals"]

log = logging.getLogger(__name__)

_PATIENCE: Final = 1.0  # seconds
_KNOWN_MAX: Final = 10_000

_Signature = tuple[int, int, int, int]


def _sign(status: os.stat_result) -> _Signature:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Refusals:
    """The files that were refused, the last 10,000 of them.

    Args:
        later: has a function called once, so many seconds from now.
    """

    def __init__(self, later: Callable[[float, Callable[[], object]], object]) -> None:
        self._later = later
        self._known: Final[dict[str, tuple[_Signature | None, float, bool]]] = {}
        self._looking: Final[set[str]] = set()

    @property
    def keys(self) -> list[str]:
        """Which files were refused."""
        return list(self._known)

    def is_news(self, key: str, status: os.stat_result, look: Callable[[], object]) -> bool:
        """Tell whether a file is to be looked at now.

        Args:
            key: which.
            status: what it is.
            look: called later, if that is better.
        """
        known = self._known.get(key)
        if known is None:
            return True
        if known[0] == _sign(status):
            return False
        left = known[1] + _PATIENCE - time.monotonic()
        if left > 0 and key not in self._looking:
            self._looking.add(key)
            self._later(left, lambda: self._look(key, look))
        return left <= 0

    def _look(self, key: str, look: Callable[[], object]) -> None:
        self._looking.discard(key)
        look()

    def forget(self, key: str) -> None:
        """Forget that a file was refused, if it was."""
        self._known.pop(key, None)

    def note(
        self, key: str, status: os.stat_result, error: Exception | None, shown: str = ""
    ) -> None:
        """Note that a file is refused, and say so if that is new.

        Args:
            key: which.
            status: what it was when it was looked at.
            error: why; None where there is nothing to say, as of what is no segment.
            shown: its name for people.
        """
        before = self._known.pop(key, None)
        said = before is not None and before[2]
        if len(self._known) >= _KNOWN_MAX:
            del self._known[next(iter(self._known))]
        expected = isinstance(error, StatsfsError | OSError)
        # Only what is in the file cannot be better another time.
        final = error is None or isinstance(error, FormatError) or not expected
        signature = _sign(status) if final else None
        self._known[key] = (signature, time.monotonic(), said or error is not None)
        if error is None or said:
            return
        why = error.strerror if isinstance(error, OSError) and error.errno else error
        log.warning("%s is refused: %s", shown, why, exc_info=None if expected else error)
