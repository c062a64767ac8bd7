"""QMP: the connection over which one running QEMU is asked for its statistics.

Owns the connection, through the library qemu.qmp, and what is sent: QMP is full control of a VM,
and all that is ever sent is qmp_capabilities, query-stats-schemas, query-stats and query-cpus-fast.
What the answers mean is the business of `answers`, which sockets there are that of `sockets`.

Threading: a connection belongs to the asyncio loop that opened it.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Mapping
from typing import Any, Final, Self

from qemu.qmp import Message, QMPClient, Runstate

from statsfs.exceptions import QmpError
from statsfs.formats.binary import Descriptor
from statsfs.kvm.qmp_answers import read_cpus, read_schemas, read_stats

__all__ = ["NoListenerError", "QmpConnection"]

_GREETING: Final = 1.0  # seconds until a server that says nothing is somebody else's
_CLOSING: Final = 1.0  # seconds
_LONGEST: Final = 16 << 20  # bytes of an answer: those of 4,096 vCPUs are about 12 MB
_UCRED: Final = struct.Struct("3i")  # pid, uid, gid
_KVM: Final = {"providers": [{"provider": "kvm"}]}


class NoListenerError(QmpError):
    """There is a socket, and nobody listens: its VM has ended, or is just beginning."""


class _Client(QMPClient):
    # The library's own hooks make a text of every message, for its log of debug messages: a third
    # of the time that asking takes.

    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    def _cb_outbound(self, msg: Message) -> Message:
        return msg


def _keep_none(_event: Message) -> bool:
    return False


def _make_client() -> _Client:
    client = _Client("statsfs", _LONGEST)
    client.logger.disabled = True  # who asked says what failed
    client.events.event_filter = _keep_none  # without it, all events are kept for ever
    return client


def _summarize(error: BaseException) -> str:
    # On one line. The library's errors wrap others, and may quote all that was received.
    cause = getattr(error, "exc", None) or error
    said = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return said.splitlines()[0][:120]


class QmpConnection:
    """A connection to one QEMU; made by `open`.

    Attributes:
        path: of the socket.
        pid: the process that listens, or that bound the socket for who does.
    """

    def __init__(self, path: str, pid: int, client: QMPClient) -> None:
        self.path = path
        self.pid = pid
        self._client = client

    @classmethod
    async def open(cls, path: str) -> Self:
        """Connect, and wait for the greeting.

        Raises:
            NoListenerError: nobody listens.
            QmpError: there is no greeting within a second, as QMP serves one client at a time, or
                what is said there is not QMP.
        """
        client = _make_client()
        with contextlib.ExitStack() as stack:
            connected = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            connected.setblocking(False)
            try:
                connected.connect(path)
                ucred = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
                await asyncio.wait_for(client.connect(connected), _GREETING)
            except (ConnectionRefusedError, FileNotFoundError) as error:
                raise NoListenerError(f"{path}: {error.strerror}", path) from error
            except (BlockingIOError, TimeoutError) as error:  # BlockingIOError: many wait there
                why = f"no greeting within {_GREETING:g} s: is another client there?"
                raise QmpError(f"{path}: {why}", path) from error
            except Exception as error:  # the library's, or the system's
                raise QmpError(f"{path}: no QMP: {_summarize(error)}", path) from error
            stack.pop_all()
        return cls(path, _UCRED.unpack(ucred)[0], client)

    async def _execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> object:
        try:
            return await self._client.execute(command, arguments)
        except Exception as error:  # the library's: refused, not understood, connection lost
            raise QmpError(f"{self.path}: {command}: {_summarize(error)}", self.path) from error

    async def query_schemas(self) -> dict[str, tuple[Descriptor, ...]]:
        """Ask what there is, by target; see `read_schemas`.

        Raises:
            QmpError: no answer, or a wrong one.
        """
        return read_schemas(await self._execute("query-stats-schemas", {"provider": "kvm"}))

    async def query_stats(self, target: str) -> dict[str, dict[str, Any]]:
        """Ask what was counted; see `read_stats`.

        Args:
            target: `vm` or `vcpu`.

        Raises:
            QmpError: no answer, or a wrong one.
        """
        return read_stats(await self._execute("query-stats", {"target": target, **_KVM}))

    async def query_cpus(self) -> dict[str, int]:
        """Ask for the vCPUs and their numbers; see `read_cpus`.

        Raises:
            QmpError: no answer, or a wrong one.
        """
        return read_cpus(await self._execute("query-cpus-fast"))

    async def wait_closed(self) -> None:
        """Wait until the connection is lost."""
        while self._client.runstate == Runstate.RUNNING:
            await self._client.runstate_changed()

    async def close(self) -> None:
        """Close the connection; who waits for an answer gets a QmpError."""
        closing = asyncio.ensure_future(self._disconnect())
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            # Interrupted, the library would leave exceptions that nobody has seen.
            await closing
            raise

    async def _disconnect(self) -> None:
        try:
            await asyncio.wait_for(self._client.disconnect(), _CLOSING)
        except Exception:  # how the connection ended, which is known, or whatever the library has
            pass
