"""A VM of a `KvmHost`: how it is read now, and whether it is in the tree.

Threading: as `host`; the lock is for readers' numbers.
"""

import logging
import re
import threading
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from statsfs.kvm.bpf_vms import BpfVms
from statsfs.kvm.identity import Identity
from statsfs.kvm.kept import KeptVm
from statsfs.kvm.vm_sources import VmSources
from statsfs.kvm.ways import FoundVm, Numbers, Way, Which

__all__ = ["HostVm", "describe_key", "describe_vm", "find_label"]

log = logging.getLogger(__name__)

_A_NAME: Final = re.compile(r"\d+-\d+")


@dataclass(eq=False)
class HostVm:
    """One VM.

    Attributes:
        name: that of debugfs.
        pid: its process.
        began: when that began.
        user: who runs it.
        label: how Prometheus calls it.
        sources: it in the tree.
        info: its texts.
        way: how it is read; None if nothing can read it.
        way_name: the name of the way that reads it, or read it last.
        key: as text, what tells it from other VMs of that name for this way.
        which: the same in this process.
        shown: whether it is in the tree. Hidden it may come back: it runs on, but nothing can read
            it.
        moving: from one way to another: readers' numbers are dropped.
        frozen: until when they are dropped as well, as its numbers were handed over.
        read_at: when the numbers that it shows had been read.
        lock: held while numbers are taken.
    """

    name: str
    pid: int
    began: int | None
    user: int | None
    label: str
    sources: VmSources
    info: dict[str, str]
    way: "Way | BpfVms | None" = None
    way_name: str = ""
    key: str | None = None
    which: Which = None
    shown: bool = False
    moving: bool = False
    frozen: float = 0.0
    read_at: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, way: "Way | BpfVms", numbers: Numbers, begun: float) -> bool:
        """Take numbers, unless they are late: those of another way, handed over, or older ones.

        Args:
            way: who read them.
            numbers: the new numbers.
            begun: when that began. Others that were read meanwhile may be newer.

        Returns:
            False if there may be newer ones.
        """
        read_at = time.monotonic()
        with self.lock:
            if self.moving or read_at < self.frozen or self.way is not way:
                return True
            if begun < self.read_at:
                return False
            self.take_all(numbers)
            self.read_at = read_at
            return True

    def take_all(self, numbers: Numbers) -> None:
        """Take numbers of it and its vCPUs."""
        block, vcpus = numbers
        for number, one in ((None, block), *vcpus.items()):
            if one is not None:
                self.sources.take(number, one)

    def read_by(
        self, way: "Way | BpfVms", found: FoundVm, begun: float, told: Collection[str]
    ) -> FoundVm:
        """Read it by another way from now on, and return what it begins with.

        Args:
            way: the way.
            found: what that found.
            begun: when it began to look.
            told: the names of VMs that uevents told.

        Raises:
            OSError: it cannot be read by this way either.
        """
        with self.lock:
            self.moving = True  # no reader's numbers from now on
        try:
            if begun < self.read_at:  # a reader's numbers by the way before may be newer
                found = _read_again(way, found, told)
            self.way, self.way_name = way, way.name
            self.key, self.which = describe_key(found.key), found.which
            self.sources.show(way.known, found.numbers[1])
            self.sources.set_refresh(idle=isinstance(way, BpfVms), blocking=way.blocking)
            self.sources.source.info = {**self.info, "kvm.source": way.name}
            self.take_all(found.numbers)
            self.read_at = time.monotonic()
        finally:
            self.moving = False
        if isinstance(way, BpfVms):
            way.bind(found.key, self.sources)
        log.info("kvm: %s is read by %s", self.name, way.name)
        return found

    def freeze(self, until: float) -> None:
        """Have the numbers stay as they are until some moment."""
        with self.lock:
            self.frozen = until

    def is_another(self, way: "Way | BpfVms", found: FoundVm) -> bool:
        """Tell whether a way found another VM of the same name."""
        if self.way_name != way.name:
            return False
        if self.key != describe_key(found.key):
            return True
        if found.which is None:
            return False
        if self.which is not None and self.which[0] is found.which[0]:
            return self.which != found.which
        # It could not be read for a while, or another process read it. Then numbers must tell.
        return found.key is None and self.sources.has_fallen(found.numbers[1])

    def keep(self) -> KeptVm:
        """Return its record for the next process."""
        known, declared, targets = self.sources.keep()
        return KeptVm(
            self.name, self.pid, self.began, self.way_name, self.key or "", self.label, self.shown,
            known, declared, self.sources.source.retained, targets,
        )  # fmt: skip


def _read_again(way: "Way | BpfVms", found: FoundVm, told: Collection[str]) -> FoundVm:
    if isinstance(way, BpfVms):
        return next((one for one in way.look(told) if one.name == found.name), found)
    return found._replace(numbers=way.read(found.name, found.which))


def describe_key(key: object) -> str:
    """Return the key of a VM as text, which another process compares."""
    return repr(key)


def describe_vm(pid: int, identity: Identity) -> dict[str, str]:
    """Return the texts that a VM's source shows."""
    info = {
        "pid": str(pid),
        "vmm": identity.vmm,
        "uuid": identity.uuid,
        "kvm.name": identity.name,
        "kvm.machine": identity.machine,
    }
    return {key: text for key, text in info.items() if text}


def find_label(name: str, identity: Identity, others: Iterable[HostVm]) -> str:
    """Return a VM's name, which its owner chose, unless another one's series have it."""
    taken = {vm.label for vm in others}
    wanted = identity.name
    return name if not wanted or wanted in taken or _A_NAME.fullmatch(wanted) else wanted
