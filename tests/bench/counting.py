"""What counting and observing cost a producer, beside bare Python and beside prometheus_client."""

import ctypes
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from random import Random
from types import FunctionType
from typing import Any, ClassVar

from prometheus_client import CollectorRegistry, Counter, Histogram

from statsfs.model.fields import hist, linear_hist, log_hist, u64
from statsfs.model.stats import Stats, values_of
from statsfs.model.values import Aggregate
from statsfs.tree.families import Family
from statsfs.tree.per_thread import PerThread
from statsfs.tree.source import Source
from tests.bench.measuring import Line, Loop, compare, divide, show, take_turns, tell

TIMES = 100_000
ROUNDS = 15


class Slotted:
    """What a program without statsfs would count in."""

    __slots__ = ("exits",)

    def __init__(self) -> None:
        self.exits = 0


class Counting(Stats):
    """The same with statsfs."""

    exits = u64(Aggregate.SUM)


def fresh(loop: Any) -> Loop:
    """The same function of code of its own.

    Python specialises code for the type that it meets there; loops that share theirs would cost
    each other that.
    """
    return FunctionType(loop.__code__.replace(), loop.__globals__, closure=loop.__closure__)


def increment(stats: Any) -> Loop:
    """A loop that increments an attribute."""

    def loop() -> None:
        for _ in repeat(None, TIMES):
            stats.exits += 1

    return fresh(loop)


def nothing() -> None:
    """The loop without anything in it, to be taken off the others."""
    for _ in repeat(None, TIMES):
        pass


def increment_counter(counter: Any) -> Loop:
    """A loop that increments a counter of prometheus_client."""

    def loop() -> None:
        for _ in repeat(None, TIMES):
            counter.inc()

    return fresh(loop)


def increment_labelled(counter: Any) -> Loop:
    """The same with labels given each time."""

    def loop() -> None:
        for _ in repeat(None, TIMES):
            counter.labels("1234-11", "vcpu0").inc()

    return loop


def increment_member(family: Family[Counting]) -> Loop:
    """A loop that increments a member of a family, whose labels are given each time."""

    def loop() -> None:
        for _ in repeat(None, TIMES):
            family("1234-11", "vcpu0").exits += 1

    return loop


def increment_mine(stats: PerThread[Counting]) -> Loop:
    """A loop that increments the stats of its thread."""

    def loop() -> None:
        for _ in repeat(None, TIMES):
            stats.mine.exits += 1

    return loop


def measure() -> Iterator[Line]:
    """One increment of each."""
    app = Source("app")
    registry = CollectorRegistry()
    plain = Counter("exits", "VM exits", registry=registry)
    labelled = Counter("labelled", "VM exits", ["vm", "vcpu"], registry=registry)
    loops = [
        nothing,
        increment(Slotted()),
        increment(Counting()),
        increment(Counting.from_buffer(bytearray(8))),
        increment_member(Family(app, Counting, "vm", "vcpu")),
        increment_mine(PerThread(app, Counting)),
        increment_counter(plain),
        increment_counter(labelled.labels("1234-11", "vcpu0")),
        increment_labelled(labelled),
    ]
    empty, *rounds = take_turns(loops, ROUNDS)
    # What the loop itself costs is nobody's.
    bare, stats, slots, member, mine, *others = (
        [(whole - none) / TIMES for whole, none in zip(seconds, empty, strict=True)]
        for seconds in rounds
    )
    yield tell("a bare slotted attribute += 1", bare, "ns")
    yield compare("a Stats attribute += 1", stats, bare, 1.1, "ns")
    yield compare("an attribute of from_buffer += 1", slots, bare, None, "ns")
    yield compare("a Family's member, labels given each time, += 1", member, bare, None, "ns")
    yield compare("PerThread.mine += 1", mine, bare, None, "ns")
    names = ("Counter.inc()", "a kept labels(...) child .inc()", "labels(...).inc()")
    for name, seconds in zip(names, others, strict=True):
        line, ratio = tell(f"prometheus_client: {name}", seconds, "ns"), divide(seconds, stats)
        least = 10 if name == "Counter.inc()" else None
        yield replace(
            line,
            ratio=ratio,
            bound=f">= {least} x" if least else "",
            kept=ratio >= least if least else None,
        )


# Observing

# Nanoseconds, as a histogram of times would see them.
OBSERVED = [int(Random(4).lognormvariate(10, 3)) for _ in range(TIMES)]
BUCKETS = 40
WIDTH = 10**5  # nanoseconds, of a bucket of LINEAR_HIST


class Observer:
    """The bare operation of the same shape as `observe`: a method that counts."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def observe(self, value: int) -> None:
        """What `observe` must do at least: find the bucket, and increment something."""
        value.bit_length()
        self.count += 1


class Buckets:
    """A histogram without a sum: `observe` may cost half as much again."""

    __slots__ = ("buckets",)

    def __init__(self) -> None:
        self.buckets = [0] * BUCKETS

    def observe(self, value: int) -> None:
        """Count in a bucket of LOG_HIST."""
        try:
            self.buckets[value.bit_length()] += 1
        except IndexError:
            self.buckets[-1] += 1


class LinearBuckets(Buckets):
    """The same with buckets of one width."""

    __slots__ = ("bucket_size",)

    def __init__(self) -> None:
        super().__init__()
        self.bucket_size = WIDTH

    def observe(self, value: int) -> None:
        """Count in a bucket of LINEAR_HIST."""
        try:
            self.buckets[value // self.bucket_size] += 1
        except IndexError:
            self.buckets[-1] += 1


class SharedArray(ctypes.Array[ctypes.c_uint64]):
    """The same over a buffer, as an array that ctypes makes at each access."""

    _type_ = ctypes.c_uint64
    _length_ = BUCKETS

    def observe(self, value: int) -> None:
        """Count in a bucket of LOG_HIST."""
        try:
            self[value.bit_length()] += 1
        except IndexError:
            self[-1] += 1


class SharedBuckets(ctypes.Structure):
    """An object over a buffer that has such an array."""

    __slots__ = ()
    _fields_: ClassVar = [("times", SharedArray)]


class Observing(Stats):
    """A histogram of each kind."""

    times = log_hist(BUCKETS, Aggregate.SUM)
    sizes = linear_hist(BUCKETS, WIDTH, Aggregate.SUM)
    bounded = hist([10**power for power in range(3, 12)], Aggregate.SUM)


def nothing_observed() -> None:
    """The loop without anything in it, to be taken off the others."""
    for _ in OBSERVED:
        pass


def observe(histogram: Any) -> Loop:
    """A loop that calls a method for each observation."""

    def loop() -> None:
        for value in OBSERVED:
            histogram.observe(value)

    return fresh(loop)


def observe_by_way_of(stats: Any) -> Loop:
    """A loop that asks an object for its histogram each time."""

    def loop() -> None:
        for value in OBSERVED:
            stats.times.observe(value)

    return fresh(loop)


def increment_in_line(stats: Any) -> Loop:
    """A loop that finds the bucket, and increments an attribute."""

    def loop() -> None:
        for value in OBSERVED:
            value.bit_length()
            stats.exits += 1

    return fresh(loop)


def observe_in_line(buckets: Any) -> Loop:
    """A loop that increments the bucket without a call of anything of statsfs."""

    def loop() -> None:
        for value in OBSERVED:
            buckets[value.bit_length()] += 1

    return fresh(loop)


def measure_observing() -> Iterator[Line]:
    """One observation of each."""
    theirs = Histogram("times", "Times", registry=CollectorRegistry())
    stats = Observing()
    slots = Observing.from_buffer(bytearray(8 * sum(value.size for value in values_of(Observing))))
    loops = {
        "nothing": nothing_observed,
        "method": observe(Observer()),
        "buckets": observe(Buckets()),
        "log": observe(stats.times),
        "linear buckets": observe(LinearBuckets()),
        "linear": observe(stats.sizes),
        "bounded": observe(stats.bounded),
        "shared buckets": observe_by_way_of(SharedBuckets()),
        "shared": observe_by_way_of(slots),
        "increment": increment_in_line(Slotted()),
        "list": observe_in_line([0] * 65),
        "in line": observe_in_line(stats.times.buckets),
        "theirs": observe(theirs),
    }
    found = dict(zip(loops, take_turns(loops.values(), ROUNDS), strict=True))
    net = {
        name: [(whole - none) / TIMES for whole, none in zip(some, found["nothing"], strict=True)]
        for name, some in found.items()
    }

    def line(what: str, name: str, baseline: str, most: float | None = None) -> Line:
        return compare(what, net[name], net[baseline], most, "ns")

    yield tell("a bare method: bit_length(), attribute += 1", net["method"], "ns")
    yield line("buckets alone: observe(value)", "buckets", "method")
    yield line("log_hist (to buckets alone): observe(value)", "log", "buckets", 1.5)
    yield line("linear_hist (the same)", "linear", "linear buckets", 1.5)
    yield line("hist(bounds=...) (to buckets alone)", "bounded", "buckets")
    yield tell(
        "buckets alone over a buffer: stats.times.observe(value)", net["shared buckets"], "ns"
    )
    yield line("log_hist over a buffer (the same)", "shared", "shared buckets", 1.5)
    yield tell("in line: bit_length(), attribute += 1", net["increment"], "ns")
    yield line("in line: list[value.bit_length()] += 1", "list", "increment", 1.2)
    yield line("in line: log_hist.buckets[...] += 1", "in line", "increment", 1.2)
    ratio = divide(net["theirs"], net["log"])
    last = tell("prometheus_client: Histogram.observe(value)", net["theirs"], "ns")
    yield replace(last, ratio=ratio, bound=">= 5 x", kept=ratio >= 5)


def main() -> None:
    """Print what was measured."""
    show(
        "counting, one increment (ratios: to the bare one; prometheus_client: to Stats)", measure()
    )
    show(
        "observing, one value (ratios: to the bare one; prometheus_client: to log_hist)",
        measure_observing(),
    )
