"""What a view costs its reader, beside the files that it stands for, and what it costs others."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median, quantiles

from statsfs.tree.source import Source
from tests.bench.measuring import Line, collection_off, divide, show, take_turns, tell, time_once
from tests.bench.stats import COUNT, VcpuStats
from tests.support.mount_server import World
from tests.support.mounts import serving

VCPUS = 8  # of a VM
ROUNDS = 3
TREE = 1_000  # sources of the files that are read one by one
LARGE = 10_000_000  # bytes of the view that is copied
MANY = 7_000  # sources of the view beside which others read

LEAST = 100  # times as fast as the files
MOST_DELAY = 0.02  # seconds that others wait longer

_MEMORY = Path("/dev/shm")
_PIECE = 1 << 17


def build(world: World, sources: int) -> None:
    """Make so many vCPUs of 47 values, in VMs of eight below `kvm`."""
    kvm = Source("kvm")
    for number in range(sources):
        if number % VCPUS == 0:
            vm = Source("%d-11", number, label="vm")
            kvm.add_subordinate(vm)
        vcpu, stats = Source("vcpu%d", number % VCPUS, label="vcpu"), VcpuStats()
        for index in range(COUNT):
            setattr(stats, f"value_{index}", number * 7919 % 10 ** (index % 12 + 1))
        vcpu.add_values(VcpuStats, stats)
        vm.add_subordinate(vcpu)
    world.registry.register(kvm)


@contextmanager
def kvm_of(sources: int) -> Iterator[Path]:
    """Serve a tree of so many sources; its `kvm`."""
    with serving(measured=False, lifetime=600) as server:
        server.call(build, sources)
        yield server / "kvm"


# Clients


def read(path: str | Path) -> bytes:
    """Open a file, read it to its end, close it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return read_open(descriptor)
    finally:
        os.close(descriptor)


def read_open(descriptor: int) -> bytes:
    """Read an open file to its end."""
    pieces = []
    while piece := os.read(descriptor, _PIECE):
        pieces.append(piece)
    return b"".join(pieces)


def copy(path: Path, target: Path) -> None:
    """Copy a file, as cp does."""
    with open(path, "rb", buffering=0) as source, open(target, "wb", buffering=0) as made:
        while piece := source.read(_PIECE):
            made.write(piece)


def every_file(top: Path) -> list[str]:
    """The files of the sources that have the values themselves."""
    return [f"{vcpu}/value_{index}" for vcpu in top.glob("*/vcpu*") for index in range(COUNT)]


def faster(what: str, seconds: Sequence[float], than: Sequence[float], least: float | None) -> Line:
    """A line for something that must be so many times as fast as something else."""
    ratio = divide(than, seconds)
    line = tell(what, seconds, "ms")
    if least is None:
        return Line(what, line.figure, ratio)
    return Line(what, line.figure, ratio, f">= {least:g} x", ratio >= least)


# Against files


def measure_files() -> Iterator[Line]:
    """All values of a thousand sources, by a view and by their files."""
    with kvm_of(TREE) as kvm:
        paths = every_file(kvm)
        views = [kvm / name for name in (".stats.json", ".stats.prom", ".stats.openmetrics")]

        def read_files() -> None:
            for path in paths:
                read(path)

        files, *rest = take_turns([read_files, *(partial(read, view) for view in views)], ROUNDS)
        yield tell(f"{len(paths):,} files, one by one", files, "ms")
        for view, seconds in zip(views, rest, strict=True):
            yield faster(view.name, seconds, files, LEAST)


def measure_directory() -> Iterator[Line]:
    """The values of one directory, by views and by their files."""
    with kvm_of(VCPUS) as kvm:
        (vm,) = kvm.glob("*-11")
        vcpu = vm / "vcpu0"
        paths = [f"{vcpu}/value_{index}" for index in range(COUNT)]

        def read_files() -> None:
            for path in paths:
                read(path)

        names = (".stats.json", ".stats.bin")
        views = [partial(read, vcpu / name) for name in names]
        files, json, binary = take_turns([read_files, *views], 200)
        yield tell(f"{COUNT} files of one directory", files, "us")
        yield faster(".stats.json of it", json, files, None)
        yield faster(".stats.bin of it", binary, files, None)
        yield faster(".stats.bin of it, to .stats.json", binary, json, None)


# Copies


def measure_copies() -> Iterator[Line]:
    """A large view, copied as cp does, against the same bytes in memory."""
    with kvm_of(1_000) as kvm:
        sources = 1_000 * LARGE // len(read(kvm / ".stats.json"))
    with kvm_of(sources) as kvm, tempfile.TemporaryDirectory(dir=_MEMORY) as directory:
        original, target = Path(directory) / "original", Path(directory) / "target"
        original.write_bytes(read(kvm / ".stats.json"))
        opened: list[float] = []

        def copy_view() -> None:
            copy(kvm / ".stats.json", target)

        def read_opened() -> None:
            descriptor = os.open(kvm / ".stats.json", os.O_RDONLY)
            opened.append(time_once(lambda: read_open(descriptor)))
            os.close(descriptor)

        plain, read_plain, view, _ = take_turns(
            [lambda: copy(original, target), lambda: read(original), copy_view, read_opened], 7
        )
        size = f"{original.stat().st_size / 1e6:.1f} MB"
    yield tell(f"{size} copied from tmpfs to tmpfs", plain, "ms")
    yield compare_only(".stats.json of that size, copied to tmpfs", view, plain)
    yield tell(f"{size} read from tmpfs", read_plain, "ms")
    yield compare_only("the view, once it is open, read", opened[1:], read_plain)


def compare_only(what: str, seconds: Sequence[float], baseline: Sequence[float]) -> Line:
    """A line with a ratio and no bound."""
    return Line(what, tell(what, seconds, "ms").figure, divide(seconds, baseline))


# Beside others

_OPEN = """
import os, sys
while True:
    os.close(os.open(sys.argv[1], os.O_RDONLY))
"""


@contextmanager
def opened_in_a_loop(view: Path) -> Iterator[None]:
    """Have another process open and close a view all the time."""
    process = subprocess.Popen([sys.executable, "-c", _OPEN, view])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def time_reads(path: Path, seconds: float) -> list[float]:
    """How long each reading of a file took, about one a millisecond."""
    found = []
    end = time.monotonic() + seconds
    with collection_off():
        while time.monotonic() < end:
            found.append(time_once(lambda: read(path)))
            time.sleep(0.001)
    return found


def describe(what: str, seconds: list[float], least: float | None = None) -> Line:
    """A line with the median, the 99th percentile and the longest."""
    longest = max(seconds)
    text = ", ".join(
        f"{1e3 * part:.2f}" for part in (median(seconds), quantiles(seconds, n=100)[98], longest)
    )
    if least is None:
        return Line(what, text)
    delay = longest - least
    bound = f"<= {MOST_DELAY * 1e3:.0f} ms more"
    return Line(what, text, None, bound, delay <= MOST_DELAY)


def measure_others() -> Iterator[Line]:
    """One file, read again and again while somebody opens a view of 300,000 values in a loop."""
    with kvm_of(MANY) as kvm:
        file = kvm / "0-11/vcpu0/value_3"
        before = time_reads(file, 3)
        yield describe("no view", before)
        for name in (".stats.json", ".stats.prom", ".stats.openmetrics", ".schema.json"):
            with opened_in_a_loop(kvm / name):
                yield describe(name, time_reads(file, 5), max(before))


def main() -> None:
    """Print what was measured."""
    show(
        f"all of {TREE:,} sources of {COUNT} values, open to close (ratios: times as fast as the "
        "files)",
        [*measure_files(), *measure_directory()],
    )
    show("copying a large view (ratios: to tmpfs)", measure_copies())
    show(
        f"one file beside a view of {MANY * COUNT:,} values (median, 99 %, longest; in ms)",
        measure_others(),
    )
