"""A fleet that is watched: hosts, a Prometheus that scrapes them, a VictoriaMetrics."""

import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles

from tests.bench.measuring import cpu_seconds
from tests.fleet.queries import QUERIES, Answer, Federated, ask, federate
from tests.fleet.servers import (
    Watcher,
    hosts,
    memory,
    prometheus,
    victoria_metrics,
    vmalert,
)
from tests.support.deadlines import wait_until
from tests.support.prometheus_server import fetch

__all__ = ["Figures", "Fleet", "start", "tell", "watch"]

RULES_LAST = "prometheus_rule_group_last_duration_seconds"
SENT, BYTES = "prometheus_remote_storage_samples_total", "prometheus_remote_storage_bytes_total"
PENDING = "prometheus_remote_storage_samples_pending"
LOST = ("failed", "dropped", "retried")
_LOOK = 5.0  # seconds between two looks at the servers


@dataclass(frozen=True)
class Fleet:
    """What runs.

    `server` is a Prometheus, which evaluates the rules, or an agent; then `ruler` does, a vmalert.
    """

    count: int
    interval: float
    hosts: int
    ports: list[int]
    server: Watcher
    storage: Watcher
    ruler: Watcher | None

    @property
    def processes(self) -> dict[str, int]:
        """All by name."""
        found = {"the hosts": self.hosts, "VictoriaMetrics": self.storage.pid}
        if self.ruler is None:
            return {**found, "Prometheus": self.server.pid}
        return {**found, "the agent": self.server.pid, "vmalert": self.ruler.pid}

    @property
    def answering(self) -> Watcher:
        """Who can be asked for what the hosts say of themselves."""
        return self.server if self.ruler is None else self.storage


@dataclass(frozen=True)
class Use:
    """What a process takes: bytes now and at most, and of one CPU."""

    memory: int
    most: int
    cpu: float


@dataclass(frozen=True)
class Figures:
    """What was measured.

    Attributes:
        seconds: how long.
        size: bytes of a host's scrape, plain and compressed.
        up: hosts of which each scrape was answered.
        series: those of the hosts, with the few that Prometheus adds to each.
        stored: series that VictoriaMetrics has, of the last minutes.
        uses: of each process.
        scrapes: seconds of each scrape.
        rules: seconds of each evaluation that was seen, by file and group.
        sent: samples that were sent to VictoriaMetrics in this time.
        sent_bytes: their bytes on the wire.
        pending: samples that waited to be sent, at most.
        lost: samples that were lost, or sent more than once.
        rows: samples that VictoriaMetrics has on disk, and their bytes, with those of its index.
        log: bytes of the server's files.
        answers: of the queries, by the name of the server and of the query.
        federated: what another Prometheus gets; None of an agent, which has no numbers.
    """

    seconds: float
    size: tuple[int, int]
    up: int
    series: int
    stored: int
    uses: dict[str, Use]
    scrapes: list[float]
    rules: dict[str, list[float]]
    sent: float
    sent_bytes: float
    pending: float
    lost: float
    rows: tuple[float, float, float]
    log: int
    answers: dict[str, dict[str, Answer]]
    federated: Federated | None


def _has_all(server: Watcher, query: str, count: int) -> bool:
    time.sleep(0.1)  # each question costs what is measured
    return server.count(f"count({query})") == count


@contextmanager
def start(count: int, interval: float, *, agent: bool = False) -> Iterator[Fleet]:
    """Run a fleet; VictoriaMetrics has got what was scraped and recorded of each host."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="statsfs-fleet-")))
        pid, ports = stack.enter_context(hosts(count, interval))
        storage = stack.enter_context(victoria_metrics(place / "storage"))
        server = stack.enter_context(prometheus(place, ports, interval, storage.url, agent=agent))
        ruler = stack.enter_context(vmalert(place, interval, storage.url)) if agent else None
        for query in ("up == 1", "instance:kvm_exits:rate5m"):
            wait_until(partial(_has_all, storage, query, count), query, 30 + 8 * interval)
        yield Fleet(count, interval, pid, ports, server, storage, ruler)


def _scrapes(fleet: Fleet, window: str) -> list[float]:
    found = fleet.answering.api("query", query=f"scrape_duration_seconds[{window}]")["result"]
    return [float(number) for one in found for _, number in one["values"]]


def _size(port: int) -> tuple[int, int]:
    url = f"http://127.0.0.1:{port}/metrics"
    return len(fetch(url)), len(fetch(url, **{"Accept-Encoding": "gzip"}))


def _rows(storage: Watcher) -> tuple[float, float, float]:
    return (
        storage.total("vm_rows", 'type="storage/'),
        storage.total("vm_data_size_bytes", 'type="storage/'),
        storage.total("vm_data_size_bytes", 'type="indexdb'),
    )


def _lost(server: Watcher) -> float:
    return sum(server.total(f"prometheus_remote_storage_samples_{word}_total") for word in LOST)


def watch(fleet: Fleet, seconds: float) -> Figures:
    """Watch for so long, then ask.

    Rates are over five minutes, so with less than that the queries read less than they would.
    """
    server, storage = fleet.server, fleet.storage
    rules: dict[str, list[float]] = defaultdict(list)
    pending = 0.0
    cpu = {name: cpu_seconds(pid) for name, pid in fleet.processes.items()}
    sent, sent_bytes, begun = server.total(SENT), server.total(BYTES), time.monotonic()
    while (left := seconds - (time.monotonic() - begun)) > 0:
        time.sleep(min(left, _LOOK))
        metrics = server.metrics()
        pending = max(pending, sum(number for name, _, number in metrics if name == PENDING))
        for name, labels, number in metrics:
            if name == RULES_LAST and number:  # a group that was not evaluated yet has 0
                file = labels.rpartition("/")[2].removesuffix('"}')
                rules[file.replace(";", ", ")].append(number)
    lasted = time.monotonic() - begun
    cpu = {name: (cpu_seconds(pid) - cpu[name]) / lasted for name, pid in fleet.processes.items()}
    uses = {
        name: Use(memory(pid), memory(pid, "VmHWM"), cpu[name])
        for name, pid in fleet.processes.items()
    }
    sent, sent_bytes = server.total(SENT) - sent, server.total(BYTES) - sent_bytes
    window = f"{lasted:.0f}s"
    asked = {"VictoriaMetrics": storage}
    if fleet.ruler is None:
        asked["Prometheus"] = server
    return Figures(
        lasted,
        _size(fleet.ports[0]),
        fleet.answering.count(f"count(min_over_time(up[{window}]) == 1)"),
        fleet.answering.count_series(fleet.count),
        storage.count_series(fleet.count),
        uses,
        _scrapes(fleet, window),
        rules,
        sent,
        sent_bytes,
        pending,
        _lost(server),
        _rows(storage),
        server.disk(),
        {
            name: {what: ask(one, query, lasted / 60) for what, query in QUERIES.items()}
            for name, one in asked.items()
        },
        federate(server) if fleet.ruler is None else None,
    )


def _span(seconds: list[float]) -> str:
    cuts = quantiles(seconds * 2, n=100, method="inclusive")  # which wants two at least
    shown = {"median": median(seconds), "p99": cuts[98], "worst": max(seconds)}
    return ", ".join(f"{name} {number * 1000:.1f} ms" for name, number in shown.items())


def tell(fleet: Fleet, found: Figures) -> Iterator[str]:
    """The figures, a line each."""
    rate = found.series / fleet.interval
    yield (
        f"{fleet.count} hosts, a scrape each {fleet.interval:g} s, {found.seconds:.0f} s long: "
        f"{found.series:,} series ({found.series / fleet.count:,.0f} a host), {rate:,.0f} samples/s"
    )
    plain, packed = found.size
    yield f"  a scrape of a host: {plain:,} bytes, {packed:,} compressed"
    yield f"  hosts up in each scrape: {found.up} of {fleet.count}; stored series: {found.stored:,}"
    for who, use in found.uses.items():
        yield (
            f"  {who}: {use.memory / 1e6:,.0f} MB ({use.most / 1e6:,.0f} at most), "
            f"{use.memory / found.series:,.0f} bytes a series, {use.cpu:.1%} of a CPU"
        )
    yield f"  scrapes: {_span(found.scrapes)}"
    for group, seconds in found.rules.items():
        yield f"  rules of {group}: {_span(seconds)}"
    yield (
        f"  sent: {found.sent / found.seconds:,.0f} samples/s, "
        f"{found.sent_bytes / max(found.sent, 1):.1f} bytes each; "
        f"{found.pending:,.0f} waited at most; {found.lost:,.0f} lost or sent again"
    )
    rows, size, index = found.rows
    yield (
        f"  VictoriaMetrics on disk: {rows:,.0f} samples, {size / max(rows, 1):.2f} bytes each, "
        f"and {index / found.series:,.0f} bytes of index a series"
    )
    yield f"  the log of who scrapes: {found.log / 1e6:,.0f} MB"
    if found.federated is not None:
        series, size, took = found.federated
        yield f"  federation: {series:,} recorded series, {size:,} bytes, {took * 1000:.0f} ms"
    for who, answers in found.answers.items():
        yield f"  queries of {who}: series, now, a graph of {found.seconds / 60:.0f} min"
        for query, answer in answers.items():
            yield (
                f"    {query:<30} {answer.series:>6,} {answer.now * 1000:>9.1f} ms "
                f"{answer.graph * 1000:>9.1f} ms"
            )
