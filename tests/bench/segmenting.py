"""What an increment in a segment costs, beside a plain attribute and prometheus_client's files.

prometheus_client looks at import time whether it is to share its counters among processes; so what
is measured is measured in a process of its own, in turns as ever.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from statsfs.model.fields import log_hist, u64
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate
from statsfs.segments import publish
from tests.bench.counting import (
    ROUNDS,
    TIMES,
    Observer,
    Slotted,
    fresh,
    increment,
    increment_counter,
    increment_labelled,
    nothing,
    nothing_observed,
    observe,
)
from tests.bench.measuring import Line, Loop, compare, divide, show, take_turns, tell

LEAST = 5  # times as fast as prometheus_client's
BUCKETS = 40


class Published(Stats):
    """What is counted in a segment."""

    exits = u64(Aggregate.SUM)
    times = log_hist(BUCKETS, Aggregate.SUM)


def increment_by_way_of(segment: Any) -> Loop:
    """A loop that asks the segment for its attributes each time."""

    def loop() -> None:
        for _ in range(TIMES):
            segment.stats.exits += 1

    return fresh(loop)


def publish_and_close(directory: str) -> Loop:
    """A loop that publishes a hundred segments."""

    def loop() -> None:
        for number in range(100):
            publish("bench/worker-%d", number, values=Published, directory=directory).close()

    return loop


def measure_here(directory: str) -> dict[str, list[float]]:
    """Seconds of each loop in each round; the environment is as prometheus_client wants it."""
    registry = CollectorRegistry()
    plain = Counter("exits", "VM exits", registry=registry)
    labelled = Counter("labelled", "VM exits", ["vm", "vcpu"], registry=registry)
    assert type(plain._value).__name__ == "MmapedValue"
    segment = publish("bench/main", values=Published, directory=directory)
    loops = {
        "nothing": nothing,
        "plain": increment(Slotted()),
        "segment": increment(segment.stats),
        "by way of": increment_by_way_of(segment),
        "counter": increment_counter(plain),
        "kept child": increment_counter(labelled.labels("1234-11", "vcpu0")),
        "labelled": increment_labelled(labelled),
        "nothing observed": nothing_observed,
        "method": observe(Observer()),
        "observed": observe(segment.stats.times),
        "publish": publish_and_close(directory),
    }
    return dict(zip(loops, take_turns(loops.values(), ROUNDS), strict=True))


def measure_elsewhere() -> dict[str, list[float]]:
    """The same in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        os.mkdir(f"{directory}/theirs")
        os.mkdir(f"{directory}/ours", mode=0o755)
        done = subprocess.run(
            [sys.executable, "-m", __name__, f"{directory}/ours"],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": f"{directory}/theirs"},
            stdout=subprocess.PIPE,
            check=True,
        )
        found: dict[str, list[float]] = json.loads(done.stdout)
        return found


def measure() -> Iterator[Line]:
    """One increment of each, one observation, one segment."""
    found = measure_elsewhere()

    def net(name: str, empty: str = "nothing") -> list[float]:
        pairs = zip(found[name], found[empty], strict=True)
        return [(whole - none) / TIMES for whole, none in pairs]

    plain, segment = net("plain"), net("segment")
    yield tell("a bare slotted attribute += 1", plain, "ns")
    yield compare("an attribute of a segment += 1", segment, plain, None, "ns")
    yield compare("segment.stats.attribute += 1", net("by way of"), plain, None, "ns")
    for what, name in (
        ("Counter.inc()", "counter"),
        ("a kept labels(...) child .inc()", "kept child"),
        ("labels(...).inc()", "labelled"),
    ):
        ratio = divide(net(name), segment)
        yield replace(
            tell(f"prometheus_client, multi-process: {what}", net(name), "ns"),
            ratio=ratio,
            bound=f">= {LEAST} x",
            kept=ratio >= LEAST,
        )
    method = net("method", "nothing observed")
    yield tell("a bare method: bit_length(), attribute += 1", method, "ns")
    observed = net("observed", "nothing observed")
    yield compare("log_hist of a segment: observe(value)", observed, method, None, "ns")
    yield tell("publish and close", [seconds / 100 for seconds in found["publish"]], "us")


def main() -> None:
    """Print what was measured."""
    show(
        "counting in a segment (ratios: to the bare one; prometheus_client: to the segment)",
        measure(),
    )


if __name__ == "__main__":
    print(json.dumps(measure_here(sys.argv[1])))
