"""The clients of a server: how many there may be, how much memory their answers may keep.

Owns the order in which clients are cut off when there is no room: first the client whose last
progress is longest ago. It is idle between two requests, sends no request, or does not read its
answer. A client that waits for the server is not cut off, nor one that made progress just now: else
new clients would cut off each other before they can send a request.

Threading: the trio thread of the server.
"""

import time
from collections import Counter
from typing import Final, Generic, Protocol, TypeVar

import trio

__all__ = ["KEPT_MAX", "Client", "Clients"]

KEPT_MAX: Final = 64 << 20
"""Bytes of older answers that are kept for slow clients."""

_RESPITE: Final = 0.1  # seconds that each has to make progress


class Client(Protocol):
    """A client that has a place."""

    @property
    def resting(self) -> bool:
        """Whether it has had an answer and sends no request now."""

    def cut(self) -> None:
        """End its connection at once."""


_C = TypeVar("_C", bound=Client)


class Clients(Generic[_C]):
    """The clients of a server.

    Args:
        most: how many there may be.

    Attributes:
        closing: whether each answer is the last of its connection.
    """

    def __init__(self, most: int) -> None:
        self.closing = False
        self._most = most
        self._all: set[_C] = set()
        self._busy: set[_C] = set()  # those that have asked
        # The last progress of each that does not wait for the server; the oldest is first.
        self._since: dict[_C, float] = {}
        self._texts: dict[_C, bytes] = {}  # the answers that are being taken
        self._takers: Counter[int] = Counter()  # of each text, by its `id`
        self._kept = 0  # bytes of them
        self._room = trio.Event()  # set when somebody else may enter

    def enter(self, client: _C) -> bool:
        """Give a client a place; return whether there is one."""
        if len(self._all) >= self._most:
            first = next(iter(self._since), None)
            if first is None or time.monotonic() - self._since[first] < _RESPITE:
                return False
            self._cut(first)
        self._all.add(client)
        self._since[client] = time.monotonic()
        return True

    async def wait_for_room(self) -> None:
        """Return when a client that could not enter may try again."""
        self._room = trio.Event()
        with trio.move_on_after(_RESPITE):
            await self._room.wait()

    def ask(self, client: _C) -> None:
        """Note that a client has asked, and waits."""
        self._busy.add(client)
        self._since.pop(client, None)

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
            self._cut(next(one for one in self._since if self._texts.get(one, text) is not text))
        self._since[client] = time.monotonic()

    def get_on(self, client: _C) -> None:
        """Note that a client has taken something."""
        if self._since.pop(client, None) is not None:
            self._since[client] = time.monotonic()

    def end(self, client: _C) -> None:
        """Note that a client has taken its answer."""
        self._busy.discard(client)
        self._drop(client)
        self.get_on(client)

    def leave(self, client: _C) -> None:
        """Take the place of a client that is gone."""
        self._all.discard(client)
        self._since.pop(client, None)
        self.end(client)
        self._room.set()

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

    def drain(self) -> None:
        """Cut off resting clients now, and all others after their next answer."""
        self.closing = True
        for client in self._all - self._busy:
            if client.resting:
                self._cut(client)

    def close(self) -> None:
        """Cut off all that have not asked."""
        self.closing = True
        for client in self._all - self._busy:
            self._cut(client)
