"""The clients of a server: how many there may be, how much their answers may keep, who must go.

Owns the order in which clients are cut off where there is no room: the one goes first that has not
got on for longest. That is one that is idle between two requests, that does not ask, or that does
not take its answer; one that waits for the server is not cut off.

Threading: the trio thread of the server.
"""

from collections import Counter
from typing import Final, Generic, Protocol, TypeVar

__all__ = ["KEPT_MAX", "Client", "Clients"]

KEPT_MAX: Final = 64 << 20
"""Bytes of older answers that are kept for clients that take their time."""


class Client(Protocol):
    """One that has a place."""

    def cut(self) -> None:
        """End it, whatever it is at."""


_C = TypeVar("_C", bound=Client)


class Clients(Generic[_C]):
    """The clients of a server.

    Args:
        most: how many there may be.

    Attributes:
        closing: whether the server is ending.
    """

    def __init__(self, most: int) -> None:
        self.closing = False
        self._most = most
        self._all: set[_C] = set()
        self._busy: set[_C] = set()  # that have asked
        self._order: dict[_C, None] = {}  # that may be cut off, the first one first
        self._texts: dict[_C, bytes] = {}  # that are being taken
        self._takers: Counter[int] = Counter()  # of each text, by its `id`
        self._kept = 0  # bytes of them

    def enter(self, client: _C) -> bool:
        """Give a client a place; return whether there is one."""
        if len(self._all) >= self._most:
            first = next(iter(self._order), None)
            if first is None:
                return False
            self._cut(first)
        self._all.add(client)
        self._order[client] = None
        return True

    def ask(self, client: _C) -> None:
        """Note that a client has asked, and waits."""
        self._busy.add(client)
        self._order.pop(client, None)

    def take(self, client: _C, text: bytes) -> None:
        """Note that a client begins to take an answer, which keeps a text in memory."""
        if client not in self._all:
            return
        self._texts[client] = text
        self._takers[id(text)] += 1
        if self._takers[id(text)] == 1:
            self._kept += len(text)
        while self._kept - len(text) > KEPT_MAX:
            # There is another one, or all would be this text's.
            self._cut(next(one for one in self._order if self._texts.get(one, text) is not text))
        self._order[client] = None

    def get_on(self, client: _C) -> None:
        """Note that a client has taken something."""
        if client in self._order:
            del self._order[client]
            self._order[client] = None

    def end(self, client: _C) -> None:
        """Note that a client has taken its answer."""
        self._busy.discard(client)
        self._drop(client)
        self.get_on(client)

    def leave(self, client: _C) -> None:
        """Take the place of a client that is gone."""
        self._all.discard(client)
        self._order.pop(client, None)
        self.end(client)

    def _drop(self, client: _C) -> None:
        text = self._texts.pop(client, None)
        if text is not None:
            self._takers[id(text)] -= 1
            if not self._takers[id(text)]:
                del self._takers[id(text)]
                self._kept -= len(text)

    def _cut(self, client: _C) -> None:
        self.leave(client)
        client.cut()

    def close(self) -> None:
        """Cut off all that have not asked."""
        self.closing = True
        for client in self._all - self._busy:
            self._cut(client)
