"""The VMs whose directories in debugfs can be read, as far as no better way reads them.

Owns the files there: numbers of each VM, sums over its vCPUs, and the threads of the vCPUs. debugfs
has no histograms, and no numbers of single vCPUs. Nothing is written: that would clear the kernel's
own numbers. No file stays open: that would keep its VM in the kernel.
Threading: `look` belongs to one thread; any may `read`. `close` waits for calls that use the
directory.
"""

import errno
import os
import re
import threading
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from statsfs.exceptions import KvmError
from statsfs.kvm.scanning import KvmFiles, find_process
from statsfs.kvm.steal import SCHEDULER_VALUES, ThreadTimes
from statsfs.kvm.vm_sources import Section
from statsfs.kvm.ways import ALL, FoundVm, Known, Numbers, Which
from statsfs.model.locking import locked
from statsfs.model.values import Kind

__all__ = ["DebugfsVms"]

_DIRECTORY: Final = Path("/sys/kernel/debug/kvm")
_A_VM: Final = re.compile(r"(\d{1,10})-\d+")
_A_VCPU: Final = re.compile(r"vcpu(\d{1,9})")
_MOST: Final = 32  # bytes of a number
_SCHEDULED: Final = tuple(value.name for value in SCHEDULER_VALUES)


class DebugfsVms:
    """The VMs of debugfs's directory `kvm`.

    Args:
        vm, vcpu: what the kernel counts.
        directory: where it is.
    """

    name = "debugfs"
    blocking = True

    def __init__(self, vm: Section, vcpu: Section, directory: Path = _DIRECTORY) -> None:
        self._vm, self._vcpu = vm, vcpu
        self._directory = str(directory)
        # The kernel adds up peaks too, and their sum is not a peak: then no sums are shown.
        peaks = any(place.value.kind is Kind.PEAK for place in vcpu.places.values())
        self._sums: Sequence[str] = () if peaks else vcpu.plain
        self._scheduled: Sequence[str] = ()
        # Reentrant: a signal handler may read what the code that it interrupted is just reading.
        self._lock = threading.RLock()
        self._fd = -1
        self._times: dict[tuple[str, int], tuple[int, ThreadTimes]] = {}

    @property
    def known(self) -> Known:
        """All values of a VM but histograms; of a vCPU the scheduler's, since Linux 5.19."""
        return self._vm.plain, self._scheduled

    @locked
    def look(self, files: Mapping[int, KvmFiles], others: Collection[str]) -> list[FoundVm]:
        """Return the VMs that can be read; see `Way.look`."""
        left = {pid for pid, one in files.items() if one.name(pid) not in others}
        found = []
        with suppress(OSError):
            for name in self._list() if left else ():
                pid = find_process(int(name.partition("-")[0]))
                if pid in left and name not in others:
                    with suppress(OSError):  # it is just ending, or unreadable
                        key, numbers = self._read(name)
                        found.append(FoundVm(name, pid, key, numbers, (self, key)))
        self._keep({one.name for one in found})
        return found

    def _list(self) -> list[str]:
        # Returns the names of VMs. The directory stays open: a later mount over it, as of our own
        # tree, is not read. It is opened anew if KVM was unloaded.
        if self._fd < 0 or not os.fstat(self._fd).st_nlink:
            if _is_mount(self._directory):
                raise KvmError(f"something is mounted over {self._directory}", self._directory)
            self._close_directory()
            self._fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return [name for name in os.listdir(self._fd) if _A_VM.fullmatch(name)]

    @locked
    def find_failure(self) -> str:
        """Return why debugfs cannot be read here; "" if it can."""
        try:
            self._list()
            _read_number(self._vcpu.plain[0], self._fd)
        except KvmError as error:
            return str(error)
        except OSError as error:
            if error.errno == errno.EPERM:
                return f"the kernel is locked down: it refuses {self._directory}"
            return f"{self._directory}: {error.strerror}"
        return ""

    def explain(self, files: KvmFiles) -> str:
        """Return why a process's VM was not found."""
        return "no directory of it can be read"

    def read(self, name: str, which: Which = None) -> Numbers:
        """Return the numbers of a VM, and the sums of its vCPUs; OSError if they are not there."""
        key, numbers = self._read(name)
        return numbers if which in (None, (self, key)) else (None, {})

    def _read(self, name: str) -> tuple[int, Numbers]:
        # Returns what tells its directory from a later one, too.
        fd = self._open(name)
        try:
            found = map(_A_VCPU.fullmatch, os.listdir(fd))
            schedules = self._read_schedules(name, [int(one[1]) for one in found if one], fd)
            vcpus = {number: one.ljust(self._vcpu.size, b"\0") for number, one in schedules.items()}
            if self._sums:
                vcpus[ALL] = _read_block(self._vcpu, fd)
            return os.fstat(fd).st_ino, (_read_block(self._vm, fd), vcpus)
        finally:
            os.close(fd)

    @locked
    def _open(self, name: str) -> int:
        try:
            return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        except FileNotFoundError:
            raise KvmError(f"{name} has ended", name) from None

    @locked
    def _read_schedules(self, name: str, numbers: Iterable[int], fd: int) -> dict[int, bytes]:
        return {number: self._read_schedule(name, number, fd) for number in numbers}

    def _read_schedule(self, name: str, number: int, fd: int) -> bytes:
        # The numbers of the thread that ran the vCPU last. After its end the last ones stay.
        try:
            thread = _read_number(f"vcpu{number}/pid", fd)
        except FileNotFoundError:  # an older kernel
            return b""
        self._scheduled = _SCHEDULED
        before, times = self._times.get((name, number), (0, None))
        if thread not in (0, before):
            with suppress(OSError):
                times = ThreadTimes(thread, thread)
                self._forget([(name, number)])
                self._times[name, number] = thread, times
        return b"" if times is None else times.read_block()

    def _keep(self, names: Container[str]) -> None:
        self._forget([key for key in self._times if key[0] not in names])

    def _forget(self, keys: Iterable[tuple[str, int]]) -> None:
        for key in keys:
            if key in self._times:
                self._times.pop(key)[1].close()

    @locked
    def close(self) -> None:
        """Close the directory."""
        self._keep(())
        self._close_directory()

    def _close_directory(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def _is_mount(path: str) -> bool:
    # Not by stat(2): the file system there may not answer.
    with open("/proc/self/mountinfo") as mounts:
        return any(line.split()[4] == path for line in mounts)


def _read_block(section: Section, fd: int) -> bytes:
    return section.pack({name: _read_number(name, fd) for name in section.plain})


def _read_number(path: str, directory: int) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        text = os.read(fd, _MOST)
    finally:
        os.close(fd)
    try:
        return int(text)
    except ValueError:
        raise KvmError(f"{path}: {text!r} is not a number", path) from None
