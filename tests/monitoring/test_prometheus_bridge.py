"""The bridge: what a program counts with prometheus_client, as files, and nothing else."""

import gc
import logging
import math
import platform
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Enum,
    Gauge,
    Histogram,
    Info,
    Summary,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeHistogramMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
    UnknownMetricFamily,
)
from prometheus_client.parser import text_string_to_metric_families

from statsfs import show_prometheus
from statsfs.exceptions import ReleasedError, TreeError, UnavailableError
from statsfs.formats.views import VIEWS, Rendering
from statsfs.model.fields import u64
from statsfs.model.stats import Stats
from statsfs.monitoring.exposition import RegistryCollector
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source


class Custom:
    """A collector that yields what a test says, and counts how often it was asked."""

    def __init__(self, *metrics: Metric) -> None:
        self.metrics = list(metrics)
        self.asked = 0
        self.failure: Exception | None = None

    def collect(self) -> Iterator[Metric]:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        yield from self.metrics


@pytest.fixture
def theirs() -> CollectorRegistry:
    """A registry of prometheus_client."""
    return CollectorRegistry(auto_describe=True)


@pytest.fixture
def app(registry: Registry) -> Source:
    """A top-level source."""
    app = Source("app")
    registry.register(app)
    return app


def tree(app: Source) -> dict[str, Any]:
    """All numbers, of one ask."""
    found: dict[str, Any] = app.snapshot().to_dict()
    return found


def files(app: Source) -> dict[str, Any]:
    """The numbers of the source itself."""
    found: dict[str, Any] = tree(app)["values"]
    return found


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples_of(text: bytes, prefix: str = "") -> Samples:
    """The samples of a text, without those that say when the counting began."""
    found: Samples = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                key = sample.name.removeprefix(prefix), frozenset(sample.labels.items())
                assert key not in found
                found[key] = sample.value
    return found


def view_of(registry: Registry) -> Samples:
    """What `.stats.prom` says of everything."""
    rendering = Rendering(VIEWS[".stats.prom"], registry, 0o4)
    rendering.run()
    return samples_of(rendering.text, "app_")


# What is shown


def test_each_sort_of_metric(theirs: CollectorRegistry, registry: Registry, app: Source) -> None:
    """Files with integers; and the view has what the program's own /metrics has."""
    requests = Counter("requests", "Answered", ["endpoint", "method"], registry=theirs)
    requests.labels("/item/{id}", "GET").inc(3)
    requests.labels("/item/{id}", "POST").inc()
    requests.labels("/", "GET").inc(5)
    Gauge("temperature", "Degrees", registry=theirs).set(-7)
    latency = Histogram("latency_seconds", "Time", ["endpoint"], registry=theirs)
    latency.labels("/").observe(0.3)
    latency.labels("/").observe(0.01)
    latency.labels("/about").observe(99)
    Histogram("size_bytes", "Size", registry=theirs, buckets=[1, 10]).observe(10)
    rpc = Summary("rpc_seconds", "Calls", registry=theirs)
    rpc.observe(1.5)
    rpc.observe(0.25)
    Info("build", "Version", registry=theirs).info({"version": "1.2", "rev": "a/b"})
    Enum("state", "State", states=["up", "down"], registry=theirs).state("down")
    show_prometheus(theirs, app)
    found = tree(app)
    buckets = [0, 1, *[0] * 5, 1, *[0] * 6]
    assert found["values"] == {
        "requests": 9,
        "temperature": -7,
        "latency_seconds": [*buckets, 1],
        "latency_seconds.sum": 99_310_000_000,
        "size_bytes": [0, 1, 0],
        "size_bytes.sum": 10,
        "rpc_seconds": [2],
        "rpc_seconds.sum": 1_750_000_000,
        "build_info": 1,
        "state": 1,
    }
    below = found["subordinates"]
    item = below["%2Fitem%2F{id}"]
    assert item["values"] == {"requests": 4}
    assert item["subordinates"]["GET"] == {"values": {"requests": 3}, "subordinates": {}}
    assert below["%2F"]["values"] == {
        "requests": 5,
        "latency_seconds": [*buckets, 0],
        "latency_seconds.sum": 310_000_000,
    }
    assert below["1.2"]["subordinates"]["a%2Fb"]["values"] == {"build_info": 1}
    assert [below[state]["values"]["state"] for state in ("up", "down")] == [0, 1]
    expected = samples_of(generate_latest(theirs))
    # A summary is a histogram of one bucket.
    expected["rpc_seconds_bucket", frozenset({("le", "+Inf")})] = 2
    assert view_of(registry) == pytest.approx(expected)


def test_what_a_file_is_said_to_be(theirs: CollectorRegistry, app: Source) -> None:
    """Type, kind, unit, exponent and description are the metric's."""
    Counter("served_bytes", "Sent\n  to clients", registry=theirs)
    Gauge("age_seconds", "Age", registry=theirs)
    Gauge("load", "Load", registry=theirs).set(0.5)
    show_prometheus(theirs, app)
    found = {
        value.name: (str(value.type), str(value.kind), str(value.unit), value.exponent, value.mode)
        for array in app.snapshot().arrays
        for value in array
    }
    assert found == {
        "served_bytes": ("u64", "cumulative", "bytes", 0, 0o644),
        "age_seconds": ("s64", "instant", "seconds", -9, 0o444),
        "load": ("s64", "instant", "none", -6, 0o444),
    }
    (value,) = (v for array in app.snapshot().arrays for v in array if v.name == "served_bytes")
    assert value.description == "Sent to clients"


def test_what_is_read_is_of_now(theirs: CollectorRegistry, registry: Registry, app: Source) -> None:
    """Each read asks, and label sets come and go with the program's."""
    requests = Counter("requests", "Answered", ["method"], registry=theirs)
    up = Gauge("up", "Up", registry=theirs)
    show_prometheus(theirs, app)
    assert files(app) == {"up": 0}
    for number in range(1, 4):
        requests.labels("GET").inc()
        up.set(number)
        assert files(app) == {"requests": number, "up": number}
        assert app.get_value("requests") == registry.find("app/GET").get_value("requests") == number  # type: ignore[union-attr]
    requests.labels("PUT").inc(5)
    requests.remove("GET")
    assert tree(app)["subordinates"].keys() == {"PUT"}
    assert app.get_value("requests") == 5
    requests.clear()
    assert tree(app) == {"values": {"up": 3}, "subordinates": {}}
    theirs.unregister(up)
    assert tree(app) == {"values": {}, "subordinates": {}}
    requests.labels("GET").inc()
    assert tree(app)["subordinates"]["GET"]["values"] == files(app) == {"requests": 1}


def test_what_comes_and_goes_leaves_nothing(theirs: CollectorRegistry, app: Source) -> None:
    """A thousand label sets, one after another."""
    requests = Counter("requests", "Answered", ["a", "b"], registry=theirs)
    show_prometheus(theirs, app)
    for number in range(20):
        requests.labels("a", str(number)).inc()
        requests.labels("kept", "b").inc()
        assert app.snapshot().to_dict()["values"] or number == 0
        requests.remove("a", str(number))
    app.snapshot()
    gc.collect()
    before = sum(isinstance(one, Source) for one in gc.get_objects())
    for number in range(1000):
        requests.labels("a", str(number)).inc()
        app.snapshot()
        requests.remove("a", str(number))
    app.snapshot()
    gc.collect()
    assert sum(isinstance(one, Source) for one in gc.get_objects()) == before
    assert len(app.subordinates) == 1


def test_one_ask_serves_all_files(theirs: CollectorRegistry, app: Source) -> None:
    """Of a view; and of all reads within `max_age`."""
    custom = Custom(CounterMetricFamily("a", "A", 5), UnknownMetricFamily("b", "B", 6))
    theirs.register(custom)
    show_prometheus(theirs, app)
    asked = custom.asked
    tree(app)
    assert custom.asked == asked + 1
    resting = Source("resting")
    show_prometheus(theirs, resting, max_age=3600)
    asked = custom.asked
    for _ in range(50):
        assert [resting.get_value(name) for name in ("a", "b")] == [5, 6]
    assert custom.asked == asked


def test_fractions(theirs: CollectorRegistry, registry: Registry, app: Source) -> None:
    """Whole numbers are as they are, until one of the metric has a fraction; then all have six."""
    cost = Counter("cost", "Money", ["who"], registry=theirs)
    cost.labels("a").inc(3)
    cost.labels("b").inc(4)
    ratio = Histogram("ratio", "Ratio", registry=theirs, buckets=[1, 2])
    ratio.observe(2)
    show_prometheus(theirs, app)
    assert files(app) == {"cost": 7, "ratio": [0, 1, 0], "ratio.sum": 2}
    cost.labels("a").inc(0.25)
    ratio.observe(0.5)
    for _ in range(2):
        found = tree(app)
        assert found["values"] == {
            "cost": 7_250_000,
            "ratio": [1, 1, 0],
            "ratio.sum": 2_500_000,
        }
        assert [one["values"]["cost"] for one in found["subordinates"].values()] == [
            3_250_000,
            4_000_000,
        ]
        assert view_of(registry) == samples_of(generate_latest(theirs))
        cost.labels("a").inc(0.75)
        cost.labels("a").reset()
        cost.labels("a").inc(3.25)


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0.1, 100_000),
        (-0.5, -500_000),
        (1e-7, 0),
        (2.5e-6, 2),
        (1e15, 10**15),
        (2.0**62, 2**62),
        (-(2.0**63), -(2**63)),
        (2.0**63, None),
        (1e300, None),
        (math.nan, None),
        (math.inf, None),
        (-math.inf, None),
    ],
)
def test_numbers(
    theirs: CollectorRegistry,
    app: Source,
    caplog: pytest.LogCaptureFixture,
    number: float,
    shown: int | None,
) -> None:
    """What an integer cannot be has no file, as long as it is so; the log says it once."""
    gauge = Gauge("n", "N", registry=theirs)
    Gauge("other", "O", registry=theirs).set(1)
    gauge.set(number)
    show_prometheus(theirs, app)
    for _ in range(3):
        assert files(app) == {"other": 1} | ({} if shown is None else {"n": shown})
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (shown is None)
    assert all(line.startswith("n: left out of app: ") and "\n" not in line for line in lines)
    gauge.set(5)
    assert files(app)["n"] in (5, 5_000_000)


@settings(max_examples=200, deadline=None)
@given(seconds=st.floats(0, 1.8e10))
def test_seconds_are_nanoseconds(seconds: float) -> None:
    """To the nearest of what the float says, however large it is."""
    theirs, app = CollectorRegistry(), Source("app")
    theirs.register(Custom(CounterMetricFamily("busy_seconds", "Busy", seconds)))
    show_prometheus(theirs, app)
    assert abs(app.get_value("busy_seconds") - seconds * 10**9) <= max(1, seconds * 1e-6)
    whole, part = divmod(app.get_value("busy_seconds"), 10**9)
    assert whole + part / 10**9 == pytest.approx(seconds, abs=1e-9, rel=1e-15)


def test_histograms_of_ones_own(
    theirs: CollectorRegistry, app: Source, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a sum, with none that a sum can be, without an end, with bounds that are none."""
    custom = Custom(
        HistogramMetricFamily("plain", "P", buckets=[("1", 2), ("+Inf", 5)]),
        HistogramMetricFamily("below", "B", buckets=[("1", 2), ("+Inf", 5)], sum_value=-3),
        HistogramMetricFamily("only", "O", buckets=[("+Inf", 5)], sum_value=7),
        HistogramMetricFamily("negative", "N", buckets=[("-1", 2), ("+Inf", 5)], sum_value=0),
        HistogramMetricFamily("tiny", "T", buckets=[("1e-9", 1), ("2e-9", 2), ("+Inf", 5)]),
        HistogramMetricFamily("falls", "F", buckets=[("1", 6), ("+Inf", 5)], sum_value=1),
    )
    endless = Metric("endless", "E", "histogram")
    endless.add_sample("endless_bucket", {"le": "1"}, 2)
    odd = Metric("odd", "O", "histogram")
    odd.add_sample("odd_bucket", {"edge": "1"}, 2)
    counted = Metric("counted", "C", "histogram")
    counted.add_sample("counted_bucket", {"le": "1"}, 2)
    counted.add_sample("counted_count", {}, 3)
    custom.metrics += [endless, odd, counted]
    theirs.register(custom)
    show_prometheus(theirs, app)
    found = {"plain": [2, 3], "below": [2, 3], "only": [5], "only.sum": 7}
    assert files(app) == {**found, "odd_bucket": 2, "counted": [2, 1]}
    assert {record.getMessage().partition(":")[0] for record in caplog.records} == {
        "negative",
        "tiny",
        "falls",
        "endless",
    }


def test_other_sorts_of_ones_own(
    theirs: CollectorRegistry, app: Source, caplog: pytest.LogCaptureFixture
) -> None:
    """A file for each name of a sample; none for what has no total."""
    summary = SummaryMetricFamily("rpc", "R", count_value=4, sum_value=10)
    summary.add_sample("rpc", {"quantile": "0.5"}, 2)
    gauges = GaugeHistogramMetricFamily("queue", "Q", [("1", 2), ("+Inf", 5)], gsum_value=6)
    theirs.register(Custom(summary, gauges, UnknownMetricFamily("what", "W", 8)))
    show_prometheus(theirs, app)
    found = {"rpc": [4], "rpc.sum": 10, "queue_gcount": 5, "queue_gsum": 6, "what": 8}
    assert tree(app) == {"values": found, "subordinates": {}}
    assert caplog.records == []


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9)), max_size=6))
def test_any_value_of_a_label(values: list[tuple[str, str]]) -> None:
    """Each label set has a directory of its own, whatever is in its values."""
    theirs, app = CollectorRegistry(), Source("app")
    requests = Counter("n", "N", ["one", "two"], registry=theirs)
    expected: dict[tuple[str, str], int] = {}
    for number, pair in enumerate(values):
        requests.labels(*pair).inc(number + 1)
        expected[pair] = expected.get(pair, 0) + number + 1
    show_prometheus(theirs, app)
    found = tree(app)["subordinates"]
    assert sum(len(one["subordinates"]) for one in found.values()) == len(expected)
    counts = [x["values"]["n"] for one in found.values() for x in one["subordinates"].values()]
    assert sorted(counts) == sorted(expected.values())


def test_two_labels_with_one_value(
    theirs: CollectorRegistry, registry: Registry, app: Source
) -> None:
    """Each has a directory, of which the second says its label; and Prometheus has both."""
    Counter("one", "1", ["method"], registry=theirs).labels("GET").inc(1)
    Counter("two", "2", ["endpoint"], registry=theirs).labels("GET").inc(2)
    Counter("three", "3", ["method"], registry=theirs).labels("GET").inc(3)
    show_prometheus(theirs, app)
    below = tree(app)["subordinates"]
    assert below["GET"]["values"] == {"one": 1, "three": 3}
    assert below["endpoint=GET"]["values"] == {"two": 2}
    assert view_of(registry) == samples_of(generate_latest(theirs))


def test_names_that_others_have(
    theirs: CollectorRegistry, app: Source, caplog: pytest.LogCaptureFixture
) -> None:
    """A source of the program's stays; what has no place is left out, and the rest is shown."""
    for name in ("GET", "method=GET"):
        app.add_subordinate(Source(name))
    requests = Counter("requests", "Answered", ["method"], registry=theirs)
    requests.labels("GET").inc()
    requests.labels("PUT").inc(2)
    show_prometheus(theirs, app)
    for _ in range(2):
        found = tree(app)
        assert found["values"] == {"requests": 2}
        assert found["subordinates"]["PUT"]["values"] == {"requests": 2}
    (record,) = caplog.records
    assert record.getMessage() == "requests: left out of app: app: there is a 'method=GET' already"


def test_clearing_subtracts(theirs: CollectorRegistry, app: Source) -> None:
    """A counter's file and a total begin anew, and the program's own counter goes on."""
    requests = Counter("requests", "Answered", ["method"], registry=theirs)
    latency = Histogram("latency_seconds", "Time", registry=theirs, buckets=[1])
    requests.labels("GET").inc(5)
    requests.labels("PUT").inc(2)
    latency.observe(0.5)
    show_prometheus(theirs, app)
    get = app.find("GET")
    assert get is not None
    get.clear_value("requests")
    assert (get.get_value("requests"), app.get_value("requests")) == (0, 2)
    requests.labels("GET").inc()
    assert (get.get_value("requests"), app.get_value("requests")) == (1, 3)
    app.clear_value("requests")
    app.clear_value("latency_seconds")
    assert files(app) == {"requests": 0, "latency_seconds": [0, 0], "latency_seconds.sum": 0}
    latency.observe(2)
    assert files(app)["latency_seconds"] == [0, 1]
    assert theirs.get_sample_value("requests_total", {"method": "GET"}) == 6


# Beside others


def test_both_ways_do_not_loop(theirs: CollectorRegistry, registry: Registry, app: Source) -> None:
    """The program's own sources are in /metrics, its metrics are files; neither feeds itself."""

    class OwnStats(Stats):
        """What the program counts with statsfs."""

        jobs = u64()

    own, stats = Source("own"), OwnStats()
    stats.jobs = 3
    own.add_values(OwnStats, stats)
    registry.register(own)
    Counter("requests", "Answered", registry=theirs).inc(5)
    theirs.register(RegistryCollector(registry))
    show_prometheus(theirs, app)
    for _ in range(3):
        scraped = samples_of(generate_latest(theirs))
        assert scraped == {
            ("requests_total", frozenset()): 5,
            ("own_jobs_total", frozenset()): 3,
            ("app_requests_total", frozenset()): 5,
        }
        assert tree(app) == {"values": {"requests": 5}, "subordinates": {}}


def test_a_gauge_may_read_the_tree(theirs: CollectorRegistry, app: Source) -> None:
    """Its function runs within the ask: it does not wait for itself."""
    Gauge("one", "1", registry=theirs).set(4)
    show_prometheus(theirs, app)
    Gauge("twice", "2", registry=theirs).set_function(lambda: 2 * app.get_value("one"))
    assert files(app) == {"one": 4, "twice": 8}
    assert theirs.get_sample_value("twice") == 8


def test_where_the_registry_fails(
    theirs: CollectorRegistry, app: Source, caplog: pytest.LogCaptureFixture
) -> None:
    """The files have no data, as /metrics has none; then all is as before."""
    custom = Custom(CounterMetricFamily("a", "A", 5))
    theirs.register(custom)
    custom.failure = ValueError("not today")
    show_prometheus(theirs, app)
    assert tree(app)["values"] == {}
    custom.failure = None
    assert files(app) == {"a": 5}
    custom.failure = ValueError("not today either")
    with pytest.raises(UnavailableError, match="not today either"):
        app.get_value("a")
    custom.failure = None
    custom.metrics = [CounterMetricFamily("a", "A", 6)]
    assert app.get_value("a") == 6
    assert [one.levelno for one in caplog.records if one.levelno > logging.INFO] == [
        logging.WARNING,
        logging.WARNING,
    ]


def test_threads_count_and_read_at_the_same_time(theirs: CollectorRegistry, app: Source) -> None:
    """No number falls, none is lost, and nobody waits for ever."""
    requests = Counter("requests", "Answered", ["thread", "turn"], registry=theirs)
    show_prometheus(theirs, app)
    ended = threading.Event()
    turns = 200

    def work(number: int) -> None:
        for turn in range(turns):
            requests.labels(str(number), str(turn % 10)).inc()

    def look() -> int:
        last = 0
        while not ended.is_set():
            found = files(app).get("requests", 0)
            assert found >= last
            last = found
        return last

    with ThreadPoolExecutor(6) as pool:
        readers = [pool.submit(look) for _ in range(2)]
        for worker in [pool.submit(work, number) for number in range(4)]:
            worker.result()
        ended.set()
        assert all(reader.result() <= 4 * turns for reader in readers)
    assert files(app)["requests"] == 4 * turns


def test_the_programs_own_registry(app: Source) -> None:
    """Of the process, the interpreter and its garbage; what is there is shown."""
    from prometheus_client import REGISTRY

    show_prometheus(REGISTRY, app)
    found = tree(app)
    assert found["values"]["process_open_fds"] > 3
    assert found["values"]["process_start_time_seconds"] > 10**18
    version = found["subordinates"][platform.python_version()]
    assert version["subordinates"][platform.python_implementation()]["values"] == {"python_info": 1}
    assert {"0", "1", "2"} <= found["subordinates"].keys()


# What is refused


def test_arguments_of_another_sort(theirs: CollectorRegistry, app: Source) -> None:
    """One line names the argument."""
    show: Any = show_prometheus
    for arguments, message in (
        ((app, theirs), "registry is not a CollectorRegistry: <Source 'app'"),
        ((None, app), "registry is not a CollectorRegistry: None"),
        ((theirs, "app"), "not a Source: 'app'"),
        ((theirs, Registry()), "not a Source"),
    ):
        with pytest.raises(TypeError, match=message):
            show(*arguments)
    with pytest.raises(TypeError, match="max_age is not a number of seconds: '1'"):
        show(theirs, app, max_age="1")
    for age in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"max_age is not a number of seconds: {age}"):
            show(theirs, app, max_age=age)
    show(theirs, app)
    with pytest.raises(TreeError, match="app: it has a refresh already"):
        show(theirs, app)
    released = Source("released")
    released.put()
    with pytest.raises(ReleasedError):
        show(theirs, released)
