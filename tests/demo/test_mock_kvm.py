"""The mock KVM: what it declares, what stands still, what moves, what is left afterwards."""

import json
import re
import threading
from importlib.resources import files
from typing import Any

import pytest

from statsfs.demo import mock_kvm
from statsfs.demo.mock_kvm import EXIT_PARTS, MockKvm, MockVm, VcpuStats, VmStats
from statsfs.exceptions import DuplicateNameError, ReleasedError
from statsfs.model.stats import Stats, values_of
from statsfs.model.values import Aggregate, Kind, Type, Unit
from statsfs.tree.registry import Registry
from tests.support.deadlines import wait_until

DATA = files("statsfs") / "data"
LISTED: dict[str, list[dict[str, Any]]] = json.loads((DATA / "kvm_stats.json").read_text())
DESCRIBED: dict[str, dict[str, str]] = json.loads((DATA / "kvm_descriptions.json").read_text())


def numbers(stats: Stats) -> dict[str, int]:
    return {
        value.name: getattr(stats, value.name)
        for value in values_of(type(stats))
        if not value.histogram
    }


def histograms(stats: Stats) -> dict[str, list[int]]:
    return {
        value.name: list(getattr(stats, value.name))
        for value in values_of(type(stats))
        if value.histogram
    }


def check_halts(stats: Stats) -> None:
    """At rest each halt stands in each counter and histogram that KVM would put it in."""
    counted, buckets = numbers(stats), histograms(stats)
    assert counted["halt_exits"] == counted["halt_attempted_poll"]
    assert sum(buckets["halt_poll_success_hist"]) == counted["halt_successful_poll"]
    failed = counted["halt_attempted_poll"] - counted["halt_successful_poll"]
    assert sum(buckets["halt_poll_fail_hist"]) == failed
    assert sum(buckets["halt_wait_hist"]) == counted["halt_wakeup"] == failed
    assert 0 < counted["halt_poll_invalid"] <= counted["halt_successful_poll"]
    for name, found in buckets.items():
        # The sum of the times is what the buckets allow; none was too long for the last but one.
        least = sum(count * (1 << number >> 1) for number, count in enumerate(found))
        total = counted[name.replace("hist", "ns")]
        assert least <= total < 2 * least
        assert found[-1] == 0


def parts(of: dict[str, int]) -> int:
    return sum(of[name] for name in EXIT_PARTS)


def kvm_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if "/vcpu" in t.name]


@pytest.mark.parametrize(
    ("section", "stats", "count"), [("vm", VmStats, 16), ("vcpu", VcpuStats, 47)]
)
def test_values_are_those_of_the_list(section: str, stats: type[Stats], count: int) -> None:
    """The classes declare the kernel's values, in its order."""
    listed = LISTED[section]
    values = values_of(stats)
    assert len(values) == count
    assert [value.name for value in values] == [entry["name"] for entry in listed]
    for value, entry in zip(values, listed, strict=True):
        assert value.kind is Kind[entry["kind"].upper()]
        assert value.unit is Unit[entry["unit"].upper()]
        assert (value.base, value.exponent) == (entry["base"], entry["exponent"])
        assert (value.size, value.bucket_size) == (entry["size"], entry["bucket_size"])
        assert value.type is (Type.BOOL if value.unit is Unit.BOOLEAN else Type.U64)
        assert value.aggregate is (Aggregate.MAX if value.kind is Kind.PEAK else Aggregate.SUM)
        assert value.mode == (0o444 if value.kind is Kind.INSTANT else 0o644)


@pytest.mark.parametrize(("section", "stats"), [("vm", VmStats), ("vcpu", VcpuStats)])
def test_descriptions_are_complete(section: str, stats: type[Stats]) -> None:
    """Each value has one line of its own for people, and nothing else is described."""
    described = [value.description for value in values_of(stats)]
    assert set(DESCRIBED[section]) == {value.name for value in values_of(stats)}
    assert all(described)
    assert len(set(described)) == len(described)


def test_a_tree_that_stands_still() -> None:
    """At rate 0 there are no threads, no zeros, and every sum holds."""
    registry = Registry()
    with MockKvm(registry, rate=0, seed=5) as kvm:
        vms = [kvm.create_vm(2) for _ in range(3)]
        assert kvm.vms == tuple(vms)
        assert kvm_threads() == []
        for vm in vms:
            assert all(numbers(vm.stats).values())
            for vcpu in vm.vcpu_stats:
                counted = numbers(vcpu)
                assert all(counted.values())
                assert counted["exits"] == parts(counted)
                check_halts(vcpu)
        vcpus = [numbers(vcpu) for vm in vms for vcpu in vm.vcpu_stats]
        assert kvm.source.get_value("exits") == sum(counted["exits"] for counted in vcpus)
        assert kvm.source.get_value("guest_mode") == 6
        peaks = [numbers(vm.stats)["max_mmu_rmap_size"] for vm in vms]
        assert kvm.source.get_value("max_mmu_rmap_size") == max(peaks)
        waits = [histograms(vcpu)["halt_wait_hist"] for vm in vms for vcpu in vm.vcpu_stats]
        sums = [sum(counts) for counts in zip(*waits, strict=True)]
        assert kvm.source.get_value("halt_wait_hist") == sums


def snapshot_of(seed: int) -> list[tuple[str, list[dict[str, Any]]]]:
    with MockKvm(Registry(), rate=0, seed=seed) as kvm:
        vms = [kvm.create_vm(2) for _ in range(2)]
        return [
            (vm.name, [{**numbers(one), **histograms(one)} for one in (vm.stats, *vm.vcpu_stats)])
            for vm in vms
        ]


def test_numbers_come_from_the_seed() -> None:
    """One seed gives one tree; another seed, VM or vCPU gives other numbers."""
    assert snapshot_of(1) == snapshot_of(1)
    (name, (vm, first, second)), (other_name, (other_vm, *_)) = snapshot_of(1)
    assert first != second
    assert vm != other_vm
    assert name != other_name
    assert snapshot_of(1) != snapshot_of(2)


def test_the_tree_is_that_of_kvm() -> None:
    """VMs are `<pid>-<fd>`, vCPUs `vcpu<n>`; labels are theirs; the tree alone holds the vCPUs."""
    registry = Registry()
    with MockKvm(registry, rate=0, seed=1) as kvm:
        vm = kvm.create_vm(3)
        assert registry.sources == (kvm.source,)
        assert kvm.source.name == "kvm"
        assert kvm.source.subordinates == (vm.source,)
        assert re.fullmatch(r"[0-9]+-[0-9]+", vm.name)
        assert vm.source.name == vm.name
        assert vm.source.label == "vm"
        vcpus = vm.source.subordinates
        assert [vcpu.name for vcpu in vcpus] == ["vcpu0", "vcpu1", "vcpu2"]
        assert {vcpu.label for vcpu in vcpus} == {"vcpu"}
        assert {vcpu.refcount for vcpu in vcpus} == {1}


def test_totals_are_there_without_a_vm() -> None:
    """The files of `kvm` exist before the first VM and after the last, and read 0."""
    with MockKvm(Registry(), rate=0, seed=1) as kvm:
        before = kvm.source.names()
        assert kvm.source.get_value("exits") == 0
        vm = kvm.create_vm(1)
        assert kvm.source.get_value("exits") > 0
        kvm.destroy_vm(vm)
        assert kvm.source.names() == before
        assert kvm.source.get_value("exits") == 0


@pytest.mark.slow
def test_everything_moves() -> None:
    """Every value moves in time, driven by one thread a vCPU."""
    with MockKvm(Registry(), rate=3000, seed=2) as kvm:
        vm = kvm.create_vm(2)
        assert sorted(kvm_threads()) == [f"{vm.name}/vcpu{number}" for number in range(2)]
        assert all(t.daemon for t in threading.enumerate() if "/vcpu" in t.name)
        seen: set[str] = set()
        stats = (vm.stats, *vm.vcpu_stats)
        everything = {value.name for one in stats for value in values_of(type(one))}

        def moved() -> bool:
            seen.update(name for one in stats for name, number in numbers(one).items() if number)
            seen.update(
                name for one in stats for name, held in histograms(one).items() if any(held)
            )
            return seen == everything

        wait_until(moved)
        wait_until(lambda: kvm.source.get_value("exits") >= 2 * 3000)


def test_exits_are_the_sum_of_their_parts_at_rest() -> None:
    """When a VM has come to rest, each exit of each vCPU stands in exactly one part."""
    with MockKvm(Registry(), rate=50_000, seed=3) as kvm:
        vm = kvm.create_vm(3)
        wait_until(lambda: all(numbers(vcpu)["exits"] > 1000 for vcpu in vm.vcpu_stats))
        kvm.destroy_vm(vm)
        for vcpu in vm.vcpu_stats:
            counted = numbers(vcpu)
            assert counted["exits"] == parts(counted) > 1000
            check_halts(vcpu)
            assert counted["irq_injections"] == counted["irq_window_exits"]


@pytest.mark.slow
def test_a_rate_below_one() -> None:
    """Less than one exit a second is kept in mind until it is one."""
    with MockKvm(Registry(), rate=0.8, seed=3) as kvm:
        vm = kvm.create_vm(1)
        wait_until(lambda: numbers(vm.vcpu_stats[0])["exits"] == 1)


def test_a_rate_that_no_machine_can_reach_ends_at_once() -> None:
    """A batch that would take long is given up when the VM is destroyed."""
    # Half a day's work for a batch.
    with MockKvm(Registry(), rate=1e12, seed=3) as kvm:
        vm = kvm.create_vm(2)
        wait_until(lambda: all(numbers(vcpu)["exits"] > 0 for vcpu in vm.vcpu_stats))
    assert kvm_threads() == []
    counted = numbers(vm.vcpu_stats[0])
    assert counted["exits"] == parts(counted)


def test_a_destroyed_vm_leaves_nothing() -> None:
    """Its threads have ended, its source is released, its vCPUs with it; the others go on."""
    with MockKvm(Registry(), rate=1000, seed=4) as kvm:
        stays, goes = kvm.create_vm(2), kvm.create_vm(2)
        vcpu = goes.source.subordinates[0]
        kvm.destroy_vm(goes)
        assert kvm.vms == (stays,)
        assert {name.partition("/")[0] for name in kvm_threads()} == {stays.name}
        for source in (goes.source, vcpu):
            with pytest.raises(ReleasedError):
                source.get_value("exits")
        with pytest.raises(ValueError, match="no such VM"):
            kvm.destroy_vm(goes)
        before = numbers(stays.vcpu_stats[0])["exits"]
        wait_until(lambda: numbers(stays.vcpu_stats[0])["exits"] > before)


def test_close_leaves_nothing() -> None:
    """After closing, even twice, there are no threads and no sources, and no VM can be made."""
    registry = Registry()
    kvm = MockKvm(registry, rate=1000, seed=4)
    for _ in range(3):
        kvm.create_vm(2)
    kvm.close()
    kvm.close()
    assert kvm_threads() == []
    assert not registry.sources
    assert not kvm.vms
    with pytest.raises(ReleasedError):
        kvm.create_vm(1)
    with MockKvm(registry, rate=0, seed=4) as again:
        assert registry.sources == (again.source,)


def test_names_never_collide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A VM never gets the name of a living one, not even when names are nearly used up."""
    monkeypatch.setattr(mock_kvm, "_PID_MAX", 301)  # 90 names are left
    with MockKvm(Registry(), rate=0, seed=4) as kvm:
        vms = [kvm.create_vm(0) for _ in range(90)]
        assert len({vm.name for vm in vms}) == 90
        kvm.destroy_vm(vms[17])
        assert kvm.create_vm(0).name == vms[17].name


def test_too_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A VM whose threads cannot all be started is gone again, with those that were."""
    start = threading.Thread.start
    started: list[str] = []

    def limited(thread: threading.Thread) -> None:
        if len(started) == 3:
            raise RuntimeError("can't start new thread")
        started.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with MockKvm(Registry(), rate=1000, seed=4) as kvm:
        vm = kvm.create_vm(2)
        with pytest.raises(RuntimeError, match="thread"):
            kvm.create_vm(2)
        assert kvm.vms == (vm,)
        assert kvm.source.subordinates == (vm.source,)
        assert len(kvm_threads()) == 2


def test_vms_come_and_go_from_many_threads() -> None:
    """Threads that create and destroy VMs at the same time disturb neither each other nor sums."""
    with MockKvm(Registry(), rate=0, seed=6) as kvm:

        def churn() -> None:
            for _ in range(20):
                vm: MockVm = kvm.create_vm(1)
                kvm.source.get_value("exits")
                kvm.destroy_vm(vm)

        threads = [threading.Thread(target=churn) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert kvm.vms == ()
        assert kvm.source.subordinates == ()


@pytest.mark.parametrize("rate", [-1, float("nan"), float("inf")])
def test_rates_that_are_refused(rate: float) -> None:
    """A rate is a finite number of at least 0; what is refused registers nothing."""
    registry = Registry()
    with pytest.raises(ValueError, match="rate"):
        MockKvm(registry, rate=rate, seed=0)
    assert registry.sources == ()


def test_what_else_is_refused() -> None:
    """There is one `kvm` in a registry, and no VM of fewer than 0 vCPUs."""
    registry = Registry()
    with MockKvm(registry, rate=0, seed=0) as kvm:
        with pytest.raises(DuplicateNameError):
            MockKvm(registry, rate=0, seed=0)
        with pytest.raises(ValueError, match="vCPUs"):
            kvm.create_vm(-1)
        assert kvm.vms == ()
