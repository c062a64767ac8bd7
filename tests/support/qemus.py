"""Real virtual machines for tests: QEMU on KVM, whose guest waits for its timer.

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
    "IDLE_ROM",
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

# What a guest runs in place of a BIOS, which takes seconds where KVM emulates each instruction.
# At its end it does what a BIOS that finds no disk does: 18 interrupts a second, all vCPUs halted.
_ROM = {
    0x0000: "fa 31c0 8ed8 8ed0 bc007c"  # cli; zero ds and ss; mov sp,0x7c00
    "c706200000f1 c706220000f0"  # interrupt 8, the timer's, is at f000:f100
    "66b91b000000 0f32 80cc0c 0f30 6631d2"  # the APIC's registers are MSRs; edx is 0
    "66b90f080000 66b8ff010000 0f30 66b935080000 66b800870000 0f30"  # it takes the PIC's interrupts
    "66b930080000 66b800450c00 0f30 66b8f1460c00 0f30"  # the other vCPUs start at f100:0
    "b011e620 b008e621 b004e621 b001e621 b0fee621"  # the PIC lets the timer through
    "b034e643 b000e640 e640"  # the timer's longest interval
    "b9f203 e680 e2fc fb f4ebfd",  # 1010 exits, as tests wait for 1000; sti; hlt, for ever
    0x1000: "fa f4ebfd",  # cli; hlt, for ever
    0xF100: "50 b020e620 58 cf",  # tell the PIC that it is done; iret
    0xFFF0: "ea000000f0",  # where a vCPU begins: jmp f000:0
}


def _lay_out(parts: dict[int, str]) -> bytes:
    rom = bytearray(1 << 16)
    for start, text in parts.items():
        code = bytes.fromhex(text)
        rom[start : start + len(code)] = code
    return bytes(rom)


IDLE_ROM = _lay_out(_ROM)
"""For `-bios`."""

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
        rom = os.memfd_create("rom")  # no file: some tests look at what is beside the socket
        os.write(rom, IDLE_ROM)
        self.process = subprocess.Popen(
            [
                *("timeout", "--foreground", "-s", "KILL", str(_LIFETIME)),
                *prefix,
                *(program, "-accel", "kvm", "-machine", "pc", "-nodefaults"),
                *("-display", "none", "-m", "16", "-smp", smp),
                *("-bios", f"/proc/self/fd/{rom}"),
                *("-name", path.stem, "-uuid", UUID),
                *("-qmp", f"unix:{path},server=on,wait=off"),
                *("-qmp", f"unix:{own},server=on,wait=off"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(rom,),
        )
        os.close(rom)
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
