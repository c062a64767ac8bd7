"""A client's connection: its requests in order, the answers to them, and what ends it.

Owns the socket of a client, and how long the client may take for what it does. What is answered is
the server's business.

A connection ends so that the client gets the last answer: a socket that is closed while something
is not read yet takes what the client has not read with it.

Threading: the trio thread of the server.
"""

import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

import trio

from statsfs.monitoring.clients import Clients
from statsfs.monitoring.http_messages import (
    HEAD_MAX,
    Answer,
    Exchange,
    Refusal,
    Request,
    find_end,
    make_error,
)

__all__ = ["SLICE", "Connection", "Handle"]

Handle = Callable[[Request, Callable[[], bool]], Awaitable[Answer]]
"""Makes the answer to a request; the function tells whether the client still wants it."""

log = logging.getLogger(__name__)

SLICE: Final = 64 << 10
"""Bytes of an answer that are sent at once; about as many wait in the system for a slow client."""

# How many seconds a client may take.
_ASKING: Final = 10.0  # for a request, since its first byte; for the first since it connected
_IDLE: Final = 120.0  # until the next request: Prometheus scrapes once a minute by default
_STALL: Final = 10.0  # without taking anything
_TAKING: Final = 60.0  # for an answer
_PARTING: Final = 2.0  # to close its side
_DISCARDED: Final = 256 << 10  # bytes that it may still send meanwhile


class Connection:
    """A connection, from the first request to the last answer.

    Args:
        connection: the socket, which does not block.
        clients: where it has its place.
        handle: makes the answers.
    """

    def __init__(
        self, connection: socket.socket, clients: "Clients[Connection]", handle: Handle
    ) -> None:
        self._socket = connection
        self._clients = clients
        self._handle = handle
        self._scope = trio.CancelScope()
        self._received = bytearray()
        self._answered = False

    @property
    def resting(self) -> bool:
        """Whether the client has had an answer and sends nothing now: it may be cut off."""
        if not self._answered or self._received:
            return False
        with suppress(BlockingIOError):
            return not self._socket.recv(1, socket.MSG_PEEK)
        return True

    def cut(self) -> None:
        """End the connection at once."""
        self._scope.cancel()

    def is_connected(self) -> bool:
        """Tell whether the client may still read an answer."""
        try:
            # At the end of what it sends it may go on reading.
            self._socket.recv(1, socket.MSG_PEEK)
        except OSError as error:
            return isinstance(error, BlockingIOError)
        return True

    async def serve(self) -> None:
        """Answer requests until one side ends the connection."""
        with self._scope:
            try:
                patience = _ASKING
                while await self._answer_next(patience):
                    patience = _IDLE
                    # A client that sends many requests at once takes turns with others.
                    await trio.lowlevel.checkpoint()
                await self._part()
            except (OSError, EOFError, trio.TooSlowError):
                log.debug("a connection ended", exc_info=True)

    async def _answer_next(self, patience: float) -> bool:
        # Returns whether another request may follow.
        exchange = Exchange()
        try:
            request = exchange.read(await self._read_head(patience))
        except Refusal as refusal:
            answer, last = make_error(refusal.status), True
        else:
            self._clients.ask(self)
            answer, last = await self._handle(request, self.is_connected), request.has_body
        self._clients.take(self, answer.text)
        await self._send(exchange.write(answer, last=last or self._clients.closing))
        self._clients.end(self)
        self._answered = True
        return exchange.goes_on

    async def _read_head(self, patience: float) -> bytes:
        if not self._received:
            with trio.fail_after(patience):
                self._received += await self._receive()
        with trio.fail_after(_ASKING):
            while (end := find_end(self._received)) is None:
                self._received += await self._receive()
        head = bytes(self._received[:end])
        del self._received[:end]
        return head

    async def _receive(self) -> bytes:
        while True:
            try:
                received = self._socket.recv(HEAD_MAX)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)
                continue
            if not received:
                raise EOFError("the client hung up")
            return received

    async def _send(self, pieces: Sequence[bytes | memoryview]) -> None:
        with trio.fail_after(_TAKING):
            for number, piece in enumerate(pieces, 1):
                # A program may want to be killed by SIGPIPE, but not for the sake of a client.
                flags = socket.MSG_NOSIGNAL | (socket.MSG_MORE if number < len(pieces) else 0)
                left = memoryview(piece)
                while left:
                    with suppress(BlockingIOError):
                        left = left[self._socket.send(left[:SLICE], flags) :]
                    if left:
                        with trio.fail_after(_STALL):
                            await trio.lowlevel.wait_writable(self._socket)
                        self._clients.get_on(self)

    async def _part(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)
        left = _DISCARDED
        with trio.fail_after(_PARTING):
            while left > 0 and not self._clients.closing:
                left -= len(await self._receive())
