"""What an idle source of 47 values costs beyond its producer's own object."""

import gc
import tracemalloc
from collections.abc import Iterator

from statsfs.tree.source import Source
from tests.bench.measuring import Line, show
from tests.bench.stats import VcpuStats

SOURCES = 8_000
BOUND = 2048


def traced() -> int:
    """Bytes that are in use now."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def measure() -> Iterator[Line]:
    """Sources that nobody reads, then the same with every directory listed once."""
    top = Source("top")
    vms = [Source("vm%d", number) for number in range(100)]
    for vm in vms:
        top.add_subordinate(vm)
    top.add_values(VcpuStats, None)
    bases = [VcpuStats() for _ in range(SOURCES)]
    tracemalloc.start()
    try:
        before = traced()
        for number, base in enumerate(bases):
            source = Source("vcpu%d", number)
            source.add_values(VcpuStats, base)
            vms[number % 100].add_subordinate(source)
            source.put()
        del source
        idle = (traced() - before) / SOURCES
        for vm in vms:
            for below in vm.subordinates:
                below.names()
        top.snapshot()
        listed = (traced() - before) / SOURCES
    finally:
        tracemalloc.stop()
    yield Line("an idle source", f"{idle:.0f} bytes", None, f"<= {BOUND}", idle <= BOUND)
    yield Line("one that was listed", f"{listed:.0f} bytes", None, f"<= {BOUND}", listed <= BOUND)


def main() -> None:
    """Print what was measured."""
    show(f"memory of a source of 47 values, of {SOURCES:,} in 100 VMs in one tree", measure())
