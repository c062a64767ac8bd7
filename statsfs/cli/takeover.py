"""Takeovers of `statsfs mount`: what one daemon hands over to the next.

Owns what there is besides the mount, and in which order it changes hands: the locks and records of
the collectors, of which one process writes at any time, and the socket of `--listen`. The old
daemon holds its records still; the new one shows all segments over a copy of the lock, and writes
nothing. Then the old one stops: its tree stays as it is, and new clients wait in the socket. The
new one looks at what happened meanwhile, lets clients in, and swaps the mounts. From then on it
folds and records.

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

_PATIENCE: Final = 5.0  # seconds for what happened in the last moment

# What systemd tells the main process of a service, and not that of ExecReload=.
_SERVICE: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC")

_Address = tuple[str, int] | None


class DaemonHandover(Handover):
    """What `statsfs mount` hands over.

    Attributes:
        collectors: whose locks and records.
        server, address: who answers scrapes, and at what address that was asked for.
    """

    kind = "daemon"

    def __init__(self, address: _Address) -> None:
        self._begun: Final = Flag()
        self.collectors: Sequence[Collector] = ()
        self.server: MetricsServer | None = None
        self.address = address

    def open(self) -> None:
        """Let successors come: this process has begun to fold and to record."""
        self._begun.set()

    def begin(self) -> tuple[dict[str, Any], list[int]]:
        """Hold the records still; return the locks, and the socket."""
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
        """Leave the tree as it is, and new clients to the successor."""
        # Before this process may end: systemd would take that for the end of the service.
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
        """Show on what is open, and record nothing any more."""
        for collector in self.collectors:
            collector.follow()
        if self.server is not None:
            self.server.leave()


class Inheritance:
    """What `statsfs mount --replace` takes over; of no mount, nothing.

    Args:
        mountpoint: whose server is asked, if there is one.

    Attributes:
        predecessor: that server.
    """

    def __init__(self, mountpoint: str | None) -> None:
        self.predecessor: Predecessor | None = None
        if mountpoint is not None:
            # What takes long comes first: clients must not wait for it.
            with contextlib.suppress(ImportError):  # which is told when it is needed
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
        # What nobody wanted; the rest has been given to those who close it.
        for descriptor in (*self._locks.values(), *([self._listener[1]] if self._listener else [])):
            os.close(descriptor)
        self._locks, self._listener = {}, None

    def begin(self) -> None:
        """Have the predecessor hold still."""
        if self.predecessor is not None:
            described, descriptors = self.predecessor.begin()
            self._locks = dict(zip(described["directories"], descriptors, strict=False))
            if "address" in described:
                self._listener = described["address"], descriptors[-1]
            os.environ.update(described["service"])
            if "WATCHDOG_USEC" in described["service"]:
                os.environ["WATCHDOG_PID"] = str(os.getpid())

    def has(self, collector: Collector) -> bool:
        """Tell whether a collector is of a directory of the predecessor's."""
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
