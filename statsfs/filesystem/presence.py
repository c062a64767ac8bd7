"""Presence: whether a mount is still in the mount namespace of its server, and what keeps it.

Owns the look at the table of mounts after each change of it. A mount that was unmounted here goes
on while files of it are open, and in the copies of other mount namespaces (containers): copies are
not visible here, and may stay for ever.

Threading: `gone` is for the serving thread; the tables are read in a thread.
"""

import contextlib
import logging
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

import trio

from statsfs.filesystem.vfs import Vfs

__all__ = ["CALM", "Presence"]

log = logging.getLogger(__name__)

_T = TypeVar("_T")

CALM: Final = 0.1
"""Seconds to wait after a change: without copies, an unmount ends the session by itself."""

_AGAIN: Final = 1.0  # seconds until the next try after a failure, or while files are open
_NAMED: Final = 3  # the most processes that are named


class Presence:
    """The presence of a filesystem in the mount namespace of this process.

    Args:
        device: the filesystem's, as "major:minor"; it may be set later.
    """

    def __init__(self, device: str | None = None) -> None:
        self.device = device
        # Opened once: the table is that of the namespace and the root at this moment.
        self._table = open("/proc/self/mountinfo", "rb", buffering=0)  # noqa: SIM115
        # Trio cannot wait for EPOLLPRI, but for an epoll that has an event.
        self._changes = select.epoll()
        self._changes.register(self._table, select.EPOLLPRI)
        self._limiter = trio.CapacityLimiter(1)

    def close(self) -> None:
        """Let go of the table."""
        self._changes.close()
        self._table.close()

    async def gone(self) -> None:
        """Wait until the filesystem is mounted nowhere in the namespace."""
        while True:
            await trio.lowlevel.wait_readable(self._changes.fileno())
            self._changes.poll(0)
            await trio.sleep(CALM)
            # Twice: older kernels leave out a line if another one is removed meanwhile.
            if not await self._is_there() and not await self._is_there():
                return

    async def _is_there(self) -> bool:
        return await self._run(self._look)

    async def _run(self, function: Callable[[], _T]) -> _T:
        while True:
            try:
                return await trio.to_thread.run_sync(function, limiter=self._limiter)
            except (OSError, RuntimeError) as error:
                # The program has no thread or no descriptor left; the mount goes on.
                log.debug("cannot look at the table of mounts: %s", error)
            await trio.sleep(_AGAIN)

    def _look(self) -> bool:
        self._table.seek(0)
        return _has(self._table.readall(), self.device)

    async def find_keeper(self, vfs: Vfs) -> str:
        """Return what keeps a filesystem that is unmounted here, apart from open files.

        While only open files keep it, this waits: the kernel ends the session with the last one.
        """
        found = await self._run(self._find_holders)
        while not found:
            used = vfs.in_use
            await trio.sleep(_AGAIN)
            if not used:
                found = "a process that stands in it, or in a namespace that cannot be seen"
        return found

    def _find_holders(self) -> str:
        found = list(_find_processes(self.device))
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        return f"the mount namespace of {', '.join(found[:_NAMED])}{more}" if found else ""


def _has(table: bytes, device: str | None) -> bool:
    # The device is the third field of a line. An unknown device counts as mounted.
    wanted = device.encode() if device else b""
    return not wanted or any(line.split(b" ", 3)[2] == wanted for line in table.splitlines())


def _find_processes(device: str | None) -> Iterator[str]:
    # One of each namespace. Without the rights of root, not all namespaces are visible.
    namespaces = set()
    for process in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended, or is not visible
            namespace = os.readlink(f"/proc/{process}/ns/mnt")
            if namespace in namespaces:
                continue
            table = Path(f"/proc/{process}/mountinfo").read_bytes()
            namespaces.add(namespace)
            if _has(table, device):
                name = Path(f"/proc/{process}/comm").read_text(errors="replace").rstrip("\n")
                yield f"process {process} ({''.join(c if c.isprintable() else '?' for c in name)})"
