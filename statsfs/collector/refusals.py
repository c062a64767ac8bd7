"""Refusals: the files that were refused, and when they are looked at again.

Owns that each is logged once, and once more when it changes. It is then looked at again, but not
more often than once a second: anybody may change a file all the time. Why a file is refused is
decided elsewhere.

Threading: for the collector's thread alone, but for `counts`, `total` and `find_reasons`.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Final, NamedTuple

from statsfs.collector.timers import Timers
from statsfs.collector.trusted_directory import Location
from statsfs.exceptions import FormatError, StatsfsError
from statsfs.tree.log_budget import LogBudget

__all__ = ["Refusals"]

log = logging.getLogger(__name__)

_PAUSE: Final = 1.0  # seconds
_KNOWN_MAX: Final = 10_000  # of one directory
_REASON_MAX: Final = 300  # characters that are kept of each


class _Refusal(NamedTuple):
    location: Location
    signature: tuple[int, ...] | None  # None: it may be admitted another time as it is
    moment: float
    logged: tuple[int, ...]  # the part of its signature that was logged last; () if none was
    reason: str  # "" if there is nothing to say


class Refusals:
    """The files that were refused, the last 10,000 of each directory.

    Attributes:
        counts: by the owner of the directory, how many files have a reason now.
        total: by the owner of the directory, how often a reason was logged.
    """

    def __init__(self, timers: Timers, budget: LogBudget) -> None:
        self.counts: Final[Counter[int]] = Counter()
        self.total: Final[Counter[int]] = Counter()
        self._timers = timers
        self._budget = budget
        # By the prefixes of directories, and by the names in them.
        self._known: Final[dict[str, dict[str, _Refusal]]] = {}
        self._looking: Final[set[str]] = set()

    def find(self, prefix: str) -> list[Location]:
        """Return the files that were refused in the directory with that prefix."""
        return [one.location for one in self._known.get(prefix, {}).values()]

    def is_known(self, location: Location) -> bool:
        """Tell whether a file was refused."""
        return location.name in self._known.get(location.directory.prefix, ())

    def leave(self, prefix: str) -> None:
        """Forget the files in a directory that is read no longer."""
        for known in self._known.pop(prefix, {}).values():
            self._count(known, -1)

    def _count(self, known: _Refusal | None, number: int) -> None:
        if known is not None and known.reason:
            self.counts[known.location.directory.owner[0]] += number

    def find_reasons(self, user: int, most: int) -> list[str]:
        """Return the newest reasons of refusals in a user's directories, in any thread.

        Args:
            user: the number of the user.
            most: how many lines at most.
        """
        found: list[_Refusal] = []
        for here in list(self._known.values()):
            newest = reversed(list(here.values()))
            mine = (one for one in newest if one.location.directory.owner[0] == user)
            found += islice((one for one in mine if one.reason), most)
        found.sort(key=lambda one: one.moment, reverse=True)
        return [one.reason for one in found[:most]]

    def forget(self, location: Location) -> None:
        """Forget a file: it is admitted, or gone."""
        known = self._known.get(location.directory.prefix, {})
        self._count(known.pop(location.name, None), -1)
        if not known:
            self._known.pop(location.directory.prefix, None)

    def is_due(
        self, location: Location, status: os.stat_result, look: Callable[[Location], object]
    ) -> bool:
        """Tell whether a file is to be looked at now; if it is later, `look` is called then."""
        known = self._known.get(location.directory.prefix, {}).get(location.name)
        if known is None:
            return True
        if known.signature == _sign(status):
            return False
        left = known.moment + _PAUSE - time.monotonic()
        if left > 0 and location.key not in self._looking:
            self._looking.add(location.key)
            self._timers.add(left, lambda: self._look(location, look))
        return left <= 0

    def _look(self, location: Location, look: Callable[[Location], object]) -> None:
        self._looking.discard(location.key)
        look(location)

    def note(
        self,
        location: Location,
        status: os.stat_result,
        error: Exception | None,
        verb: str = "is refused",
    ) -> None:
        """Note that a file is refused; an error is logged, once for each file and its contents."""
        here = self._known.setdefault(location.directory.prefix, {})
        before = here.pop(location.name, None)
        self._count(before, -1)
        logged = before.logged if before is not None else ()
        if len(here) >= _KNOWN_MAX:
            self._count(here.pop(next(iter(here))), -1)
        expected = isinstance(error, StatsfsError | OSError)
        # Only contents stay as bad as they are.
        final = isinstance(error, FormatError) or (error is not None and not expected)
        signature = _sign(status)
        # The others' producers may be counting: then the files change all the time.
        seen = signature[: 3 if final else 1]
        logs = error is not None and logged != seen
        why = error.strerror if isinstance(error, OSError) and error.errno else error
        reason = "" if error is None else f"{location} {verb}: {why}"
        known = here[location.name] = _Refusal(
            location,
            signature if final else None,
            time.monotonic(),
            seen if logs else logged,
            reason[:_REASON_MAX],
        )
        self._count(known, 1)
        if logs:
            user, cause = location.directory.owner[0], None if expected else error
            self.total[user] += 1
            self._budget.log(user, log, "%s", reason, exc_info=cause)


def _sign(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
