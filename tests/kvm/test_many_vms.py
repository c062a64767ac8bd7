"""Many VMs of several VMMs at the same time, none of them started with anything for statsfs."""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from statsfs.demo.real_kvm import RealKvm
from statsfs.kvm.descriptors import KvmStats
from statsfs.kvm.scanning import find_files
from statsfs.kvm.uevents import KvmUevents
from statsfs.tree.registry import Registry
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.kvm_mounts import STATSFS, mounted, number, shown
from tests.support.libvirtd import Libvirtd, running_libvirtd
from tests.support.mounts import ROOT, run
from tests.support.qemus import find_kvm_files, find_qemu, take_stats

pytestmark = [pytest.mark.kvm, pytest.mark.root, pytest.mark.host, pytest.mark.slow]

EACH = 15  # VMs of each QEMU


@contextlib.contextmanager
def starting(program: str) -> Iterator[subprocess.Popen[bytes]]:
    """A QEMU of two vCPUs that makes its VM, does not run it, and has no socket."""
    with subprocess.Popen(
        [
            *("setpriv", "--pdeathsig", "KILL"),
            *(program, "-accel", "kvm", "-machine", "pc", "-nodefaults", "-display", "none"),
            *("-m", "16", "-smp", "2", "-S"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            process.wait(DEADLINE)


def has_vcpus(pid: int) -> bool:
    """Whether a process has made both vCPUs of its VM."""
    files = find_files(pid)
    return files is not None and len(files.vcpus) == 2


def said(stats: KvmStats) -> dict[str, Any]:
    """What a statistics descriptor says."""
    stats.refresh()
    return dict(stats.numbers)


def compare(vcpu: Path, stats: KvmStats) -> None:
    """A vCPU has all the numbers of its descriptor; they stand still, but for a last few."""

    def are_same() -> bool:
        before = said(stats)
        return shown(vcpu).items() >= before.items() and said(stats) == before

    wait_until(are_same, f"the numbers of {vcpu}")


@contextlib.contextmanager
def maybe_libvirtd() -> Iterator[Libvirtd | None]:
    """A libvirtd, or None where it cannot be had: the other VMs are tried all the same."""
    with contextlib.ExitStack() as stack:
        libvirtd = None
        with contextlib.suppress(pytest.xfail.Exception):
            libvirtd = stack.enter_context(running_libvirtd())
        yield libvirtd


@pytest.mark.mount
@pytest.mark.timeout(300)
def test_all_vms_of_a_host(mountpoint: Path) -> None:
    """Two QEMUs, our own VMM and libvirt's: shown, right, not disturbed, and gone at the end."""
    programs = [find_qemu("installed"), find_qemu("debian13")]
    with (
        contextlib.ExitStack() as stack,
        RealKvm(Registry(), rate=0) as guests,
        maybe_libvirtd() as libvirtd,
        mounted(mountpoint, "--kvm"),
    ):
        kvm = mountpoint / "kvm"
        started = [
            [stack.enter_context(starting(program)) for _ in range(EACH)] for program in programs
        ]
        own = guests.create_vm(2)
        domain = [] if libvirtd is None else [libvirtd.create("web")]
        pids = [process.pid for some in started for process in some]
        wait_until(lambda: all(map(has_vcpus, [*pids, *domain])), "all VMs", deadline=120)
        names = {pid: find_kvm_files(pid).name(pid) for pid in [*pids, *domain]}
        for name in [*names.values(), own.name]:
            wait_until((kvm / name / "vcpu1").is_dir, name)
            assert os.getxattr(kvm / name, "user.statsfs.kvm.source") == b"bpf"
        assert len(list(kvm.glob(f"{os.getpid()}-*"))) == 1
        assert all(len(list(kvm.glob(f"{pid}-*"))) == 1 for pid in names)

        # The newer QEMU keeps descriptors to compare with; the VMM of our own has them.
        own.vcpus[1].make_exits(60)
        for vcpu, one in enumerate(own.vcpu_stats):
            compare(kvm / own.name / f"vcpu{vcpu}", one)
        for process in started[1]:
            taken = take_stats(process.pid)
            assert taken.keys() == {0, 1}
            for vcpu, one in taken.items():
                with one:
                    compare(kvm / names[process.pid] / f"vcpu{vcpu}", one)

        # Reading disturbs none of them.
        directories = [kvm / names[pid] for pid in pids]
        before = [number(one / "signal_exits") for one in directories]
        for _ in range(10):
            for directory in directories:
                shown(directory)
                number(directory / "vcpu0" / "exits")
        assert [number(one / "signal_exits") for one in directories] == before

        # One is stopped: it and all others are read as before.
        os.kill(pids[0], signal.SIGSTOP)
        assert [number(one / "signal_exits") for one in directories] == before
        assert isinstance(number(kvm / "exits"), int)

        # All are killed: they are gone, and the kernel frees them, so nothing keeps one.
        total = int(number(kvm / "halt_exits"))
        with KvmUevents() as uevents:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            left = {names[pid] for pid in pids}

            def are_freed() -> bool:
                left.difference_update(one.name for one in uevents.read()[0] if not one.created)
                return not left

            wait_until(are_freed, "the VMs' end in the kernel")
        wait_until(lambda: not any(map(Path.exists, directories)), "their end")
        assert (kvm / own.name / "vcpu1").is_dir()
        assert int(number(kvm / "halt_exits")) >= total


HOST = """
import logging, sys
from statsfs.exceptions import KvmError
from statsfs.kvm.host import KvmHost
from tests.support.deadlines import wait_until
logging.basicConfig(level=logging.WARNING, format="%(message)s")
try:
    host = KvmHost(())
except KvmError as error:
    sys.exit(str(error))
with host:
    wait_until(lambda: host.source.find(sys.argv[1]), "the VM")
    print(host.source.find(sys.argv[1]).info["kvm.source"])
"""


ANOTHER = re.compile(r"kvm: \d+-\d+: ")


@pytest.mark.parametrize(
    ("lost", "way", "says"),
    [
        ("", "bpf", ""),
        ("sys_ptrace", "bpf", ""),
        ("dac_read_search,dac_override", "bpf", ""),
        ("sys_admin", "bpf", ""),
        ("bpf", "bpf", ""),  # CAP_SYS_ADMIN has its rights
        (
            "sys_admin,bpf",
            "descriptors",
            "kvm: BPF needs CAP_BPF: only what other ways can read is shown",
        ),
        (
            "sys_admin,perfmon",
            "descriptors",
            "kvm: BPF needs CAP_PERFMON: only what other ways can read is shown",
        ),
        ("sys_admin,bpf,sys_ptrace", "", "BPF needs CAP_BPF; other ways need CAP_SYS_PTRACE"),
    ],
)
def test_capabilities_that_are_lost(lost: str, way: str, says: str) -> None:
    """One line says what is missing; a VM is read by what is left, if anything is."""
    dropped = ",".join(f"-{name}" for name in lost.split(",")) if lost else "+all"
    with starting(find_qemu("debian13")) as process:
        wait_until(lambda: has_vcpus(process.pid), "the VM")
        wait_until(lambda: len(find_kvm_files(process.pid).stats) == 2, "its descriptors")
        name = find_kvm_files(process.pid).name(process.pid)
        command = ["setpriv", f"--bounding-set={dropped}", "--inh-caps=-all"]
        done = run(*command, *(STATSFS[0], "-c", HOST, name), cwd=ROOT, status=0 if way else 1)
    assert done.stdout.strip() == way
    # Other processes of the host may have several VMs each, of which a line is right.
    lines = [one for one in done.stderr.splitlines() if not ANOTHER.match(one) or name in one]
    assert lines == [says] * bool(says)
