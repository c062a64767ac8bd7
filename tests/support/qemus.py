"""Real virtual machines for tests: QEMU on KVM, which boots a BIOS and finds nothing to run.

Of the versions with which they are tried, one is installed, and one is of Debian 13, which
`unpack_qemu.sh` unpacks. They differ: from 8.1 QEMU keeps statistics descriptors.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from statsfs.kvm.descriptors import KvmStats
from statsfs.kvm.qmp_sockets import find_vm
from statsfs.kvm.scanning import KvmFiles, find_files
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import ROOT
from tests.support.other_users import AS_USER

__all__ = [
    "QEMUS",
    "UUID",
    "WITHOUT_BPF",
    "Qemu",
    "confined",
    "find_kvm_files",
    "find_qemu",
    "for_another_user",
    "of_another_user",
    "running",
    "take_stats",
]

QEMUS = ("installed", "debian13")
"""The versions, for `find_qemu`."""

_UNPACKED = ROOT / ".venv" / "qemu-trixie"
_GETFD = 438  # the system call pidfd_getfd

UUID = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"
"""That of each VM; its name is that of its socket."""

WITHOUT_BPF = """
import sys
from statsfs.kvm import bpf
bpf._SYSCALLS.clear()
from statsfs.cli import main
sys.exit(main())
"""
"""`statsfs` for `python -c`, as on a machine whose system calls are not known: BPF is not tried."""

_LIFETIME = 90  # seconds; no test leaves one behind, even if it is killed


def find_qemu(version: str) -> str:
    """Where a QEMU of these versions is; one that cannot be had skips the test."""
    if version == "installed":
        return "qemu-system-x86_64"
    script = ROOT / "tests" / "support" / "unpack_qemu.sh"
    done = subprocess.run([script, _UNPACKED], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.xfail(f"there is no QEMU of Debian 13: {done.stderr}")
    return str(_UNPACKED / "qemu-system-x86_64")


def confined(unit: str | Path) -> tuple[str, ...]:
    """A prefix of a command that runs as under a unit; without systemd-analyze the test xfails."""
    if shutil.which("systemd-analyze") is None:
        pytest.xfail("there is no systemd-analyze, which knows the groups of system calls")
    return (sys.executable, "-m", "tests.support.confined", str(unit))


def find_kvm_files(pid: int) -> KvmFiles:
    """The descriptors of a process that has a VM."""
    files = find_files(pid)
    assert files is not None
    return files


def take_stats(pid: int) -> dict[int, KvmStats]:
    """Take the statistics descriptors of vCPUs that a process keeps, by KVM's numbers of them."""
    taken = {}
    pidfd = os.pidfd_open(pid)
    call = ctypes.CDLL(None, use_errno=True).syscall
    try:
        for number, fd in find_kvm_files(pid).stats.items():
            own = call(_GETFD, pidfd, fd, 0)
            assert own >= 0, os.strerror(ctypes.get_errno())
            taken[number] = KvmStats(own)
            os.close(own)
    finally:
        os.close(pidfd)
    return taken


def of_another_user(shared: Path) -> tuple[str, ...]:
    """A prefix of a QEMU that `USER` runs, who may not use the host's /dev/kvm.

    Args:
        shared: a directory that the user may enter.
    """
    device = shared / "kvm"
    os.mknod(device, stat.S_IFCHR | 0o666, os.stat("/dev/kvm").st_rdev)
    device.chmod(0o666)
    script = f'mount --bind {device} /dev/kvm && exec {" ".join(AS_USER)} "$@"'
    if _UNPACKED.exists():
        (shared / "unpacked").mkdir()
        script = f"mount --bind {_UNPACKED} {shared}/unpacked && {script}"
    return ("unshare", "--mount", "sh", "-euc", script, "sh")


def for_another_user(program: str, shared: Path) -> str:
    """Return a program of `find_qemu` for `of_another_user`, who may not enter this tree."""
    if "/" not in program:
        return program
    wrapper = shared / "qemu"
    text = Path(program).read_text()
    wrapper.write_text(text.replace(str(_UNPACKED), str(shared / "unpacked")))
    wrapper.chmod(0o755)
    return str(wrapper)


class Qemu:
    """A running QEMU of two vCPUs, with one QMP socket for statsfs and one for the test.

    Args:
        path: of the socket for statsfs.
        program: from `find_qemu`.
        smp: how many vCPUs there are.
        prefix: a command that runs the program.

    Attributes:
        pid: its process.
        name: what debugfs would call the VM.
    """

    def __init__(
        self,
        path: Path,
        program: str = "qemu-system-x86_64",
        smp: str = "2,maxcpus=3",
        prefix: Sequence[str] = (),
    ) -> None:
        self.path = path
        own = path.with_suffix(".own")
        self.process = subprocess.Popen(
            [
                *("timeout", "--foreground", "-s", "KILL", str(_LIFETIME)),
                *prefix,
                *(program, "-accel", "kvm", "-machine", "pc", "-nodefaults"),
                *("-display", "none", "-m", "16", "-smp", smp),
                *("-name", path.stem, "-uuid", UUID),
                *("-qmp", f"unix:{path},server=on,wait=off"),
                *("-qmp", f"unix:{own},server=on,wait=off"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._qmp = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._qmp.settimeout(DEADLINE)
        wait_until(lambda: self._qmp.connect_ex(str(own)) == 0, "QEMU")
        self._lines = self._qmp.makefile("rb")
        self._lines.readline()
        self.execute("qmp_capabilities")
        ucred = self._qmp.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid = memoryview(ucred).cast("i")[0]
        self.name = f"{self.pid}-{find_vm(self.pid)}"

    def execute(self, command: str, **arguments: Any) -> Any:
        """Have a QMP command executed, over the test's own socket."""
        message = {"execute": command} | ({"arguments": arguments} if arguments else {})
        self._qmp.sendall(json.dumps(message).encode())
        while True:
            answer = json.loads(self._lines.readline())
            if "event" not in answer:
                assert "return" in answer, answer
                return answer["return"]

    def stats(self) -> dict[str, dict[str, Any]]:
        """What QMP says is counted, by the directory that shows it: "." for the VM.

        KVM's own number of a vCPU is in the link of its descriptor; both have one order. The
        buckets of histograms are in reverse order.
        """
        kvm = [{"provider": "kvm"}]
        ids = sorted(self.vcpu_ids())
        paths = {one["cpu-index"]: one["qom-path"] for one in self.execute("query-cpus-fast")}
        numbers = dict(zip((paths[index] for index in sorted(paths)), ids, strict=True))
        (vm,) = self.execute("query-stats", target="vm", providers=kvm)
        vcpus = self.execute("query-stats", target="vcpu", providers=kvm)
        shown = {".": vm} | {f"vcpu{numbers[one['qom-path']]}": one for one in vcpus}
        return {
            where: {one["name"]: _turned(one["value"]) for one in entry["stats"]}
            for where, entry in shown.items()
        }

    def vcpu_ids(self) -> set[int]:
        """KVM's numbers of the vCPUs, as the links of their descriptors have them."""
        return set(find_kvm_files(self.pid).vcpus)

    def send_signal(self, number: signal.Signals) -> None:
        """Stop it, let it go on, or kill it."""
        os.kill(self.pid, number)

    def end(self) -> None:
        """Leave nothing of it."""
        with contextlib.suppress(ProcessLookupError):
            self.send_signal(signal.SIGKILL)
        self.process.wait(DEADLINE)
        self._lines.close()
        self._qmp.close()


def _turned(value: Any) -> Any:
    return value[::-1] if isinstance(value, list) else value


@contextlib.contextmanager
def running(
    path: Path,
    program: str = "qemu-system-x86_64",
    smp: str = "2,maxcpus=3",
    prefix: Sequence[str] = (),
) -> Iterator[Qemu]:
    """Run a QEMU until the context ends, or the test ends it."""
    qemu = Qemu(path, program, smp, prefix)
    try:
        yield qemu
    finally:
        qemu.end()
