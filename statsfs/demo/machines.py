"""Virtual machines that come, work and go: what mock and real ones have in common.

Owns the threads of the vCPUs, each of which makes exits at a given rate, and the VMs below the
top-level source `kvm`. Threading: any thread may use a `Kvm`; each vCPU is a daemon thread.
"""

import logging
import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from threading import Event, RLock, Thread
from typing import Final, Generic, Self, TypeVar

from statsfs.exceptions import ReleasedError
from statsfs.model.stats import Stats
from statsfs.model.values import Value
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source

__all__ = ["Kvm", "Vcpu", "Vm"]

log = logging.getLogger(__name__)

_TICK: Final = 0.2  # seconds from one batch of exits to the next


class Vcpu(Thread, ABC):
    """A vCPU: a thread that makes `rate` exits a second until `ended` is set."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.ended = Event()
        self.rate = 0.0

    @abstractmethod
    def make_exits(self, exits: int) -> None:
        """Make some exits, or fewer once `ended` is set; an OSError ends the thread."""

    def run(self) -> None:
        owed, before = 0.0, time.monotonic()
        # The first tick is of random length, so that the vCPUs do not all wake at once.
        tick = random.random() * _TICK
        while not self.ended.wait(tick):
            now = time.monotonic()
            # A machine that is too slow catches up one second, and no more.
            owed = min(owed + (now - before) * self.rate, max(self.rate, 1.0))
            before, tick = now, _TICK
            try:
                self.make_exits(int(owed))
            except OSError as error:
                log.error("%s stopped: %s", self.name, error)
                return
            owed -= int(owed)


class Vm:
    """A virtual machine and its vCPUs; the `name` is that of debugfs, `<pid>-<fd>`."""

    def __init__(self, source: Source, vcpus: Sequence[Vcpu]) -> None:
        self.name = source.name
        self.source = source
        self.vcpus = vcpus

    def stop(self) -> None:
        """Tell the vCPUs to end."""
        for vcpu in self.vcpus:
            vcpu.ended.set()

    def close(self) -> None:
        """Stop the vCPUs, wait for their end, and put the source."""
        self.stop()
        for vcpu in self.vcpus:
            if vcpu.ident is not None:
                vcpu.join()
        self.source.put()


VmT_co = TypeVar("VmT_co", bound=Vm, covariant=True)


class Kvm(ABC, Generic[VmT_co]):
    """The top-level source `kvm` and the VMs below it; a context manager that closes.

    `rate` is that of `mock_kvm.MockKvm`. `kvm` shows totals of `arrays` without VMs too.
    """

    def __init__(
        self, registry: Registry, rate: float, arrays: Iterable[Sequence[Value] | type[Stats]]
    ) -> None:
        if not (math.isfinite(rate) and rate >= 0):
            raise ValueError(f"invalid rate: {rate}")
        self.source = Source("kvm")
        for values in arrays:
            self.source.add_values(values, None)
        registry.register(self.source)
        self._registry = registry
        self._rate = rate
        self._closed = False
        self._lock = RLock()  # VMs come and go one at a time
        self._vms: dict[str, VmT_co] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def vms(self) -> tuple[VmT_co, ...]:
        """The living virtual machines, oldest first."""
        return tuple(self._vms.values())

    def create_vm(self, vcpus: int) -> VmT_co:
        """Create a VM and start its vCPUs; OSError or RuntimeError: the system has no room."""
        if vcpus < 0:
            raise ValueError(f"invalid number of vCPUs: {vcpus}")
        with self._lock:
            if self._closed:
                raise ReleasedError("create_vm() after close()", self.source)
            vm = self._make_vm(vcpus)
            self._vms[vm.name] = vm
            self.source.add_subordinate(vm.source)
            try:
                if self._rate:
                    for vcpu in vm.vcpus:
                        vcpu.rate = self._rate
                        vcpu.start()
            except RuntimeError:
                self.destroy_vm(vm)
                raise
        return vm

    @abstractmethod
    def _make_vm(self, vcpus: int) -> VmT_co:
        """Make a VM that does not run yet."""

    def destroy_vm(self, vm: Vm) -> None:
        """Stop a VM's vCPUs and remove it; ValueError if it is gone already, or of another KVM."""
        with self._lock:
            if self._vms.get(vm.name) is not vm:
                raise ValueError(f"no such VM: {vm.name}")
            del self._vms[vm.name]
            self.source.remove_subordinate(vm.source)
            vm.close()

    def close(self) -> None:
        """Destroy every VM and unregister `kvm`; closing again does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for vm in self.vms:
                vm.stop()
            for vm in self.vms:
                self.destroy_vm(vm)
            self._registry.unregister(self.source)
            self.source.put()
