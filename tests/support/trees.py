"""The tree that the filesystem's tests look at, and how it is made."""

from typing import Any

from statsfs.model.fields import boolean, s64, u64
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate, Kind, Unit
from statsfs.tree.refresh import Refresher
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source, directory_of

__all__ = ["Cpu", "add_below", "add_cpu", "make_kvm", "refresher_of", "subordinate"]


class Cpu(Stats):
    """What a CPU of these tests counts."""

    exits = u64(Aggregate.SUM, description="VM exits")
    wait = s64(Aggregate.MIN | Aggregate.MAX | Aggregate.AVG, unit=Unit.SECONDS, exponent=-9)
    busy = boolean(Aggregate.SUM, kind=Kind.INSTANT)


def add_cpu(parent: Source, name: str) -> Cpu:
    """Add a source with the values of `Cpu`; return its base."""
    cpu = Cpu()
    add_below(parent, name, Cpu, cpu)
    return cpu


def add_below(parent: Source, name: str, values: Any, base: object) -> Source:
    """Add a source over a base, to which nobody else has a reference; return it."""
    source = Source(name)
    source.add_values(values, base)
    parent.add_subordinate(source)
    source.put()
    return source


def subordinate(source: Source, name: str) -> Source:
    """Return a subordinate that is there."""
    found = source.find(name)
    assert found is not None
    return found


def make_kvm(registry: Registry, cpus: int = 2) -> Source:
    """Register `kvm`, with `cpu0`, `cpu1` and so on below it."""
    kvm = Source("kvm", label="module")
    registry.register(kvm)
    for number in range(cpus):
        add_cpu(kvm, f"cpu{number}")
    return kvm


def refresher_of(source: Source) -> Refresher:
    """The refresher of a source that has one."""
    refresher = directory_of(source).refresher
    assert refresher is not None
    return refresher
