"""What prometheus_client's registry collects, and what is needed for it and for scrapes."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from prometheus_client import CollectorRegistry, Counter, generate_latest, parser
from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition
from prometheus_client.openmetrics import parser as openmetrics_parser

from statsfs.formats import openmetrics, prometheus
from statsfs.model.fields import hist, linear_hist, log_hist, s64, u64
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value
from statsfs.monitoring.exposition import RegistryCollector, serve_metrics
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.bare import bare_linear_hist, bare_log_hist
from tests.support.exported import Node, as_floats, build, parse_openmetrics, parse_text, trees

OPENMETRICS = "application/openmetrics-text"
generate_openmetrics: Callable[[CollectorRegistry], bytes] = exposition.generate_latest


def test_a_collector_beside_others(registry: Registry, app: Source) -> None:
    """Its metrics stand next to those that prometheus_client made itself."""
    theirs = CollectorRegistry(auto_describe=True)
    Counter("logins", "Their own", registry=theirs).inc(2)
    theirs.register(RegistryCollector(registry))
    found = parse_text(generate_latest(theirs))
    assert set(found) >= {"logins", "app_requests", "app_lag_seconds", "app_sizes_bytes"}
    assert found["app_requests"].samples == {("app_requests_total", frozenset()): 5}
    assert found["app_lag_seconds"].samples == {("app_lag_seconds", frozenset()): 0.25}
    assert "app_secret" not in found
    found = parse_openmetrics(generate_openmetrics(theirs))
    assert found["app_lag_seconds"].unit == "seconds"
    assert found["app_sizes_bytes"].samples == {
        ("app_sizes_bytes_bucket", frozenset()): {0.0: 1, 1.0: 3, float("inf"): 6},
        ("app_sizes_bytes_sum", frozenset()): 11,
        ("app_sizes_bytes_count", frozenset()): 6,
    }
    bare = found["app_bare_bucket"]
    assert (bare.type, bare.samples) == (
        "unknown", {("app_bare_bucket", frozenset()): {0.0: 4, float("inf"): 9}},
    )  # fmt: skip


def names(metrics: Iterable[Metric]) -> list[tuple[str, str, str, str]]:
    """What each metric is called, and what else is said of it."""
    return [(one.name, one.type, one.unit, one.documentation) for one in metrics]


def test_a_collector_describes_what_there_is(registry: Registry, app: Source) -> None:
    """Names and types without samples; no source is asked, nor left out if it does not answer."""
    asked = []

    def ask() -> None:
        asked.append("once")
        raise OSError

    silent = Source("silent", refresh=ask)
    silent.add_values([Value("odd")], {"odd": 1})
    app.add_subordinate(silent)
    collector = RegistryCollector(registry)
    expected = [
        "app_requests", "app_lag_seconds", "app_sizes_bytes", "app_bare_bucket", "app_odd",
    ]  # fmt: skip
    assert [one.name for one in collector.describe()] == expected
    assert asked == []
    assert [one.name for one in collector.collect()] == expected[:-1]
    assert asked == ["once"]
    assert names(collector.describe())[:-1] == names(collector.collect())
    assert [one.name for one in collector.describe()] == expected
    assert [one.samples for one in collector.describe()] == [[]] * 5
    assert repr(collector) == "<RegistryCollector <Registry ['app']>>"
    app.revoke()
    assert list(collector.collect()) == []
    assert [one.name for one in collector.describe()] == ["app_odd"]


@pytest.mark.parametrize(
    ("value", "other", "refused"),
    [
        (Value("n"), "app_n", True),
        (Value("n"), "app_n_total", True),
        (Value("n", kind=Kind.INSTANT), "app_n", True),
        (Value("n", kind=Kind.INSTANT), "app_n_total", True),
        (Value("n"), "app_m", False),
        (Value("n_total", kind=Kind.INSTANT), "app_n", True),
        (Value("n", kind=Kind.LOG_HIST, size=2), "app_n_bucket", True),
        (Value("n", kind=Kind.LOG_HIST, size=2), "app_n", False),
        (Value("n", mode=0o640), "app_n", False),
        (Value("n", hidden=True), "app_n", False),
    ],
)
def test_names_that_are_taken_are_refused(
    registry: Registry, value: Value, other: str, refused: bool
) -> None:
    """Registering raises, in either order, where a text with both would have one name twice."""
    app = Source("app")
    app.add_values([value], {"n": [1, 2] if value.histogram else 1, "n_total": 1})
    registry.register(app)
    for first in (True, False):
        theirs = CollectorRegistry(auto_describe=True)
        collector, counter = RegistryCollector(registry), Counter(other, "Theirs", registry=None)
        with pytest.raises(ValueError, match="Duplicated") if refused else contextlib.nullcontext():
            theirs.register(collector if first else counter)
            theirs.register(counter if first else collector)
        parse_text(generate_latest(theirs))


def test_a_hidden_source_has_no_metric(registry: Registry) -> None:
    """Nor has what is below it, nor what is declared."""
    app, child = Source("app", hidden=True), Source("child")
    app.add_values([Value("later", aggregate=Aggregate.SUM)], None)
    child.add_values([Value("n", aggregate=Aggregate.SUM)], {"n": 1})
    app.add_subordinate(child)
    registry.register(app)
    assert RegistryCollector(registry).describe() == []


def test_a_restricted_registry(registry: Registry, app: Source) -> None:
    """It finds what there is, and what is declared; the rest once it is registered again."""
    theirs = CollectorRegistry()
    collector = RegistryCollector(registry)
    app.add_values([(declared := Value("declared", aggregate=Aggregate.SUM))], None)
    theirs.register(collector)

    def find(*wanted: str) -> set[str]:
        return set(parse_text(generate_latest(theirs.restricted_registry(wanted))))

    assert find("app_requests_total", "app_bare_bucket", "app_secret_total") == {
        "app_requests", "app_bare_bucket",
    }  # fmt: skip
    assert find("app_declared_total") == set()
    later = Source("later")
    later.add_values([declared, Value("undeclared")], {"declared": 1, "undeclared": 2})
    app.add_subordinate(later)
    assert find("app_declared_total", "app_undeclared_total") == {"app_declared", "app_undeclared"}
    assert find("app_undeclared_total") == set()
    assert {"app_undeclared"} < set(parse_text(generate_latest(theirs)))
    theirs.unregister(collector)
    theirs.register(collector)
    assert find("app_undeclared_total") == {"app_undeclared"}


def test_what_is_counted_has_a_name_before_what_is_declared(registry: Registry) -> None:
    """An older value that nobody counts yet takes no name from one that is counted."""
    app, child = Source("app"), Source("child")
    values = (
        Value("n", aggregate=Aggregate.SUM, kind=Kind.INSTANT),
        Value("m", aggregate=Aggregate.SUM),
        Value("alone"),
        Value("secret", aggregate=Aggregate.SUM, mode=0o640),
        Value("h", aggregate=Aggregate.SUM, kind=Kind.LOG_HIST, size=2),
        Value("whole", aggregate=Aggregate.SUM, kind=Kind.LOG_HIST, size=2),
        Value("whole.sum", aggregate=Aggregate.SUM),
    )
    app.add_values(values, None)
    child.add_values([Value("n")], {"n": 1})
    app.add_subordinate(child)
    registry.register(app)
    collector = RegistryCollector(registry)
    assert [(one.name, one.type) for one in collector.collect()] == [("app_n", "counter")]
    assert [(one.name, one.type) for one in collector.describe()] == [
        ("app_n", "counter"),
        ("app_m", "counter"),
        ("app_h_bucket", "unknown"),
        ("app_whole", "histogram"),
    ]


@settings(max_examples=20)
@given(trees())
def test_collectors_say_what_the_views_say(tops: list[Node]) -> None:
    """The same families and samples come out of prometheus_client's own renderers."""
    registry = build(tops)
    theirs = CollectorRegistry()
    collector = RegistryCollector(registry)
    theirs.register(collector)
    assert set(names(collector.collect())) <= set(names(collector.describe()))
    theirs.unregister(collector)
    theirs.register(collector)
    ours = openmetrics.render(registry.snapshot(), mask=0o004)
    found = parse_openmetrics(generate_openmetrics(theirs))
    expected = parse_openmetrics(ours)
    assert found.keys() == expected.keys()
    for name, family in expected.items():
        assert found[name].samples == as_floats(family.samples)
        assert found[name][:3] == family[:3]
    for text in (
        parse_text(prometheus.render(registry.snapshot(), mask=0o004)),
        parse_text(generate_latest(theirs)),
    ):
        assert text.keys() == expected.keys()
        for name, family in expected.items():
            assert as_floats(text[name].samples) == as_floats(family.samples)
            assert (text[name].type, text[name].help) == (family.type, family.help)


class Everything(Stats):
    """A value of each kind, histograms with and without sums."""

    requests = u64(Aggregate.SUM, description="Requests")
    balance = s64(Aggregate.SUM, kind=Kind.INSTANT)
    deepest = u64(Aggregate.MAX, kind=Kind.PEAK, unit=Unit.BYTES, base=2, exponent=10)
    waits = log_hist(5, Aggregate.SUM, unit=Unit.SECONDS, exponent=-9)
    sizes = linear_hist(3, 10, Aggregate.SUM, description="Sizes")
    times = hist([100, 300], Aggregate.SUM, unit=Unit.SECONDS, exponent=-3)
    kernels = bare_log_hist(5, Aggregate.SUM, unit=Unit.SECONDS, exponent=-9)
    queue = bare_linear_hist(3, 10)


def list_samples(families: Iterable[Metric]) -> list[tuple[Any, ...]]:
    """All samples of parsed families, in their order, with the text of every label."""
    return [
        (family.name, family.type, sample.name, sample.labels, sample.value)
        for family in families
        for sample in family.samples
    ]


def test_the_same_metrics_whichever_way(registry: Registry) -> None:
    """Text, OpenMetrics and prometheus_client, to the last digit of each `le`."""
    for name in ("a", "b"):
        app, stats = Source("app_%s", name), Everything()
        app.add_values(Everything, stats)
        registry.register(app)
        stats.requests, stats.balance, stats.deepest = 7, -3, 5
        for observed in (0, 9, 30, 250, 1000):
            for histogram in (
                stats.waits, stats.sizes, stats.times, stats.kernels, stats.queue
            ):  # fmt: skip
                histogram.observe(observed)
    theirs = CollectorRegistry()
    theirs.register(RegistryCollector(registry))
    snapshot = registry.snapshot()
    parse_strictly: Any = openmetrics_parser.text_string_to_metric_families
    ours, *others = [
        list_samples(parser.text_string_to_metric_families(prometheus.render(snapshot).decode())),
        list_samples(parse_strictly(openmetrics.render(snapshot).decode())),
        list_samples(parser.text_string_to_metric_families(generate_latest(theirs).decode())),
        list_samples(parse_strictly(generate_openmetrics(theirs).decode())),
    ]
    assert others == [ours] * 3
    shown = {(name, labels.get("le")): value for _, _, name, labels, value in ours}
    assert {name: shown[name] for name in shown if name[0].startswith("app_a_times")} == {
        ("app_a_times_seconds_bucket", "0.1"): 3,
        ("app_a_times_seconds_bucket", "0.3"): 4,
        ("app_a_times_seconds_bucket", "+Inf"): 5,
        ("app_a_times_seconds_sum", None): 1.289,
        ("app_a_times_seconds_count", None): 5,
    }
    assert {name: shown[name] for name in shown if name[0].startswith("app_a_queue")} == {
        ("app_a_queue_bucket", "9.0"): 2,
        ("app_a_queue_bucket", "19.0"): 2,
        ("app_a_queue_bucket", "+Inf"): 5,
    }
    assert shown["app_a_sizes_sum", None] == 1289
    assert shown["app_a_waits_seconds_sum", None] == 1.289e-06
    types = {family: type for family, type, *_ in ours if family.startswith("app_a")}
    assert types == {
        "app_a_requests": "counter",
        "app_a_balance": "gauge",
        "app_a_deepest_bytes": "gauge",
        "app_a_waits_seconds": "histogram",
        "app_a_sizes": "histogram",
        "app_a_times_seconds": "histogram",
        "app_a_kernels_seconds_bucket": "unknown",
        "app_a_queue_bucket": "unknown",
    }


def test_families_without_samples_are_not_collected(registry: Registry) -> None:
    """A family whose samples are all left out is left out."""
    app = Source("app")
    app.add_values([Value("n", Type.S8)], {"n": -1})
    registry.register(app)
    assert list(RegistryCollector(registry).collect()) == []


def test_importing_imports_neither_a_server_nor_prometheus_client() -> None:
    """What a program does not use costs it nothing."""
    program = (
        "import sys, statsfs\n"
        "lazy = {'h11', 'prometheus_client', 'statsfs.monitoring.http_server', 'trio'}\n"
        "assert not lazy & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_prometheus_client() -> None:
    """Only what needs it says so; scrapes are answered without it."""
    program = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "import urllib.request\n"
        "from statsfs import Registry, RegistryCollector, serve_metrics\n"
        "with serve_metrics(Registry()) as server:\n"
        "    assert urllib.request.urlopen(server.url).read() == b''\n"
        "RegistryCollector(Registry())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last == (
        "ImportError: RegistryCollector needs prometheus_client: pip install 'statsfs[prometheus]'"
    )


@pytest.mark.parametrize("missing", ["h11", "trio"])
def test_without_what_serves(missing: str) -> None:
    """The one line says what is to be installed."""
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from statsfs import Registry, serve_metrics\n"
        "serve_metrics(Registry())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last == "ImportError: serve_metrics needs h11 and trio: pip install 'statsfs[http]'"


def test_a_library_of_the_server_that_is_broken(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is its own, and not that it should be installed."""
    (tmp_path / "h11.py").write_text("import nothing_of_that_name")
    monkeypatch.syspath_prepend(tmp_path)
    ours = [name for name in sys.modules if name.startswith("statsfs.monitoring.http_")]
    for name in (*ours, *(name for name in sys.modules if name.partition(".")[0] == "h11")):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match="'nothing_of_that_name'"):
        serve_metrics(registry)


def test_a_prometheus_client_that_is_broken(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is its own, and not that it should be installed."""
    (tmp_path / "prometheus_client.py").write_text("import nothing_of_that_name")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("prometheus_client")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match="'nothing_of_that_name'"):
        RegistryCollector(registry)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((9464,), "host is not a str: 9464; the port is the next argument"),
        ((None, 9464), "host is not a str: None"),
        ((b"127.0.0.1", 9464), "host is not a str: b'127.0.0.1'"),
        (("127.0.0.1", "9464"), "port is not an int: '9464'"),
        (("127.0.0.1", 1.5), "port is not an int: 1.5"),
        (("127.0.0.1", True), "port is not an int: True"),
        (("127.0.0.1", None), "port is not an int: None"),
    ],
)
def test_arguments_of_another_sort(registry: Registry, arguments: Any, words: str) -> None:
    """One line names the argument; it was the error of a comparison somewhere inside."""
    with pytest.raises(TypeError, match=words) as raised:
        serve_metrics(registry, *arguments)
    assert raised.value.__context__ is None


@pytest.mark.parametrize("make", [serve_metrics, RegistryCollector])
def test_a_source_is_not_a_registry(make: Any) -> None:
    """It was taken, and each scrape failed."""
    for wrong in (Source("app"), None, Registry, "app"):
        with pytest.raises(TypeError, match="registry is not a Registry: ") as raised:
            make(wrong)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("host", ["", "a" * 300, "no.such.host.invalid", "a\0b", "x\ny"])
def test_addresses_that_there_are_not(registry: Registry, host: str) -> None:
    """One line, and no error of the resolver or of a codec behind it."""
    with pytest.raises(OSError, match="cannot listen on ") as raised:
        serve_metrics(registry, host, 0)
    assert len(str(raised.value).splitlines()) == 1
    assert raised.value.__suppress_context__
