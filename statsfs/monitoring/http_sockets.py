"""The sockets of a server: where it listens, and which clients it lets in.

Owns the sockets of all servers, which a forked child closes, and the end of a server. With copies
in a child the port of a parent that was killed would stay taken, and its clients would wait for an
answer that never comes.

Threading: the trio thread of the server, but for `listen`, `close` and forks, which come in any.
"""

import logging
import os
import resource
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final

import trio

from statsfs.model.locking import call_locked
from statsfs.monitoring.clients import Clients
from statsfs.monitoring.http_connections import SLICE, Connection, Handle
from statsfs.monitoring.http_messages import HEAD_MAX, Exchange, make_error

__all__ = ["RETRY_LATER", "Listening", "adopt", "close", "listen"]

log = logging.getLogger(__name__)

RETRY_LATER: Final = ("Retry-After", "1")  # a second
"""The header for a client for which there is no room or no time."""

_CLIENTS_MAX: Final = 1024
_SHARE: Final = 4  # one in so many of the descriptors that this process may have is a client's
_BACKLOG: Final = 1024  # clients that wait to be let in
_PATIENCE: Final = 5.0  # seconds that one waits in which all others wait for an answer
_REST: Final = 0.1  # seconds until the next try after the system ran out of descriptors
_GRACE: Final = 3.0  # seconds for the answers under way, at the end

# All sockets of all servers. They come and go under the lock, which a fork takes: so a child has
# no other. It is reentrant as a finalizer may fork.
_sockets: Final[set[socket.socket]] = set()
_lock: Final = threading.RLock()


def _keep(make: Callable[[], socket.socket]) -> socket.socket:
    # Makes a socket, and notes it.
    def keep() -> socket.socket:
        one = make()
        _sockets.add(one)
        return one

    return call_locked(_lock, keep)


def listen(family: int, address: Any) -> socket.socket:
    """Return a socket that listens at an address; raise OSError if it cannot."""
    listener = _keep(lambda: socket.socket(family, socket.SOCK_STREAM))
    try:
        # The sockets of clients inherit all of these.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, SLICE)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        close(listener)
        raise
    return listener


def adopt(descriptor: int) -> socket.socket:
    """Return the socket of a descriptor that listens already, in another process too."""
    listener = _keep(lambda: socket.socket(fileno=descriptor))
    listener.setblocking(False)
    return listener


def _accept(listener: socket.socket) -> socket.socket:
    client = _keep(lambda: listener.accept()[0])
    client.setblocking(False)
    return client


def close(one: socket.socket) -> None:
    """Close a socket of a server; if it is closed, do nothing."""

    def drop() -> None:
        one.close()
        _sockets.discard(one)

    call_locked(_lock, drop)


def _close_in_child() -> None:
    _lock.release()
    while _sockets:
        # Without a shutdown, which would be the parent's too.
        _sockets.pop().close()


os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_close_in_child
)


class Listening:
    """A server at work.

    Args:
        listener: where clients come.
        handle: makes the answers.
    """

    def __init__(self, listener: socket.socket, handle: Handle) -> None:
        self._listener = listener
        self._handle = handle
        self._clients: Clients[Connection] = Clients(_count_places())
        self._scope = trio.CancelScope()
        self._waiting = trio.CancelScope()  # for a client
        self._open = trio.Event()  # not set while paused
        self._open.set()

    async def run(self) -> None:
        """Answer clients until `stop`; then answer those that have asked, and return."""
        with trio.CancelScope() as grace:
            async with trio.open_nursery() as clients:
                with self._scope:
                    await self._accept_all(clients)
                close(self._listener)
                if self._open.is_set():  # else the clients that are left are new
                    self._clients.close()
                grace.deadline = trio.current_time() + _GRACE

    def stop(self) -> None:
        """Listen no more."""
        self._scope.cancel()

    def pause(self) -> None:
        """Accept no more clients, which others with the socket may accept; answer the rest."""
        self._open = trio.Event()
        self._waiting.cancel()
        self._clients.drain()

    def resume(self) -> None:
        """Accept clients again."""
        self._clients.closing = False
        self._open.set()

    async def _accept_all(self, clients: trio.Nursery) -> None:
        while True:
            await self._open.wait()
            with trio.CancelScope() as self._waiting:
                await trio.lowlevel.wait_readable(self._listener)
            if not self._open.is_set():
                continue
            try:
                client = _accept(self._listener)
            except (BlockingIOError, ConnectionError):
                continue
            except OSError as error:
                log.debug("no client can be let in: %s", error)
                await trio.sleep(_REST)
                continue
            connection = Connection(client, self._clients, self._handle)
            if await self._let_in(connection, client):
                clients.start_soon(self._serve, connection, client)

    async def _let_in(self, connection: Connection, client: socket.socket) -> bool:
        # If all clients wait for an answer, one more waits here, and the next ones in the backlog.
        entered = False
        try:
            with trio.move_on_after(_PATIENCE):
                while not (entered := self._clients.enter(connection)):
                    await self._clients.wait_for_room()
        finally:
            if not entered:
                _turn_away(client)
        return entered

    async def _serve(self, connection: Connection, client: socket.socket) -> None:
        try:
            await connection.serve()
        except Exception:
            log.exception("a connection failed")
        finally:
            self._clients.leave(connection)
            close(client)


def _count_places() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    return _CLIENTS_MAX if unlimited else max(1, min(_CLIENTS_MAX, soft // _SHARE))


def _turn_away(client: socket.socket) -> None:
    answer = make_error(HTTPStatus.SERVICE_UNAVAILABLE, RETRY_LATER)
    with suppress(OSError):
        client.send(b"".join(Exchange().write(answer, last=True)), socket.MSG_NOSIGNAL)
        client.shutdown(socket.SHUT_WR)
        client.recv(HEAD_MAX)  # the answer would go with what is not read
    close(client)
