"""Takeovers of `statsfs mount`: what one daemon hands over to the next.

Owns what is handed over besides the mount, and in which order: the locks and records of the
collectors, which only one process writes at any time, and the socket of `--listen`. First the old
daemon stops writing records; the new one gets a copy of the lock, shows all segments, and writes
nothing. Then the old tree stays as it is, and new clients wait in the socket. The new daemon looks
at what happened meanwhile, lets clients in, and swaps the mounts. Then it folds and records.

Threading: `DaemonHandover` is called in the thread of the offer, all else is for the main thread.
"""

import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from statsfs.cli.systemd import notify
from statsfs.collector.collector import Collector
from statsfs.exceptions import MountError, SegmentError
from statsfs.filesystem import mountpoints
from statsfs.filesystem.takeover import Handover, Predecessor
from statsfs.model.locking import Flag

if TYPE_CHECKING:
    from statsfs.monitoring.http_server import MetricsServer

__all__ = ["DaemonHandover", "Inheritance"]

_PATIENCE: Final = 5.0  # seconds: for a start, and for the changes of the last moment

# Variables that systemd gives to the main process of a service, and not to that of ExecReload=.
_SERVICE: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC")

_Address = tuple[str, int] | None


class DaemonHandover(Handover):
    """What `statsfs mount` hands over.

    Attributes:
        collectors: the collectors whose locks and records are handed over.
        server: the server of scrapes, or None.
        address: the argument of `--listen`.
    """

    kind = "daemon"

    def __init__(self, address: _Address) -> None:
        self._begun: Final = Flag()
        self.collectors: Sequence[Collector] = ()
        self.server: MetricsServer | None = None
        self.address = address

    def open(self) -> None:
        """Let successors begin: this process folds and records now."""
        self._begun.set()

    def begin(self) -> tuple[dict[str, Any], list[int]]:
        """Stop writing records; return the locks, and the socket."""
        if not self._begun.wait(_PATIENCE):
            raise MountError("its server has not begun yet")
        try:
            descriptors = [collector.hold() for collector in self.collectors]
        except SegmentError as error:
            raise MountError(f"it cannot be handed over: {error}", error.offender) from error
        described: dict[str, Any] = {
            "directories": [_identify(collector) for collector in self.collectors],
            "service": {name: os.environ[name] for name in _SERVICE if name in os.environ},
        }
        if self.server is not None:
            described["address"] = self.address
            descriptors.append(self.server.listener)
        return described, descriptors

    def stop(self, successor: int) -> None:
        """Keep the tree as it is, and leave new clients to the successor."""
        # Now: this process may end soon, and systemd must not take that for the end of the service.
        notify(f"MAINPID={successor}")
        for collector in self.collectors:
            collector.halt()
        if self.server is not None:
            self.server.pause()

    def resume(self) -> None:
        """Go on as before."""
        notify(f"MAINPID={os.getpid()}")
        for collector in self.collectors:
            collector.go_on()
        if self.server is not None:
            self.server.resume()

    def leave(self) -> None:
        """Go on showing numbers in open files, and record nothing any more."""
        for collector in self.collectors:
            collector.follow()
        if self.server is not None:
            self.server.leave()


class Inheritance:
    """What `statsfs mount --replace` takes over; nothing without a mount point.

    Args:
        mountpoint: where the predecessor has its mount; None if this daemon replaces none.

    Attributes:
        predecessor: the server of that mount, or None.
    """

    def __init__(self, mountpoint: str | None) -> None:
        self.predecessor: Predecessor | None = None
        if mountpoint is not None:
            # Slow imports come first: clients must not wait for them.
            with contextlib.suppress(ImportError):  # the error is told where they are needed
                import statsfs.filesystem.session
                import statsfs.monitoring.http_server  # noqa: F401
            path = mountpoints.resolve_mountpoint(mountpoint)
            self.predecessor = Predecessor(path, DaemonHandover.kind)
        self._locks: dict[str, int] = {}
        self._listener: tuple[list[Any], int] | None = None
        self._held: list[Collector] = []

    def __enter__(self) -> "Inheritance":
        return self

    def __exit__(self, *error: object) -> None:
        self._close()
        if self.predecessor is not None:
            self.predecessor.close()

    def _close(self) -> None:
        # The descriptors that were not used; collectors and the server close theirs.
        for descriptor in (*self._locks.values(), *([self._listener[1]] if self._listener else [])):
            os.close(descriptor)
        self._locks, self._listener = {}, None

    def begin(self) -> None:
        """Have the predecessor stop writing records, and take its locks and socket."""
        if self.predecessor is not None:
            described, descriptors = self.predecessor.begin()
            self._locks = dict(zip(described["directories"], descriptors, strict=False))
            if "address" in described:
                self._listener = described["address"], descriptors[-1]
            os.environ.update(described["service"])
            if "WATCHDOG_USEC" in described["service"]:
                os.environ["WATCHDOG_PID"] = str(os.getpid())

    def has(self, collector: Collector) -> bool:
        """Tell whether the directory of a collector is one of the predecessor's."""
        return _identify(collector) in self._locks

    def start(self, collector: Collector) -> None:
        """Start a collector, held if its directory is the predecessor's."""
        lock = self._locks.pop(_identify(collector), None)
        if lock is None:
            collector.start()
        else:
            collector.start_held(lock)
            self._held.append(collector)

    def make_ready(self) -> None:
        """Have the predecessor stop, and look at what happened until then."""
        if self.predecessor is not None:
            self.predecessor.make_ready()
            for collector in self._held:
                collector.settle(_PATIENCE)

    def take_listener(self, address: _Address) -> int | None:
        """Return the socket at an address if the predecessor listened there."""
        if address is None or self._listener is None or self._listener[0] != [*address]:
            return None
        _, listener = self._listener
        self._listener = None
        return listener

    def finish(self) -> None:
        """Fold and record from now on: the mounts were swapped."""
        self._close()
        for collector in self._held:
            collector.go_on()


def _identify(collector: Collector) -> str:
    return os.path.realpath(collector.directory)
