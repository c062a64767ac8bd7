"""What grows with the tree, and what must not: memory, mounting, changing, reading."""

import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

from tests.bench import served
from tests.bench.measuring import Line, show, time_once
from tests.support.mounts import serving

# vCPUs of 47 values, in VMs of eight; 8,000 are 1,000 VMs.
COUNTS = (10, 100, 1_000, 8_000, 10_000)
ROUNDS = 5
READS = 2_000
BOUND = 1.5


@dataclass(frozen=True)
class Growth:
    """What was measured at one size; seconds, but for the memory, in bytes."""

    memory: float
    mount: float
    create: float
    remove: float
    value: float
    total: float
    listing: float


# What is measured, its unit, and how many of it are one in what `Growth` has.
MEASURES = {
    "memory": ("memory of the tree", "MiB", 1 / (1 << 20)),
    "mount": ("mounting", "ms", 1e3),
    "create": ("creating a VM of 8 while mounted", "us", 1e6),
    "remove": ("removing it", "us", 1e6),
    "value": ("open + read + close of a value", "us", 1e6),
    "total": ("the same of a total of all", "us", 1e6),
    "listing": ("ls of all VMs", "ms", 1e3),
}
# What must not grow with the tree.
FLAT = ("mount", "create", "remove", "value")

found: dict[int, Growth] = {}


def measure_count(client: Path, count: int) -> Growth:
    """Everything at one size."""
    with serving("later", lifetime=600) as server:
        before = server.call(served.memory)
        server.call(served.grow, count)
        memory = server.call(served.memory) - before
        mounts = []
        for turn in range(ROUNDS):
            mounts.append(server.call(served.time_mount, str(server.mountpoint)))
            if turn < ROUNDS - 1:
                server.call(served.unmount)
        listing = partial(
            subprocess.run, ["ls", "-l", server / "kvm"], check=True, stdout=subprocess.DEVNULL
        )
        listings = [time_once(listing) for _ in range(ROUNDS)]
        with served.one_cpu_with(server.pid):
            files = (server / "kvm/vm0/vcpu0/value_0", server / "kvm/value_0")
            value, total = (
                median(served.ask(client, "orc", file, READS).median for _ in range(ROUNDS))
                for file in files
            )
        create, remove = server.call(served.time_vms, 50)
        server.call(served.unmount)
    return Growth(memory, median(mounts), create, remove, value, total, median(listings))


def measure() -> Iterator[Line]:
    """Each measure at each size, against the smallest."""
    with served.compiled_client() as client:
        found.update((count, measure_count(client, count)) for count in COUNTS)
    first = asdict(found[COUNTS[0]])
    for name, (what, unit, scale) in MEASURES.items():
        for count, growth in found.items():
            figure = asdict(growth)[name]
            ratio = figure / first[name] if first[name] else None
            bounded = name in FLAT and count > COUNTS[0] and ratio is not None
            yield Line(
                f"{what}, of {count:,}",
                f"{figure * scale:.1f} {unit}",
                ratio,
                f"<= {BOUND:g} x" if bounded else "",
                ratio <= BOUND if bounded and ratio is not None else None,
            )


def main() -> None:
    """Print what was measured."""
    show(
        f"growth with the sources of 47 values, in VMs of eight (ratios: to {COUNTS[0]})",
        measure(),
    )
