"""A VMM of a few dozen lines: it runs a real guest, and shows what KVM counts for it.

Run it, and read it from another shell::

    python examples/tiny_vmm.py ./stats
    grep . ./stats/kvm/*/vcpu0/*exits

The guest writes to a port a hundred times, and halts; it begins where every x86 CPU does, 16 bytes
below 4 GiB. What KVM counts is read from the kernel when somebody reads a file.
"""

import argparse
import ctypes
import fcntl
import mmap
import os
import signal
import struct

from statsfs import Registry, Source, mount
from statsfs.kvm import KvmStats

STOP = {signal.SIGINT, signal.SIGTERM}
# include/uapi/linux/kvm.h
KVM_CREATE_VM, KVM_GET_VCPU_MMAP_SIZE, KVM_CREATE_VCPU = 0xAE01, 0xAE04, 0xAE41
KVM_SET_TSS_ADDR, KVM_SET_USER_MEMORY_REGION = 0xAE47, 0x4020AE46
KVM_RUN, KVM_GET_STATS_FD, KVM_EXIT_IO = 0xAE80, 0xAECE, 2
CODE = bytes.fromhex("ba1000 b96400 ee e2fd f4")  # dx = 16, cx = 100; out dx, al; loop; hlt


def main() -> None:
    """Run the guest; serve until SIGINT, SIGTERM or the time is over."""
    parser = argparse.ArgumentParser(description="a guest's statistics as files")
    parser.add_argument("mountpoint")
    parser.add_argument("--for", dest="seconds", type=float, default=1e9, help="end by itself")
    args = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)

    kvm_fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    vm_fd = fcntl.ioctl(kvm_fd, KVM_CREATE_VM, 0)
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    memory[-16 : len(CODE) - 16] = CODE
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    region = struct.pack("=IIQQQ", 0, 0, (1 << 32) - len(memory), len(memory), address)
    fcntl.ioctl(vm_fd, KVM_SET_TSS_ADDR, 0x10000)
    fcntl.ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, region)
    vcpu_fd = fcntl.ioctl(vm_fd, KVM_CREATE_VCPU, 0)
    shared = mmap.mmap(vcpu_fd, fcntl.ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0))

    registry, kvm = Registry(), Source("kvm")
    registry.register(kvm)
    with open_stats(vm_fd) as vm, open_stats(vcpu_fd) as vcpu:
        with vm.make_source("%d-%d", os.getpid(), vm_fd) as source:
            kvm.add_subordinate(source)
            with vcpu.make_source("vcpu%d", 0) as below:
                source.add_subordinate(below)
        with mount(registry, args.mountpoint, create=True):
            run(vcpu_fd, shared)
            signal.sigtimedwait(STOP, args.seconds)


def run(vcpu_fd: int, shared: mmap.mmap) -> None:
    """Run the guest until it does something else than to write to its port."""
    reason = KVM_EXIT_IO
    while reason == KVM_EXIT_IO:
        fcntl.ioctl(vcpu_fd, KVM_RUN, 0)
        (reason,) = struct.unpack_from("=8xI", shared)


def open_stats(fd: int) -> KvmStats:
    """Open the statistics of a VM or a vCPU; who closes what is returned lets the VM go."""
    stats_fd = fcntl.ioctl(fd, KVM_GET_STATS_FD, 0)
    try:
        return KvmStats(stats_fd)
    finally:
        os.close(stats_fd)  # it has a copy


if __name__ == "__main__":
    main()
