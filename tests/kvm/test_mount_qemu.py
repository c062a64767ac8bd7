"""`statsfs mount --qmp` with real QEMUs on KVM: what they count, and what becomes of the tree."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from statsfs.kvm import KvmStats
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.kvm_mounts import STATSFS, has_counted, mounted, number, shown, wait_for
from tests.support.mounts import run
from tests.support.other_users import USER, shared_directory
from tests.support.qemus import QEMUS, Qemu, find_qemu, of_another_user, running, take_stats


@pytest.fixture
def vms(tmp_path: Path) -> Path:
    """A directory for sockets."""
    (tmp_path / "vms").mkdir(mode=0o700)
    return tmp_path / "vms"


@pytest.mark.kvm
@pytest.mark.mount
def test_two_vms_show_what_qmp_says(mountpoint: Path, vms: Path) -> None:
    """Names and numbers are those of QMP, and totals those of both VMs; clearing subtracts."""
    options = ("--qmp", vms / "a.qmp", "--qmp", vms / "b.*")
    with running(vms / "a.qmp") as a, running(vms / "b.qmp") as b, mounted(mountpoint, *options):
        kvm = mountpoint / "kvm"
        for vm in (a, b):
            wait_for(kvm / vm.name)
        wait_until(lambda: all(has_counted(kvm / vm.name / "exits") for vm in (a, b)))
        compare_running(kvm / a.name, a)
        for vm in (a, b):
            vm.execute("stop")
        both = [compare_stopped(kvm / vm.name, vm) for vm in (a, b)]
        assert number(kvm / "exits") == sum(one["exits"] for one in both)
        assert sorted(os.listdir(kvm)) == sorted([a.name, b.name, *both[0]])
        before = shown(kvm / b.name)
        (kvm / a.name / "exits").write_text("0")
        assert number(kvm / a.name / "exits") == number(kvm / a.name / "vcpu1" / "exits") == 0
        assert number(kvm / "exits") == before["exits"]
        labels = os.getxattr(kvm / a.name / "vcpu1", "user.statsfs.label")
        assert labels == b"vcpu"


def compare_running(directory: Path, vm: Qemu) -> None:
    """Counters grow: what is read lies between two answers of QMP."""

    def exits() -> int:
        return sum(one.get("exits", 0) for one in vm.stats().values())

    # What was read before may be up to 100 ms old.
    first = exits()
    wait_until(lambda: has_counted(directory / "exits", first))
    assert int(number(directory / "exits")) <= exits()


def compare_stopped(directory: Path, vm: Qemu) -> dict[str, Any]:
    """A VM that is paused counts nothing: all numbers agree. Returns the VM's directory."""
    said: dict[str, dict[str, Any]] = {}

    def same() -> bool:
        # What QEMU's own threads do to it still counts, for a moment.
        said.clear()
        said.update(vm.stats())
        return all(
            shown(directory / where) == shown(directory / where) | stats
            for where, stats in said.items()
        )

    wait_until(same, "the same numbers")
    for where, stats in said.items():
        if where != ".":
            assert sorted(os.listdir(directory / where)) == sorted(stats)
    totals = shown(directory)
    assert set(totals) == set(said["."]) | set(said["vcpu0"])
    assert totals["exits"] == said["vcpu0"]["exits"] + said["vcpu1"]["exits"]
    waits = zip(said["vcpu0"]["halt_wait_hist"], said["vcpu1"]["halt_wait_hist"], strict=True)
    assert totals["halt_wait_hist"] == [sum(pair) for pair in waits]
    return totals


@pytest.mark.kvm
@pytest.mark.mount
@pytest.mark.parametrize("version", QEMUS)
def test_the_kernels_own_numbers(version: str, mountpoint: Path, vms: Path) -> None:
    """The vCPUs have KVM's numbers, and all values are those of the statistics descriptors.

    A histogram of QEMU begins with its last bucket. Its indices have no gaps.
    """
    program = find_qemu(version)
    with (
        running(vms / "a.qmp", program, "6,sockets=2,cores=3") as vm,
        mounted(mountpoint, "--qmp", vms / "a.qmp"),
    ):
        directory = mountpoint / "kvm" / vm.name
        wait_for(directory)
        assert vm.vcpu_ids() == {0, 1, 2, 4, 5, 6}
        names = {f"vcpu{number}" for number in vm.vcpu_ids()}
        assert {path.name for path in directory.iterdir() if path.is_dir()} == names
        # Vcpus that wait for more than a millisecond: the bucket shows which end is which.
        wait_until(lambda: any(shown(directory)["halt_wait_hist"][20:]), "a halt")
        vm.execute("stop")
        compare_with_kernel(directory, vm)


def compare_with_kernel(directory: Path, vm: Qemu) -> None:
    """All values agree with the descriptors, which QEMU keeps from 8.1, and with each other."""
    taken = take_stats(vm.pid)
    assert taken.keys() in (set(), vm.vcpu_ids())
    with contextlib.ExitStack() as stack:
        for number, stats in taken.items():
            stack.enter_context(stats)

            def same(where: Path = directory / f"vcpu{number}", stats: KvmStats = stats) -> bool:
                stats.refresh()
                return shown(where) == dict(stats.numbers)

            wait_until(same, "the same numbers")
    for number in vm.vcpu_ids():
        values = shown(directory / f"vcpu{number}")
        for kind in ("halt_wait", "halt_poll_success", "halt_poll_fail"):
            # The bucket n counts times of 2**(n - 1) ns and more; the last one has no end.
            least = sum(count << n >> 1 for n, count in enumerate(values[f"{kind}_hist"]))
            assert least <= values[f"{kind}_ns"] + sum(values[f"{kind}_hist"])
            assert values[f"{kind}_hist"][-1] or values[f"{kind}_ns"] <= 2 * least


@pytest.mark.kvm
@pytest.mark.mount
def test_before_the_first_vm(mountpoint: Path, vms: Path) -> None:
    """All totals are there, and 0, as in debugfs; no others come with a VM."""
    with mounted(mountpoint, "--qmp", vms / "*.qmp"):
        before = shown(mountpoint / "kvm")
        assert before["exits"] == 0
        assert not any(one if isinstance(one, int) else sum(one) for one in before.values())
        with running(vms / "a.qmp") as vm:
            wait_for(mountpoint / "kvm" / vm.name)
            assert shown(mountpoint / "kvm").keys() == before.keys()
            assert shown(mountpoint / "kvm" / vm.name).keys() == before.keys()


@pytest.mark.kvm
@pytest.mark.mount
@pytest.mark.parametrize("version", QEMUS)
def test_what_is_not_read_is_not_disturbed(version: str, mountpoint: Path, vms: Path) -> None:
    """QEMU 7.1 to 8.0 interrupts a vCPU to read its numbers: not for those of the VM or another."""
    with (
        running(vms / "a.qmp", find_qemu(version)) as vm,
        mounted(mountpoint, "--qmp", vms / "a.qmp"),
    ):
        directory = mountpoint / "kvm" / vm.name
        wait_for(directory)

        def interrupts() -> tuple[int, int]:
            stats = vm.stats()
            return stats["vcpu0"]["signal_exits"], stats["vcpu1"]["signal_exits"]

        def undisturbed(path: Path, vcpu: int) -> bool:
            # What the test itself asks interrupts too.
            own = interrupts()[vcpu] - interrupts()[vcpu]
            before = interrupts()[vcpu]
            for _ in range(100):
                assert isinstance(number(path), int)
            return before - interrupts()[vcpu] == own

        wait_until(lambda: undisturbed(directory / "mmu_cache_miss", 0), "a quiet VM")
        wait_until(lambda: undisturbed(directory / "mmu_cache_miss", 1), "a quiet VM")
        wait_until(lambda: undisturbed(directory / "vcpu0" / "exits", 1), "a quiet vCPU")


@pytest.mark.kvm
@pytest.mark.mount
def test_a_client_that_connects_on_demand(mountpoint: Path, vms: Path) -> None:
    """It has its turn once nobody reads; and the VM's end is noticed without a connection."""
    with running(vms / "a.qmp") as vm, mounted(mountpoint, "--qmp", vms / "a.qmp"):
        directory = mountpoint / "kvm" / vm.name
        wait_for(directory)
        with socket.socket(socket.AF_UNIX) as manager:
            manager.settimeout(DEADLINE)
            manager.connect(str(vms / "a.qmp"))
            assert b"QMP" in manager.recv(1000)
            assert number(directory / "exits") == "ENODATA"
            assert directory.is_dir()
        wait_until(lambda: isinstance(number(directory / "exits"), int), "its turn")
        with socket.socket(socket.AF_UNIX) as manager:
            manager.settimeout(DEADLINE)
            manager.connect(str(vms / "a.qmp"))
            assert b"QMP" in manager.recv(1000)
            vm.send_signal(signal.SIGKILL)
            wait_until(lambda: not directory.exists(), "its end")


@pytest.mark.kvm
@pytest.mark.mount
@pytest.mark.root
def test_a_vm_of_another_user(mountpoint: Path) -> None:
    """It may have its socket in that user's directory, as those of libvirt on Debian must."""
    with (
        shared_directory() as shared,
        mounted(mountpoint, "--qmp", shared / "www" / "*.qmp"),
        running(shared / "www" / "a.qmp", prefix=of_another_user(shared)) as vm,
    ):
        wait_for(mountpoint / "kvm" / vm.name)
        assert os.stat(f"/proc/{vm.pid}").st_uid == USER
        wait_until(lambda: has_counted(mountpoint / "kvm" / vm.name / "exits", 1))


@pytest.mark.kvm
@pytest.mark.mount
def test_vms_that_hang_die_and_come(mountpoint: Path, vms: Path) -> None:
    """A stopped VM does not delay the others, a killed one is gone, one more appears."""
    kvm = mountpoint / "kvm"
    with (
        mounted(mountpoint, "--qmp", vms / "*.qmp") as daemon,
        running(vms / "a.qmp") as a,
        running(vms / "b.qmp") as b,
    ):
        for vm in (a, b):
            wait_for(kvm / vm.name)
        hang(kvm, a, b)
        # No reader: only whether the name is there.
        b.send_signal(signal.SIGKILL)
        wait_until(lambda: not (kvm / b.name).exists(), "its end")
        assert (kvm / "exits").exists()
        with running(vms / "c.qmp") as c:
            wait_for(kvm / c.name)
            plug(kvm / c.name, c)
            assert int(number(kvm / "exits")) > 0
        end_while_one_hangs(kvm, a, daemon)


def hang(kvm: Path, a: Qemu, b: Qemu) -> None:
    """Stop a VM; read; let it go on."""
    total = int(number(kvm / "exits"))
    a.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:

        def gone() -> bool:
            return number(kvm / a.name / "exits") == "ENODATA"

        # Its last numbers count as new for 100 ms.
        reader = pool.submit(wait_until, gone)
        others = []
        while not reader.done():
            others.append(number(kvm / b.name / "exits"))
        reader.result()
    assert others
    assert all(isinstance(one, int) for one in others)
    assert number(kvm / a.name / "vcpu1" / "exits") == "ENODATA"
    assert int(number(kvm / "exits")) >= total
    a.send_signal(signal.SIGCONT)
    wait_until(lambda: isinstance(number(kvm / a.name / "vcpu0" / "exits"), int), "its return")


def plug(directory: Path, vm: Qemu) -> None:
    """Plug a vCPU; its directory appears with the next read."""
    place = {"socket-id": 0, "core-id": 2, "thread-id": 0}
    vm.execute("device_add", driver="qemu64-x86_64-cpu", id="new", **place)
    wait_until(lambda: number(directory / "exits") and (directory / "vcpu2").is_dir(), "vcpu2")
    assert isinstance(number(directory / "vcpu2" / "exits"), int)


def end_while_one_hangs(kvm: Path, a: Qemu, daemon: subprocess.Popen[str]) -> None:
    """SIGTERM ends the daemon while a reader waits for a VM that does not answer."""
    wait_until(lambda: isinstance(number(kvm / a.name / "exits"), int))
    a.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(number, kvm / a.name / "exits")
        daemon.terminate()
        assert daemon.wait(DEADLINE) == 0
        reader.result(DEADLINE)
    assert daemon.stderr is not None
    said = daemon.stderr.read().splitlines()
    assert all(
        re.match(
            rf"kvm/{a.name}: (unavailable: the refresh failed: no answer|available again)", line
        )
        for line in said
    ), said
    a.send_signal(signal.SIGCONT)


# Mistakes


@pytest.mark.slow
@pytest.mark.parametrize("mode", [0o1777, 0o777, 0o770])
def test_a_directory_that_others_can_write(mode: int, vms: Path, tmp_path: Path) -> None:
    """It is one line, and nothing is mounted."""
    vms.chmod(mode)
    done = run(*STATSFS, "mount", tmp_path / "new", "--create", "--qmp", vms / "a", status=1)
    where = f"{vms}/a: refused: others can write in {vms}"
    assert (done.stdout, done.stderr) == ("", f"statsfs: error: {where}\n")
    assert not (tmp_path / "new").exists()


def test_a_library_that_is_missing(vms: Path, tmp_path: Path) -> None:
    """It is said how to install it."""
    program = (
        "import sys; sys.modules['qemu'] = None\nfrom statsfs.cli import main; sys.exit(main())"
    )
    done = run(
        sys.executable, "-c", program, "mount", tmp_path / "new", "--create", "--qmp", vms / "a",
        status=1,
    )  # fmt: skip
    what = "--qmp: QMP needs the library qemu.qmp: pip install 'statsfs[kvm]'"
    assert (done.stdout, done.stderr) == ("", f"statsfs: error: {what}\n")


def test_a_kvm_that_is_there_already(vms: Path, tmp_path: Path) -> None:
    """What is loaded may have a source of that name."""
    (tmp_path / "app.py").write_text(
        "import statsfs\ndef setup(registry):\n    registry.register(statsfs.Source('kvm'))\n"
    )
    options = ("--create", "--load", "app:setup", "--qmp", str(vms / "a"))
    done = run(
        *STATSFS, "mount", "new", *options, status=1, cwd=tmp_path,
    )  # fmt: skip
    assert done.stderr == "statsfs: error: the registry: there is a 'kvm' already\n"


@pytest.mark.mount
def test_what_is_no_vm_is_said_once(mountpoint: Path, vms: Path) -> None:
    """A pattern's refused directory, and a socket that says nothing, are one line each."""
    (vms / "open").mkdir()
    (vms / "open").chmod(0o777)
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as refused:
        silent.bind(str(vms / "a.qmp"))
        silent.listen()
        refused.bind(str(vms / "open" / "b.qmp"))
        with mounted(mountpoint, "--qmp", vms / "**" / "*.qmp") as daemon:
            assert not [path for path in (mountpoint / "kvm").iterdir() if path.is_dir()]
            assert daemon.stderr is not None
            said = sorted([daemon.stderr.readline(), daemon.stderr.readline()])
            daemon.terminate()
            assert daemon.stderr.read() == ""
    assert said == [
        f"{vms}/a.qmp: no greeting within 1 s: another client?; tried again every 10 s\n",
        f"{vms}/open/b.qmp: refused: others can write in {vms}/open; tried again every 10 s\n",
    ]
