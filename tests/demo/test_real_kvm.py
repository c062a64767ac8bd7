"""Real guests through /dev/kvm: what the kernel counts for them, and that nothing stays."""

import errno
import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest

from statsfs.demo.mock_kvm import VcpuStats, VmStats
from statsfs.demo.real_kvm import RealKvm, RealVm
from statsfs.exceptions import DuplicateNameError, UnavailableError
from statsfs.model.stats import values_of
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.deadlines import wait_until
from tests.support.kvm_files import shapes

pytestmark = pytest.mark.kvm


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    """No test leaves a descriptor, a mapping of KVM's or a thread behind."""
    before = (opened(), threading.active_count())
    yield
    assert (opened(), threading.active_count()) == before


def opened() -> list[str]:
    """The descriptors and mappings of KVM that this process has."""
    names = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    links = [os.readlink(name) for name in names if os.path.lexists(name)]
    mapped = Path("/proc/self/maps").read_text().splitlines()
    return sorted(text.rpartition(" ")[2] for text in (*links, *mapped) if "kvm" in text)


@pytest.fixture
def kvm(registry: Registry) -> Iterator[RealKvm]:
    """Real guests at the usual rate."""
    with RealKvm(registry, rate=2000) as kvm:
        yield kvm


def vcpus_of(vm: RealVm) -> dict[str, Source]:
    return {source.name: source for source in vm.source.subordinates}


@pytest.mark.parametrize("section", ["vm", "vcpu"])
def test_the_mock_shows_what_this_kernel_shows(
    kvm: RealKvm, section: str, record_property: Any
) -> None:
    """What both have is alike, and most is common; what only one has is named.

    Kernels differ in what they count: the mock is that of 6.18, whose dump it matches exactly.
    """
    vm = kvm.create_vm(1)
    stats = vm.stats if section == "vm" else vm.vcpu_stats[0]
    real = shapes(stats.values)
    mock = shapes(values_of(VmStats if section == "vm" else VcpuStats))
    only = {"mock": sorted(mock.keys() - real.keys()), "kernel": sorted(real.keys() - mock.keys())}
    for whose, names in only.items():
        record_property(f"{section}: only of the {whose}", names)
        print(f"{section}: only of the {whose}: {', '.join(names) or 'nothing'}")
    common = mock.keys() & real.keys()
    assert {name: real[name] for name in common} == {name: mock[name] for name in common}
    assert 4 * len(common) >= 3 * max(len(mock), len(real)), only


def test_guests_count(kvm: RealKvm) -> None:
    """Exits and halts go on in each vCPU; the VM's and all VMs' totals are their sums."""
    vms = [kvm.create_vm(2), kvm.create_vm(1)]
    assert [list(vcpus_of(vm)) for vm in vms] == [["vcpu0", "vcpu1"], ["vcpu0"]]
    vcpus = [source for vm in vms for source in vcpus_of(vm).values()]
    wait_until(lambda: all(vcpu.get_value("halt_exits") > 20 for vcpu in vcpus))
    found = kvm.source.snapshot().to_dict()
    total = 0
    for vm in vms:
        shown = found["subordinates"][vm.name]
        below = [vcpu["values"] for vcpu in shown["subordinates"].values()]
        for values in below:
            # One exit in ten is a halt; the last may have been counted while this was read.
            assert values["exits"] >= 10 * (values["halt_exits"] - 1)
        assert shown["values"]["exits"] == sum(values["exits"] for values in below)
        total += shown["values"]["exits"]
    assert found["values"]["exits"] == total


def test_totals_of_a_tree_that_stands_still(registry: Registry) -> None:
    """Guests that do not run any more: every total is the sum of what is below."""
    with RealKvm(registry, rate=5000) as kvm:
        vms = [kvm.create_vm(2) for _ in range(2)]
        vcpus = [source for vm in vms for source in vcpus_of(vm).values()]
        wait_until(lambda: all(vcpu.get_value("halt_exits") for vcpu in vcpus))
        for vm in vms:
            vm.stop()
        wait_until(lambda: not [t for t in threading.enumerate() if "/vcpu" in t.name])
        exits = [vcpu.get_value("exits") for vcpu in vcpus]
        assert all(exits)
        assert kvm.source.get_value("exits") == sum(exits)
        assert [vm.source.get_value("exits") for vm in vms] == [sum(exits[:2]), sum(exits[2:])]


def test_names_are_those_of_debugfs(kvm: RealKvm) -> None:
    """A VM is the number of the thread that made it, and its descriptor."""
    vm = kvm.create_vm(1)
    pid, fd = vm.name.split("-")
    assert os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:kvm-vm"
    assert vm.stats.id == f"kvm-{pid}"
    assert vm.vcpu_stats[0].id == f"kvm-{pid}/vcpu-0"
    labels = [vm.source.label, *(source.label for source in vm.source.subordinates)]
    assert labels == ["vm", "vcpu"]


def test_totals_before_the_first_vm(registry: Registry) -> None:
    """The files are there, and 0, before a VM comes and after the last one went."""
    with RealKvm(registry, rate=0) as kvm:
        before = kvm.source.names()
        assert {"exits", "halt_wait_hist", "mmu_cache_miss", "max_mmu_rmap_size"} <= set(before)
        assert kvm.source.get_value("exits") == 0
        vm = kvm.create_vm(2)
        assert kvm.source.names() == before
        assert list(kvm.vms) == [vm]
        kvm.destroy_vm(vm)
        assert kvm.source.names() == before
        assert list(kvm.vms) == []


def test_at_rate_0_no_guest_runs(registry: Registry) -> None:
    """There are no threads, and nothing is counted."""
    with RealKvm(registry, rate=0) as kvm:
        threads = threading.active_count()
        vm = kvm.create_vm(2)
        assert threading.active_count() == threads
        assert vm.source.get_value("exits") == 0


def test_a_destroyed_vm_has_no_data(kvm: RealKvm) -> None:
    """A reference to its source does not keep it alive, and reads fail."""
    vm = kvm.create_vm(1)
    (vcpu,) = vm.source.subordinates
    with vcpu.get():
        kvm.destroy_vm(vm)
        with pytest.raises(UnavailableError):
            vcpu.get_value("exits")


def test_clearing_real_numbers(kvm: RealKvm) -> None:
    """Counting goes on in the kernel; what it had is subtracted."""
    vm = kvm.create_vm(1)
    (stats,) = vm.vcpu_stats
    wait_until(lambda: vm.source.get_value("exits") > 1000)
    kvm.source.clear_value("exits")
    assert stats.numbers.baselines["exits"] > 1000
    counted = vm.source.get_value("exits")
    wait_until(lambda: vm.source.get_value("exits") > counted)


@contextmanager
def few_descriptors(more: int) -> Iterator[None]:
    """Let this process open only so many files more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {int(name) for name in os.listdir("/proc/self/fd")}
    free = (number for number in count() if number not in taken)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(islice(free, more, None)), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_no_more_descriptors(kvm: RealKvm) -> None:
    """A VM that cannot be made whole is not made at all."""
    before = opened()
    for more in range(8):
        with few_descriptors(more), pytest.raises(OSError, match="Too many open files") as caught:
            kvm.create_vm(64)
        assert caught.value.errno == errno.EMFILE
        assert opened() == before
    assert kvm.source.subordinates == ()
    kvm.create_vm(1)


def test_no_more_threads(kvm: RealKvm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The VM is gone again, and the threads that had begun have ended."""
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        kvm.create_vm(3)
    assert kvm.vms == ()
    assert kvm.source.subordinates == ()
    assert not any(thread.is_alive() for thread in started)


def test_a_vcpu_that_cannot_run(
    kvm: RealKvm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected exit ends the vCPU, not the program; it is logged once."""
    monkeypatch.setattr("statsfs.demo.real_kvm._CODE", bytes.fromhex("0f0b"))  # ud2, and no IDT
    vm = kvm.create_vm(1)
    wait_until(lambda: bool(caplog.messages), "the log")
    (message,) = caplog.messages
    assert message.startswith(f"{vm.name}/vcpu0 stopped: ")
    assert vm.source.get_value("exits") >= 0


def test_a_second_kvm_is_refused(registry: Registry, kvm: RealKvm) -> None:
    """A registry has one `kvm`; the second leaves nothing."""
    with pytest.raises(DuplicateNameError):
        RealKvm(registry)
    assert list(registry.sources) == [kvm.source]


def test_another_machine(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guests are of one kind of CPU."""
    uname = os.uname()
    other = os.uname_result((*uname[:4], "aarch64"))
    monkeypatch.setattr(os, "uname", lambda: other)
    with pytest.raises(OSError, match="x86-64"):
        RealKvm(registry)


def test_an_old_kernel(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without statistics descriptors, the error names the first Linux that has them."""
    monkeypatch.setattr("statsfs.demo.real_kvm._CAP_BINARY_STATS_FD", 0x7FFFFFFF)
    with pytest.raises(OSError, match=r"5\.14"):
        RealKvm(registry)


def test_signals_in_a_vcpu(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """A signal that hits a vCPU's thread in its guest ends nothing."""
    caught: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: caught.append(number))
    try:
        with RealKvm(registry, rate=1e6) as kvm:
            vm = kvm.create_vm(1)
            (ident,) = (t.ident for t in threading.enumerate() if t.name == f"{vm.name}/vcpu0")
            assert ident is not None

            def hit() -> bool:
                signal.pthread_kill(ident, signal.SIGUSR1)
                return bool(vm.source.get_value("signal_exits"))

            wait_until(hit)
            assert caught
            counted = vm.source.get_value("exits")
            wait_until(lambda: vm.source.get_value("exits") > counted + 100)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert caplog.messages == []


def test_closing_twice(registry: Registry) -> None:
    """The second time there is nothing to do."""
    kvm = RealKvm(registry)
    kvm.create_vm(1)
    kvm.close()
    kvm.close()
    assert list(registry.sources) == []
