"""`statsfs mount --kvm`: QEMUs of two versions, and a VMM of our own, with nothing to configure."""

import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from statsfs.cli import daemon
from statsfs.demo.real_kvm import RealKvm
from statsfs.kvm import KvmStats
from statsfs.kvm.debugfs_vms import DebugfsVms
from statsfs.kvm.libvirt_vms import LibvirtVms
from statsfs.tree.registry import Registry
from tests.support.deadlines import wait_until
from tests.support.kvm_mounts import STATSFS, has_counted, mounted, number, shown, wait_for
from tests.support.mounts import ROOT, run
from tests.support.qemus import UUID, find_qemu, running, take_stats

pytestmark = [pytest.mark.kvm, pytest.mark.root, pytest.mark.host]

SCHEDULE = {"run_ns", "wait_ns", "timeslices"}


def attribute(path: Path, name: str) -> str:
    """An extended attribute of ours."""
    return os.getxattr(path, f"user.statsfs.{name}").decode()


def said(stats: KvmStats) -> dict[str, Any]:
    """What a statistics descriptor says."""
    stats.refresh()
    return dict(stats.numbers)


def compare(directory: Path, expected: dict[str, Any]) -> None:
    """All values of a directory are these, at a standstill, but for those of the scheduler."""
    wait_until(lambda: shown(directory).items() >= expected.items(), f"the numbers of {directory}")
    assert shown(directory).keys() - expected.keys() <= SCHEDULE


@pytest.mark.mount
def test_every_vm_has_the_numbers_of_its_descriptors(mountpoint: Path, tmp_path: Path) -> None:
    """QEMU 7.2 and 10 and our own guests; before the daemon and after it; histograms by bucket."""
    new = find_qemu("debian13")
    with RealKvm(Registry(), rate=0) as guests, running(tmp_path / "old.qmp") as old:
        own = guests.create_vm(2)
        with (
            mounted(mountpoint, "--kvm"),
            running(tmp_path / "new.qmp", new, "3,sockets=3") as late,
        ):
            kvm = mountpoint / "kvm"
            for name in (own.name, old.name, late.name):
                wait_for(kvm / name)
                assert attribute(kvm / name, "kvm.source") == "bpf"
            own.vcpus[1].make_exits(60)
            for qemu in (old, late):
                wait_until(lambda: number(kvm / qemu.name / "exits") not in (0, 1), "exits")  # noqa: B023
                qemu.execute("stop")
            for where, stats in zip(("vcpu0", "vcpu1"), own.vcpu_stats, strict=True):
                compare(kvm / own.name / where, said(stats))
            wait_until(lambda: (kvm / late.name / "vcpu2").is_dir(), "the third vCPU")
            for vcpu, stats in take_stats(late.pid).items():
                with stats:
                    compare(kvm / late.name / f"vcpu{vcpu}", said(stats))
            for where, numbers in old.stats().items():
                # QMP itself is told to the vCPUs of this version.
                numbers.pop("signal_exits", None)
                numbers.pop("exits", None)
                directory = kvm / old.name / where
                wait_until(lambda: shown(directory).items() >= numbers.items(), where)  # noqa: B023
            assert shown(kvm / old.name).keys() > {"remote_tlb_flush", "exits", "wait_ns"}


@pytest.mark.mount
def test_a_vm_that_is_killed(mountpoint: Path, tmp_path: Path) -> None:
    """It is gone at once, what it counted stays, and another one begins at 0."""
    with mounted(mountpoint, "--kvm"), running(tmp_path / "a.qmp") as vm:
        kvm = mountpoint / "kvm"
        wait_for(kvm / vm.name)
        wait_until(lambda: has_counted(kvm / vm.name / "exits"), "exits")
        counted = int(number(kvm / vm.name / "exits"))
        vm.send_signal(signal.SIGKILL)
        began = time.monotonic()
        wait_until(lambda: not (kvm / vm.name).exists(), "the end")
        # 6 to 30 ms are usual; this machine may be busy.
        assert time.monotonic() - began < 1
        assert int(number(kvm / "exits")) >= counted


def settled(path: Path) -> int | str:
    """What a file says that has not changed for a tenth of a second."""
    found, since = number(path), time.monotonic()
    while time.monotonic() - since < 0.1:
        now = number(path)
        if now != found:
            found, since = now, time.monotonic()
    return found


@pytest.mark.mount
def test_reading_disturbs_no_guest(mountpoint: Path, tmp_path: Path) -> None:
    """QEMU 7.2 interrupts its vCPUs for QMP: `signal_exits` stays, however often it is read."""
    with mounted(mountpoint, "--kvm"), running(tmp_path / "a.qmp") as vm:
        directory = mountpoint / "kvm" / vm.name
        wait_for(directory)
        wait_until(lambda: has_counted(directory / "exits"), "exits")
        vm.execute("stop")
        before = settled(directory / "signal_exits")
        for _ in range(50):
            shown(directory)
            number(directory / "vcpu0" / "exits")
        assert number(directory / "signal_exits") == before


@pytest.mark.mount
def test_who_a_vm_is(mountpoint: Path, tmp_path: Path) -> None:
    """Its name and UUID are extended attributes, and the name is Prometheus's label."""
    name = f"web{os.getpid()}"  # of no other VM here
    with mounted(mountpoint, "--kvm"), running(tmp_path / f"{name}.qmp") as vm:
        directory = mountpoint / "kvm" / vm.name
        wait_for(directory / "vcpu1")
        found = {name: attribute(directory, name) for name in ("kvm.name", "uuid", "vmm", "pid")}
        assert found == {"kvm.name": name, "uuid": UUID, "vmm": "qemu", "pid": str(vm.pid)}
        text = (directory / ".stats.prom").read_text()
        known = f'pid="{vm.pid}",uuid="{UUID}",vm="{name}",vmm="qemu"'
        assert f"kvm_vm_info{{{known}}} 1\n" in text
        for metric in ("exits", "wait_seconds"):
            assert f'kvm_{metric}_total{{vcpu="vcpu1",vm="{name}"}} ' in text


@pytest.mark.mount
def test_a_vcpu_that_is_plugged_in(mountpoint: Path, tmp_path: Path) -> None:
    """It appears under the kernel's number; one that is unplugged is still there for the kernel."""
    with mounted(mountpoint, "--kvm"), running(tmp_path / "a.qmp") as vm:
        directory = mountpoint / "kvm" / vm.name
        wait_for(directory / "vcpu1")
        free = [one for one in vm.execute("query-hotpluggable-cpus") if "qom-path" not in one]
        vm.execute("device_add", driver=free[0]["type"], id="more", **free[0]["props"])
        wait_for(directory / "vcpu2")


@pytest.mark.mount
def test_with_qmp_too_no_vm_is_there_twice(mountpoint: Path, tmp_path: Path) -> None:
    """The better way has it; the socket is left to others."""
    (tmp_path / "vms").mkdir(mode=0o700)
    path = tmp_path / "vms" / "a.qmp"
    with running(path) as vm, mounted(mountpoint, "--kvm", "--qmp", path):
        directory = mountpoint / "kvm" / vm.name
        wait_for(directory)
        wait_until(lambda: may_connect(path), "the socket's turn")
        assert attribute(directory, "kvm.source") == "bpf"
        assert [one.name for one in directory.parent.glob(f"{vm.pid}-*")] == [vm.name]


@pytest.mark.parametrize(("sockets", "last"), [([], DebugfsVms), (["/x.qmp"], LibvirtVms)])
def test_a_named_socket_comes_before_debugfs(
    sockets: list[str], last: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which would have its VM first, so that nobody connects to the socket."""

    class Made(Exception):
        pass

    def make(ways: Sequence[object], *_: object) -> None:
        raise Made(ways[-1])

    monkeypatch.setattr(daemon, "KvmHost", make)
    with (
        pytest.raises(Made) as made,
        daemon._showing_vms(Registry(), kvm=True, sockets=sockets, held=False),
    ):
        pass
    assert made.value.args == (last,)


def may_connect(path: Path) -> bool:
    """Whether QEMU greets a client, which it does one at a time."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        client.connect(str(path))
        try:
            return b"QMP" in client.recv(1000)
        except TimeoutError:
            return False


def test_users_who_may_not(mountpoint: Path) -> None:
    """One line says what is missing, and nothing is mounted."""
    command = ["setpriv", "--bounding-set=-all", *STATSFS, "mount", str(mountpoint), "--kvm"]
    done = run(*command, cwd=ROOT, status=1)
    assert done.stderr == (
        "statsfs: error: BPF needs CAP_BPF and CAP_PERFMON; "
        "other ways need CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH\n"
    )
