"""A registry's values for monitoring systems.

Owns `RegistryCollector`, for prometheus_client, and `serve_metrics`, which answers scrapes. Both
export what the Prometheus views show to everybody, and import what they need when they are used.
Threading: any thread; scrapes are answered in threads of their own.
"""

from collections.abc import Iterator
from stat import S_IROTH
from typing import TYPE_CHECKING

from statsfs.formats.metric_families import Family, make_families, name_metrics
from statsfs.formats.metric_names import Metric
from statsfs.monitoring.prometheus_bridge import is_collecting
from statsfs.tree.gil import GIL_OFF, is_gil_on
from statsfs.tree.pauses import pausing
from statsfs.tree.registry import Registry, check_registry
from statsfs.tree.snapshot import take_snapshot

if TYPE_CHECKING:
    from prometheus_client.core import Metric as TheirMetric

    from statsfs.monitoring.http_server import MetricsServer

__all__ = ["RegistryCollector", "serve_metrics", "serve_paused"]


class RegistryCollector:
    """Plugs a registry into prometheus_client.

    Each collection takes a snapshot of the registry, so all its numbers are of one moment.

    prometheus_client asks for the names once, when the collector is registered: it refuses one that
    is taken, and finds by `name[]` and `restricted_registry` what has a name then. That is each
    value in the registry, also one that is only declared (base None). A value of a new name that is
    added later is collected, but has no name there until the collector is unregistered and
    registered again: so declare first what is counted later.

    >>> import prometheus_client
    >>> registry = Registry()
    >>> app = registry.register(Source("app"))
    >>> app.add_values([Value("jobs")], {"jobs": 5})
    >>> prometheus_client.REGISTRY.register(RegistryCollector(registry))
    >>> prometheus_client.REGISTRY.get_sample_value("app_jobs_total")
    5

    Args:
        registry: the values.

    Raises:
        TypeError: it is not a registry.
        ImportError: prometheus_client is not installed.
    """

    def __init__(self, registry: Registry) -> None:
        check_registry(registry)
        try:
            import prometheus_client.core
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "prometheus_client":
                raise
            text = "RegistryCollector needs prometheus_client: pip install 'statsfs[prometheus]'"
            raise ImportError(text, name="prometheus_client") from None
        self._registry = registry
        self._metric = prometheus_client.core.Metric

    def __repr__(self) -> str:
        return f"<RegistryCollector {self._registry!r}>"

    def describe(self) -> list["TheirMetric"]:
        """Return the metrics of all values that there are now, without samples or a refresh.

        >>> registry = Registry()
        >>> app = registry.register(Source("app"))
        >>> app.add_values([Value("jobs", aggregate=Aggregate.SUM)], None)
        >>> [(metric.name, metric.type) for metric in RegistryCollector(registry).describe()]
        [('app_jobs', 'counter')]
        """
        with pausing():
            metrics = name_metrics(take_snapshot(self._registry), mask=S_IROTH)
        return [self._make(metric) for metric in metrics]

    def collect(self) -> Iterator["TheirMetric"]:
        """Return the metric families as they are now.

        >>> registry = Registry()
        >>> app = registry.register(Source("app"))
        >>> app.add_values([Value("jobs")], {"jobs": 5})
        >>> for metric in RegistryCollector(registry).collect():
        ...     [(sample.name, sample.value) for sample in metric.samples]
        [('app_jobs_total', 5)]
        """
        if is_collecting():  # a bridge would show its own files
            return
        with pausing():
            families = make_families(self._registry.snapshot(), mask=S_IROTH)
        for family in families:
            made = self._make(family.metric)
            with pausing():
                for name, labels, number in _list_samples(family):
                    made.add_sample(name, labels, number)
            if made.samples:
                yield made

    def _make(self, metric: Metric) -> "TheirMetric":
        return self._metric(metric.name, metric.help, metric.type, metric.unit)


def _list_samples(family: Family) -> Iterator[tuple[str, dict[str, str], int | float]]:
    metric = family.metric
    for part, (homes, column, sums) in family.take():
        for home, item, total in zip(homes, column, sums, strict=True):
            if part.edges is None:
                yield metric.sample, home.labels, item
                continue
            for text, count in zip(part.edges.texts, item, strict=True):
                yield metric.sample, {**home.labels, "le": text}, count
            if total is not None:
                yield f"{metric.name}_sum", home.labels, total
                yield f"{metric.name}_count", home.labels, item[-1]


def serve_metrics(registry: Registry, host: str = "127.0.0.1", port: int = 0) -> "MetricsServer":
    """Serve a registry's `/metrics` over HTTP from background threads.

    The text format of Prometheus or OpenMetrics, compressed or not, as the client accepts; with
    `?name[]=` only the metrics that have one of the names. `/` is a page for browsers, which asks
    `/api/stats` and `/api/schema`, the JSON views of the root or of a path. There is no password
    and no encryption: on an address that is not a loopback one, anybody who reaches it can read
    every value that has mode bit 0004.

    >>> from urllib.request import urlopen
    >>> registry = Registry()
    >>> app = registry.register(Source("app"))
    >>> app.add_values([Value("jobs")], {"jobs": 5})
    >>> with serve_metrics(registry) as server, urlopen(server.url) as answer:
    ...     print(answer.read().decode(), end="")
    # TYPE app_jobs_total counter
    app_jobs_total 5

    Args:
        registry: the values.
        host: a name or an address; "0.0.0.0" and "::" are all of the machine's.
        port: 0 for a free one.

    Raises:
        OSError: the machine does not have the address, it is taken, or there is no GIL; the message
            is one line.
        TypeError: an argument of another type.
        ImportError: h11 or trio is not installed.
    """
    check_registry(registry)
    if not isinstance(host, str):
        raise TypeError(f"host is not a str: {host!r}; the port is the next argument")
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"port is not an int: {port!r}")
    server = serve_paused(registry, host, port)
    server.resume()
    return server


def serve_paused(
    registry: Registry, host: str, port: int, listener: int | None = None
) -> "MetricsServer":
    """Serve as `serve_metrics` does, but accept no client until `MetricsServer.resume`.

    `listener` is the descriptor of a socket that listens at the address already.
    """
    if not is_gil_on():
        raise OSError(f"cannot serve metrics: {GIL_OFF}")
    try:
        from statsfs.monitoring.http_server import MetricsServer
    except ModuleNotFoundError as error:
        if error.name not in ("h11", "trio"):
            raise
        text = "serve_metrics needs h11 and trio: pip install 'statsfs[http]'"
        raise ImportError(text, name=error.name) from None
    return MetricsServer(registry, host, port, listener, paused=True)
