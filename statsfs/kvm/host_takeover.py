"""Takeovers of a `KvmHost`: what one process knows of VMs, and the next one goes on with.

Owns the order. The old host is held: it looks no longer, and its numbers stay as they are while the
mounts are swapped. The new one has shown nothing until then. It makes the sources that the old one
had, with the old numbers, and looks for the first time: then a VM that has ended meanwhile leaves
the tree as any VM does, and is retained; one that runs gets new numbers, which are not smaller; and
one that nothing can read yet is hidden until something can. So nothing falls, and nothing counts
twice. Uevents have numbers, which tell what the old host has heard.

Threading: while a host is held no other thread changes it.
"""

import time
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from statsfs.exceptions import KvmError
from statsfs.kvm import scanning
from statsfs.kvm.host import KvmHost
from statsfs.kvm.kept import KeptVm
from statsfs.tree.index import Part

__all__ = ["HostTakeover"]

# Seconds. Readers get the numbers that were handed over while the mounts are swapped, and if the
# successor hangs, new ones again. That takes some 20 ms; 640 on a busy machine, once in 227 times.
_FROZEN: Final = 5.0
_PATIENCE: Final = 5.0  # seconds for the end of a look


class HostTakeover:
    """How a host is handed over, and takes over.

    Args:
        host: it is held, or will be.
    """

    def __init__(self, host: KvmHost) -> None:
        self._host = host

    @property
    def heard(self) -> int:
        """The number of the last uevent that was heard; 0 if none was."""
        return self._host._heard

    # The old one

    def hold(self) -> None:
        """Leave the tree as it is, and its numbers, for a while; KvmError: it is busy."""
        if not self._host._turn.acquire(timeout=_PATIENCE):
            raise KvmError("its VMs cannot be handed over: a look at them does not end", self)
        self._host._holding.append(True)
        self._freeze(time.monotonic() + _FROZEN)
        self._host._deaf = True

    def keep(self) -> list[KeptVm]:
        """Return each VM's record for the next process."""
        return [vm.keep() for vm in self._host._vms.values()]

    def go_on(self) -> None:
        """Look again, and read."""
        if self._host._holding:
            # First: another VM may be where one was that has ended, with its name.
            self._host._hear()
        self._host._deaf = False
        self._freeze(0.0)
        self._host.go_on()

    def _freeze(self, until: float) -> None:
        # When this returns no reader brings numbers any more.
        host = self._host
        host._frozen = until
        if host._bpf is not None:
            host._bpf.freeze(until)
        for vm in host._vms.values():
            vm.freeze(until)

    # The new one

    def find_names(self, kept: Iterable[KeptVm]) -> Collection[str]:
        """Return the names of all VMs that can be read now, where one has several its old one."""
        for vm in kept:
            self._host._told.know(vm.name)
        return self._host._find().keys()

    def adopt(self, kept: KeptVm) -> None:
        """Show the numbers of a VM that the previous process showed."""
        host = self._host
        vm = host._make_shown(kept.name, kept.pid, scanning.find_user(kept.pid), kept.label)
        vm.way_name, vm.key, vm.began = kept.way, kept.key, kept.began
        vm.sources.restore(kept)
        host.source.add_subordinate(vm.sources.source)
        vm.shown = True
        if not kept.shown:
            host._hide(vm)

    def begin(self, heard: int) -> None:
        """Look for the first time, and go on; the uevents until this one were heard before."""
        host = self._host
        host._heard = heard
        for vm in list(host._vms.values()):
            if scanning.find_beginning(vm.pid) != vm.began:
                host._end(vm)
        host._hear()
        host._look()
        host.go_on()

    # Both

    def clear_hidden(self, parts: Sequence[Part]) -> None:
        """Clear what was cleared above of VMs that are not in the tree now, but may return."""
        host = self._host
        records = [record for index, _ in parts for record in list(index.records or ())]
        if any(record.source is host.source for record in records):
            names = {index.array.values[place].name for index, place in parts}
            for vm in list(host._vms.values()):
                if not vm.shown:
                    vm.sources.clear_values(names)
