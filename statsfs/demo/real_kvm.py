"""Real guests: virtual machines of a few bytes that make exits, at a given rate, through /dev/kvm.

Owns the ioctls, the guests' memory, and how a vCPU's thread runs its guest: x86 code at the reset
vector, in real mode. Nine writes to a port and a HLT each end KVM_RUN, since the kernel has no
device at the port and there is no interrupt controller; so a vCPU's thread never waits for its
guest. An exit takes about 16 us where KVM runs in a VM itself.
Threading: as `machines`; the ioctls release the GIL.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import weakref
from contextlib import ExitStack, closing
from threading import Semaphore
from typing import Final

from statsfs.demo.machines import Kvm, Vcpu, Vm
from statsfs.kvm.descriptors import KvmStats
from statsfs.tree.registry import Registry

__all__ = ["RealKvm", "RealVm"]

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

_CHUNK: Final = 100  # exits in one turn: one or two milliseconds
# So many vCPUs run at a time. Where the machine is too slow for all, hundreds of them would queue
# for the GIL, and the threads that make VMs, show them or stop them would wait for each.
_turns: Final = Semaphore(min(os.cpu_count() or 1, 4))


class RealVm(Vm):
    """A virtual machine; its name has the number of the thread that made it."""

    def __init__(self, device: int, vcpus: int) -> None:
        with ExitStack() as stack:
            memory = stack.enter_context(mmap.mmap(-1, _PAGE))
            fd = fcntl.ioctl(device, _CREATE_VM, 0)
            stack.callback(os.close, fd)
            _give_memory(fd, memory)
            self.stats = stack.enter_context(_open_stats(fd))
            name = f"{self.stats.id.removeprefix('kvm-')}-{fd}"
            threads = [_RealVcpu(name, device, fd, number, stack) for number in range(vcpus)]
            self.vcpu_stats = tuple(vcpu.stats for vcpu in threads)
            super().__init__(self.stats.make_source(name), threads)
            stack.callback(super().close)
            for stats in self.vcpu_stats:
                with stats.make_source() as vcpu:
                    self.source.add_subordinate(vcpu)
            self._closing = stack.pop_all()

    def close(self) -> None:
        """Stop the vCPUs, and give back all that the kernel has of the VM."""
        self._closing.close()


class _RealVcpu(Vcpu):
    # Its VM closes what it opens.

    def __init__(self, vm_name: str, device: int, vm: int, number: int, stack: ExitStack) -> None:
        super().__init__(f"{vm_name}/vcpu{number}")
        self._fd = fcntl.ioctl(vm, _CREATE_VCPU, number)
        stack.callback(os.close, self._fd)
        size = fcntl.ioctl(device, _GET_VCPU_MMAP_SIZE, 0)
        self._shared = stack.enter_context(mmap.mmap(self._fd, size))
        self.stats = stack.enter_context(_open_stats(self._fd))

    def make_exits(self, exits: int) -> None:
        for done in range(0, exits, _CHUNK):
            with _turns:
                for _ in range(min(_CHUNK, exits - done)):
                    if self.ended.is_set():
                        return
                    self._exit()

    def _exit(self) -> None:
        # Runs the guest until its next exit.
        try:
            fcntl.ioctl(self._fd, _RUN, 0)
        except InterruptedError:
            return  # by a signal: the next call goes on where it was
        (reason,) = _EXIT_REASON.unpack_from(self._shared)
        if reason not in _EXPECTED:
            raise OSError(errno.EIO, f"unexpected exit reason {reason}")


def _give_memory(vm: int, memory: mmap.mmap) -> None:
    # One page with the code, where a vCPU begins after its reset: no register has to be set.
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


class RealKvm(Kvm[RealVm]):
    """The top-level source `kvm` and real virtual machines below it.

    At the rate 0 no guest ever runs. OSError: /dev/kvm cannot be opened, or lacks what is needed.
    """

    def __init__(self, registry: Registry, *, rate: float = 1000) -> None:
        if os.uname().machine != "x86_64":
            raise OSError(errno.ENOTSUP, "the guests are x86-64 code", _DEVICE)
        self._device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        self._close_device = weakref.finalize(self, os.close, self._device)
        try:
            if not fcntl.ioctl(self._device, _CHECK_EXTENSION, _CAP_BINARY_STATS_FD):
                raise OSError(errno.ENOTSUP, "no statistics descriptors before Linux 5.14", _DEVICE)
            # A VM that never runs tells the values.
            with closing(RealVm(self._device, 1)) as vm:
                arrays = [stats.values for stats in (vm.stats, *vm.vcpu_stats)]
            super().__init__(registry, rate, arrays)
        except BaseException:
            self._close_device()
            raise

    def _make_vm(self, vcpus: int) -> RealVm:
        return RealVm(self._device, vcpus)

    def close(self) -> None:
        super().close()
        self._close_device()
