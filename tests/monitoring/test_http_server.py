"""What is answered over HTTP, and the life of a server."""

import contextlib
import gzip
import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import trio
from prometheus_client import CollectorRegistry, generate_latest

from statsfs.formats import openmetrics, prometheus, views
from statsfs.model.locking import Flag
from statsfs.model.values import Aggregate, Value
from statsfs.monitoring import http_server, http_sockets
from statsfs.monitoring.exposition import RegistryCollector, serve_metrics
from statsfs.monitoring.http_server import MetricsServer
from statsfs.tree.registry import Registry
from statsfs.tree.snapshot import Snapshot, take_snapshot
from statsfs.tree.source import Source
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.exported import as_floats, parse_openmetrics, parse_text
from tests.support.scrapes import REQUEST, ask, connect, read_all, talk

OPENMETRICS = "application/openmetrics-text"

# Answers


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


@pytest.mark.parametrize("path", ["//", "/metrics/", "/metricsx", "/favicon.ico", "*"])
def test_other_paths(server: MetricsServer, path: str) -> None:
    """Nothing else is to be had here."""
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


@pytest.mark.parametrize(
    ("text", "start"),
    [
        (b"GET http://127.0.0.1:1/metrics HTTP/1.1\r\nHost: a\r\n\r\n", b"200 OK\r\n"),
        (b"GET HTTPS://a HTTP/1.1\r\nHost: a\r\n\r\n", b"404 "),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: */*\r\nAccept: text/plain\r\n\r\n", b"200 "),
        (b"GET /metrics HTTP/1.0\n\n", b"200 "),
        (b"GET /metrics HTTP/1.2\r\nHost: a\r\n\r\n", b"200 "),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n", b"200 "),
        (
            b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
            b"200 ",
        ),
        (b"POST /metrics\r\n", b"400 "),
        (b"nonsense\r\n\r\n", b"400 "),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400 "),  # TLS
        (b"GET /metrics HTTP/1.1\r\n\r\n", b"400 "),  # of which host
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400 "),
        (b"GET /metrics?\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", b"400 "),
        (b"GET /metrics HTTP/9.9\r\nHost: a\r\n\r\n", b"505 "),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"505 "),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", b"404 "),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b"404 "),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", b"413 "),
        (
            b"GET /metrics HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"413 ",
        ),
        (b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", b"405 "),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", b"501 "),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414 "),
        (b"GET /" + b"x" * 9_000, b"414 "),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431 "),
        (b"GET / HTTP/1.1\r\na: " + b"b" * 70_000, b"431 "),
    ],
)  # fmt: skip
def test_odd_requests(
    server: MetricsServer, capfd: pytest.CaptureFixture[str], text: bytes, start: bytes
) -> None:
    """Old, proxied and broken clients have their answer, and nothing is printed."""
    assert talk(server, text).startswith(b"HTTP/1.1 " + start)
    assert ask(server)[0].status == 200
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "text", [b"GET /metrics\r\n\r\n", b"GET /metrics\r\n", b"GET  /metrics \n"]
)
def test_very_old_requests(server: MetricsServer, text: bytes) -> None:
    """In HTTP/0.9 a request has one line, and an answer nothing but a body."""
    whole = ask(server)[1]
    with connect(server, text) as connection:
        assert read_all(connection) == whole
    assert talk(server, text.replace(b"metrics", b"other")) == b"404 Not Found\n"


def test_what_an_answer_says_of_itself(server: MetricsServer) -> None:
    """Who answers, when, and what it depends on."""
    response, _ = ask(server)
    assert response.version == 11
    assert response.headers["Server"] == "statsfs"
    assert response.headers["Date"].endswith(" GMT")
    assert response.headers["Vary"] == "Accept, Accept-Encoding"
    assert "Connection" not in response.headers


def test_only_little_of_some_metrics_is_compressed(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each client that names metrics would have them compressed anew; all of them are once."""
    whole = ask(server)[1]
    some = ask(server, path="/metrics?name[]=app_requests")[1]
    monkeypatch.setattr(http_server, "_SMALL", len(some) - 1)
    response, body = ask(server, path="/metrics?name[]=app_requests", Accept_Encoding="gzip")
    assert (response.headers["Content-Encoding"], body) == (None, some)
    response, body = ask(server, Accept_Encoding="gzip")
    assert (response.headers["Content-Encoding"], gzip.decompress(body)) == ("gzip", whole)


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


def test_a_scrape_awaits(registry: Registry, server: MetricsServer) -> None:
    """An async refresh runs in the server's loop; a cleared counter is one that began anew."""
    numbers = {"asked": 4}

    async def ask_it() -> None:
        await trio.sleep(0)
        numbers["asked"] += 1

    source = Source("asking", refresh=ask_it, baseline=True)
    source.add_values([Value("asked")], numbers)
    registry.register(source)
    assert b"\nasking_asked_total 5\n" in ask(server)[1]
    trio.run(trio.to_thread.run_sync, source.clear_value, "asked")
    assert b"\nasking_asked_total 1\n" in ask(server)[1]


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


class Held:
    """Renderings that wait until they may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()
        monkeypatch.setattr(views, "take_snapshot", self._wait)

    def _wait(self, root: Registry | Source) -> Snapshot:
        self.begun.release()
        assert self.go_on.wait(DEADLINE)
        return take_snapshot(root)


def test_scrapes_under_way_are_answered(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing waits for them; nobody else is let in, and who has not asked is cut off."""
    held = Held(monkeypatch)
    with connect(server) as silent, ThreadPoolExecutor(2) as pool:
        try:
            scrape = pool.submit(ask, server)
            assert held.begun.acquire(timeout=DEADLINE)
            closing = pool.submit(server.close)
            assert silent.recv(1) == b""
            with pytest.raises(ConnectionRefusedError):
                connect(server)
        finally:
            held.go_on.set()
        response, body = scrape.result(DEADLINE)
        assert (response.status, response.headers["Connection"]) == (200, "close")
        assert int(response.headers["Content-Length"]) == len(body)
        closing.result(DEADLINE)


def test_a_scrape_that_does_not_end(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing does not wait for it for ever."""
    monkeypatch.setattr(http_sockets, "_GRACE", 0.1)
    held = Held(monkeypatch)
    with connect(server, REQUEST) as client:
        assert held.begun.acquire(timeout=DEADLINE)
        server.close()
        assert not server._thread.is_alive()
        assert read_all(client) == b""
    held.go_on.set()


def test_a_scrape_that_takes_too_long(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is told to come again, and the next one is answered once there is an answer."""
    held = Held(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(http_server, "_PATIENCE", 0.1)
        response, body = ask(server)
    assert (response.status, response.headers["Retry-After"]) == (503, "1")
    assert body == b"503 Service Unavailable\n"
    held.go_on.set()
    assert ask(server)[0].status == 200


def test_closing_in_its_own_thread(registry: Registry) -> None:
    """A log's handler may do so; it cannot wait for itself."""
    server = serve_metrics(registry)
    server._token.run_sync_soon(server.close)
    server._thread.join(DEADLINE)
    assert not server._thread.is_alive()
    server.close()


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), KeyboardInterrupt()])
def test_no_thread(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Where the system gives none, or before it does: one line, and the port is free."""
    made: list[threading.Thread] = []

    def fail(thread: threading.Thread) -> None:
        made.append(thread)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(BaseException, match=r"^cannot serve metrics: no thread|^$"):
            serve_metrics(registry)
    made[0].run()  # it comes too late
    port = int(made[0].name.rpartition(":")[2].removesuffix("/metrics"))
    serve_metrics(registry, port=port).close()


def test_no_loop(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where there are no descriptors for it: one line."""

    def fail(main: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(trio, "run", fail)
    with pytest.raises(OSError, match=r"^cannot serve metrics: .*Too many open files"):
        serve_metrics(registry)
    assert "serving failed" in caplog.text


def test_interrupted_while_it_starts(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C leaves no thread, and no port."""
    wait = Flag.wait
    interrupts = [KeyboardInterrupt]

    def interrupt(flag: Flag, seconds: float | None = None) -> bool:
        if interrupts and threading.current_thread() is threading.main_thread():
            raise interrupts.pop()
        return wait(flag, seconds)

    before = threading.active_count()
    monkeypatch.setattr(Flag, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        serve_metrics(registry)
    assert threading.active_count() == before


# Scrapes that fail


def test_a_broken_scrape(
    server: MetricsServer,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is 500, and logged with its reason, once until the next one is answered."""

    def fail(root: Registry | Source) -> None:
        raise KeyError("broken")

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(views, "take_snapshot", fail)
            for _ in range(3):
                response, body = ask(server)
                assert (response.status, body) == (500, b"500 Internal Server Error\n")
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        assert "KeyError: 'broken'" in caplog.text
        caplog.clear()
        assert ask(server)[0].status == 200


def test_no_more_threads(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the system gives none, that scrape fails, and the next one is answered."""
    start = trio.to_thread.run_sync
    failing = [False]

    async def fail(*args: Any, **options: Any) -> Any:
        if failing.pop(0):
            raise RuntimeError("can't start new thread")
        return await start(*args, **options)

    monkeypatch.setattr(trio.to_thread, "run_sync", fail)
    for failing[:], status in (([True], 500), ([False, True], 503), ([False, False], 200)):
        response, _ = ask(server, path="/metrics?name[]=app_requests", Accept_Encoding="gzip")
        assert response.status == status
    assert "can't start new thread" in caplog.text


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit, KeyboardInterrupt])
def test_code_of_users_that_ends_the_thread(
    registry: Registry, server: MetricsServer, error: type[BaseException]
) -> None:
    """It ends the scrape, and not the server."""

    class Base:
        failing = False

        @property
        def n(self) -> int:
            if self.failing:
                raise error
            return 1

    def fail() -> None:
        if base.failing:
            raise error

    base = Base()
    dynamic, asking = Source("dynamic"), Source("asking", refresh=fail, blocking=False)
    dynamic.add_values([Value("n")], base)
    asking.add_values([Value("n")], {"n": 1})
    for source in (dynamic, asking):
        registry.register(source)
        base.failing = True
        assert ask(server)[0].status in (200, 500)
        base.failing = False
        assert f"{source.name}_n_total 1\n".encode() in ask(server)[1]


def test_a_refresh_that_does_not_answer(registry: Registry, server: MetricsServer) -> None:
    """Scrapes are answered without its numbers once the deadline is over, and then at once."""
    answer = threading.Event()
    asking = Source("asking", refresh=lambda: answer.wait(DEADLINE))
    asking.add_values([Value("n")], {"n": 1})
    registry.register(asking)
    try:
        with ThreadPoolExecutor(10) as pool:
            for body in pool.map(lambda _: ask(server)[1], range(10)):
                assert b"app_requests_total 5\n" in body
                assert b"asking" not in body
    finally:
        answer.set()
    wait_until(lambda: b"asking_n_total 1\n" in ask(server)[1], "its numbers")
