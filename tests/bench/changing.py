"""What creating and removing sources costs, and that it is linear in how many there are.

What a fold costs, where the source above retains, is compared with removing alone.
"""

from collections.abc import Iterator
from statistics import median

from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.bench.measuring import Line, collection_off, show, time_once
from tests.bench.stats import VcpuStats

COUNTS = (1_000, 8_000, 32_000)
ROUNDS = 3
BOUND = 1.5


class Tree:
    """Many sources that come and go."""

    def __init__(self, count: int, *, retain: bool = False) -> None:
        self.bases = [VcpuStats() for _ in range(count)]
        self.registry, self.top = Registry(), Source("kvm", retain=retain)
        self.registry.register(self.top)

    def create(self) -> None:
        """Make all, in VMs of eight."""
        for number, base in enumerate(self.bases):
            if number % 8 == 0:
                vm = Source("vm%d", number)
                self.top.add_subordinate(vm)
                vm.put()
            vcpu = Source("vcpu%d", number % 8)
            vcpu.add_values(VcpuStats, base)
            vm.add_subordinate(vcpu)
            vcpu.put()

    def remove(self) -> None:
        """Take all away, one by one, the oldest first."""
        for vm in self.top.subordinates:
            for vcpu in vm.subordinates:
                vm.remove_subordinate(vcpu)
            self.top.remove_subordinate(vm)

    def remove_whole(self) -> None:
        """Take all away by VM."""
        for vm in self.top.subordinates:
            self.top.remove_subordinate(vm)


def measure_count(count: int, *, retain: bool = False) -> tuple[float, float, float]:
    """Microseconds for each source: to create it, to remove it, to remove it with its VM."""
    tree = Tree(count, retain=retain)
    steps: list[list[float]] = [[], [], []]
    for _ in range(ROUNDS):
        with collection_off():
            steps[0].append(time_once(tree.create))
            steps[1].append(time_once(tree.remove))
            tree.create()
            steps[2].append(time_once(tree.remove_whole))
    created, removed, whole = (median(step) / count * 1e6 for step in steps)
    return created, removed, whole


def measure() -> Iterator[Line]:
    """Each count against the smallest."""
    found = {count: measure_count(count) for count in COUNTS}
    first = found[COUNTS[0]]
    for step, what in enumerate(("create", "remove one by one", "remove with its VM")):
        for count, figures in found.items():
            ratio = figures[step] / first[step]
            yield Line(
                f"{what}, of {count:,}",
                f"{figures[step]:.1f} us each",
                ratio,
                f"<= {BOUND:g} x" if count > COUNTS[0] else "",
                ratio <= BOUND if count > COUNTS[0] else None,
            )
    alone, folded = measure_count(COUNTS[0]), measure_count(COUNTS[0], retain=True)
    for step, what in ((1, "remove one by one, folded"), (2, "remove with its VM, folded")):
        yield Line(what, f"{folded[step]:.1f} us each", folded[step] / alone[step], "", None)


def main() -> None:
    """Print what was measured."""
    show(
        f"creating and removing sources of 47 values (ratios: to {COUNTS[0]:,}; folded: to not)",
        measure(),
    )
