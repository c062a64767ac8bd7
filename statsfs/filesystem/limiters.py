"""Limiters: how many threads work for clients at a time; users take turns.

Threading: for the serving thread.
"""

from collections import deque
from dataclasses import dataclass
from typing import cast

import trio

__all__ = ["FairLimiter"]


class FairLimiter:
    """Limits how many are inside at a time, in total and for each user. Waiting users take turns.

    Args:
        most: how many in total.
        each: how many for each user.
    """

    def __init__(self, most: int, each: int) -> None:
        self._free = most
        self._each = each
        self._inside: dict[int, int] = {}
        # The users who wait; the next is first.
        self._waiting: dict[int, deque[trio.Event]] = {}

    def of(self, user: int) -> trio.CapacityLimiter:
        """Return the limiter of one user, for `trio.to_thread.run_sync`."""
        return cast(trio.CapacityLimiter, _Limiter(self, user))

    async def enter(self, user: int) -> None:
        """Wait until the user may go in."""
        turn = trio.Event()
        waiting = self._waiting.setdefault(user, deque())
        waiting.append(turn)
        self._let_in()
        try:
            await turn.wait()
        except trio.Cancelled:
            if turn.is_set():
                self.leave(user)
            else:
                waiting.remove(turn)
                self._drop(user)
            raise

    def leave(self, user: int) -> None:
        """Make room for the next."""
        self._free += 1
        left = self._inside[user] = self._inside[user] - 1
        if not left:
            del self._inside[user]
        self._let_in()

    def _let_in(self) -> None:
        for user in list(self._waiting):
            inside = self._inside.get(user, 0)
            if self._free and inside < self._each:
                self._free -= 1
                self._inside[user] = inside + 1
                # Behind all others.
                waiting = self._waiting.pop(user)
                self._waiting[user] = waiting
                waiting.popleft().set()
                self._drop(user)

    def _drop(self, user: int) -> None:
        if not self._waiting.get(user):
            self._waiting.pop(user, None)


@dataclass(frozen=True, slots=True)
class _Limiter:
    # One user's. It has what `trio.to_thread.run_sync` calls of a `CapacityLimiter`.
    limiter: FairLimiter
    user: int

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await self.limiter.enter(self.user)

    def release_on_behalf_of(self, borrower: object) -> None:
        self.limiter.leave(self.user)
