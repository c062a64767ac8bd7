"""Real guests: virtual machines of a few bytes that make exits, at a given rate, through /dev/kvm.

Owns the ioctls, the guests' memory, the threads of their vCPUs and the tree that shows them,
`kvm/<pid>-<fd>/vcpu<n>`, as debugfs names it. What KVM counts is the business of `descriptors`.

The guest is x86 code at the reset vector, in real mode: nine writes to a port, a HLT, and again
from the beginning. Each of them ends KVM_RUN, since nobody in the kernel takes the port and there
is no interrupt controller; so a vCPU's thread looks at whether to stop after every exit, and never
waits for its guest. About 16 us an exit were measured where KVM runs in a VM itself.

Threading: VMs are made, destroyed and closed by one thread; each vCPU has one of its own, in which
its ioctls release the GIL.
"""

import ctypes
import errno
import fcntl
import logging
import mmap
import os
import random
import struct
import time
from contextlib import ExitStack, closing
from threading import Event, Semaphore, Thread
from typing import Final

from statsfs.closings import Closing
from statsfs.kvm.descriptors import KvmStats
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source

__all__ = ["RealKvm", "RealVm"]

log = logging.getLogger(__name__)

_DEVICE: Final = "/dev/kvm"
# include/uapi/linux/kvm.h
_CREATE_VM: Final = 0xAE01
_CHECK_EXTENSION: Final = 0xAE03
_GET_VCPU_MMAP_SIZE: Final = 0xAE04
_CREATE_VCPU: Final = 0xAE41
_SET_USER_MEMORY_REGION: Final = 0x4020AE46
_SET_TSS_ADDR: Final = 0xAE47
_RUN: Final = 0xAE80
_GET_STATS_FD: Final = 0xAECE
_CAP_BINARY_STATS_FD: Final = 203
_EXPECTED: Final = (2, 5)  # KVM_EXIT_IO, KVM_EXIT_HLT
_EXIT_REASON: Final = struct.Struct("=8xI")  # in struct kvm_run

_PAGE: Final = 4096
_LAST_PAGE: Final = (1 << 32) - _PAGE  # a vCPU begins at its last 16 bytes
_TSS: Final = 0x10000  # three pages that Intel's real mode needs, and no guest here
_CODE: Final = bytes.fromhex("ba1000 b90900 ee e2fd f4 ebf7")
# mov dx,16; again: mov cx,9; write: out dx,al; loop write; hlt; jmp again

_TICK: Final = 0.1  # seconds from one batch of exits to the next
_CHUNK: Final = 100  # exits in one turn: one or two milliseconds
# So many vCPUs run at a time. Where the machine is too slow for all, hundreds of them would else
# stand in line for the GIL, and whoever makes VMs, shows them or stops them behind each.
_turns: Final = Semaphore(min(os.cpu_count() or 1, 4))


class RealVm:
    """A virtual machine that runs: its source, `kvm/<pid>-<fd>`, and its vCPUs.

    Made by `RealKvm.create_vm`, ended by `RealKvm.destroy_vm`.

    Attributes:
        name: `<pid>-<fd>`, where pid is the number of the thread that made it, as in debugfs.
        source: shows the VM, and below it its vCPUs.
        stats: what KVM counts for the VM itself.
    """

    def __init__(self, device: int, vcpus: int) -> None:
        with ExitStack() as stack:
            memory = stack.enter_context(mmap.mmap(-1, _PAGE))
            fd = fcntl.ioctl(device, _CREATE_VM, 0)
            stack.callback(os.close, fd)
            _give_memory(fd, memory)
            self.stats = stack.enter_context(_open_stats(fd))
            self._vcpus = [_Vcpu(device, fd, number, stack) for number in range(vcpus)]
            self.name = f"{self.stats.id.removeprefix('kvm-')}-{fd}"
            self.source = self.stats.make_source(self.name)
            stack.callback(self.source.put)
            for vcpu in self._vcpus:
                with vcpu.stats.make_source() as source:
                    self.source.add_subordinate(source)
            self._closing = stack.pop_all()

    @property
    def vcpu_stats(self) -> tuple[KvmStats, ...]:
        """The statistics of the vCPUs, in order."""
        return tuple(vcpu.stats for vcpu in self._vcpus)

    def start(self, rate: float) -> None:
        """Start the vCPUs' threads.

        Raises:
            RuntimeError: no more threads can be started.
        """
        for number, vcpu in enumerate(self._vcpus):
            vcpu.start(f"{self.name}/vcpu{number}", rate)

    def stop(self) -> None:
        """Tell the vCPUs' threads to stop."""
        for vcpu in self._vcpus:
            vcpu.stop.set()

    def close(self) -> None:
        """Stop the vCPUs, wait for them, and give back all that the kernel has of the VM."""
        self.stop()
        for vcpu in self._vcpus:
            vcpu.join()
        self._closing.close()


class _Vcpu:
    # A vCPU, and the thread that runs it; what it opens is closed by its VM.

    def __init__(self, device: int, vm: int, number: int, stack: ExitStack) -> None:
        self._fd = fcntl.ioctl(vm, _CREATE_VCPU, number)
        stack.callback(os.close, self._fd)
        size = fcntl.ioctl(device, _GET_VCPU_MMAP_SIZE, 0)
        self._shared = stack.enter_context(mmap.mmap(self._fd, size))
        self.stats = stack.enter_context(_open_stats(self._fd))
        self.stop = Event()
        self._thread: Thread | None = None

    def start(self, name: str, rate: float) -> None:
        thread = Thread(target=self._run, args=(name, rate), name=name, daemon=True)
        thread.start()
        self._thread = thread

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _run(self, name: str, rate: float) -> None:
        try:
            self._keep_pace(rate)
        except OSError as error:
            log.error("%s runs no more: %s", name, error)

    def _keep_pace(self, rate: float) -> None:
        begun, made = time.monotonic(), 0.0
        # The first tick is of random length, so that the vCPUs do not all wake at once.
        tick = random.random() * _TICK
        while not self.stop.wait(tick):
            tick = _TICK
            due = (time.monotonic() - begun) * rate
            # What a machine that is too slow does not manage in a second is forgotten.
            made = max(made, due - max(rate, 1.0))
            while made + 1 <= due and not self.stop.is_set():
                some = min(int(due - made), _CHUNK)
                with _turns:
                    self._make_exits(some)
                made += some

    def _make_exits(self, some: int) -> None:
        for _ in range(some):
            if self.stop.is_set():
                return
            self._exit()

    def _exit(self) -> None:
        # Runs the guest until its next exit.
        try:
            fcntl.ioctl(self._fd, _RUN, 0)
        except InterruptedError:
            return  # by a signal: the next time it goes on where it was
        (reason,) = _EXIT_REASON.unpack_from(self._shared)
        if reason not in _EXPECTED:
            raise OSError(errno.EIO, f"an exit of reason {reason}")


def _give_memory(vm: int, memory: mmap.mmap) -> None:
    # One page with the code, where a vCPU begins after its reset: no register need be set.
    memory[-16 : len(_CODE) - 16] = _CODE
    fcntl.ioctl(vm, _SET_TSS_ADDR, _TSS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    region = struct.pack("=IIQQQ", 0, 0, _LAST_PAGE, _PAGE, address)
    fcntl.ioctl(vm, _SET_USER_MEMORY_REGION, region)


def _open_stats(fd: int) -> KvmStats:
    stats = fcntl.ioctl(fd, _GET_STATS_FD, 0)
    try:
        return KvmStats(stats)
    finally:
        os.close(stats)


def _open_device() -> int:
    if os.uname().machine != "x86_64":
        raise OSError(errno.ENOTSUP, "its guests are x86-64 code", _DEVICE)
    device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        if not fcntl.ioctl(device, _CHECK_EXTENSION, _CAP_BINARY_STATS_FD):
            raise OSError(errno.ENOTSUP, "no statistics descriptors before Linux 5.14", _DEVICE)
    except OSError:
        os.close(device)
        raise
    return device


class RealKvm(Closing):
    """The top-level source `kvm` and real virtual machines below it; a context manager that closes.

    It is used as `MockKvm` is, which has mock ones.

    Args:
        registry: where `kvm` is registered.
        rate: exits a second of each vCPU; at 0 no guest ever runs.

    Raises:
        OSError: /dev/kvm cannot be opened, or can not do what is needed.
        DuplicateNameError: the registry has a `kvm` already.
    """

    def __init__(self, registry: Registry, *, rate: float = 1000) -> None:
        self.source = Source("kvm")
        with ExitStack() as stack:
            stack.callback(self.source.put)
            self._device = _open_device()
            stack.callback(os.close, self._device)
            # Of a VM that never runs: the totals are there, and 0, before the first one comes.
            with closing(RealVm(self._device, 1)) as vm:
                self.source.add_values(vm.stats.values, None)
                for stats in vm.vcpu_stats:
                    self.source.add_values(stats.values, None)
            registry.register(self.source)
            stack.callback(registry.unregister, self.source)
            self._closing = stack.pop_all()
        self._rate = rate
        self._vms: dict[str, RealVm] = {}

    @property
    def vms(self) -> tuple[RealVm, ...]:
        """The living virtual machines, oldest first."""
        return tuple(self._vms.values())

    def create_vm(self, vcpus: int) -> RealVm:
        """Create a virtual machine and start its vCPUs.

        Raises:
            OSError: the kernel refuses, for instance for lack of descriptors: a VM takes two, and
                each vCPU three more, of which one is Python's for what it maps.
            RuntimeError: no more threads can be started; the VM is gone again.
        """
        vm = RealVm(self._device, vcpus)
        self._vms[vm.name] = vm
        self.source.add_subordinate(vm.source)
        try:
            if self._rate:
                vm.start(self._rate)
        except RuntimeError:
            self.destroy_vm(vm)
            raise
        return vm

    def destroy_vm(self, vm: RealVm) -> None:
        """Remove a virtual machine, and end it."""
        del self._vms[vm.name]
        self.source.remove_subordinate(vm.source)
        vm.close()

    def close(self) -> None:
        """Destroy every VM and unregister `kvm`; closing again does nothing."""
        for vm in self.vms:
            vm.stop()
        for vm in self.vms:
            self.destroy_vm(vm)
        self._closing.close()
