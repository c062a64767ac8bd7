"""Takeovers of `statsfs mount`: what one daemon hands over to the next.

Owns what is handed over besides the mount, and in which order: the locks and records of the
collectors, which only one process writes at any time, and the socket of `--listen`. First the old
daemon stops writing records; the new one gets a copy of the lock, shows all segments, and writes
nothing. Then the old tree stays as it is, and new clients wait in the socket. The new daemon looks
at what happened meanwhile, lets clients in, and swaps the mounts. Then it folds and records.

What is known of VMs alone goes along as a file in memory, at the moment from which the old tree
stays as it is: it may be larger than a message.

Threading: `DaemonHandover` is called in the thread of the offer, all else is for the main thread.
"""

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from statsfs.cli.systemd import notify
from statsfs.collector.collector import Collector
from statsfs.exceptions import KvmError, MountError, SegmentError
from statsfs.filesystem import mountpoints
from statsfs.filesystem.takeover import Handover, Predecessor
from statsfs.kvm.handing_over import KvmHandover
from statsfs.model.locking import Flag

if TYPE_CHECKING:
    from statsfs.monitoring.http_server import MetricsServer

__all__ = ["DaemonHandover", "Inheritance"]

log = logging.getLogger(__name__)

_PATIENCE: Final = 5.0  # seconds: for a start, and for the changes of the last moment

# Variables that systemd gives to the main process of a service, and not to that of ExecReload=.
_SERVICE: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC")

_WITHOUT: Final = (
    "kvm: taken over without the counts of VMs that ended and the clears of the others: {}"
)

_VMS_MAX: Final = 1 << 28
"""Bytes that are handed over of VMs; 16,384 vCPUs have some 20 million."""

_Address = tuple[str, int] | None


class DaemonHandover(Handover):
    """What `statsfs mount` hands over.

    Attributes:
        collectors: the collectors whose locks and records are handed over.
        vms: the counts and clears of VMs to hand over, or None.
        server: the server of scrapes, or None.
        address: the argument of `--listen`.
    """

    kind = "daemon"

    def __init__(self, address: _Address) -> None:
        self._begun: Final = Flag()
        self.collectors: Sequence[Collector] = ()
        self.vms: KvmHandover | None = None
        self._memory = -1  # the file with the VMs' counts and clears
        self._told = False  # whether the successor got that
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

    def stop(self, successor: int, wish: Mapping[str, Any]) -> tuple[dict[str, Any], list[int]]:
        """Keep the tree as it is, and leave new clients to the successor; return the VMs."""
        # Now: this process may end soon, and systemd must not take that for the end of the service.
        notify(f"MAINPID={successor}")
        for collector in self.collectors:
            collector.halt()
        if self.server is not None:
            self.server.pause()
        if self.vms is None:
            return {"vms": None}, []
        try:
            kept = self.vms.hold()
        except KvmError as error:
            raise MountError(f"it cannot be handed over: {error}", error.offender) from error
        self._told = "vms" in wish
        if not wish.get("vms"):
            return {}, []
        if len(kept) > _VMS_MAX:
            text = f"it cannot be handed over: {len(kept)} bytes of VMs, not at most {_VMS_MAX}"
            raise MountError(text, self)
        self._memory = os.memfd_create("statsfs-vms", os.MFD_CLOEXEC)
        with open(self._memory, "wb", closefd=False) as file:
            file.write(kept)
        return {"vms": len(kept)}, [self._memory]

    def _close_memory(self) -> None:
        descriptor, self._memory = self._memory, -1
        if descriptor >= 0:
            os.close(descriptor)

    def resume(self) -> None:
        """Go on as before."""
        notify(f"MAINPID={os.getpid()}")
        for collector in self.collectors:
            collector.go_on()
        if self.vms is not None:
            self.vms.go_on()
        self._close_memory()
        if self.server is not None:
            self.server.resume()

    def leave(self) -> None:
        """Go on showing numbers in open files, and record nothing any more."""
        for collector in self.collectors:
            collector.follow()
        self._close_memory()
        if self.vms is not None:
            self.vms.leave()
        if self.server is not None:
            self.server.leave()

    def report(self) -> None:
        """Tell what the successor did not get."""
        if self.vms is not None and not self._told:
            log.warning("%s", _WITHOUT.format("the new daemon is of another release"))


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

    def make_ready(self, vms: KvmHandover | None = None) -> None:
        """Have the predecessor stop, and look at what happened until then.

        Args:
            vms: what takes over VMs.
        """
        if self.predecessor is not None:
            answer, descriptors = self.predecessor.make_ready(vms=vms is not None)
            try:
                kept = _read_memory(answer, descriptors) if vms is not None else None
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            if vms is not None:
                failure = vms.begin(kept)
                if "vms" not in answer:
                    failure = f"process {self.predecessor.process} is of another release"
                if failure:
                    log.warning("%s", _WITHOUT.format(failure))
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


def _read_memory(answer: Mapping[str, Any], descriptors: Sequence[int]) -> bytes | None:
    # A predecessor's counts and clears of VMs; None if it has none, or is of another release.
    if not (answer.get("vms") and descriptors):
        return None
    with open(descriptors[0], "rb", closefd=False) as file:
        file.seek(0)
        return file.read(_VMS_MAX)


def _identify(collector: Collector) -> str:
    return os.path.realpath(collector.directory)
