"""What the directories of a snapshot show, whatever happened to the tree since."""

import logging
from collections.abc import Callable
from typing import Any

import pytest

from statsfs.model.fields import u64
from statsfs.model.stats import Stats, values_of
from statsfs.model.values import Aggregate, Type, Value
from statsfs.tree.pauses import pausing
from statsfs.tree.registry import Registry
from statsfs.tree.snapshot import Snapshot
from statsfs.tree.snapshot_directories import (
    SnapshotDirectory,
    make_directories,
    make_directory,
)
from statsfs.tree.source import Source, directory_of
from tests.support.bare import bare_log_hist
from tests.support.strategies import Plain, property_base


class Cpu(Stats):
    """What a CPU of these tests counts."""

    exits = u64(Aggregate.SUM | Aggregate.MAX)
    waits = bare_log_hist(2, Aggregate.SUM)


class Vm(Stats):
    """What a VM counts; `exits` is also what its CPUs count."""

    exits = u64(Aggregate.SUM)
    pages = u64(Aggregate.NONE)


def shown(content: SnapshotDirectory) -> dict[str, Any]:
    """What a directory shows."""
    return {file.name: number for file, number in content.files()}


def make_tree() -> tuple[Source, Source, list[Source], list[Cpu]]:
    """`kvm/vm` with three CPUs, one of which is hidden, and an array without a base."""
    kvm, vm = Source("kvm"), Source("vm")
    kvm.add_subordinate(vm)
    kvm.add_values([Value("later", aggregate=Aggregate.SUM)], None)
    vm.add_values(Vm, {"exits": 100, "pages": 7})
    cpus, stats = [], []
    for number in range(3):
        cpu, counters = Source("cpu%d", number, hidden=number == 2), Cpu()
        counters.exits = number + 1
        counters.waits.observe(number)
        cpu.add_values(Cpu, counters)
        vm.add_subordinate(cpu)
        cpus.append(cpu)
        stats.append(counters)
    return kvm, vm, cpus, stats


# The exits of the VM and of its CPUs belong together: above they are one total.
KVM = {"later": 0, "exits": 106, "exits.max": 100, "waits": [1, 2]}
VM = {"exits": 100, "pages": 7}
CPUS = [{"exits": 1, "waits": [1, 0]}, {"exits": 2, "waits": [0, 1]}]


def check(root: SnapshotDirectory) -> None:
    """Compare with what `make_tree` makes."""
    assert shown(root) == KVM
    (vm,) = root.subordinates
    # The exits of the CPUs lose to the VM's, and their maximum with them; above too.
    assert shown(vm) == {**VM, "waits": [1, 2]}
    assert [content.source.name for content in vm.subordinates] == ["cpu0", "cpu1"]
    assert [shown(content) for content in vm.subordinates] == CPUS


def test_contents_are_what_directories_show() -> None:
    """With hidden sources counted and not shown, and arrays without a base."""
    kvm, vm, _, _ = make_tree()
    check(make_directories(kvm.snapshot()))
    assert set(kvm.names()) == set(KVM)
    # Again, now that the layouts are known.
    check(make_directories(kvm.snapshot()))
    assert shown(make_directories(vm.snapshot())) == {**VM, "waits": [1, 2]}


@pytest.mark.parametrize("name", ["kvm", "vm", "cpu1"])
def test_one_directory_alone_is_the_same(name: str) -> None:
    """`content` leaves out what is below, and nothing else."""
    kvm, vm, cpus, _ = make_tree()
    source = {"kvm": kvm, "vm": vm, "cpu1": cpus[1]}[name]
    for _ in range(2):
        snapshot = source.snapshot()
        alone, whole = make_directory(snapshot), make_directories(snapshot)
        assert shown(alone) == shown(whole) == {n: source.get_value(n) for n in source.names()}
        assert alone.subordinates == []


def test_an_array_that_is_only_declared_below() -> None:
    """Its aggregates are shown above, and are 0; also where a directory is looked at alone."""
    top, source = Source("top"), Source("s")
    source.add_values(Cpu, None)
    top.add_subordinate(source)
    zeros = {"exits": 0, "exits.max": 0, "waits": [0, 0]}
    snapshot = top.snapshot()
    assert shown(make_directory(snapshot)) == shown(make_directories(snapshot)) == zeros
    assert shown(make_directory(source.snapshot())) == zeros


def change_nothing(kvm: Source, vm: Source, cpu: Source) -> None:
    pass


def remove_below(kvm: Source, vm: Source, cpu: Source) -> None:
    vm.remove_subordinate(cpu)


def remove_vm(kvm: Source, vm: Source, cpu: Source) -> None:
    kvm.remove_subordinate(vm)
    vm.put()


def release_all(kvm: Source, vm: Source, cpu: Source) -> None:
    vm.put()
    cpu.put()
    kvm.put()


def add_a_directory_of_a_values_name(kvm: Source, vm: Source, cpu: Source) -> None:
    for source in (kvm, vm, cpu):
        source.add_subordinate(Source("exits"))


def add_values(kvm: Source, vm: Source, cpu: Source) -> None:
    for source in (kvm, vm, cpu):
        source.add_values([Value("waits"), Value("new")], {"waits": 1, "new": 2})


def revoke(kvm: Source, vm: Source, cpu: Source) -> None:
    for source in (kvm, vm, cpu):
        source.revoke()


CHANGES: tuple[Callable[[Source, Source, Source], None], ...] = (
    change_nothing, remove_below, remove_vm, release_all, add_a_directory_of_a_values_name,
    add_values, revoke,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("read_after", [False, True])
def test_what_changes_after_the_snapshot_is_not_in_it(
    change: Callable[[Source, Source, Source], None], known: bool, read_after: bool
) -> None:
    """Whether or not anybody asked for the files before, or asks for the new ones now."""
    kvm, vm, cpus, stats = make_tree()
    sources = [kvm, vm, *cpus]
    if known:
        for source in sources:
            source.names()
    snapshot, alone = kvm.snapshot(), vm.snapshot()
    for counters in stats:
        counters.exits = 99
    change(kvm, vm, cpus[0])
    if read_after:
        for source in sources:
            if source.refcount:
                source.names()
    check(make_directories(snapshot))
    assert shown(make_directory(alone)) == {**VM, "waits": [1, 2]}
    check(make_directories(snapshot))


def test_names_that_are_lost_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever works the files out first, a reader of the directory or one of a snapshot."""
    kvm, vm, _, _ = make_tree()
    other = Source("other")
    other.add_values([Value("exits", Type.S64, Aggregate.SUM)], {"exits": 9})
    vm.add_subordinate(other)
    make_directories(kvm.snapshot())
    kvm.names()
    make_directories(kvm.snapshot())
    assert [record.getMessage() for record in caplog.records] == [
        "kvm/vm: 'exits' is not shown: another array has 'exits'",
        "kvm: the total 'exits' does not cover another value of that name: its type is s64, "
        "not u64",
    ]
    assert kvm.get_value("exits") == 106


def test_a_broken_base_has_no_number(caplog: pytest.LogCaptureFixture) -> None:
    """Its file is there and has none; the aggregates are of the others."""
    top = Source("top")
    held = [{"exits": 1, "pages": 2} for _ in range(2)]
    for number, one in enumerate(held):
        source = Source("s%d", number)
        source.add_values(Vm, Plain(one))
        top.add_subordinate(source)
    (entry,) = directory_of(top.subordinates[0]).entries.values()
    entry.base.exits = None
    with caplog.at_level(logging.ERROR):
        root = make_directories(top.snapshot())
    first, second = root.subordinates
    assert [first.number(file) for file in first.layout.files.values()] == [None, None]
    assert (shown(first), shown(second)) == ({}, {"exits": 1, "pages": 2})
    assert shown(root) == {"exits": 1}


# Registries


def test_a_snapshot_of_a_registry() -> None:
    """The root has no files; below it is all that is registered, of one moment."""
    registry = Registry()
    assert registry.snapshot().to_dict() == {"values": {}, "subordinates": {}}
    kvm, _, _, stats = make_tree()
    other, hidden = Source("other"), Source("hidden", hidden=True)
    other.add_values(Vm, {"exits": 5, "pages": 6})
    hidden.add_values(Vm, {"exits": 7, "pages": 8})
    for source in (kvm, other, hidden):
        registry.register(source)
    snapshot = registry.snapshot()
    stats[0].exits = 99
    root = make_directories(snapshot)
    assert root.source is registry
    assert root.layout.files == {}
    assert shown(root) == {}
    check(root.subordinates[0])
    assert [content.source.name for content in root.subordinates] == ["kvm", "other"]
    found = snapshot.to_dict()
    assert found["values"] == {}
    assert set(found["subordinates"]) == {"kvm", "other"}
    assert found["subordinates"]["other"] == {
        "values": {"exits": 5, "pages": 6},
        "subordinates": {},
    }
    # By arrays, those of all sources are together.
    assert isinstance(snapshot, Snapshot)
    samples = snapshot.arrays[values_of(Vm)]
    assert sorted(samples.rows) == [(5, 6), (7, 8), (100, 7)]
    assert snapshot.lineage == ()


def test_a_snapshot_knows_where_it_was_made() -> None:
    """The sources from the top to the one that was sampled."""
    kvm, vm, cpus, _ = make_tree()
    assert cpus[0].snapshot().lineage == (kvm, vm, cpus[0])
    assert kvm.snapshot().lineage == (kvm,)


# Pauses


def test_others_get_their_turn() -> None:
    """Decoding and adding up pause every few hundred rows."""
    top = Source("top")
    calls: list[str] = []
    values = (Value("n", aggregate=Aggregate.SUM),)
    for number in range(1000):
        source = Source("s%d", number)
        source.add_values(values, {"n": 1})
        top.add_subordinate(source)
    snapshot = top.snapshot()
    with pausing(lambda: calls.append("decoding")):
        snapshot.decoded()
    assert calls.count("decoding") >= 3
    with pausing(lambda: calls.append("directories")):
        assert shown(make_directories(snapshot)) == {"n": 1000}
    assert calls.count("directories") >= 3
    with pausing(lambda: calls.append("directory")):
        assert shown(make_directory(snapshot)) == {"n": 1000}
    assert calls.count("directory") >= 3


def test_a_deep_tree() -> None:
    """Deeper than Python's stack."""
    top = source = Source("top")
    for _ in range(1050):
        below = Source("s")
        source.add_subordinate(below)
        source = below
    source.add_values([Value("n", aggregate=Aggregate.SUM)], {"n": 3})
    content = make_directories(top.snapshot())
    depth = 0
    while content.subordinates:
        assert shown(content) == {"n": 3}
        (content,) = content.subordinates
        depth += 1
    assert (depth, shown(content)) == (1050, {"n": 3})


def test_how_much_there_is_to_read() -> None:
    """Histograms weigh as much as they have buckets; foreign code more than anything."""
    kvm, _, cpus, _ = make_tree()
    assert directory_of(cpus[0]).weigh() == 3
    assert directory_of(kvm).weigh() == 3 * 3 + 2 + 1
    kvm.add_values(Vm, property_base({"exits": 1, "pages": 1}, True))
    assert directory_of(kvm).weigh() > 1 << 60
