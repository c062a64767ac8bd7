"""What tests of shares have a server do, called by `Server.call`, and clients of other users."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from statsfs.filesystem import fuse_handlers, handles
from statsfs.filesystem.shares import Shares
from statsfs.model.fields import linear_hist
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate, Kind, Value
from statsfs.tree.source import Source
from tests.support.deadlines import DEADLINE
from tests.support.mount_server import World, mount_here
from tests.support.mount_views import add_many
from tests.support.mounts import ROOT
from tests.support.trees import make_kvm

__all__ = [
    "OPEN_ALL",
    "acting",
    "add_histograms",
    "begun",
    "let_go",
    "mount_with_shares",
    "waiting",
]

ATTACKER = 1234
BUCKETS = 65_535


class Gate:
    """A base whose numbers, and a source whose clears, wait until the test says so."""

    def __init__(self) -> None:
        self.begun = 0
        self.go = threading.Event()

    def wait(self) -> None:
        """Count who comes, and wait."""
        self.begun += 1
        self.go.wait(DEADLINE)

    @property
    def slow(self) -> int:
        """A number."""
        self.wait()
        return 7

    @property
    def large(self) -> list[int]:
        """A large histogram."""
        self.wait()
        return [5, *[0] * (BUCKETS - 1)]


class Large(Stats):
    """A large histogram."""

    h = linear_hist(BUCKETS, 1, Aggregate.SUM)


_LARGE = Value("large", aggregate=Aggregate.SUM, kind=Kind.LINEAR_HIST, size=BUCKETS, bucket_size=1)


def mount_with_shares(world: World, /, mountpoint: str, **shares: int) -> None:
    """Mount with other bounds: a tree with what waits, and what does not."""
    for name, most in shares.items():
        setattr(fuse_handlers if hasattr(fuse_handlers, name) else handles, name, most)

    def make_shares(what: str, most: int) -> Shares:
        made = world.kept["waiting"] = Shares(what, most)
        return made

    setattr(fuse_handlers, "Shares", make_shares)  # noqa: B010  # mypy takes it for a type
    make_kvm(world.registry)
    add_many(world, 100)
    gate = world.kept["gate"] = Gate()
    gate.go.set()  # it is read when it is added
    for name, value in (("slow", Value("slow")), ("large", _LARGE)):
        source = Source(name)
        source.add_values([value], gate)
        world.registry.register(source)
    told = Source("told", cleared=gate.wait)
    told.add_values([Value("slow")], {"slow": 1})
    world.registry.register(told)
    gate.go.clear()
    gate.begun = 0
    mount_here(world, mountpoint, allow_other=True)


def add_histograms(world: World, count: int) -> None:
    """Make `histograms`, with so many large ones in it, of which no bucket is empty."""
    top = Source("histograms")
    for number in range(count):
        source, base = Source("s%d", number), Large()
        base.h.buckets[:] = range(number + 1, number + 1 + BUCKETS)
        source.add_values(Large, base)
        top.add_subordinate(source)
    world.registry.register(top)


def begun(world: World) -> int:
    """Return how many have come to what waits."""
    found: int = world.kept["gate"].begun
    return found


def waiting(world: World) -> int:
    """Return how many requests wait."""
    found: int = world.kept["waiting"].used
    return found


def let_go(world: World) -> None:
    """Let all go that wait, and who comes later."""
    world.kept["gate"].go.set()


OPEN_ALL = """
import threading
path, count = sys.argv[1], int(sys.argv[2])
opened, refused = [], []

def look():
    try:
        fd = os.open(path, os.O_RDONLY)
        opened.append(fd)
        os.pread(fd, 10, 0)
    except OSError as error:
        refused.append(error.errno)

if len(sys.argv) > 3:
    threads = [threading.Thread(target=look) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
else:
    for _ in range(count):
        look()
print(len(opened), *sorted(set(refused)), flush=True)
sys.stdin.readline()
"""
"""Opens argv[1] so often, each time in a thread of its own or not; prints how often, and errnos."""


@contextlib.contextmanager
def acting(
    program: str, *arguments: str | Path, user: int = ATTACKER
) -> "Iterator[subprocess.Popen[str]]":
    """Run a program in Python as a user, until the end."""
    head = f"import os, sys\nfrom tests.support.collecting import become\nbecome({user})\n"
    with subprocess.Popen(
        [sys.executable, "-c", head + program, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={key: text for key, text in os.environ.items() if not key.startswith("COVERAGE_")},
    ) as process:
        try:
            yield process
        finally:
            process.kill()
