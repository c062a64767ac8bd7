"""What a pass of a poller costs: `Source.sync` of 300 processes, beside prometheus_client.

What it costs to find the numbers is not measured: that is the poller's own.
"""

from collections.abc import Iterator
from statistics import median

from prometheus_client import CollectorRegistry, Gauge

from statsfs.model.fields import counter, gauge
from statsfs.model.stats import Stats, values_of
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.bench.measuring import Line, Loop, divide, show, take_turns, tell

PROCESSES = 300
ROUNDS = 31
MOST = 0.05  # seconds

Rows = dict[str, dict[str, int]]


class ProcessStats(Stats):
    """What is known of a process."""

    cpu_ns = counter()
    read_bytes = counter()
    written_bytes = counter()
    resident_bytes = gauge()
    threads = gauge()


NAMES = [value.name for value in values_of(ProcessStats)]


def make_rows(first: int, number: int) -> Rows:
    """What a pass found, of processes from a number on."""
    return {str(pid): dict.fromkeys(NAMES, number) for pid in range(first, first + PROCESSES)}


def make_source() -> Source:
    """A registered source that retains."""
    registry, source = Registry(), Source("procs", retain=True, collapse=False)
    registry.register(source)
    return source


def sync_same(source: Source) -> Loop:
    """A loop that syncs the same processes, with new numbers each time."""
    passes = iter([make_rows(0, number) for number in range(ROUNDS + 1)])
    return lambda: source.sync(next(passes), ProcessStats, label="pid")


def sync_others(source: Source, different: int) -> Loop:
    """A loop in which so many processes end and others begin each time."""
    passes = iter([make_rows(different * number, 1) for number in range(ROUNDS + 2)])
    source.sync(next(passes), ProcessStats, label="pid")
    return lambda: source.sync(next(passes), ProcessStats, label="pid")


def set_gauges() -> Loop:
    """A loop that sets as many gauges of prometheus_client, one for each value and process."""
    registry = CollectorRegistry()
    gauges = [(name, Gauge(name, name, ["pid"], registry=registry)) for name in NAMES]
    rows = make_rows(0, 1)

    def loop() -> None:
        for pid, row in rows.items():
            for name, one in gauges:
                one.labels(pid).set(row[name])

    return loop


def measure() -> Iterator[Line]:
    """A pass over the same processes, over some that are others, and over none that were there."""
    loops = {
        "sync, the same processes": sync_same(make_source()),
        "sync, 10 of them are others": sync_others(make_source(), 10),
        "sync, all of them are others": sync_others(make_source(), PROCESSES),
    }
    peer, *found = take_turns([set_gauges(), *loops.values()], ROUNDS)
    yield tell("prometheus_client: labels().set() of each", peer, "ms")
    for what, seconds in zip(loops, found, strict=True):
        figure, kept = tell(what, seconds, "ms").figure, median(seconds) <= MOST
        yield Line(what, figure, divide(seconds, peer), f"<= {MOST * 1e3:g} ms", kept)


def main() -> None:
    """Print what was measured."""
    title = f"a pass over {PROCESSES} processes of {len(NAMES)} values (ratios: to the first)"
    show(title, measure())
