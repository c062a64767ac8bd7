"""Queries of a fleet that a dashboard has, and how long a server takes to answer them."""

import json
import time
import urllib.parse
from statistics import median
from typing import Final, NamedTuple

from tests.fleet.servers import Watcher
from tests.support.prometheus_server import fetch

__all__ = ["QUERIES", "Answer", "Federated", "ask", "federate"]

QUERIES: Final = {
    "hosts that answer": "count(up == 1)",
    "exits by host, raw": "sum by (instance) (rate(kvm_exits_total[5m]))",
    "exits by host, recorded": "instance:kvm_exits:rate5m",
    "ten busiest VMs, raw": "topk(10, sum by (instance, vm) (rate(kvm_exits_total[5m])))",
    "ten busiest VMs, recorded": "topk(10, instance_vm:kvm_exits:rate5m)",
    "p99 of waits, raw": (
        "histogram_quantile(0.99, sum by (le) (rate(kvm_halt_wait_hist_seconds_bucket[5m])))"
    ),
    "worst p99 of a VM, recorded": "max(instance_vm:kvm_halt_wait_hist_seconds:p99_rate5m)",
    "p99 of requests, raw": (
        "histogram_quantile(0.99, sum by (le) (rate(http_latency_seconds_bucket[5m])))"
    ),
    "p99 by endpoint, recorded": "job_endpoint:http_latency_seconds:p99_rate5m",
}
"""By name. What is recorded is of examples/monitoring/recording.yml."""

_TIMES = 5
_STEP = 15  # seconds


class Answer(NamedTuple):
    """What a query answers, and how long that took in seconds, at the median."""

    series: int
    now: float
    graph: float


def _time(url: str, **parameters: str | float) -> tuple[float, int]:
    # `nocache` is VictoriaMetrics's; Prometheus has no cache.
    address = f"{url}?{urllib.parse.urlencode({**parameters, 'nocache': 1})}"
    seconds = []
    for _ in range(_TIMES):
        before = time.perf_counter()
        body = fetch(address)
        seconds.append(time.perf_counter() - before)
    return median(seconds), len(json.loads(body)["data"]["result"])


class Federated(NamedTuple):
    """What another Prometheus gets in a scrape of what is recorded."""

    series: int
    size: int
    seconds: float


def federate(server: Watcher) -> Federated:
    """Ask as docs/fleet.md says, uncompressed."""
    query = urllib.parse.urlencode({"match[]": '{__name__=~".+:.+"}'})
    before = time.perf_counter()
    text = fetch(f"{server.url}/federate?{query}")
    seconds = time.perf_counter() - before
    return Federated(sum(line[0] != "#" for line in text.decode().splitlines()), len(text), seconds)


def ask(server: Watcher, query: str, minutes: float) -> Answer:
    """Ask for the numbers of now, and for a graph of so many minutes with a point each 15 s."""
    end = time.time()
    now, series = _time(f"{server.url}/api/v1/query", query=query, time=end)
    start = end - minutes * 60
    graph, _ = _time(
        f"{server.url}/api/v1/query_range", query=query, start=start, end=end, step=_STEP
    )
    return Answer(series, now, graph)
