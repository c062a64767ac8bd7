"""What `statsfs top` takes of a CPU on 10,000 sources, at a tick a second, on a terminal."""

import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time
from pathlib import Path

from statsfs.model.fields import counter, gauge, u64
from statsfs.model.stats import Stats
from statsfs.model.values import Unit
from statsfs.tree.source import Source
from tests.bench.measuring import Line, show
from tests.support.mount_server import World
from tests.support.mounts import serving

SOURCES = 10_000
DIRECTORIES = 100
SECONDS = 15.0
MOST = 0.10  # of a CPU

_WARM = 6.0  # seconds until it has read everything once


class WorkerStats(Stats):
    """Four values."""

    requests = counter("Requests answered")
    busy_ns = u64(unit=Unit.SECONDS, exponent=-9, description="Time spent")
    in_flight = gauge("Being answered")
    errors = counter("Errors")


def build(world: World) -> None:
    """Make all sources, in directories of a hundred."""
    app = Source("app")
    for number in range(SOURCES):
        if number % (SOURCES // DIRECTORIES) == 0:
            shard = Source("shard%d", number)
            app.add_subordinate(shard)
        worker = Source("worker%d", number)
        stats = WorkerStats()
        stats.requests = number
        worker.add_values(WorkerStats, stats)
        shard.add_subordinate(worker)
    world.registry.register(app)


def look(path: Path, keys: str) -> float:
    """Run top on a terminal, press keys; the share of a CPU that it then takes."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(sys.executable, [sys.executable, "-m", "statsfs", "top", str(path)])
    try:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 180, 0, 0))
        _drain(terminal, _WARM)
        for key in keys:
            os.write(terminal, key.encode())
            _drain(terminal, 1)
        before, begun = _cpu(child), time.monotonic()
        _drain(terminal, SECONDS)
        return (_cpu(child) - before) / (time.monotonic() - begun)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(terminal)


def _drain(terminal: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([terminal], [], [], left)[0]:
            os.read(terminal, 1 << 16)


def _cpu(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print what was measured."""
    lines = []
    with serving(measured=False, lifetime=600) as server:
        server.call(build)
        for what, keys in (
            ("folded", ""), ("all unfolded", "*"), ("all unfolded, sorted by value", "*>"),
        ):  # fmt: skip
            share = look(Path(server / "app"), keys)
            bound = f"<= {MOST:.0%}"
            lines.append(Line(what, f"{share:.1%}", bound=bound, kept=share <= MOST))
    show(f"`statsfs top` on {SOURCES:,} sources of 4 values: of a CPU", lines)
