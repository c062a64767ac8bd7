"""What a collector costs: a total over thousands of segments, memory, descriptors, idleness, delay.

Collector and mount are in a process of their own; the producers are one process, this one, which
has as many segments, and where deaths are measured children of it.
"""

import contextlib
import gc
import os
import resource
import signal
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from statsfs.collector import Collector
from statsfs.model.fields import u64
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate
from statsfs.segments import Segment, publish
from statsfs.segments.file_format import decode
from tests.bench.measuring import Line, compare, show, tell, time_once
from tests.bench.served import memory
from tests.bench.stats import COUNT, VcpuStats
from tests.support.deadlines import wait_until
from tests.support.mount_server import World, mount_here
from tests.support.mounts import Server, serving

TOTAL = 8_000  # segments of one total
REST = 2_000  # others; together as many as one user may have
FEW = 1_000
ROUNDS = 7
MOST = 4  # times what reading the same files takes
IDLE = 2.0  # seconds
TIMES = 100  # publishings and deaths
VISIBLE, GONE = 0.1, 1.0  # seconds at the median
ONE = struct.Struct("@Q")


class TenStats(Stats):
    """What a worker counts."""

    a = u64(Aggregate.SUM)
    b = u64(Aggregate.SUM)
    c = u64(Aggregate.SUM)
    d = u64(Aggregate.SUM)
    e = u64(Aggregate.SUM)
    f = u64(Aggregate.SUM)
    g = u64(Aggregate.SUM)
    h = u64(Aggregate.SUM)
    i = u64(Aggregate.SUM)
    j = u64(Aggregate.SUM)


# What the server is told to do


def start(world: World, directory: str) -> None:
    """Begin to collect."""
    collector = world.kept["collector"] = Collector(world.registry, directory)
    collector.start()


def shown(world: World) -> int:
    """How many segments are in the tree."""
    return sum(len(source.subordinates) for source in world.registry.sources)


def stop(world: World) -> None:
    """Collect no more."""
    world.kept.pop("collector").close()


def descriptors(world: World) -> int:
    """How many are open."""
    return len(os.listdir("/proc/self/fd"))


def collect_garbage(world: World) -> int:
    """Have no more memory than is needed; how much that is, in bytes."""
    gc.collect()
    return memory(world)


def open_all(world: World, directory: str) -> None:
    """Open the segments of the total, as somebody would who reads them and does nothing else."""
    world.kept["floor"] = floor = []
    for file in sorted(Path(directory).glob("app_*.stats")):
        fd = os.open(file, os.O_RDONLY)
        head = decode(os.pread(fd, 1 << 16, 0))
        assert head is not None
        floor.append((fd, head.data_size, head.data_offset))


def time_total(world: World, name: str) -> tuple[float, float]:
    """Seconds of the total of all, and of reading the files and one number of each."""
    app = world.registry.by_name["app"]
    floor = world.kept["floor"]
    found = []

    def read_all() -> None:
        total = 0
        for fd, size, offset in floor:
            total += ONE.unpack_from(os.pread(fd, size, offset))[0]
        found.append(total)

    def read_total() -> None:
        found.append(app.get_value(name))

    gc.collect()
    gc.disable()
    try:
        seconds = time_once(read_total), time_once(read_all)
    finally:
        gc.enable()
    assert found[0] == found[1] > 0, found
    return seconds


def note_changes(world: World) -> None:
    """Note when something comes and goes below `app`, on the clock that all processes share."""
    seen: dict[str, float] = {}
    gone: dict[str, float] = {}
    known: set[str] = set()
    world.kept["moments"] = seen, gone

    def look(change: object) -> None:
        app = world.registry.by_name.get("app")
        names = {source.name for source in app.subordinates} if app is not None else set()
        now = time.monotonic()
        seen.update(dict.fromkeys(names - known, now))
        gone.update(dict.fromkeys(known - names, now))
        known.clear()
        known.update(names)

    world.registry.add_listener(look)


def moments(world: World) -> Any:
    """What was noted."""
    return world.kept["moments"]


# Here


@contextlib.contextmanager
def place() -> Iterator[str]:
    """A directory where /run is: segments belong into memory."""
    with tempfile.TemporaryDirectory(prefix="statsfs-bench-", dir="/dev/shm") as directory:
        os.chmod(directory, 0o755)
        yield directory


def publish_many(
    directory: str, values: type[Stats], names: Iterator[str] | list[str]
) -> list[Segment[Any]]:
    """Publish at these paths."""
    return [publish(name, values=values, directory=directory) for name in names]


def wait_for(server: Server, count: int) -> None:
    """Wait until so many are in the tree."""
    wait_until(lambda: server.call(shown) == count, f"{count} segments", 100)


def use(pid: int) -> tuple[int, int]:
    """Ticks of CPU that a process took, and how often its threads went to sleep."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    switches = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        lines = status.read_text().splitlines()
        switches += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return int(fields[11]) + int(fields[12]), switches


def measure_idleness(server: Server, count: int) -> Line:
    """CPU of a collector and a mount that nobody asks anything."""
    time.sleep(0.5)  # what was published is looked at again for a tenth of a second
    before = use(server.pid)
    time.sleep(IDLE)
    ticks, switches = (now - then for now, then in zip(use(server.pid), before, strict=True))
    what = f"{count:,} idle segments: CPU and wake-ups in {IDLE:g} s"
    return Line(what, f"{ticks * 10} ms, {switches}", None, "none", not ticks and not switches)


def measure_memory() -> Iterator[Line]:
    """Memory and descriptors of a segment, in the collector."""
    for values, count in ((TenStats, 10), (VcpuStats, COUNT)):
        with place() as directory, serving("later", measured=False) as server:
            segments = publish_many(directory, values, ["app/first"])
            server.call(start, directory)
            files, before = server.call(descriptors), server.call(collect_garbage)
            segments += publish_many(directory, values, [f"app/w{n}" for n in range(FEW)])
            wait_for(server, FEW + 1)
            each = (server.call(collect_garbage) - before) / FEW
            files = round((server.call(descriptors) - files) / FEW)
            yield Line(f"a segment of {count} values: memory", f"{each:.0f} bytes")
            server.call(stop)
            for segment in segments:
                segment.close()
    yield Line("a segment: descriptors", str(files), None, "1", files == 1)


def measure_totals() -> Iterator[Line]:
    """A total of very many, and what as many cost that nobody reads."""
    names = [f"app/w{n}" for n in range(TOTAL)]
    with place() as directory, serving("later", measured=False) as server:
        segments = publish_many(directory, TenStats, names[:FEW])
        server.call(start, directory)
        server.call(mount_here, server.mountpoint)
        yield measure_idleness(server, FEW)
        segments += publish_many(directory, TenStats, names[FEW:])
        rest = publish_many(directory, TenStats, [f"rest/w{n}" for n in range(REST)])
        wait_for(server, TOTAL + REST)
        yield measure_idleness(server, TOTAL + REST)
        server.call(open_all, directory)
        ours, floor, idle, through = [], [], [], []
        for number in range(ROUNDS + 1):
            for segment in segments:
                segment.stats.a += 1
            total, bare = server.call(time_total, "a")
            unchanged, _ = server.call(time_total, "a")
            for segment in segments:
                segment.stats.a += 1
            file = server / "app/a"
            reading = time_once(file.read_bytes)
            if number:
                ours.append(total)
                floor.append(bare)
                idle.append(unchanged)
                through.append(reading)
        what = f"a total over {TOTAL:,} segments"
        yield tell(f"pread of {TOTAL:,} open files, and one number of each", floor, "ms")
        yield compare(f"{what} that all counted", ours, floor, MOST, "ms")
        yield compare(f"{what} of which none counted", idle, floor, MOST, "ms")
        yield compare(f"{what} that all counted, through the mount", through, floor, MOST, "ms")
        for segment in (*segments, *rest):
            segment.close()
        server.call(unmount)
        server.call(stop)


def unmount(world: World) -> None:
    """Unmount."""
    world.mounts.pop().close()


def live(directory: str, name: str, ready: int) -> None:
    """Publish, say so, and wait for the end; in a child."""
    try:
        segment = publish(f"app/{name}", values=TenStats, directory=directory)
        segment.stats.a += 1
        os.write(ready, b"!")
        signal.pause()
    finally:
        os._exit(1)


def measure_delays() -> Iterator[Line]:
    """From publishing to being there, from SIGKILL to being gone; in the tree and the mount."""
    with place() as directory, serving("later", measured=False) as server:
        server.call(start, directory)
        server.call(note_changes)
        server.call(mount_here, server.mountpoint)
        begun: dict[str, float] = {}
        killed: dict[str, float] = {}
        there, gone = [], []
        reading, writing = os.pipe()
        # The first stays, so that the directory does.
        segment = publish("app/first", values=TenStats, directory=directory)
        for number in range(TIMES):
            name = f"w{number}"
            begun[name] = time.monotonic()
            pid = os.fork()
            if not pid:
                live(directory, name, writing)
            os.read(reading, 1)
            path = server / f"app/{name}/a"
            begun[name] = time.monotonic()
            there.append(wait_busily(path, True) - begun[name])
            killed[name] = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            gone.append(wait_busily(path, False) - killed[name])
            os.waitpid(pid, 0)
        os.close(reading)
        os.close(writing)
        seen, lost = server.call(moments)
        segment.close()
        server.call(unmount)
        server.call(stop)
    in_tree = [max(0.0, seen[name] - moment) for name, moment in begun.items()]
    left_tree = [lost[name] - moment for name, moment in killed.items()]
    yield describe_delay("published: in the tree", in_tree, VISIBLE)
    yield describe_delay("published: in the mount", there, VISIBLE)
    yield describe_delay("killed: gone from the tree", left_tree, GONE)
    yield describe_delay("killed: gone from the mount", gone, GONE)


def wait_busily(path: Path, there: bool) -> float:
    """Look until a file is there, or is not; return when that was."""
    end = time.monotonic() + GONE * 20
    while path.exists() is not there:
        assert time.monotonic() < end, path
    return time.monotonic()


def describe_delay(what: str, seconds: list[float], most: float) -> Line:
    """A line for the median and the 99th percentile."""
    middle, worst = median(seconds), sorted(seconds)[len(seconds) * 99 // 100]
    figure = f"{middle * 1e3:.1f}, p99 {worst * 1e3:.1f} ms"
    return Line(what, figure, None, f"< {most * 1e3:g} ms", middle < most)


def measure() -> Iterator[Line]:
    """All of it."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    yield from measure_delays()
    yield from measure_memory()
    yield from measure_totals()


def main() -> None:
    """Print what was measured."""
    show("collecting segments of 10 values (ratios: to reading the same files)", measure())
