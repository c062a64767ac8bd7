"""The QMP socket of one VM: connected while it is queried, and for a few seconds after.

Owns when it is connected, and how its end is noticed. QMP serves one client: a manager that
connects on demand must not wait for ever. Threading: a channel belongs to one asyncio loop.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any, Final

from statsfs.exceptions import QmpError
from statsfs.kvm import qmp_sockets
from statsfs.kvm.qmp import NoListenerError, QmpConnection

__all__ = ["QmpChannel"]

_IDLE: Final = 3.0  # seconds after which a connection that nobody uses is closed
_LONGEST: Final = 10.0  # seconds after which one is closed that is used all the time
_AGAIN: Final = 1.0  # seconds from a lost connection to the next one


class QmpChannel:
    """The way to one VM.

    Args:
        path: of its socket.

    Attributes:
        pid: the process that listens; 0 before the first connection.
        ended: set once the process has ended, or does not listen any more.
    """

    def __init__(self, path: str) -> None:
        self.path: Final = path
        self.pid = 0
        self.ended: Final = asyncio.Event()
        self._connection: QmpConnection | None = None
        self._opened = 0.0  # the loop's time
        self._closed = False
        self._turn: Final = asyncio.Lock()  # one query after the other
        self._idle: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: Final = ExitStack()

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[QmpConnection]:
        """Have the connection, alone; QmpError if there is none."""
        async with self._turn:
            if self._idle is not None:
                self._idle.cancel()
            connection = await self._connect()
            try:
                yield connection
            finally:
                loop = asyncio.get_running_loop()
                old = loop.time() - self._opened >= _LONGEST
                self._idle = loop.call_later(0 if old else _IDLE, self._rest)

    async def _connect(self) -> QmpConnection:
        self._check_open()
        if self._connection is not None and self._connection.running:
            return self._connection
        await self._disconnect()
        try:
            connection = await QmpConnection.open(self.path)
        except NoListenerError:
            self.ended.set()
            raise
        try:
            self._check(connection.pid)
        except QmpError:
            await connection.close()
            raise
        self._connection, self._opened = connection, asyncio.get_running_loop().time()
        self._begin(self._watch(connection))
        return connection

    def _check_open(self) -> None:
        if self._closed:
            raise QmpError(f"{self.path}: the VM has ended", self.path)

    def _check(self, pid: int) -> None:
        self._check_open()  # it may have been closed during the greeting
        if self.pid and pid != self.pid:
            # The socket was replaced; the new one is found as another VM's.
            self.ended.set()
            raise QmpError(f"{self.path}: process {pid} listens now", self.path)
        try:
            # Not the user who listened: that process may have ended, and its number be another's.
            user = os.stat(f"/proc/{pid}").st_uid
            if not self.pid:
                self._follow(pid)
        except OSError as error:
            raise QmpError(f"{self.path}: process {pid}: {error.strerror}", self.path) from error
        qmp_sockets.check_owners(self.path, user)

    def _follow(self, pid: int) -> None:
        # The process's end is noticed without a connection.
        fd = os.pidfd_open(pid)
        self.pid = pid
        self._closing.callback(os.close, fd)
        loop = asyncio.get_running_loop()

        def end() -> None:
            loop.remove_reader(fd)  # else it is called again and again
            self.ended.set()

        loop.add_reader(fd, end)
        self._closing.callback(loop.remove_reader, fd)

    async def _watch(self, connection: QmpConnection) -> None:
        # A connection that is lost, and was not closed here, may be the end of the VM.
        await connection.wait_closed()
        if self._connection is connection:
            await asyncio.sleep(_AGAIN)
            with suppress(QmpError):
                async with self.connected():
                    pass

    def _rest(self) -> None:
        self._begin(self.rest())

    async def rest(self) -> None:
        """Close the connection after the query under way; the next query makes another one."""
        async with self._turn:
            await self._disconnect()

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Close it; queries under way raise QmpError, as later ones do."""
        self._closed = True
        if self._idle is not None:
            self._idle.cancel()
        self._closing.close()
        await self._disconnect()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
