"""What a scrape of 100,000 samples costs, beside prometheus_client's text of the same samples.

Over HTTP the clients are threads of the process that serves.
"""

import http.client
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics, generate_latest
from prometheus_client.core import Metric

from statsfs.filesystem.mounting import mount
from statsfs.formats import openmetrics, prometheus
from statsfs.model.stats import values_of
from statsfs.monitoring.exposition import RegistryCollector, serve_metrics
from statsfs.monitoring.http_server import MetricsServer
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.bench.measuring import Line, compare, divide, show, take_turns, tell
from tests.bench.stats import VcpuStats

SOURCES = 2_128  # of 47 values: 100,016 samples
VCPUS = 8
ROUNDS = 7
BOUND = 5
AT_ONCE = 20  # scrapes
BOUND_AT_ONCE = 4  # times one scrape
BOUND_PAGE = 0.75


class Collected:
    """Families that were collected before: what is left is to render them."""

    def __init__(self, families: list[Metric]) -> None:
        self.families = families

    def collect(self) -> list[Metric]:
        """Return them."""
        return self.families


def make_tree() -> tuple[Registry, CollectorRegistry]:
    """The same counters twice: in a registry of ours, and as those of prometheus_client."""
    registry, theirs, kvm = Registry(), CollectorRegistry(), Source("kvm")
    registry.register(kvm)
    names = [value.name for value in values_of(VcpuStats)]
    counters = [Counter(f"kvm_{name}", "", ["vcpu", "vm"], registry=theirs) for name in names]
    for number in range(SOURCES // VCPUS):
        vm = Source("%d-11", 4000 + number, label="vm")
        kvm.add_subordinate(vm)
        for index in range(VCPUS):
            vcpu, stats = Source("vcpu%d", index, label="vcpu"), VcpuStats()
            for place, (name, counter) in enumerate(zip(names, counters, strict=True)):
                count = 7919 * (number * VCPUS + index) * (place + 1)
                setattr(stats, name, count)
                counter.labels(vcpu.name, vm.name).inc(count)
            vcpu.add_values(VcpuStats, stats)
            vm.add_subordinate(vcpu)
    return registry, theirs


def scrape(server: MetricsServer, path: str = "/metrics") -> None:
    """Ask as Prometheus does, or as a browser."""
    connection = http.client.HTTPConnection(server.host, server.port)
    with closing(connection):
        connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
        response = connection.getresponse()
        assert (response.status, response.headers["Content-Encoding"]) == (200, "gzip")
        assert response.read()


def ask_for_page(server: MetricsServer) -> None:
    """What the page asks for in a turn: all sources with one value each, and all of one of them."""
    scrape(server, f"/api/stats?depth=3&value={values_of(VcpuStats)[0].name}")
    scrape(server, "/api/stats/kvm/4000-11/vcpu0?depth=0")


def measure() -> Iterator[Line]:
    """Each way to the text, and how many times faster than theirs it is."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # theirs; else twice the samples
    registry, theirs = make_tree()
    plugged = CollectorRegistry()
    plugged.register(RegistryCollector(registry))
    collected: Any = Collected(list(theirs.collect()))
    with (
        tempfile.TemporaryDirectory() as directory,
        mount(registry, directory) as mounted,
        serve_metrics(registry) as server,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        view = Path(mounted.mountpoint) / ".stats.prom"
        assert sorted(read_lines(view.read_bytes())) == sorted(read_lines(generate_latest(theirs)))
        latest, rendering, *others, scraped, many, page = take_turns(
            [
                lambda: generate_latest(theirs),
                lambda: generate_latest(collected),
                lambda: prometheus.render(registry.snapshot()),
                lambda: openmetrics.render(registry.snapshot()),
                view.read_bytes,
                lambda: generate_latest(plugged),
                lambda: scrape(server),
                lambda: list(pool.map(lambda _: scrape(server), range(AT_ONCE))),
                lambda: ask_for_page(server),
            ],
            ROUNDS,
        )
    yield tell("prometheus_client: generate_latest", latest, "ms")
    yield tell("prometheus_client: the same, already collected", rendering, "ms")
    whats = ("snapshot and text", "snapshot and OpenMetrics", "open, read, close .stats.prom")
    bounded = [BOUND, BOUND, BOUND, None]
    names = (*whats, "prometheus_client with RegistryCollector")
    for what, seconds, least in zip(names, others, bounded, strict=True):
        ratio = divide(rendering, seconds)
        kept = None if least is None else ratio >= least
        bound = "" if least is None else f">= {least} x"
        yield replace(tell(what, seconds, "ms"), ratio=ratio, bound=bound, kept=kept)
    yield tell("GET /metrics, compressed", scraped, "ms")
    what = f"{AT_ONCE} of them at once (ratio: to one)"
    yield compare(what, many, scraped, BOUND_AT_ONCE, "ms")
    what = "a turn of the page with all sources open (ratio: to GET /metrics)"
    yield compare(what, page, scraped, BOUND_PAGE, "ms")


def read_lines(text: bytes) -> Iterator[tuple[bytes, float]]:
    """The samples of a text, their numbers as floats."""
    for line in text.splitlines():
        if not line.startswith(b"#"):
            name, _, number = line.rpartition(b" ")
            yield name, float(number)


def main() -> None:
    """Print what was measured."""
    title = f"{SOURCES * len(values_of(VcpuStats)):,} samples as text"
    show(f"{title} (ratios: how many times faster than what was collected already)", measure())
