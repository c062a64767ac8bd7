"""Statistics descriptors that are taken: of QEMU, of this process, and what is refused."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from statsfs.demo.real_kvm import RealKvm, RealVm
from statsfs.exceptions import FormatError, KvmError
from statsfs.kvm import taken as taken_module
from statsfs.kvm.scanning import find_files
from statsfs.kvm.steal import ThreadTimes
from statsfs.kvm.taken import TakenVm, TakenVms
from statsfs.kvm.uevents import KvmUevents
from statsfs.kvm.vm_sources import SCHEDULE_SIZE
from tests.support.deadlines import wait_until
from tests.support.kvm_mounts import STATSFS, mounted, number, shown, wait_for
from tests.support.qemus import WITHOUT_BPF, find_qemu, running, take_stats

pytestmark = [pytest.mark.kvm, pytest.mark.root, pytest.mark.host]


def stats_of(vm: RealVm) -> dict[int, int]:
    """The statistics descriptors of a VM's vCPUs."""
    return {number: stats._fd for number, stats in enumerate(vm.vcpu_stats)}


def size_of(vm: RealVm) -> int:
    """How many bytes of statistics a vCPU has."""
    return vm.vcpu_stats[0]._layout.data_size


def read(taken: TakenVm, vm: RealVm) -> list[tuple[object, ...]]:
    """The numbers of each vCPU, by the VM's layout."""
    layout = vm.vcpu_stats[0]._layout
    blocks = taken.read()
    return [layout.numbers(blocks[number][SCHEDULE_SIZE:]) for number in sorted(blocks)]


def said(vm: RealVm) -> list[tuple[object, ...]]:
    """What the descriptors themselves say."""
    for stats in vm.vcpu_stats:
        stats.refresh()
    return [tuple(stats.numbers.values()) for stats in vm.vcpu_stats]


def test_the_numbers_of_each_vcpu(guests: RealKvm) -> None:
    """They are those of the descriptors; the scheduler's are of the thread that made the vCPU."""
    vm = guests.create_vm(2)
    before = len(os.listdir("/proc/self/fd"))
    with TakenVm(os.getpid(), size_of(vm)) as taken:
        taken.take(stats_of(vm))
        vm.vcpus[1].make_exits(20)
        assert read(taken, vm) == said(vm)
        assert taken.read()[0][:SCHEDULE_SIZE] != bytes(SCHEDULE_SIZE)
        taken.take({1: stats_of(vm)[1]})
        assert read(taken, vm) == said(vm)[1:]
        taken.take(stats_of(vm))
        assert read(taken, vm) == said(vm)
    taken.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_number_that_is_another_file(guests: RealKvm) -> None:
    """As at the reset of a confidential guest: QEMU has another VM behind the same numbers."""
    first, second = guests.create_vm(1), guests.create_vm(1)
    second.vcpus[0].make_exits(20)
    theirs = os.dup(stats_of(first)[0])
    try:
        with TakenVm(os.getpid(), size_of(first)) as taken:
            taken.take({0: theirs})
            assert read(taken, first) == said(first)
            os.dup2(stats_of(second)[0], theirs)
            taken.take({0: theirs})
            assert read(taken, second) == said(second) != said(first)
            assert taken.exchanges == 1
            for fds, exchanges in (({0: theirs}, 1), ({}, 2), ({}, 2), ({0: theirs}, 2)):
                taken.take(fds)
                assert taken.exchanges == exchanges
    finally:
        os.close(theirs)


@pytest.mark.parametrize(
    ("case", "match"),
    [
        ("pipe", "not a vCPU's statistics descriptor"),
        ("closed", "Bad file descriptor"),
        ("other vcpu", "not a vCPU's statistics descriptor"),
        ("vm", "not a vCPU's statistics descriptor"),
        ("size", "unknown statistics: "),
        ("format", "unknown statistics: odd"),
    ],
)
def test_what_is_refused(
    guests: RealKvm, monkeypatch: pytest.MonkeyPatch, case: str, match: str
) -> None:
    """A process may have anything under a number; only what the kernel made is read."""
    vm = guests.create_vm(2)
    reader, writer = os.pipe()
    stats = stats_of(vm)
    fds = {"pipe": reader, "closed": 1 << 20, "other vcpu": stats[1], "vm": vm.stats._fd}
    if case == "format":

        def refuse(_: bytes) -> None:
            raise FormatError("odd")

        monkeypatch.setattr(taken_module, "decode_layout", refuse)
    before = len(os.listdir("/proc/self/fd"))
    size = size_of(vm) + 8 * (case == "size")
    with TakenVm(os.getpid(), size) as taken, pytest.raises(OSError, match=match):
        taken.take({0: fds.get(case, stats[0])})
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(reader)
    os.close(writer)


def test_fewer_bytes_than_there_should_be(guests: RealKvm, monkeypatch: pytest.MonkeyPatch) -> None:
    """No numbers are better than part of them."""
    vm = guests.create_vm(1)
    with TakenVm(os.getpid(), size_of(vm)) as taken:
        taken.take(stats_of(vm))
        monkeypatch.setattr(os, "pread", lambda *_: b"")
        with pytest.raises(KvmError, match="vCPU 0: 0 of "):
            taken.read()


def test_a_thread_that_the_scheduler_does_not_count(
    guests: RealKvm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then its numbers are 0; those of a thread that ended stay what they were."""

    def refuse(*_: object) -> None:
        raise OSError("the kernel does not count")

    vm = guests.create_vm(1)
    with TakenVm(os.getpid(), size_of(vm)) as taken, monkeypatch.context() as patch:
        taken.take(stats_of(vm))
        before = taken.read()[0][:SCHEDULE_SIZE]
        patch.setattr(ThreadTimes, "refresh", refuse)
        assert taken.read()[0][:SCHEDULE_SIZE] >= before
        patch.setattr(taken_module, "ThreadTimes", refuse)
        with TakenVm(os.getpid(), size_of(vm)) as other:
            other.take(stats_of(vm))
            assert other.read()[0][:SCHEDULE_SIZE] == bytes(SCHEDULE_SIZE)


def test_a_process_that_has_ended() -> None:
    """It has nothing to take."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    with pytest.raises(KvmError, match="No such process"):
        TakenVm(process.pid, 8)


def test_the_vms_of_processes(guests: RealKvm) -> None:
    """One is found, read, left to a better way, and closed; what is not there has no numbers."""
    said_of: list[str] = []
    vm = guests.create_vm(1)
    taken = TakenVms(size_of(vm), said_of.append)
    files = find_files(os.getpid())
    assert files is not None
    (found,) = taken.look({os.getpid(): files}, ())
    assert (found.name, found.pid, found.numbers[0]) == (vm.name, os.getpid(), None)
    assert taken.read(vm.name) == found.numbers
    assert taken.look({os.getpid(): files}, {vm.name}) == []
    with pytest.raises(KvmError, match="has ended"):
        taken.read(vm.name)
    assert taken.look({os.getpid(): files._replace(stats={0: 1 << 20})}, ()) == []
    assert "statistics descriptors cannot be taken: Bad file" in said_of[0].replace(
        "[Errno 9] ", ""
    )
    assert taken.look({os.getpid(): files._replace(vms=(3, 4))}, ()) == []
    assert said_of[1] == f"{os.getpid()}-3: its process has 2 VMs"
    assert taken.explain(files) == "cannot be taken"
    assert taken.explain(files._replace(stats={})) == "its process keeps none open (QEMU since 8.1)"
    assert taken.find_failure() == ""
    (first,) = taken.look({os.getpid(): files}, ())
    assert taken.look({os.getpid(): files._replace(stats={})}, ()) == []
    (second,) = taken.look({os.getpid(): files}, ())
    assert first.which is not None
    assert second.which == (first.which[0], 1) != first.which
    # A reader who knew the first one is not told of the second one.
    assert taken.read(vm.name, first.which) == (None, {})
    assert taken.read(vm.name, second.which) == second.numbers
    taken.close()


@pytest.mark.mount
def test_a_qemu_that_keeps_its_descriptors(mountpoint: Path, tmp_path: Path) -> None:
    """Shown without BPF, with the numbers of its descriptors; killed it is not kept alive."""
    with (
        KvmUevents() as uevents,
        mounted(mountpoint, "--kvm", statsfs=[STATSFS[0], "-c", WITHOUT_BPF]),
        running(tmp_path / "a.qmp", find_qemu("debian13")) as vm,
    ):
        directory = mountpoint / "kvm" / vm.name
        wait_for(directory / "vcpu1")
        assert os.getxattr(directory, "user.statsfs.kvm.source") == b"descriptors"
        vm.execute("stop")
        for vcpu, stats in take_stats(vm.pid).items():
            with stats:
                stats.refresh()
                values = shown(directory / f"vcpu{vcpu}")
                assert values.items() >= dict(stats.numbers).items()
        # There are no numbers of the VM itself, and so no files.
        assert not (directory / "remote_tlb_flush").exists()
        exits = int(number(directory / "exits"))
        vm.send_signal(signal.SIGSTOP)
        assert number(directory / "exits") == exits > 0
        vm.send_signal(signal.SIGKILL)
        wait_until(lambda: not directory.exists(), "the end")
        wait_until(
            lambda: any((one.created, one.name) == (False, vm.name) for one in uevents.read()[0]),
            "the VM's end in the kernel",
        )
        assert int(number(mountpoint / "kvm" / "exits")) >= exits
