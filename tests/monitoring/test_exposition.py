"""What others scrape: prometheus_client's registry, and HTTP."""

import contextlib
import gzip
import http.client
import logging
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from prometheus_client import CollectorRegistry, Counter, generate_latest, parser
from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition
from prometheus_client.openmetrics import parser as openmetrics_parser

from statsfs.formats import openmetrics, prometheus, views
from statsfs.model.stats import Stats, hist, linear_hist, log_hist, s64, u64
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value
from statsfs.monitoring import http_server
from statsfs.monitoring.exposition import RegistryCollector, serve_metrics
from statsfs.monitoring.http_server import MetricsServer, accepts_gzip, choose_content_type
from statsfs.tree.registry import Registry
from statsfs.tree.snapshot import Snapshot, take_snapshot
from statsfs.tree.source import Source
from tests.support.bare import bare_linear_hist, bare_log_hist
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.exported import Node, build, parse_openmetrics, parse_text, trees
from tests.support.forking import run_forking

OPENMETRICS = "application/openmetrics-text"
generate_openmetrics: Callable[[CollectorRegistry], bytes] = exposition.generate_latest


@pytest.fixture
def app(registry: Registry) -> Source:
    """A source with one value of each sort; one of them not everybody may read."""
    values = (
        Value("requests", description="Answered"),
        Value("lag_ms", unit=Unit.SECONDS, exponent=-3, kind=Kind.INSTANT),
        Value("sizes", kind=Kind.LOG_HIST, size=3, unit=Unit.BYTES),
        Value("sizes.sum", unit=Unit.BYTES),
        Value("bare", kind=Kind.LOG_HIST, size=2),
        Value("secret", mode=0o640),
    )
    app = Source("app")
    base = {"requests": 5, "lag_ms": 250, "sizes": [1, 2, 3], "sizes.sum": 11, "bare": [4, 5]}
    app.add_values(values, {**base, "secret": 9})
    registry.register(app)
    return app


@pytest.fixture
def server(registry: Registry, app: Source) -> Iterator[MetricsServer]:
    """A server of these values."""
    with serve_metrics(registry) as server:
        yield server


# prometheus_client


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


def as_floats(samples: dict[Any, Any]) -> dict[Any, Any]:
    """The samples as prometheus_client writes them."""
    return {
        key: as_floats(number) if isinstance(number, dict) else float(number)
        for key, number in samples.items()
    }


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
        "lazy = {'http.server', 'prometheus_client', 'statsfs.monitoring.http_server'}\n"
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


# Negotiation


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "text/plain"),
        ("*/*", "text/plain"),
        ("text/plain", "text/plain"),
        ("text/html", "text/plain"),
        (OPENMETRICS, OPENMETRICS),
        (f"{OPENMETRICS};version=1.0.0", OPENMETRICS),
        (f'{OPENMETRICS.upper()} ; Version = "1.0.0"', OPENMETRICS),
        (f"{OPENMETRICS};version=0.0.1", "text/plain"),
        (f"{OPENMETRICS};version=2.0.0,*/*;q=0.1", "text/plain"),
        (f"text/plain,{OPENMETRICS}", OPENMETRICS),
        (f"text/plain;q=0.9,{OPENMETRICS};q=0.8", "text/plain"),
        (f"text/plain;q=0.8,{OPENMETRICS};q=0.9", OPENMETRICS),
        (f"{OPENMETRICS};q=0", "text/plain"),
        (f"{OPENMETRICS};q=0,*/*", "text/plain"),
        ("application/*", OPENMETRICS),
        ("application/*;q=0.5,*/*;q=0.5", "text/plain"),
        ("text/*;q=0.1,application/*;q=0.2", OPENMETRICS),
        (f"{OPENMETRICS};q=nan", "text/plain"),
        (f"{OPENMETRICS};q=2,", "text/plain"),
        # Prometheus 2.42, 3.5 and node_exporter's libraries.
        (
            f"{OPENMETRICS};version=1.0.0,{OPENMETRICS};version=0.0.1;q=0.75,"
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            OPENMETRICS,
        ),
        (
            f"{OPENMETRICS};version=1.0.0;escaping=allow-utf-8;q=0.6,"
            "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,*/*;q=0.2",
            OPENMETRICS,
        ),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "text/plain"),
        (f"text/plain;version=0.0.4,{OPENMETRICS};version=0.0.1", "text/plain"),
    ],
)
def test_formats(accept: str, expected: str) -> None:
    """A client gets OpenMetrics if it names it, and does not prefer the text."""
    assert choose_content_type(accept).startswith(expected)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", False),
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip;q=0.000", False),
        ("identity", False),
        ("br;q=1.0, x-gzip;q=0.8", True),
    ],
)
def test_encodings(header: str, expected: bool) -> None:
    """The answer is compressed for clients that accept it."""
    assert accepts_gzip(header) is expected


# HTTP


def ask(
    server: MetricsServer, method: str = "GET", path: str = "/metrics", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    """Ask once."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=DEADLINE)
    with contextlib.closing(connection):
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        connection.request(method, path, headers={"Accept-Encoding": "identity", **named})
        response = connection.getresponse()
        return response, response.read()


def test_a_scrape(registry: Registry, server: MetricsServer) -> None:
    """What is answered is the view that everybody may read."""
    response, body = ask(server)
    assert (response.status, response.headers["Content-Type"]) == (200, prometheus.CONTENT_TYPE)
    assert int(response.headers["Content-Length"]) == len(body)
    assert body == prometheus.render(registry.snapshot(), mask=0o004)
    assert b"secret" not in body
    assert b"app_requests_total 5\n" in body
    response, body = ask(server, Accept=OPENMETRICS, path="/metrics?debug=1")
    assert response.headers["Content-Type"] == openmetrics.CONTENT_TYPE
    assert body == openmetrics.render(registry.snapshot(), mask=0o004)


def test_compressed(registry: Registry, server: MetricsServer) -> None:
    """The same, and smaller."""
    response, body = ask(server, Accept_Encoding="gzip")
    assert response.headers["Content-Encoding"] == "gzip"
    assert int(response.headers["Content-Length"]) == len(body)
    assert gzip.decompress(body) == prometheus.render(registry.snapshot(), mask=0o004)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("name[]=app_requests_total", {"app_requests"}),
        ("name[]=app_requests", {"app_requests"}),
        ("name%5b%5D=app_lag_seconds", {"app_lag_seconds"}),
        ("name[]=app_sizes_bytes_sum", {"app_sizes_bytes"}),
        ("name[]=app_sizes_bytes&name[]=app_requests_total&name[]=nothing", None),
        ("debug=1&name[]=app_bare_bucket&x", {"app_bare_bucket"}),
        ("name[]=app_lag_seconds#name[]=app_requests", {"app_lag_seconds"}),
        ("name[]=", {"app_requests", "app_lag_seconds", "app_sizes_bytes", "app_bare_bucket"}),
        ("name[", {"app_requests", "app_lag_seconds", "app_sizes_bytes", "app_bare_bucket"}),
        ("name[]=app_secret_total", set()),
        ("name[]=nothing", set()),
        ("name[]=app_bare", set()),
        ("name[]=%ff%00&&=%zz", set()),
    ],
)
def test_some_metrics(server: MetricsServer, query: str, expected: set[str] | None) -> None:
    """Those that have one of the names, or a sample of it, as they are among all others."""
    if expected is None:
        expected = {"app_sizes_bytes", "app_requests"}
    for accept, parse in (("", parse_text), (OPENMETRICS, parse_openmetrics)):
        whole = parse(ask(server, Accept=accept)[1])
        path = f"/metrics?{query}"
        response, body = ask(server, Accept=accept, path=path)
        assert response.status == 200
        assert parse(body) == {name: whole[name] for name in expected}
        packed = ask(server, Accept=accept, Accept_Encoding="gzip", path=path)[1]
        assert gzip.decompress(packed) == body
        assert int(ask(server, "HEAD", path, Accept=accept)[0].headers["Content-Length"]) == len(
            body
        )


def test_the_names_are_those_of_prometheus_client(
    registry: Registry, app: Source, server: MetricsServer
) -> None:
    """A sample that its restricted registry finds is found over HTTP, and no other family."""
    theirs = CollectorRegistry()
    theirs.register(RegistryCollector(registry))
    samples = [one.name for family in theirs.collect() for one in family.samples]
    for name in (*samples, "requests_total", "app"):
        expected = parse_text(generate_latest(theirs.restricted_registry([name])))
        found = parse_text(ask(server, path=f"/metrics?name[]={name}")[1])
        assert found.keys() == expected.keys()
        for family, (*_, parts) in expected.items():
            assert as_floats(found[family].samples).items() >= as_floats(parts).items()


def test_head(server: MetricsServer) -> None:
    """The headers of GET, and nothing else."""
    _, body = ask(server)
    response, nothing = ask(server, "HEAD")
    assert (response.status, nothing) == (200, b"")
    assert int(response.headers["Content-Length"]) == len(body)


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metricsx", "/favicon.ico", "*"])
def test_other_paths(server: MetricsServer, path: str) -> None:
    """There is one thing to be had here."""
    for method in ("GET", "HEAD", "POST"):
        response, body = ask(server, method, path)
        assert response.status == 404
        assert body == (b"" if method == "HEAD" else b"404 Not Found\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "parse"])
def test_other_methods(server: MetricsServer, method: str) -> None:
    """Only GET and HEAD are allowed."""
    response, body = ask(server, method)
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")
    assert body == b"405 Method Not Allowed\n"


def talk(server: MetricsServer, text: bytes) -> bytes:
    """Send bytes, and return all that comes back."""
    with socket.create_connection((server.host, server.port), DEADLINE) as connection:
        connection.sendall(text)
        answer = b""
        while some := connection.recv(65536):
            answer += some
    return answer


@pytest.mark.parametrize(
    ("text", "start"),
    [
        (b"GET http://127.0.0.1:1/metrics HTTP/1.1\r\n\r\n", b"200 OK\r\n"),
        (b"GET /metrics HTTP/1.1\r\nAccept: */*\r\nAccept: text/plain\r\n\r\n", b"200 "),
        (b"GET /metrics\r\n\r\n", b"# HELP app_requests_total Answered\n"),
        (b"GET /metrics\r\n", b"# HELP app_requests_total Answered\n"),
        (b"GET  /metrics \n", b"# HELP app_requests_total Answered\n"),
        (b"GET /other\r\n", b"404 "),
        (b"POST /metrics\r\n", b"400 "),
        (b"nonsense\r\n\r\n", b"400 "),
        (b"GET /metrics HTTP/9.9\r\n\r\n", b"505 "),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414 "),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431 "),
    ],
)
def test_odd_requests(
    server: MetricsServer, capfd: pytest.CaptureFixture[str], text: bytes, start: bytes
) -> None:
    """Old, proxied and broken clients have their answer, and nothing is printed.

    HTTP/0.9 had an empty one: of Python 3.14 at once, of others after half a minute.
    """
    # Python 3.14 answers with a status line where older ones do not.
    assert talk(server, text).removeprefix(b"HTTP/1.0 ").startswith(start)
    assert ask(server)[0].status == 200
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("patience", [0.3, 1000.0])
def test_silent_clients_keep_nobody_waiting(
    registry: Registry, app: Source, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    """Connections without a whole request are closed in time, and delay no others."""
    monkeypatch.setattr(http_server._Handler, "timeout", patience)
    with serve_metrics(registry) as server, contextlib.ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection((server.host, server.port), DEADLINE))
            for _ in range(20)
        ]
        for connection in silent[10:]:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost:")
        assert ask(server)[0].status == 200
        if patience < DEADLINE:
            assert [connection.recv(1) for connection in silent] == [b""] * 20


def test_clients_that_do_not_read(
    registry: Registry,
    app: Source,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """An answer that is not read is given up, and a lost connection is not printed."""
    monkeypatch.setattr(http_server._Handler, "timeout", 0.2)
    big = Value("big", description="x" * 20_000_000)
    app.add_values([big], {"big": 1})
    with serve_metrics(registry) as server:
        with socket.create_connection((server.host, server.port), DEADLINE) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            wait_until(lambda: threads_of(server) == 0)
        with socket.create_connection((server.host, server.port), DEADLINE) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            connection.recv(1)
        wait_until(lambda: threads_of(server) == 0)
        assert ask(server, "HEAD")[0].status == 200
    assert capfd.readouterr() == ("", "")


def threads_of(server: MetricsServer) -> int:
    """How many connections it has."""
    return http_server._CONNECTIONS - server._server._free._value


def test_many_scrapes_at_once(registry: Registry, app: Source) -> None:
    """All are answered, and each of one moment."""
    for number in range(100):
        child = Source("c%d", number)
        child.add_values([Value("n")], {"n": number})
        app.add_subordinate(child)
    expected = prometheus.render(registry.snapshot(), mask=0o004)
    with serve_metrics(registry) as server, ThreadPoolExecutor(20) as pool:
        bodies = list(pool.map(lambda _: ask(server)[1], range(60)))
    assert set(bodies) == {expected}


def test_scrapes_while_the_tree_changes(
    registry: Registry, app: Source, server: MetricsServer
) -> None:
    """Sources come and go in other threads; each answer is whole, and has what stays."""
    ended = threading.Event()

    def churn(name: str) -> None:
        value = Value("n", aggregate=Aggregate.SUM)
        while not ended.is_set():
            source = Source("%s", name, label="worker", hidden=name > "c")
            source.add_values([value], {"n": 1})
            app.add_subordinate(source)
            below = Source("below")
            source.add_subordinate(below)
            below.add_values([value], {"n": 2})
            app.remove_subordinate(source)
            source.put()
            below.put()

    with ThreadPoolExecutor(4) as pool:
        churning = [pool.submit(churn, name) for name in "abcd"]
        try:
            for turn in range(20):
                response, body = ask(server, Accept=OPENMETRICS if turn % 2 else "")
                assert response.status == 200
                found = (parse_openmetrics if turn % 2 else parse_text)(body)
                assert found["app_requests"].samples == {("app_requests_total", frozenset()): 5}
                known = {"app_requests", "app_lag_seconds", "app_sizes_bytes", "app_bare_bucket"}
                assert set(found) <= {*known, "app_n"}
        finally:
            ended.set()
        for one in churning:
            one.result(DEADLINE)


def test_too_many_silent_clients(
    registry: Registry, app: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection that was silent for longest is closed; also one that has just gone."""
    monkeypatch.setattr(http_server, "_CONNECTIONS", 2)
    with serve_metrics(registry) as server:
        with contextlib.ExitStack() as stack:
            first, second = (
                stack.enter_context(socket.create_connection((server.host, server.port), DEADLINE))
                for _ in range(2)
            )
            wait_until(lambda: threads_of(server) == 2)
            assert ask(server)[0].status == 200
            assert first.recv(1) == b""
            second.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert second.recv(4) == b"HTTP"
        wait_until(lambda: threads_of(server) == 0)
        with socket.socket() as gone:
            server._server.silent[gone] = None
            assert server._server._make_room()
            server._server._free.release()


def test_too_many_scrapes(registry: Registry, app: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """One connection too many is closed; scrapes under way are answered."""
    monkeypatch.setattr(http_server, "_CONNECTIONS", 2)
    go_on = threading.Event()

    def wait(root: Registry | Source) -> Snapshot:
        assert go_on.wait(DEADLINE)
        return take_snapshot(root)

    monkeypatch.setattr(views, "take_snapshot", wait)
    with serve_metrics(registry) as server, ThreadPoolExecutor(2) as pool:
        try:
            answers = [pool.submit(ask, server) for _ in range(2)]
            wait_until(lambda: threads_of(server) == 2 and not server._server.silent)
            assert talk(server, b"") == b""
        finally:
            go_on.set()
        assert [answer.result(DEADLINE)[0].status for answer in answers] == [200, 200]


def test_no_more_threads(registry: Registry, app: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system gives none, that client is hung up on, and the next one is answered."""
    start = threading.Thread.start
    failures = ["one"]

    def fail_once(thread: threading.Thread) -> None:
        if failures:
            failures.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    with serve_metrics(registry) as server:
        monkeypatch.setattr(threading.Thread, "start", fail_once)
        assert talk(server, b"") == b""
        assert ask(server)[0].status == 200
        assert threads_of(server) <= 1


def test_no_more_descriptors(
    registry: Registry, app: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are none, it tries again in a moment."""
    monkeypatch.setattr(http_server, "_REST", 0.01)
    failures = ["one"]
    accept = socketserver.TCPServer.get_request

    def fail_once(self: Any) -> Any:
        if failures:
            failures.pop()
            raise OSError(24, "Too many open files")
        return accept(self)

    monkeypatch.setattr(socketserver.TCPServer, "get_request", fail_once)
    with serve_metrics(registry) as server:
        assert ask(server)[0].status == 200
        assert failures == []


def test_a_broken_scrape(
    server: MetricsServer,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is 500, and logged with its reason; the next one is answered."""

    def fail(root: Registry | Source) -> None:
        raise KeyError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(views, "take_snapshot", fail)
        response, body = ask(server)
        assert (response.status, body) == (500, b"500 Internal Server Error\n")
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "KeyError: 'broken'" in caplog.text
    assert ask(server)[0].status == 200


def test_a_scrape_asks(registry: Registry, server: MetricsServer) -> None:
    """What must be asked for is asked for at each scrape, and by the collector."""
    numbers = {"asked": 0}

    def ask_it() -> None:
        numbers["asked"] += 1

    source = Source("asking", refresh=ask_it)
    source.add_values([Value("asked")], numbers)
    registry.register(source)
    assert b"\nasking_asked_total 1\n" in ask(server)[1]
    assert b"\nasking_asked_total 2\n" in ask(server)[1]
    (family,) = [one for one in RegistryCollector(registry).collect() if "asking" in one.name]
    assert [sample.value for sample in family.samples] == [3]


# The server


def test_an_address(registry: Registry) -> None:
    """By default a free port of the loopback address."""
    with serve_metrics(registry) as server:
        assert server.host == "127.0.0.1"
        assert server.url == f"http://127.0.0.1:{server.port}/metrics"
        assert repr(server) == f"<MetricsServer {server.url}>"
        with serve_metrics(registry, "localhost") as other:
            assert other.port != server.port
    assert repr(server) == f"<MetricsServer {server.url} closed>"


def test_ipv6(registry: Registry, app: Source) -> None:
    """An address with colons stands in brackets in the URL, and nowhere else."""
    with contextlib.closing(socket.socket(socket.AF_INET6)) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    with serve_metrics(registry, "::1") as server:
        assert server.url == f"http://[::1]:{server.port}/metrics"
        assert ask(server)[0].status == 200


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("127.0.0.1", -1, "invalid port"),
        ("127.0.0.1", 65536, "invalid port"),
        ("192.0.2.1", 0, "Cannot assign requested address"),
        ("no.such.host.invalid", 9100, "no.such.host.invalid:9100: "),
        ("a..b", 9100, "a..b:9100: "),
    ],
)
def test_bad_addresses(registry: Registry, host: str, port: int, reason: str) -> None:
    """One line that says where and why."""
    with pytest.raises(OSError, match=r"^cannot listen on ") as caught:
        serve_metrics(registry, host, port)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_port_that_is_taken(registry: Registry) -> None:
    """The second one is refused; after the first has closed it may have the port at once."""
    with serve_metrics(registry) as server:
        with pytest.raises(OSError, match="Address already in use"):
            serve_metrics(registry, server.host, server.port)
        ask(server)
    with serve_metrics(registry, server.host, server.port) as again:
        assert ask(again)[0].status == 200


def test_closing(registry: Registry) -> None:
    """When it returns the port is closed and the thread has ended; a second time does nothing."""
    server = serve_metrics(registry)
    server.close()
    server.close()
    assert not server._thread.is_alive()
    with pytest.raises(ConnectionRefusedError):
        ask(server)


def test_closing_in_a_forked_child() -> None:
    """The child has no thread that answers; closing its copy leaves the parent's as it is."""
    program = (
        "import os, urllib.request\n"
        "from statsfs import Registry, serve_metrics\n"
        "server = serve_metrics(Registry())\n"
        "if not (child := os.fork()):\n"
        "    server.close()\n"
        "    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert urllib.request.urlopen(server.url).status == 200\n"
        "server.close()\n"
    )
    assert run_forking(program) == (0, "")


def test_closing_a_copy(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a child closes is its descriptor, and not the socket, which is the parent's too."""
    server = serve_metrics(registry)
    with contextlib.closing(server._server.socket.dup()) as parents:
        with monkeypatch.context() as child:
            child.setattr(server._thread, "is_alive", lambda: False)
            server.close()
        socket.create_connection((server.host, server.port), DEADLINE).close()
        parents.shutdown(socket.SHUT_RDWR)
        server._thread.join(DEADLINE)
        assert not server._thread.is_alive()
