"""Arrays that are taken away from a source, and may come back."""

import pytest

from statsfs.exceptions import ReleasedError, UnknownValueError
from statsfs.filesystem.known import NoSuchFileError
from statsfs.model.fields import u64
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.kernel import Kernel


class Exits(Stats):
    exits = u64(Aggregate.SUM)


class Waits(Stats):
    waits = u64(Aggregate.SUM)


def make_vcpu() -> tuple[Source, Exits, Waits]:
    """A source of two arrays."""
    source, exits, waits = Source("vcpu0"), Exits(), Waits()
    exits.exits, waits.waits = 5, 7
    source.add_values(Exits, exits)
    source.add_values(Waits, waits)
    return source, exits, waits


def shown(source: Source) -> dict[str, int]:
    """What a source shows."""
    return {name: source.get_value(name) for name in source.names()}


def test_what_is_taken_away_is_not_shown() -> None:
    """One array goes, the others stay; a total keeps its name and has none of it."""
    kvm = Source("kvm")
    vcpu, exits, _ = make_vcpu()
    kvm.add_subordinate(vcpu)
    vcpu.remove_values(Waits)
    exits.exits = 6
    assert shown(vcpu) == {"exits": 6}
    assert shown(kvm) == {"exits": 6, "waits": 0}
    with pytest.raises(UnknownValueError):
        vcpu.get_value("waits")
    assert vcpu.snapshot().to_dict()["values"] == {"exits": 6}


def test_what_is_not_there_cannot_be_taken_away() -> None:
    """Nothing happens, also the second time; a released source has no arrays."""
    vcpu, _, _ = make_vcpu()
    vcpu.remove_values(Waits)
    vcpu.remove_values(Waits)
    assert Source("other").names() == []
    Source("other").remove_values(Waits)
    assert shown(vcpu) == {"exits": 5}
    vcpu.put()
    with pytest.raises(ReleasedError):
        vcpu.remove_values(Exits)


def test_a_source_that_retains_keeps_what_was_counted() -> None:
    """Until the array returns over the same base: no total falls, and none counts twice."""
    kvm, vm = Source("kvm", retain=True), Source("vm", retain=True)
    vcpu, _, waits = make_vcpu()
    kvm.add_subordinate(vm)
    vm.add_subordinate(vcpu)
    vcpu.remove_values(Waits)
    waits.waits = 9
    assert (vm.get_value("waits"), kvm.get_value("waits")) == (7, 7)
    vcpu.add_values(Waits, waits)
    assert shown(vcpu) == {"exits": 5, "waits": 9}
    assert (vm.get_value("waits"), kvm.get_value("waits")) == (9, 9)
    vcpu.remove_values(Waits)
    vm.remove_subordinate(vcpu)
    assert (vm.get_value("waits"), kvm.get_value("waits")) == (9, 9)
    vm.add_subordinate(vcpu)
    vcpu.add_values(Waits, waits)
    assert (vm.get_value("waits"), kvm.get_value("waits")) == (9, 9)


def test_another_base_counts_anew() -> None:
    """What another one has counted is more, and not the same again."""
    kvm = Source("kvm", retain=True)
    vcpu, _, _ = make_vcpu()
    kvm.add_subordinate(vcpu)
    vcpu.remove_values(Waits)
    more = Waits()
    more.waits = 2
    vcpu.add_values(Waits, more)
    assert (vcpu.get_value("waits"), kvm.get_value("waits")) == (2, 9)


def test_the_kernel_is_told(registry: Registry, kernel: Kernel) -> None:
    """A name that the kernel knows is gone when the call returns."""
    vcpu, _, _ = make_vcpu()
    registry.register(vcpu)
    kernel.find("vcpu0/waits")
    vcpu.remove_values(Waits)
    assert kernel.stale_names() == []
    with pytest.raises(NoSuchFileError):
        kernel.find("vcpu0/waits")
    kernel.find("vcpu0/exits")
