"""Log budgets: how many lines one user may cause, so that no user fills the log.

Owns how many lines of a registry one user can cause: 10 a minute. The others are counted, and one
line gives their number: after the user's minute, when something is logged or `report` is called.
Lines without a user are the program's own, and all logged.

Threading: any thread; no lock, which a signal handler or a forked child might find taken.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Final

__all__ = ["LINES_MAX", "LogBudget"]

log = logging.getLogger(__name__)

LINES_MAX: Final = 10  # of one user, in a minute
_MINUTE: Final = 60.0  # seconds


@dataclass(slots=True)
class _Minute:
    began: float
    lines: Iterator[int] = field(default_factory=count)  # one step of it is never lost
    spent: bool = False


class LogBudget:
    """How many lines each user may still cause."""

    def __init__(self) -> None:
        self._minutes: Final[dict[int, _Minute]] = {}

    def log(
        self,
        user: int | None,
        logger: logging.Logger,
        text: str,
        *args: object,
        exc_info: BaseException | None = None,
    ) -> None:
        """Log a warning that a user caused, or the program (None), if it is within the budget."""
        self.report()
        if user is None or self._take(user):
            logger.warning(text, *args, exc_info=exc_info, stacklevel=2)

    def _take(self, user: int) -> bool:
        minute = self._minutes.setdefault(user, _Minute(time.monotonic()))
        if next(minute.lines) < LINES_MAX:
            return True
        minute.spent = True
        return False

    def report(self) -> float | None:
        """Log how many lines were left out in minutes that are over.

        Return the seconds until another one is; None if nothing was left out in it.
        """
        now, due = time.monotonic(), []
        for user, minute in list(self._minutes.items()):
            if now < minute.began + _MINUTE:
                due += [minute.began + _MINUTE - now] if minute.spent else []
            elif self._minutes.pop(user, None) is minute and minute.spent:
                left_out = next(minute.lines) - LINES_MAX
                log.warning("user %d: %d more lines were left out in a minute", user, left_out)
        return min(due, default=None)
