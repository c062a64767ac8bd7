"""KVM's descriptors of all processes, found in /proc: which have VMs, and which are taken.

Owns what the links in /proc/PID/fd look like. A look at all processes took 4.3 ms for 112 of them:
uevents come first, this is for what was there before, and for what uevents left out.
Threading: pure functions.
"""

import contextlib
import os
import re
from typing import Final, NamedTuple

__all__ = [
    "KvmFiles",
    "find_beginning",
    "find_files",
    "find_process",
    "find_user",
    "parse_link",
    "scan",
]

# Newer kernels put the name in brackets, where a file system's own name could be mistaken for it.
_LINK: Final = re.compile(r"anon_inode:(\[)?kvm-(?:(vm)|(vcpu|vcpu-stats):(\d+))(?(1)\])")


class KvmFiles(NamedTuple):
    """The descriptors of one process that are KVM's.

    Attributes:
        vms: those of VMs, the lowest first: that which debugfs's name has, unless it was closed.
        vcpus: those of vCPUs, by the vCPU's number.
        stats: the statistics descriptors of vCPUs that the process keeps open, by that number.
    """

    vms: tuple[int, ...]
    vcpus: dict[int, int]
    stats: dict[int, int]

    def name(self, pid: int) -> str:
        """Return the name of the process's first VM: debugfs's, if its main thread made the VM."""
        return f"{pid}-{self.vms[0]}"


def parse_link(link: str) -> tuple[str, int] | None:
    """Return the kind of a descriptor of KVM's, by the text of its link in /proc/PID/fd.

    That is "vm", "vcpu", or "vcpu-stats" for a statistics descriptor of a vCPU; and the vCPU's
    number, or 0. For all other links it is None. Other files cannot have such a link: theirs begin
    with "/" or the name of another kind.
    """
    found = _LINK.fullmatch(link)
    return None if found is None else (found[2] or found[3], int(found[4] or 0))


def find_files(pid: int) -> KvmFiles | None:
    """Return a process's descriptors; None if it has no VM, has ended, or may not be looked at."""
    where = f"/proc/{pid}/fd"
    vms: list[int] = []
    by_kind: dict[str, dict[int, int]] = {"vcpu": {}, "vcpu-stats": {}}
    try:
        for fd in sorted(map(int, os.listdir(where))):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                kind, number = parse_link(os.readlink(f"{where}/{fd}")) or ("", 0)
                if kind == "vm":
                    vms.append(fd)
                elif kind:
                    # The latest: a QEMU opens a descriptor anew when its VM is made anew.
                    by_kind[kind][number] = fd
    except OSError:
        return None
    return KvmFiles(tuple(vms), by_kind["vcpu"], by_kind["vcpu-stats"]) if vms else None


def scan() -> dict[int, KvmFiles]:
    """Return the descriptors of each process that has a VM, by its number."""
    found = ((pid, find_files(pid)) for pid in map(int, filter(str.isdigit, os.listdir("/proc"))))
    return {pid: files for pid, files in found if files is not None}


def find_process(thread: int) -> int | None:
    """Return the process that a thread belongs to; None if it has ended."""
    return _find_number(thread, "Tgid")


def find_user(pid: int) -> int | None:
    """Return the user who runs a process; None if it has ended."""
    return _find_number(pid, "Uid")


def find_beginning(pid: int) -> int | None:
    """Return when a process began, in ticks since the boot; None if it has ended.

    With its number this tells it from all others.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name of the program, in parentheses, may have spaces and parentheses.
            return int(file.read().rpartition(b")")[2].split()[19])
    except OSError:
        return None


def _find_number(thread: int, name: str) -> int | None:
    try:
        with open(f"/proc/{thread}/status") as file:
            found = re.search(rf"^{name}:\s*(\d+)", file.read(), re.M)
    except OSError:
        return None
    return int(found[1]) if found else None
