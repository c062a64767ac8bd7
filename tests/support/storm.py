"""A storm of signals whose handler raises, wherever statsfs is at work in the main thread.

    python -m tests.support.storm SECONDS SEED

prints as JSON how often it raised, and what was wrong: trees whose totals are not the sum of their
parts, or that could not be taken apart.
"""

import contextlib
import gc
import json
import random
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import statsfs
from statsfs.exceptions import StatsfsError
from statsfs.model.fields import log_hist, u64
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate, Kind
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source, directory_of

# A checkout may be called statsfs as well, and has this program.
PACKAGE = f"{Path(statsfs.__file__).parent}/"
INTERVAL = 30e-6  # seconds
ROUND = 0.02  # seconds


class Raised(BaseException):
    """What the handler raises."""


class Work(Stats):
    """What a source counts."""

    jobs = u64(Aggregate.SUM)
    deepest = u64(Aggregate.MAX, kind=Kind.PEAK)
    sizes = log_hist(4, Aggregate.SUM)


class Storm:
    """The handler, and how often it raised."""

    def __init__(self) -> None:
        self.raised = 0
        signal.signal(signal.SIGALRM, self._raise)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
            self.raised += 1
            raise Raised

    def start(self) -> None:
        """Begin."""
        signal.setitimer(signal.ITIMER_REAL, INTERVAL, INTERVAL)

    def stop(self) -> None:
        """End."""
        signal.setitimer(signal.ITIMER_REAL, 0)


class Tree:
    """Three directories, of which some retain, and six sources that move between them."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.top = Source("top", retain=random.random() < 0.7)
        self.registry.register(self.top)
        self.pools = [Source(f"p{number}", retain=random.random() < 0.6) for number in range(3)]
        for pool in self.pools:
            self.top.add_subordinate(pool)
        self.works = [Work() for _ in range(6)]
        self.sources = [Source(f"s{number}") for number in range(6)]
        for source, work in zip(self.sources, self.works, strict=True):
            source.add_values(Work, work)

    def step(self) -> None:
        """Do something with each source."""
        for source, work in zip(self.sources, self.works, strict=True):
            work.jobs += 1
            what = random.random()
            parent = source.parent
            if not isinstance(parent, Source):
                random.choice(self.pools).add_subordinate(source)
            elif what < 0.6:
                parent.remove_subordinate(source)
            elif what < 0.7:
                source.revoke()
            elif what < 0.8:
                source.add_values(Work, work)
            elif what < 0.9:
                self.top.get_value("jobs")
            else:
                self.top.snapshot().to_dict()

    def add_up(self) -> int:
        """Return what the living have, and what is retained."""
        index = list(directory_of(self.top).index.values())
        found: int = sum(record.row[0] for one in index for record in one.records or ())
        sources = [self.top]
        for source in sources:
            sources += source.subordinates
            entries = directory_of(source).entries.values()
            found += sum(entry.base.jobs for entry in entries if not entry.declared)
        return found % (1 << 64)

    def take_apart(self) -> None:
        """Remove and release everything."""
        for pool in self.pools:
            for source in pool.subordinates:
                pool.remove_subordinate(source)
            self.top.remove_subordinate(pool)
        self.registry.unregister(self.top)
        for source in (*self.sources, *self.pools, self.top):
            assert source.parent is None
            assert source.refcount == 1, source
            source.put()


def run(storm: Storm) -> list[Any]:
    """Make a tree in the storm, and return what is wrong with it afterwards."""
    tree = Tree()
    end = time.monotonic() + ROUND
    storm.start()
    while time.monotonic() < end:
        with contextlib.suppress(Raised, StatsfsError):
            tree.step()
    storm.stop()
    found: list[dict[str, Any]] = []
    # Another thread, which waits for the lock.
    thread = threading.Thread(
        target=lambda: found.append(tree.top.snapshot().to_dict()["values"]), daemon=True
    )
    thread.start()
    thread.join(10)
    if not found:
        return ["the lock is taken"]
    totals = [found[0]["jobs"], tree.top.get_value("jobs"), tree.add_up()] if found[0] else [0]
    wrong: list[Any] = [] if len(set(totals)) == 1 else [totals]
    if not gc.isenabled():
        wrong.append("collection is off")
    tree.take_apart()
    return wrong


def main(seconds: float, seed: int) -> None:
    """Run for so many seconds, and print what was found."""
    random.seed(seed)
    storm, wrong, rounds = Storm(), list[Any](), 0
    # What is raised in a finalizer or a callback is printed, and nothing else happens.
    sys.unraisablehook = lambda _: None
    end = time.monotonic() + seconds
    while time.monotonic() < end and not wrong:
        wrong += run(storm)
        rounds += 1
    print(json.dumps({"rounds": rounds, "raised": storm.raised, "wrong": wrong}))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
