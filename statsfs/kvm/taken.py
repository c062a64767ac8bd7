"""Statistics descriptors that a process keeps open, taken from it with pidfd_getfd(2).

QEMU has one open for each vCPU since 8.1. Owns the copies, and what they are. An open one keeps its
VM in the kernel: it must be closed as soon as the process has ended, which a pidfd tells. One read
is a pread for each vCPU; the process takes no part in it, and may be stopped.
Threading: any thread.
"""

import ctypes
import os
import re
import threading
from collections.abc import Callable, Collection, Container, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Final, NamedTuple

from statsfs.exceptions import FormatError, KvmError
from statsfs.formats.binary import decode_layout
from statsfs.kvm.capabilities import find_missing
from statsfs.kvm.scanning import KvmFiles, parse_link
from statsfs.kvm.steal import ThreadTimes
from statsfs.kvm.vm_sources import SCHEDULE_SIZE
from statsfs.kvm.ways import FoundVm, Known, Numbers, Which
from statsfs.model.locking import locked

__all__ = ["NEEDED", "TakenVm", "TakenVms"]

NEEDED: Final = ("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH")
"""The capabilities that it takes to look at other users' descriptors, and to take them."""

_PIDFD_GETFD: Final = 438  # on all machines; Python has no function for it
_KCMP: Final = {"x86_64": 312}.get(os.uname().machine, 272)
_FILE: Final = 0  # KCMP_FILE
_HEAD: Final = 1 << 16  # bytes; a kernel's header and descriptors have a few thousand
_ID: Final = re.compile(r"kvm-(\d+)/vcpu-\d+")
_libc: Final = ctypes.CDLL(None, use_errno=True)


class _Taken(NamedTuple):
    # The descriptor, where its data begin, and the scheduler's numbers of the vCPU's thread.
    fd: int
    start: int
    times: ThreadTimes | None

    def close(self) -> None:
        os.close(self.fd)
        if self.times is not None:
            self.times.close()

    def read_schedule(self) -> bytes:
        return bytes(SCHEDULE_SIZE) if self.times is None else self.times.read_block()


class TakenVm(AbstractContextManager["TakenVm"]):
    """The statistics descriptors of one process's vCPUs; closes as a context.

    Args:
        pid: the process.
        size: how many bytes of statistics a vCPU has here.

    Attributes:
        exchanges: how often `take` found that all it had was gone: the process closed the VM, and
            another one may have its number.

    Raises:
        KvmError: the process has ended.
    """

    def __init__(self, pid: int, size: int) -> None:
        self.exchanges = 0
        self._pid = pid
        self._size = size
        self._lock = threading.RLock()
        self._vcpus: dict[int, _Taken] = {}
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError as error:
            raise KvmError(f"process {pid}: {error.strerror}", pid) from error

    def __exit__(self, *error: object) -> None:
        self.close()

    @locked
    def close(self) -> None:
        """Close all; closing again does nothing."""
        self._keep(())
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _keep(self, numbers: Container[int]) -> None:
        for number in [one for one in self._vcpus if one not in numbers]:
            self._vcpus.pop(number).close()

    @locked
    def take(self, fds: Mapping[int, int]) -> None:
        """Have the descriptors of just these vCPUs: by number, the process's own descriptor.

        A QEMU that makes its VM anew, at the reset of a confidential guest, opens them anew.

        Raises:
            OSError: one cannot be taken (CAP_SYS_PTRACE), or is something else.
        """
        same = {n for n, theirs in fds.items() if n in self._vcpus and self._same(n, theirs)}
        self.exchanges += bool(self._vcpus and not same)
        self._keep(same)
        for number in fds.keys() - self._vcpus.keys():
            self._vcpus[number] = self._take(number, fds[number])

    def _same(self, number: int, theirs: int) -> bool:
        # Without kcmp(2) in the kernel a number stands for the same file.
        return _call(_KCMP, os.getpid(), self._pid, _FILE, self._vcpus[number].fd, theirs) in (
            0,
            None,
        )

    def _take(self, number: int, theirs: int) -> _Taken:
        fd = _call(_PIDFD_GETFD, self._pidfd, theirs, 0)
        if fd is None:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        try:
            start, thread = _check(fd, number, self._size)
            times = None
            with suppress(OSError):  # a kernel that does not count
                times = ThreadTimes(self._pid, thread)
            return _Taken(fd, start, times)
        except BaseException:
            os.close(fd)
            raise

    @locked
    def read(self) -> dict[int, bytes]:
        """Return the numbers of each vCPU; KvmError if they are not there."""
        blocks = {}
        for number, one in self._vcpus.items():
            block = os.pread(one.fd, self._size, one.start)
            if len(block) != self._size:
                raise KvmError(f"vCPU {number}: {len(block)} of {self._size} bytes", number)
            blocks[number] = one.read_schedule() + block
        return blocks


def _call(number: int, *args: int) -> int | None:
    found: int = _libc.syscall(number, *args)
    return None if found < 0 else found


def _check(fd: int, number: int, size: int) -> tuple[int, int]:
    # Where the data begin, and the vCPU's thread. Only a descriptor of the kernel's own is read:
    # another file may block for ever.
    if parse_link(os.readlink(f"/proc/self/fd/{fd}")) != ("vcpu-stats", number):
        raise KvmError("not a vCPU's statistics descriptor", fd)
    try:
        layout = decode_layout(os.pread(fd, _HEAD, 0))
    except FormatError as error:
        raise KvmError(f"unknown statistics: {error}", fd) from error
    id = _ID.fullmatch(layout.id)
    if layout.data_size != size or id is None:
        raise KvmError(f"unknown statistics: {layout.data_size} bytes of {layout.id!r}", fd)
    return layout.data_offset, int(id[1])


class TakenVms:
    """The VMs of this host whose processes keep statistics descriptors open: QEMU, since 8.1.

    Args:
        size: how many bytes of statistics a vCPU has here.
        complain: called with why a process's cannot be taken.
    """

    name = "descriptors"
    known: Known = ((), None)
    blocking = False

    def __init__(self, size: int, complain: Callable[[str], object]) -> None:
        self._size = size
        self._complain = complain
        self._vms: dict[str, TakenVm] = {}

    def look(self, files: Mapping[int, KvmFiles], others: Collection[str]) -> list[FoundVm]:
        """Take what is new, and close what is gone or read in a better way; see `Way.look`."""
        wanted = {}
        for pid, one in files.items():
            name = one.name(pid)
            if (one.stats or name in self._vms) and name not in others:
                if len(one.vms) == 1:
                    wanted[name] = (pid, one.stats)
                else:  # nothing tells whose they are
                    self._complain(f"{name}: {self.explain(one)}")
        for name in self._vms.keys() - wanted.keys():
            self._vms.pop(name).close()
        found = []
        for name, (pid, fds) in wanted.items():
            try:
                vm = self._vms[name] = self._vms.get(name) or TakenVm(pid, self._size)
                vm.take(fds)
                if fds:
                    which = (vm, vm.exchanges)
                    found.append(FoundVm(name, pid, None, self.read(name), which))
            except OSError as error:
                self._complain(f"{name}: statistics descriptors cannot be taken: {error}")
        return found

    def find_failure(self) -> str:
        """Return which capabilities are missing; "" if none is."""
        missing = find_missing(NEEDED)
        return f"needs {' and '.join(missing)}" if missing else ""

    def explain(self, files: KvmFiles) -> str:
        """Return why a process's VM was not found."""
        if len(files.vms) > 1:
            return f"its process has {len(files.vms)} VMs"
        return "cannot be taken" if files.stats else "its process keeps none open (QEMU since 8.1)"

    def read(self, name: str, which: Which = None) -> Numbers:
        """Return nothing of the VM, and the numbers of its vCPUs; OSError if they are not there."""
        vm = self._vms.get(name)
        if vm is None:
            raise KvmError(f"{name} has ended", name)
        blocks = vm.read()
        return None, blocks if which in (None, (vm, vm.exchanges)) else {}

    def close(self) -> None:
        """Close all descriptors."""
        for vm in self._vms.values():
            vm.close()
        self._vms.clear()
