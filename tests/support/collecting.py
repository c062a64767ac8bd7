"""What tests of the collector share: producers dead and alive, and looks at the tree."""

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statsfs.collector import Collector
from statsfs.collector.file_ids import find_id
from statsfs.collector.live_segment import LiveSegment, SegmentNumbers
from statsfs.collector.trusted_directory import Location, TrustedDirectory
from statsfs.collector.watching import Events, Watch
from statsfs.formats.binary import Number
from statsfs.model.fields import s64, u64
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate, Kind, Value
from statsfs.segments import file_format, locks
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.bare import bare_log_hist
from tests.support.deadlines import wait_until
from tests.support.mounts import ROOT, run

if TYPE_CHECKING:
    import pytest  # which the processes of producers do not have

    from tests.support.mount_server import World

__all__ = [
    "Crash",
    "HandMade",
    "Producer",
    "WorkerStats",
    "become",
    "collect",
    "collecting",
    "files_in",
    "find",
    "lose_events",
    "make_segment",
    "remove",
    "total",
    "wait_for",
]


class WorkerStats(Stats):
    """One value of each kind."""

    requests = u64(Aggregate.SUM, description="Requests")
    balance = s64(Aggregate.SUM)
    waits = bare_log_hist(4, Aggregate.SUM)
    deepest = u64(Aggregate.MAX, kind=Kind.PEAK)
    busy = u64(Aggregate.SUM | Aggregate.MIN, kind=Kind.INSTANT)


class Crash(BaseException):
    """The end of a collector in the middle of something, as by SIGKILL."""


@contextlib.contextmanager
def collecting(directory: Path) -> Iterator[Registry]:
    """Run a collector over a directory; give its registry."""
    registry = Registry()
    with Collector(registry, directory):
        yield registry


def collect(world: "World", directory: str) -> None:
    """Start a collector in a server, one that says nothing; it ends with it."""
    logging.disable()
    Collector(world.registry, directory).start()


def find(registry: Registry, path: str) -> Source | None:
    """Return the source at a path, or None."""
    top, *names = path.split("/")
    source = registry.by_name.get(top)
    for name in names:
        source = source and source.find(name)
    return source


def wait_for(registry: Registry, path: str) -> Source:
    """Wait until there is a source at a path; return it."""
    wait_until(lambda: find(registry, path) is not None, path)
    source = find(registry, path)
    assert source is not None
    return source


def total(registry: Registry, name: str = "requests", path: str = "app") -> Any:
    """Return what a directory shows now, or None if there is none."""
    source = find(registry, path)
    return None if source is None else source.get_value(name)


def remove(directory: Path) -> None:
    """Remove a directory in which a collector may just write something."""
    wait_until(lambda: run("rm", "-r", directory, status=None).returncode == 0, "its end")


def files_in(directory: Path) -> list[str]:
    """Return the names of all files of a directory that are not a collector's own."""
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]
    return sorted(name for name in names if name[0] != "." or "-" in name)


class HandMade:
    """A segment that was not published but written, and is locked or not.

    Args:
        file: where.
        encoded: what is in it.
        alive: whether it is locked until `die`.
    """

    def __init__(self, file: Path, encoded: bytes, alive: bool = True) -> None:
        self.file = file
        hidden = file.with_name(f".{file.name}")
        self.fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        os.write(self.fd, encoded)
        if alive:
            assert locks.hold(self.fd)
        os.rename(hidden, file)
        if not alive:
            self.die()

    @classmethod
    def of(
        cls,
        file: Path,
        path: str,
        numbers: Sequence[Number],
        values: Sequence[Value] | None = None,
        alive: bool = True,
        labels: Sequence[str | None] | None = None,
    ) -> "HandMade":
        """Write a segment whose values are sums, named a, b and so on, if none are given."""
        sums = [Value(name, aggregate=Aggregate.SUM) for name in "abcdefgh"[: len(numbers)]]
        encoded = file_format.encode(path, values or sums, labels, numbers=numbers)
        return cls(file, encoded, alive)

    def die(self) -> None:
        """Drop the lock."""
        os.close(self.fd)


def become(user: int) -> None:
    """Keep the rights of one user only, and no groups but the one with that number.

    What the process still has to import must be imported before: this tree may be one that only
    its owner may enter.
    """
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


_PROGRAM = """
import sys
from statsfs import publish
from tests.support.collecting import WorkerStats, become

if user := int(sys.argv[4]):
    become(user)
segment = publish(sys.argv[1], values=WorkerStats, directory=sys.argv[2], mode=int(sys.argv[3], 8))
for line in sys.stdin:
    segment.stats.requests += int(line)
    print(segment.stats.requests, flush=True)
"""


class Producer:
    """A process that counts what it is told.

    Args:
        directory: where it publishes.
        path: what.
        mode: the file's permission bits.
        user: whose it is, if not root's.
    """

    def __init__(self, directory: Path, path: str, mode: int = 0o644, user: int = 0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, path, str(directory), f"{mode:o}", str(user)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")},
        )
        self.count(0)

    def count(self, number: int) -> int:
        """Have it count; return what it has then."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def __enter__(self) -> "Producer":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """End it by SIGKILL, and wait for that."""
        self.process.kill()
        self.process.communicate()


_VALUES = (
    Value("sum", aggregate=Aggregate.SUM),
    Value("waits", aggregate=Aggregate.SUM, kind=Kind.LOG_HIST, size=3),
    Value("peak", aggregate=Aggregate.MAX, kind=Kind.PEAK),
)


def make_segment(directory: TrustedDirectory, path: str) -> LiveSegment:
    """A segment of a sum, a histogram and a peak that is in no tree yet."""
    file = Path(directory.path, f"{path.replace('/', '_')}.stats")
    file.write_bytes(file_format.encode(path, _VALUES, numbers=[5, [1, 2, 3], 7]))
    fd, status = directory.open(file.name)
    metadata = file_format.decode(file.read_bytes())
    assert metadata is not None
    by_name = {value.name: value for value in _VALUES}
    numbers = SegmentNumbers(
        by_name, metadata, find_id(metadata, fd), Location(directory, file.name), fd, status
    )
    source = numbers.make_source((0, 0), lambda parts, clear: clear())
    return LiveSegment(metadata, numbers, source, (0, 0))


def lose_events(patcher: "pytest.MonkeyPatch") -> None:
    """Have more happen than the kernel keeps, at each event."""
    sort = Watch._sort

    def lose(self: Watch, told: list[object]) -> Events:
        sort(self, told)
        return Events(lost=bool(told))

    patcher.setattr(Watch, "_sort", lose)
