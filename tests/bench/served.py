"""Servers and clients that are measured, each in a process of its own.

What a server is told to do is here as well, as functions for `Server.call`.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from statsfs.filesystem.mounting import mount
from statsfs.model.values import Value
from statsfs.tree.source import Source
from tests.bench.changing import Tree
from tests.bench.stats import VcpuStats
from tests.support.deadlines import DEADLINE
from tests.support.mount_server import World
from tests.support.mounts import ROOT, directory_for_a_mount, one_cpu

__all__ = [
    "Figures",
    "add_files",
    "add_vcpus",
    "ask",
    "compiled_client",
    "grow",
    "memory",
    "one_cpu_with",
    "start_busy_thread",
    "start_ticker",
    "stop_ticker",
    "time_mount",
    "time_vms",
    "unmount",
    "yardstick",
]

CLIENT = Path(__file__).with_name("client.c")


class Figures(NamedTuple):
    """What a client found, in seconds."""

    median: float
    worst: float  # the 99th percentile


@contextlib.contextmanager
def compiled_client() -> Iterator[Path]:
    """Compile the client."""
    with tempfile.TemporaryDirectory(prefix="statsfs-bench-") as directory:
        program = Path(directory, "client")
        subprocess.run(["gcc", "-O2", "-o", program, CLIENT], check=True)
        yield program


def ask(client: Path, what: str, file: Path, count: int, pause: float = 0) -> Figures:
    """Have the client do something so many times, with a pause in seconds before each."""
    command = (client, what, str(count), str(int(pause * 1e6)), file)
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    middle, worst = done.stdout.split()
    return Figures(int(middle) / 1e9, int(worst) / 1e9)


@contextlib.contextmanager
def yardstick(directories: int, files: int) -> Iterator[tuple[Path, int]]:
    """Serve the yardstick; its mount point and its process."""
    command = [sys.executable, "-m", "tests.bench.yardstick"]
    with directory_for_a_mount() as mountpoint:
        process = subprocess.Popen(
            [*command, mountpoint, str(directories), str(files)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "mounted\n"
            yield mountpoint, process.pid
            process.communicate("", DEADLINE)
        finally:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def one_cpu_with(*servers: int) -> Iterator[None]:
    """Keep this thread, what it starts, and servers on one CPU."""
    everywhere = os.sched_getaffinity(0)

    def pin(cpus: set[int]) -> None:
        for server in servers:
            for thread in os.listdir(f"/proc/{server}/task"):
                os.sched_setaffinity(int(thread), cpus)

    with one_cpu():
        pin(os.sched_getaffinity(0))
        try:
            yield
        finally:
            pin(everywhere)


# What servers are told to do


def add_files(world: World, directories: int, files: int) -> None:
    """Register sources `d0` … of values `f0` … that have no aggregates."""
    values = [Value(f"f{number}") for number in range(files)]
    for number in range(directories):
        source = Source("d%d", number)
        source.add_values(values, dict.fromkeys((value.name for value in values), 12345))
        world.registry.register(source)
        source.put()


def add_vcpus(world: World, vcpus: int) -> None:
    """Register `vm` with so many vCPUs."""
    vm = Source("vm")
    for number in range(vcpus):
        vcpu = Source("vcpu%d", number)
        vcpu.add_values(VcpuStats, VcpuStats())
        vm.add_subordinate(vcpu)
        vcpu.put()
    world.registry.register(vm)
    vm.put()


def grow(world: World, vcpus: int) -> None:
    """Register `kvm` with so many vCPUs of 47 values, in VMs of eight."""
    tree = world.kept["tree"] = Tree(vcpus)
    tree.create()
    tree.registry.unregister(tree.top)
    world.registry.register(tree.top)


def memory(world: World) -> int:
    """Return how many bytes of memory the process has."""
    with open("/proc/self/statm") as fields:
        return int(fields.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def time_mount(world: World, mountpoint: str) -> float:
    """Mount; return the seconds that it took."""
    before = time.perf_counter()
    world.mounts.append(mount(world.registry, mountpoint))
    return time.perf_counter() - before


def unmount(world: World) -> None:
    """Unmount."""
    world.mounts.pop().close()


def time_vms(world: World, times: int) -> tuple[float, float]:
    """Add and remove a VM of eight vCPUs so often; return the median seconds of each."""
    added, removed, top = [], [], world.kept["tree"].top
    for number in range(times):
        bases = [VcpuStats() for _ in range(8)]
        before = time.perf_counter()
        vm = Source("new%d", number)
        top.add_subordinate(vm)
        for index, base in enumerate(bases):
            vcpu = Source("vcpu%d", index)
            vcpu.add_values(VcpuStats, base)
            vm.add_subordinate(vcpu)
            vcpu.put()
        between = time.perf_counter()
        top.remove_subordinate(vm)
        removed.append(time.perf_counter() - between)
        added.append(between - before)
        vm.put()
    return median(added), median(removed)


def start_busy_thread(world: World) -> None:
    """Have a thread compute in Python for the rest of the program."""

    def compute() -> None:
        number = 0
        while True:
            number += 1

    threading.Thread(target=compute, daemon=True).start()


def start_ticker(world: World) -> None:
    """Have a trio program tick each millisecond, and note how late."""
    import trio

    late: list[float] = []
    world.kept["late"] = late

    async def tick() -> None:
        while world.kept["late"] is late:
            due = trio.current_time() + 0.001
            await trio.sleep_until(due)
            late.append(trio.current_time() - due)

    trio.lowlevel.spawn_system_task(tick)


def stop_ticker(world: World) -> list[float]:
    """End it; return by how many seconds each tick was late."""
    late: list[float] = world.kept["late"]
    world.kept["late"] = None
    return late
