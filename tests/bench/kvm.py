"""Every VM of a host: what a daemon with 30 of QEMU's costs, and how soon VMs come and go.

The daemon is a process of its own, as users run it. A few guests run: they boot, and halt. Most
wait (`-S`): where KVM is emulated, 30 that boot take all CPUs for minutes, and what is measured is
the daemon. Where `make qemu` has unpacked the QEMU of Debian 13, every other VM is one of its.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import cycle
from pathlib import Path

from statsfs.kvm.bpf import BpfIterator
from statsfs.kvm.own_vm import OwnVm
from statsfs.kvm.scanning import find_files
from tests.bench.measuring import (
    Line,
    collection_off,
    compare,
    cpu_seconds,
    show,
    tell,
    time_once,
)
from tests.support.deadlines import wait_until
from tests.support.kvm_mounts import has_counted, mounted
from tests.support.mounts import ROOT
from tests.support.qemus import find_kvm_files

VMS, VCPUS = 30, 2
GUESTS = 4  # of the VMs, that run
QEMU = "qemu-system-x86_64"
NEWER = ROOT / ".venv" / "qemu-trixie" / QEMU
BOOTED = 1000  # exits after which a guest runs: to find that there is nothing to boot takes more
ROUNDS = 200
FRESH = 0.025  # seconds after which a read makes a pass of its own
QUIET = 20.0  # seconds of idleness that are measured at a time,
TIMES = 3  # and so often: VMs of others that come and go meanwhile are work
IDLE, SHOWN, GONE = 0.002, 0.2, 0.1  # of a CPU, and seconds: what the daemon may take
COMING = 15  # VMs whose coming and going is measured


@contextmanager
def running(program: str, *options: str) -> Iterator[int]:
    """A QEMU of a few MB with two vCPUs; its process."""
    with subprocess.Popen(
        [
            *("setpriv", "--pdeathsig", "KILL"),
            *(program, "-accel", "kvm", "-machine", "pc", "-nodefaults", "-display", "none"),
            *("-m", "16", "-smp", str(VCPUS), *options),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def find_name(pid: int) -> str:
    """What the VM of a process is called."""
    return find_kvm_files(pid).name(pid)


def has_vcpu(pid: int) -> bool:
    """Whether a process has made its first vCPU."""
    files = find_files(pid)
    return files is not None and bool(files.vcpus)


def wait_closely(is_so: Callable[[], bool]) -> float:
    """Wait until something is so; the moment."""
    wait_until(is_so, "a VM")
    return time.perf_counter()


def judge(line: Line, ratio: float, bound: float) -> Line:
    """A line with a ratio to what it may be."""
    return replace(line, ratio=ratio / bound, bound="<= 1 x", kept=ratio <= bound)


def measure_reads(kvm: Path) -> Iterator[Line]:
    """A read of a total, and a pass by bare hands at the same moment; each is first in turn."""
    passes: list[float] = []
    reads: list[float] = []
    with OwnVm() as own:
        iterator = BpfIterator(own)
    with iterator, collection_off():
        turns: list[tuple[Callable[[], object], list[float]]]
        turns = [(iterator.read, passes), ((kvm / "exits").read_bytes, reads)]
        for number in range(ROUNDS):
            time.sleep(FRESH)
            for function, seconds in turns[:: 1 if number % 2 else -1]:
                seconds.append(time_once(function))
    yield tell("a pass of BPF, decoded", passes, "ms")
    yield compare("a read of kvm/exits, which makes one", reads, passes, 2, "ms")


def measure_idle(pid: int) -> Line:
    """What the daemon uses while nobody reads."""
    shares = []
    for _ in range(TIMES):
        before, began = cpu_seconds(pid), time.monotonic()
        time.sleep(QUIET)
        shares.append((cpu_seconds(pid) - before) / (time.monotonic() - began))
    share = min(shares)
    return judge(Line("the idle daemon, of a CPU: the quietest", f"{share:.3%}"), share, IDLE)


def measure_coming(kvm: Path, programs: Iterator[str]) -> Iterator[Line]:
    """From the first vCPU until it is a directory, and from the kill until it is gone."""
    shown, gone = [], []
    for _ in range(COMING):
        with running(next(programs), "-S") as pid:
            made = wait_closely(lambda: has_vcpu(pid))
            vm = kvm / find_name(pid)
            shown.append(wait_closely((vm / "vcpu0").is_dir) - made)
            os.kill(pid, signal.SIGKILL)
            killed = time.perf_counter()
            gone.append(wait_closely(lambda: not vm.exists()) - killed)  # noqa: B023
    for what, seconds, bound in (
        ("a VM is shown after its first vCPU: the slowest", shown, SHOWN),
        ("a killed VM is gone: the slowest", gone, GONE),
    ):
        yield judge(tell(what, [max(seconds)], "ms"), max(seconds), bound)


def main() -> None:
    """Print what was measured."""
    if os.geteuid() or not os.access("/dev/kvm", os.W_OK) or not shutil.which(QEMU):
        print(f"\nkvm: needs root, /dev/kvm and {QEMU}")
        return
    with ExitStack() as stack:
        mountpoint = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="statsfs-")))
        programs = cycle([QEMU, str(NEWER)] if NEWER.exists() else [QEMU])
        pids = [
            stack.enter_context(running(next(programs), *(() if index < GUESTS else ("-S",))))
            for index in range(VMS)
        ]
        wait_until(lambda: all(map(has_vcpu, pids)), "all VMs")
        daemon = stack.enter_context(mounted(mountpoint, "--kvm"))
        kvm = mountpoint / "kvm"
        directories = [kvm / find_name(pid) / f"vcpu{VCPUS - 1}" for pid in pids]
        wait_until(lambda: all(map(Path.is_dir, directories)), "all VMs")
        guests = [directory.parent for directory in directories[:GUESTS]]
        wait_until(lambda: all(has_counted(one / "exits", BOOTED) for one in guests), "the guests")
        lines = [
            *measure_reads(kvm),
            measure_idle(daemon.pid),
            *measure_coming(kvm, programs),
        ]
    title = f"{VMS} VMs of {VCPUS} vCPUs with `statsfs mount --kvm` (ratios: to what is required)"
    show(title, lines)
