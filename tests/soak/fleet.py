"""A server's virtual machines, which come, count and go; what `readers` know of them is in `rules`.

What runs here runs in the server, called by `Server.call`.
"""

from dataclasses import dataclass, field
from itertools import count

from statsfs.model.fields import u64
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate, Kind
from statsfs.tree.source import Source
from tests.soak.rules import LIMIT, OWNERS, VCPUS
from tests.support import mount_calls as calls
from tests.support.mount_server import World
from tests.support.mount_threads import Churn

__all__ = ["end_fleet", "start_fleet"]


class Vm(Stats):
    generation = u64(Aggregate.NONE, kind=Kind.INSTANT, description="no other VM has this number")


class Vcpu(Stats):
    begun = u64(Aggregate.SUM, description="counted first")
    done = u64(Aggregate.SUM, description="counted next")
    peak = u64(Aggregate.MAX, kind=Kind.PEAK, description="as many as begun, counted last")


def _add_vcpu(vm: Source, number: int) -> Vcpu:
    vcpu = Vcpu()
    with Source("vcpu%d", number, label="vcpu") as source:
        source.add_values(Vcpu, vcpu)
        vm.add_subordinate(source)
    return vcpu


def _work(*vcpus: Vcpu, limit: int = LIMIT) -> None:
    for _ in range(limit):
        for vcpu in vcpus:
            vcpu.begun += 1
            vcpu.done += 1
            vcpu.peak = vcpu.begun


@dataclass
class Fleet(Churn):
    """Threads of which each owns two virtual CPUs that stay, and machines that do not."""

    staying: list[tuple[Vcpu, Vcpu]] = field(default_factory=list)
    cleared: Vcpu = field(default_factory=Vcpu)
    generations: "count[int]" = field(default_factory=lambda: count(1))

    def prepare(self, kvm: Source) -> None:
        """Add what stays."""
        with Source("stable", label="vm") as stable, Source("echo", label="vm") as echo:
            for source in (stable, echo):
                kvm.add_subordinate(source)
            self.staying = [(_add_vcpu(stable, n), _add_vcpu(echo, n)) for n in range(OWNERS)]
        with Source("cleared", label="vm") as source:
            source.add_values(Vcpu, self.cleared)
            kvm.add_subordinate(source)

    def _round(self, kvm: Source, number: int) -> None:
        generation = next(self.generations)
        vm, base = Source("vm%d", number, label="vm"), Vm()
        base.generation = generation
        vm.add_values(Vm, base)
        if generation % 2:
            kvm.add_subordinate(vm)
        vcpus = [_add_vcpu(vm, cpu) for cpu in range(VCPUS)]
        if not generation % 2:
            kvm.add_subordinate(vm)
        for vcpu in vcpus:
            _work(vcpu)
            # So long that readers find it now and then.
            self.stop.wait(0.001)
        _work(*self.staying[number])
        if not number:
            # One thread alone: two could both be below the limit.
            _work(self.cleared, limit=max(0, LIMIT - self.cleared.begun))
        if generation % 3 == 0:
            first = vm.find("vcpu0")
            assert first is not None
            first.revoke()
            vm.remove_subordinate(first)
            vm.add_subordinate(Source("late"))
        kvm.remove_subordinate(vm)
        vm.put()


def start_fleet(world: World) -> None:
    """Begin."""
    calls.clear(world)
    world.kept["fleet"] = fleet = Fleet()
    kvm = calls.kvm_of(world)
    fleet.prepare(kvm)
    fleet.start(kvm, OWNERS)


def end_fleet(world: World) -> tuple[int, list[str]]:
    """End; return how many machines came and went, and what went wrong."""
    result: tuple[int, list[str]] = world.kept.pop("fleet").end()
    return result
