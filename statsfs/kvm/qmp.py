"""QMP: the connection over which one running QEMU tells its statistics.

Owns the connection, through the library qemu.qmp, and the commands. QMP is full control of a VM:
only qmp_capabilities, query-stats-schemas, query-stats, query-cpus-fast and qom-get are ever sent.
Threading: a connection belongs to the asyncio loop that opened it.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterable, Mapping, Set
from typing import Any, Final, Self

from qemu.qmp import Message, QMPClient, Runstate

from statsfs.exceptions import QmpError
from statsfs.formats.binary import Descriptor
from statsfs.kvm.qmp_answers import read_apic_id, read_cpus, read_schemas, read_stats

__all__ = ["NoListenerError", "QmpConnection"]

_GREETING: Final = 1.0  # seconds; a server that says nothing has another client
_CLOSING: Final = 1.0  # seconds
_LONGEST: Final = 16 << 20  # bytes of an answer; those of 4,096 vCPUs are about 12 MB
_UCRED: Final = struct.Struct("3i")  # pid, uid, gid


class NoListenerError(QmpError):
    """The socket has no listener: its VM has ended, or is just beginning."""


class _Client(QMPClient):
    def __init__(self) -> None:
        super().__init__("statsfs", _LONGEST)
        self.logger.disabled = True  # the caller reports failures
        self.events.event_filter = lambda _event: False  # else all events are kept for ever

    def _keep(self, msg: Message) -> Message:
        return msg

    # The library's own hooks format every message for its debug log: a third of a query's time.
    _cb_inbound = _cb_outbound = _keep


def _summarize(error: BaseException) -> str:
    # One line. The library's errors wrap others, and may quote all that was received.
    cause = getattr(error, "exc", None) or error
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return text.splitlines()[0][:120]


class QmpConnection:
    """A connection to one QEMU; a query raises QmpError if there is no answer, or an invalid one.

    `pid` is the process that listens, or that bound the socket for another.
    """

    def __init__(self, path: str, pid: int, client: QMPClient) -> None:
        self.path = path
        self.pid = pid
        self._client = client

    @classmethod
    async def open(cls, path: str) -> Self:
        """Connect, and wait a second for the greeting; QmpError if it does not come."""
        client = _Client()
        with contextlib.ExitStack() as stack:
            connected = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            connected.setblocking(False)
            try:
                connected.connect(path)
                ucred = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
                async with asyncio.timeout(_GREETING):
                    await client.connect(connected)
            except (ConnectionRefusedError, FileNotFoundError) as error:
                raise NoListenerError(f"{path}: {error.strerror}", path) from error
            except (BlockingIOError, TimeoutError) as error:  # BlockingIOError: the queue is full
                why = f"no greeting within {_GREETING:g} s: another client?"
                raise QmpError(f"{path}: {why}", path) from error
            except Exception as error:  # the library's, or the system's
                raise QmpError(f"{path}: not QMP: {_summarize(error)}", path) from error
            stack.pop_all()
        return cls(path, _UCRED.unpack(ucred)[0], client)

    @property
    def running(self) -> bool:
        """Whether it was not lost yet."""
        return self._client.runstate == Runstate.RUNNING

    async def _execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> object:
        try:
            return await self._client.execute(command, arguments)
        except Exception as error:  # the library's: refused, not understood, connection lost
            raise QmpError(f"{self.path}: {command}: {_summarize(error)}", self.path) from error

    async def query_schemas(self) -> dict[str, tuple[Descriptor, ...]]:
        """Query what KVM counts, by target."""
        return read_schemas(await self._execute("query-stats-schemas", {"provider": "kvm"}))

    async def query_stats(
        self, target: str, names: Iterable[str] | None = None, vcpus: Iterable[str] | None = None
    ) -> dict[str, dict[str, Any]]:
        """Query the numbers of objects of a target, `vm` or `vcpu`, by qom-path.

        Args:
            target: QEMU 7.1 to 8.0 interrupts each vCPU that it is asked for.
            names: which numbers; all by default.
            vcpus: the qom-paths of some; all by default.
        """
        provider: dict[str, Any] = {"provider": "kvm"}
        if names is not None:
            provider["names"] = sorted(names)
        arguments: dict[str, Any] = {"target": target, "providers": [provider]}
        if vcpus is not None:
            arguments["vcpus"] = sorted(vcpus)
        return read_stats(await self._execute("query-stats", arguments))

    async def query_paths(self) -> Set[str]:
        """Query the qom-paths of the vCPUs, which disturbs none."""
        return read_cpus(await self._execute("query-cpus-fast")).keys()

    async def query_cpus(self) -> dict[str, int]:
        """Query KVM's number of each vCPU, by qom-path."""
        cpus = read_cpus(await self._execute("query-cpus-fast"))
        return {
            path: await self._query_apic_id(path) if number is None else number
            for path, number in cpus.items()
        }

    async def _query_apic_id(self, path: str) -> int:
        arguments = {"path": path, "property": "apic-id"}
        return read_apic_id(await self._execute("qom-get", arguments))

    async def wait_closed(self) -> None:
        """Wait until the connection is lost."""
        while self.running:
            await self._client.runstate_changed()

    async def close(self) -> None:
        """Close the connection; queries under way raise QmpError. Closing again does nothing."""
        closing = asyncio.ensure_future(self._disconnect())
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            # Interrupted, the library would leave exceptions that asyncio logs as never retrieved.
            await closing
            raise

    async def _disconnect(self) -> None:
        # Raises how the connection ended, which is known, or an error of the library's own.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_CLOSING):
                await self._client.disconnect()
