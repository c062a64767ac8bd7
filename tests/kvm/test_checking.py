"""Which ways work here, and for which VM."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from statsfs.exceptions import KvmError
from statsfs.kvm import checking
from statsfs.kvm.bpf_vms import BpfVms
from statsfs.kvm.checking import CheckedVm, check_ways
from statsfs.kvm.debugfs_vms import DebugfsVms
from statsfs.kvm.own_vm import OwnVm
from statsfs.kvm.scanning import scan
from statsfs.kvm.vm_sources import read_sections
from statsfs.kvm.ways import Numbers
from tests.support.deadlines import wait_until
from tests.support.debugfs import Debugfs
from tests.support.kvm_mounts import STATSFS
from tests.support.kvm_ways import OtherWay
from tests.support.mounts import ROOT, run
from tests.support.qemus import WITHOUT_BPF, Qemu, find_qemu, running

pytestmark = [pytest.mark.kvm, pytest.mark.root, pytest.mark.host]

KEEPS_NONE = "its process keeps none open (QEMU since 8.1)"


@pytest.fixture
def qemus(tmp_path: Path) -> Iterator[tuple[Qemu, Qemu]]:
    """One that keeps no descriptors open, and one that does."""
    new = find_qemu("debian13")
    with running(tmp_path / "old.qmp") as old, running(tmp_path / "new.qmp", new) as late:
        wait_until(lambda: scan()[late.pid].stats.keys() == {0, 1}, "its descriptors")
        yield old, late


def check(vm: Qemu, *others: OtherWay) -> CheckedVm:
    """What is found out about one VM."""
    made = [lambda *_, way=other: way for other in others]
    (found,) = [one for one in check_ways(made).vms if one.name == vm.name]
    return found


def test_vms_of_two_qemus(qemus: tuple[Qemu, Qemu]) -> None:
    """Both by BPF; one by its descriptors too. Of others each says why not."""
    old, late = map(check, qemus)
    assert old.ways == {"bpf": "", "descriptors": KEEPS_NONE}
    assert late.ways == {"bpf": "", "descriptors": ""}
    assert (old.way, old.identity.vmm, old.identity.name) == ("bpf", "qemu", "old")
    assert str(os.getpid()) not in [one.name.partition("-")[0] for one in check_ways().vms]
    other = OtherWay(lambda: {qemus[0].name: (None, {})})
    assert check(qemus[0], other).ways["other"] == ""
    assert other.closed
    assert (
        check(qemus[1], OtherWay(lambda: {"12-3": (None, {})})).ways["other"].startswith("none of")
    )
    assert check(qemus[1], OtherWay(dict)).ways["other"] == "it knows none"


@pytest.mark.usefixtures("no_bpf")
def test_without_bpf(qemus: tuple[Qemu, Qemu]) -> None:
    """VMs are found by their descriptors; some cannot be read."""
    old, late = map(check, qemus)
    assert old.ways == {"bpf": "BPF needs CAP_BPF", "descriptors": KEEPS_NONE}
    assert (old.way, late.way) == (None, "descriptors")
    assert check_ways([]).ways == {"bpf": "BPF needs CAP_BPF", "descriptors": ""}


@pytest.mark.usefixtures("no_bpf")
def test_a_vm_that_ends_meanwhile(qemus: tuple[Qemu, Qemu]) -> None:
    """It is not one that cannot be read."""

    def end() -> dict[str, Numbers]:
        qemus[0].end()
        return {}

    names = {vm.name for vm in check_ways([lambda *_: OtherWay(end)]).vms}
    assert qemus[1].name in names
    assert qemus[0].name not in names


@pytest.mark.usefixtures("no_bpf")
def test_what_debugfs_has(qemus: tuple[Qemu, Qemu], tmp_path: Path) -> None:
    """A VM that only debugfs has is read by it; where it does not work it says so once."""
    with OwnVm() as own:
        debugfs = Debugfs(tmp_path / "kvm", *read_sections(own))
    make = partial(DebugfsVms, directory=debugfs.path)
    debugfs.write(qemus[0].name, {"exits": 7})
    checked = check_ways([make])
    assert checked.ways["debugfs"] == ""
    found = {vm.name: vm for vm in checked.vms}
    assert found[qemus[0].name].way == "debugfs"
    assert found[qemus[1].name].ways["debugfs"] == "no directory of it can be read"
    debugfs.remove("")
    checked = check_ways([make])
    assert checked.ways["debugfs"] == f"{debugfs.path}: No such file or directory"
    found = {vm.name: vm for vm in checked.vms}
    assert found[qemus[0].name].ways["debugfs"] == checked.ways["debugfs"]


def test_debugfs_under_lockdown() -> None:
    """The kernel's own debugfs: it works, or one line says why it does not."""
    script = 'mount -t debugfs debugfs /sys/kernel/debug && exec "$@"'
    done = run("unshare", "--mount", "sh", "-c", script, "sh", *STATSFS, "kvm-check", cwd=ROOT)
    (line,) = [one for one in done.stdout.splitlines() if one.startswith("debugfs ")]
    locked = "debugfs      the kernel is locked down: it refuses /sys/kernel/debug/kvm"
    assert line in (locked, "debugfs      works")


def test_bpf_that_fails_in_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is said, too."""

    def fail(*_: object) -> None:
        raise OSError("broken")

    monkeypatch.setattr(BpfVms, "look", fail)
    assert check_ways().ways["bpf"] == "broken"


def test_a_vm_whose_descriptors_cannot_be_seen(
    qemus: tuple[Qemu, Qemu], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without CAP_SYS_PTRACE, of another user's VM."""
    monkeypatch.setattr("statsfs.kvm.scanning.scan", dict)
    assert check(qemus[0]).ways == {"bpf": "", "descriptors": "its descriptors cannot be seen"}


def test_no_kvm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One line says so."""
    device = str(tmp_path / "kvm")
    monkeypatch.setattr("statsfs.kvm.own_vm.DEVICE", device)
    monkeypatch.setattr(checking, "DEVICE", device)
    with pytest.raises(KvmError, match="/kvm: No such file or directory"):
        check_ways()


@pytest.mark.alone  # it is of all VMs of the host
def test_the_command(qemus: tuple[Qemu, Qemu]) -> None:
    """It prints each way, and for each VM why it is not read by the others."""
    done = run(*STATSFS, "kvm-check", cwd=ROOT)
    lines = done.stdout.splitlines()
    assert lines[:2] == ["bpf          works", "descriptors  works"]
    assert lines[2].startswith("libvirt      ")
    assert lines[3].startswith("debugfs      ")
    first = lines.index(f"{qemus[0].name} qemu old: read by bpf")
    assert lines[first + 1 : first + 3] == ["  bpf          works", f"  descriptors  {KEEPS_NONE}"]
    first = lines.index(f"{qemus[1].name} qemu new: read by bpf")
    assert lines[first + 1 : first + 3] == ["  bpf          works", "  descriptors  works"]
    assert (done.stderr, done.returncode) == ("", 0)


def test_the_command_where_something_is_missing(qemus: tuple[Qemu, Qemu]) -> None:
    """It ends with 1, and one line on stderr, if a VM cannot be read, or none."""
    without = ("setpriv", "--bounding-set=-all")
    done = run(*without, *STATSFS, "kvm-check", cwd=ROOT, status=1)
    lines = done.stdout.splitlines()
    assert lines[:2] == [
        "bpf          BPF needs CAP_BPF and CAP_PERFMON",
        "descriptors  needs CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH",
    ]
    assert lines[3].startswith("debugfs      ")
    assert lines[4:] == ["", "no VMs"]
    assert done.stderr == "statsfs: error: no way to read VMs works here\n"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_BPF, "kvm-check"], capture_output=True, text=True, cwd=ROOT
    )
    assert f"{qemus[0].name} qemu old: not shown" in done.stdout
    assert " VMs cannot be read" in done.stderr
    assert done.returncode == 1
