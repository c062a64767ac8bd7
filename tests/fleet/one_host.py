"""What a host costs: a real daemon with published segments, and its scrapes.

The daemon is a process of its own; the producers are one other, this one.
"""

import gzip
import http.client
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from statistics import median
from typing import NamedTuple
from urllib.parse import urlsplit

from statsfs.model.fields import counter
from statsfs.model.stats import Stats
from statsfs.segments import publish
from tests.bench.measuring import cpu_seconds
from tests.fleet.servers import memory
from tests.support.commands import serving
from tests.support.deadlines import wait_until
from tests.support.mounts import directory_for_a_mount

__all__ = ["Cost", "measure", "tell"]

TIMES = 15
_WAIT = 120.0  # seconds
# As Prometheus asks.
_ACCEPT = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


class TenStats(Stats):
    """What a program counts."""

    a = counter("Counted")
    b = counter("Counted")
    c = counter("Counted")
    d = counter("Counted")
    e = counter("Counted")
    f = counter("Counted")
    g = counter("Counted")
    h = counter("Counted")
    i = counter("Counted")
    j = counter("Counted")


class Cost(NamedTuple):
    """What the daemon of a host costs; of a scrape the medians.

    Attributes:
        sources: how many programs it shows.
        series: samples of a scrape.
        plain: bytes of a scrape.
        packed: bytes of a compressed one.
        cpu: seconds of CPU of a compressed one.
        seconds: how long it takes.
        some: samples, bytes and seconds of CPU of a scrape that asks for one metric of the ten.
        memory: bytes of the daemon.
    """

    sources: int
    series: int
    plain: int
    packed: int
    cpu: float
    seconds: float
    some: tuple[int, int, float]
    memory: int


def _fetch(port: int, path: str) -> tuple[bytes, bytes]:
    # What was sent, and the text: some metrics are not compressed if they are large.
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=_WAIT)) as connection:
        connection.request("GET", path, headers={"Accept": _ACCEPT, "Accept-Encoding": "gzip"})
        response = connection.getresponse()
        assert response.status == 200
        body = response.read()
        return body, gzip.decompress(body) if response.headers["Content-Encoding"] else body


def _count_samples(text: bytes) -> int:
    return sum(not line.startswith(b"#") for line in text.splitlines())


@contextmanager
def _daemon(count: int) -> Iterator[tuple[int, int, list[TenStats]]]:
    # The process and the port of a daemon that shows so many segments, and what counts in them.
    with ExitStack() as stack:
        # Segments belong into memory.
        made = tempfile.TemporaryDirectory(prefix="statsfs-fleet-", dir="/dev/shm")
        segments = stack.enter_context(made)
        mountpoint = stack.enter_context(directory_for_a_mount())
        published = [
            publish(
                "app/worker%d", n, values=TenStats, labels=("app", "worker"), directory=segments
            )
            for n in range(count)
        ]
        for one in published:
            stack.callback(one.close)
        options = ("--segments", segments, "--listen", "0")
        daemon = stack.enter_context(serving("mount", mountpoint, *options))
        port = urlsplit(daemon.line("statsfs: metrics at ").rpartition(" ")[2]).port
        assert port is not None
        app = mountpoint / "app"
        wait_until(lambda: app.is_dir() and len(os.listdir(app)) >= count, "all segments", _WAIT)
        yield daemon.process.pid, port, [one.stats for one in published]
        daemon.process.terminate()
        # It may have said that a start with thousands of segments takes long.
        assert daemon.ended()[0] == 0


def _measure(pid: int, port: int, counting: list[TenStats], path: str) -> tuple[float, float]:
    # Between two scrapes all sources count, which the daemon cannot know.
    cpu, seconds = [], []
    for number in range(TIMES):
        for stats in counting:
            stats.a += number
            stats.j += 1
        before, begun = cpu_seconds(pid), time.perf_counter()
        _fetch(port, path)
        seconds.append(time.perf_counter() - begun)
        cpu.append(cpu_seconds(pid) - before)
    return median(cpu), median(seconds)


def measure(count: int) -> Cost:
    """Run a daemon with so many sources, and scrape it."""
    with _daemon(count) as (pid, port, counting):
        for number, stats in enumerate(counting):
            for place, value in enumerate("abcdefghij", 1):
                setattr(stats, value, 7919 * (number + 1) * place)
        cpu, seconds = _measure(pid, port, counting, "/metrics")
        packed, text = _fetch(port, "/metrics")
        assert len(re.findall(rb"^app_a_total\{", text, re.MULTILINE)) == count
        one = "/metrics?name[]=app_a_total"
        cpu_of_one, _ = _measure(pid, port, counting, one)
        resident = memory(pid)
        sent, text_of_one = _fetch(port, one)
        some = (_count_samples(text_of_one), len(sent), cpu_of_one)
    return Cost(count, _count_samples(text), len(text), len(packed), cpu, seconds, some, resident)


def tell(costs: list[Cost]) -> Iterator[str]:
    """A table."""
    yield "one host: a daemon with sources of ten counters, that all count between two scrapes"
    titles = ("sources", "series", "bytes", "gzip", "CPU ms", "takes ms", "MB", "one metric: sent")
    yield "  " + " ".join(f"{title:>10}" for title in (*titles, "CPU ms"))
    for cost in costs:
        cells = (
            f"{cost.sources:,}",
            f"{cost.series:,}",
            f"{cost.plain:,}",
            f"{cost.packed:,}",
            f"{cost.cpu * 1000:.1f}",
            f"{cost.seconds * 1000:.1f}",
            f"{cost.memory / 1e6:.0f}",
            f"{cost.some[1]:>16,}",
            f"{cost.some[2] * 1000:.1f}",
        )
        yield "  " + " ".join(f"{cell:>10}" for cell in cells)
