"""A VM of our own that never runs: it tells the layouts of the statistics of VMs and vCPUs.

Owns the ioctls that make it. It has no memory and one vCPU, and takes about a millisecond. All that
looks for VMs finds it too: its descriptors tell it from others.
Threading: one thread makes and closes it; its layouts do not change.
"""

import fcntl
import os
from contextlib import AbstractContextManager, ExitStack
from typing import Final

from statsfs.exceptions import FormatError, KvmError
from statsfs.formats.binary import Layout, decode

__all__ = ["DEVICE", "OwnVm"]

DEVICE: Final = "/dev/kvm"
# include/uapi/linux/kvm.h
_CREATE_VM: Final = 0xAE01
_CREATE_VCPU: Final = 0xAE41
_GET_STATS_FD: Final = 0xAECE
_MOST: Final = 1 << 20  # bytes; a kernel's object has a few thousand


class OwnVm(AbstractContextManager["OwnVm"]):
    """A VM with one vCPU that does not run; closes as a context.

    Attributes:
        fd, vcpu_fd: its descriptors in this process.
        vm, vcpu: the layouts of the statistics of VMs and of vCPUs.

    Raises:
        KvmError: /dev/kvm cannot be opened, or has no statistics descriptors (before Linux 5.14).
    """

    def __init__(self) -> None:
        try:
            with ExitStack() as stack:
                device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
                stack.callback(os.close, device)
                self.fd: Final[int] = fcntl.ioctl(device, _CREATE_VM, 0)
                stack.callback(os.close, self.fd)
                self.vcpu_fd: Final[int] = fcntl.ioctl(self.fd, _CREATE_VCPU, 0)
                stack.callback(os.close, self.vcpu_fd)
                self.vm: Final = _read_layout(self.fd)
                self.vcpu: Final = _read_layout(self.vcpu_fd)
                self._closing = stack.pop_all()
        except OSError as error:
            raise KvmError(f"{DEVICE}: {error.strerror}", DEVICE) from error
        except FormatError as error:
            raise KvmError(f"{DEVICE}: unknown statistics: {error}", DEVICE) from error

    def __exit__(self, *error: object) -> None:
        self._closing.close()


def _read_layout(fd: int) -> Layout:
    stats = fcntl.ioctl(fd, _GET_STATS_FD, 0)
    try:
        return decode(os.pread(stats, _MOST, 0)).layout
    finally:
        os.close(stats)
