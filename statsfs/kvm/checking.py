"""Which ways of reading VMs work here, and for which VM.

Each way is made, asked once, and closed. Threading: any thread.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from statsfs.exceptions import KvmError
from statsfs.kvm import scanning
from statsfs.kvm.bpf import BpfIterator
from statsfs.kvm.bpf_vms import BpfVms
from statsfs.kvm.debugfs_vms import DebugfsVms
from statsfs.kvm.identity import Identity, identify
from statsfs.kvm.libvirt_vms import LibvirtVms
from statsfs.kvm.own_vm import DEVICE, OwnVm
from statsfs.kvm.taken import TakenVms
from statsfs.kvm.vm_sources import read_sections
from statsfs.kvm.ways import MakeWay, Way

__all__ = ["CheckedVm", "CheckedWays", "check_ways"]


_PATIENCE: Final = 1.0  # seconds


@dataclass
class CheckedVm:
    """A VM, and by which ways it can be read.

    Attributes:
        name: that of debugfs.
        identity: its VMM, name, UUID and machine type.
        ways: by each way why it cannot; "" if it can.
    """

    name: str
    identity: Identity
    ways: dict[str, str]

    @property
    def way(self) -> str | None:
        """The way by which it is read: the first that can; None if none can."""
        return next((way for way, why in self.ways.items() if not why), None)


@dataclass
class CheckedWays:
    """What works here.

    Attributes:
        ways: by each way why it does not work here; "" if it does. The best comes first.
        vms: all VMs that were found.
    """

    ways: dict[str, str] = field(default_factory=dict)
    vms: list[CheckedVm] = field(default_factory=list)


def check_ways(others: Sequence[MakeWay] = (LibvirtVms, DebugfsVms)) -> CheckedWays:
    """Try each way once, for each VM.

    Args:
        others: what makes ways other than BPF and descriptors, as for `KvmHost`.

    Raises:
        KvmError: there is no KVM here.
    """
    # First: a VM that is made after this is found by BPF.
    files = {pid: one for pid, one in scanning.scan().items() if pid != os.getpid()}
    by_bpf, why_not = _look_by_bpf()
    unseen = files.keys() - set(by_bpf.values())
    names = by_bpf | {files[pid].name(pid): pid for pid in unseen}
    vms = [CheckedVm(name, identify(pid), {}) for name, pid in sorted(names.items())]
    for vm in vms:
        vm.ways[BpfVms.name] = "" if vm.name in by_bpf else why_not or "not found"
    checked = CheckedWays({BpfVms.name: why_not}, vms)
    with OwnVm() as own:
        ways: list[Way] = [TakenVms(own.vcpu.data_size, lambda _: None)]
        sections = read_sections(own)
    ways += [make(*sections) for make in others]
    for way in ways:
        found = _look(way, files)
        checked.ways[way.name] = why_not = way.find_failure()
        for vm in vms:
            its = files.get(names[vm.name])
            no_files = "its descriptors cannot be seen" if its is None else way.explain(its)
            vm.ways[way.name] = "" if vm.name in found else why_not or no_files
        way.close()
    # One that has ended meanwhile is not one that cannot be read.
    checked.vms = [vm for vm in vms if vm.way is not None or _is_there(vm.name, names[vm.name])]
    return checked


def _is_there(name: str, pid: int) -> bool:
    files = scanning.find_files(pid)
    return files is not None and files.name(pid) == name


def _look(way: Way, files: Mapping[int, scanning.KvmFiles]) -> set[str]:
    # Returns the names that it finds. One that may block answers later, if it works.
    patient = way.blocking and not way.find_failure()
    deadline = time.monotonic() + (_PATIENCE if patient else 0)
    while True:
        found = {one.name for one in way.look(files, ())}
        if len(found) >= len(files) or time.monotonic() >= deadline:
            return found
        time.sleep(0.02)


def _look_by_bpf() -> tuple[dict[str, int], str]:
    # The names of all VMs but our own, with their processes; or why it does not work.
    try:
        with OwnVm() as own:
            bpf = BpfVms(BpfIterator(own), lambda: None)
        try:
            return {one.name: one.pid for one in bpf.look(()) if one.pid != os.getpid()}, ""
        finally:
            bpf.close()
    except OSError as error:
        if isinstance(error, KvmError) and error.offender == DEVICE:
            raise
        return {}, str(error)
