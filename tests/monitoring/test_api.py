"""`/api/stats` and `/api/schema` over plain HTTP."""

import gzip
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from statsfs.formats import json as stats_json
from statsfs.formats import schema as stats_schema
from statsfs.formats import user_bounds, views
from statsfs.model.values import Aggregate, Value
from statsfs.monitoring import shared_renderings
from statsfs.monitoring.http_server import MetricsServer
from statsfs.tree.registry import Registry
from statsfs.tree.snapshot import Snapshot, take_snapshot
from statsfs.tree.source import Source
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.scrapes import ask, connect, hang_up, talk

N = Value("n", aggregate=Aggregate.SUM)


def load(server: MetricsServer, path: str, **headers: str) -> Any:
    """What is answered."""
    response, body = ask(server, path=path, **headers)
    assert (response.status, response.headers["Content-Type"]) == (200, "application/json")
    assert int(response.headers["Content-Length"]) == len(body)
    return json.loads(body)


@pytest.fixture
def worker(app: Source) -> dict[str, int]:
    """What a worker of the application counts."""
    base = {"n": 7}
    for name, hidden in (("a%2Fb", False), ("out of sight", True)):
        group = Source("%s", name, label="group", hidden=hidden)
        one = Source("worker", label="worker")
        app.add_subordinate(group)
        group.add_subordinate(one)
        one.add_values([N], base)
    return base


def test_what_everybody_may_read(
    registry: Registry, app: Source, worker: dict[str, int], server: MetricsServer
) -> None:
    """The views of the root, without what not everybody may read."""
    snapshot = registry.snapshot()
    stats = load(server, "/api/stats")
    assert stats == json.loads(stats_json.render(snapshot, mask=0o004))
    assert stats["subordinates"]["app"]["values"]["requests"] == 5
    schema = load(server, "/api/schema")
    assert schema == json.loads(stats_schema.render(snapshot, readable=0o004))
    for body in (stats, schema):
        assert "secret" not in json.dumps(body)
        assert "out of sight" not in json.dumps(body)


def test_of_a_path(app: Source, worker: dict[str, int], server: MetricsServer) -> None:
    """The views of a directory, whose name is percent-encoded."""
    whole = load(server, "/api/stats")["subordinates"]["app"]
    assert load(server, "/api/stats/app") == whole
    group = whole["subordinates"]["a%2Fb"]
    assert load(server, "/api/stats/app/a%252Fb") == group
    assert group["subordinates"] == {"worker": {"values": {"n": 7}, "subordinates": {}}}
    schema = load(server, "/api/schema/app/a%252Fb/worker")
    assert schema["labels"] == {"group": "a%2Fb", "worker": "worker"}
    assert [value["name"] for value in schema["values"]] == ["n"]


def test_less(app: Source, worker: dict[str, int], server: MetricsServer) -> None:
    """Not so deep, and only some values."""
    for view in ("stats", "schema"):
        assert load(server, f"/api/{view}?depth=0")["subordinates"] == 1
        cut = load(server, f"/api/{view}?depth=1")["subordinates"]["app"]
        assert cut["subordinates"] == 1
        leaf = load(server, f"/api/{view}/app/a%252Fb?depth=1")["subordinates"]["worker"]
        assert leaf["subordinates"] == {}
        whole = load(server, f"/api/{view}")
        assert load(server, f"/api/{view}?depth=9") == whole
    few = load(server, "/api/stats/app?value=n&value=sizes&value=none")
    assert few["values"] == {"n": 14, "sizes": [1, 2, 3]}
    assert few["subordinates"]["a%2Fb"]["values"] == {"n": 7}
    few = load(server, "/api/schema/app?value=n&depth=0")
    assert [value["name"] for value in few["values"]] == ["n"]
    assert load(server, "/api/stats/app?value=secret")["values"] == {}
    assert load(server, "/api/schema/app?value=secret")["values"] == []


@pytest.mark.parametrize(
    ("method", "path", "accept", "status"),
    [
        ("GET", "/api/stats/nothing", "", 404),
        ("GET", "/api/stats/app/requests", "", 404),
        ("GET", "/api/stats/app/out%20of%20sight", "", 404),
        ("GET", "/api/stats/app/out%20of%20sight/worker", "", 404),
        ("GET", "/api/stats/app/a/b", "", 404),
        ("GET", "/api/stats/..", "", 404),
        ("GET", "/api/stats/", "", 404),
        ("GET", "/api", "", 404),
        ("HEAD", "/api/schema/nothing", "", 404),
        ("POST", "/api/nothing", "", 404),
        ("POST", "/api/stats", "", 405),
        ("DELETE", "/api/stats/app", "", 405),
        ("PUT", "/", "", 405),
        ("GET", "/api/stats?depth=x", "", 400),
        ("GET", "/api/stats", "text/html", 406),
        ("GET", "/api/stats", "application/json;q=0", 406),
        ("GET", "/api/stats", "text/html, application/*;q=0.1", 200),
        ("GET", "/api/stats", "*/*", 200),
    ],
)
def test_statuses(
    worker: dict[str, int],
    server: MetricsServer,
    method: str,
    path: str,
    accept: str,
    status: int,
) -> None:
    """Each request has the answer that HTTP has for it."""
    response, _ = ask(server, method, path, Accept=accept)
    assert response.status == status
    assert (response.headers["Allow"] is not None) == (status == 405)


@pytest.mark.parametrize(
    "query",
    ["depth=x", "depth=-1", "depth=1&depth=1.5", f"depth={'9' * 5000}", "depth=%0D%0A%00%ff%1B[2J"],
    ids=["text", "negative", "the last one", "huge", "control characters"],
)
def test_the_reason_of_a_refusal(server: MetricsServer, query: str) -> None:
    """The body has it, on one line, whatever was asked for."""
    for view in ("stats", "schema"):
        response, body = ask(server, path=f"/api/{view}?{query}")
        assert (response.status, body.count(b"\n")) == (400, 1)
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert body.startswith(b"400 Bad Request: invalid depth '")
        assert body.endswith(b"': it must be a number from 0 to 9999\n")
        assert body[:-1].decode().isprintable()
        assert len(body) < 300


@pytest.mark.parametrize(
    "query",
    [
        "dept=1",
        "depth=",
        "depth=x&depth=9999",
        "value=",
        "name[]=n",
        "=&&=",
        "a=%zz&%ff=%ff",
        "depth",
    ],
)
def test_parameters_that_are_ignored(worker: Any, server: MetricsServer, query: str) -> None:
    """Unknown and empty ones, and all but the last depth: the answer is the whole."""
    assert load(server, f"/api/stats?{query}") == load(server, "/api/stats")


def test_parameters_of_metrics(worker: Any, server: MetricsServer) -> None:
    """`name[]` alone has an effect, once or more often; other names are unknown, as are none."""

    def scrape(query: str) -> bytes:
        response, body = ask(server, path=f"/metrics?{query}")
        assert response.status == 200
        return body

    whole = scrape("")
    assert b"app_n_total{" in whole
    for query in ("name=x", "name[]=", "depth=x", "collect[]=a", "=&&=", "name[]&x=%ff", "%zz"):
        assert scrape(query) == whole, query
    one = scrape("name[]=app_n_total")
    assert b"app_n_total{" in one
    assert len(one) < len(whole)
    for query in ("name[]=app_n_total&name[]=app_n_total", "name[]=app_n_total&name[]=%00"):
        assert scrape(query) == one, query
    assert scrape(f"name[]={'x' * 5000}") == scrape("name[]=-1") == b""


def test_a_body(server: MetricsServer) -> None:
    """A request has none."""
    request = b"GET /api/stats HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"
    assert talk(server, request).startswith(b"HTTP/1.1 413 ")


def test_what_a_client_has_already(worker: dict[str, int], server: MetricsServer) -> None:
    """It is not sent again; the moment is."""
    for encoding in ("identity", "gzip"):
        response, _ = ask(server, path="/api/stats", Accept_Encoding=encoding)
        tag, moment = response.headers["ETag"], int(response.headers["Statsfs-Moment"])
        for header in (tag, f'"x", W/{tag}', "*"):
            again, body = ask(
                server, path="/api/stats", Accept_Encoding=encoding, If_None_Match=header
            )
            assert (again.status, body, again.headers["ETag"]) == (304, b"", tag)
            assert "Content-Length" not in again.headers
            assert int(again.headers["Statsfs-Moment"]) > moment
        worker["n"] += 1
        changed, body = ask(server, path="/api/stats", Accept_Encoding=encoding, If_None_Match=tag)
        assert (changed.status, changed.headers["ETag"] == tag) == (200, False)
    other, _ = ask(server, path="/api/stats", If_None_Match=changed.headers["ETag"])
    assert other.status == 200  # of the other encoding


def test_compressed(worker: dict[str, int], server: MetricsServer) -> None:
    """The same, as gzip."""
    plain = ask(server, path="/api/schema")[1]
    response, body = ask(server, path="/api/schema", Accept_Encoding="gzip")
    assert response.headers["Content-Encoding"] == "gzip"
    assert response.headers["Vary"] == "Accept, Accept-Encoding"
    assert gzip.decompress(body) == plain
    head, nothing = ask(server, "HEAD", "/api/schema")
    assert (head.headers["Content-Length"], nothing) == (str(len(plain)), b"")


def test_a_refresh_makes_the_source(registry: Registry, server: MetricsServer) -> None:
    """What is asked for may have to be made first; only what is above and below it is asked."""
    asked = {"made": 0, "other": 0}
    top, other = Source("top", refresh=lambda: make()), Source("other", refresh=lambda: note())

    def note() -> None:
        asked["other"] += 1

    def make() -> None:
        asked["made"] += 1
        top.sync({"one": {"n": asked["made"]}}, [N], label="one")

    for source in (top, other):
        registry.register(source)
    assert load(server, "/api/stats/top/one")["values"]["n"] >= 1
    assert asked["other"] == 0
    assert ask(server, path="/api/stats/top/two")[0].status == 404


def test_a_source_without_numbers(registry: Registry, server: MetricsServer) -> None:
    """Where a refresh fails the values are missing, and described."""

    def fail() -> None:
        raise OSError("no answer")

    source = Source("silent", refresh=fail)
    source.add_values([N], {"n": 1})
    registry.register(source)
    assert load(server, "/api/stats/silent")["values"] == {}
    assert [value["name"] for value in load(server, "/api/schema/silent")["values"]] == ["n"]


def test_the_bound_of_a_user(
    registry: Registry, server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is too much of one user is left out, and counted."""
    monkeypatch.setattr(stats_json, "BYTES_MAX", 100)
    assert user_bounds.BYTES_MAX > 100
    top = Source("theirs", owner=(4321, 4321))
    for number in range(20):
        child = Source("c%d", number)
        child.add_values([N], {"n": 1})
        top.add_subordinate(child)
    registry.register(top)
    for path in ("/api/stats", "/api/stats/theirs"):
        found = load(server, path)
        assert 10 < found["left_out"]["4321"] < 20


class Held:
    """Renderings that wait until they may go on, and what each is of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self.go_on = threading.Event()
        monkeypatch.setattr(views, "take_snapshot", self._wait)

    def _wait(self, root: Registry | Source) -> Snapshot:
        self.made.append(root.name if isinstance(root, Source) else "")
        assert self.go_on.wait(DEADLINE)
        return take_snapshot(root)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """All renderings."""
    held = Held(monkeypatch)
    yield held
    held.go_on.set()


def count_joined(server: MetricsServer) -> int:
    """How many requests wait for renderings that have not begun."""
    handle: Any = server._listening._handle
    return sum(len(one.scrapes) for one in [*handle.__self__._renderings._next.values()])


def request(path: str) -> bytes:
    """The bytes of a request."""
    return f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()


def test_equal_requests_share(registry: Registry, server: MetricsServer, held: Held) -> None:
    """However many ask for one thing, it is made once for all that wait."""
    with ThreadPoolExecutor(41) as pool:
        first = pool.submit(ask, server, path="/api/stats")
        wait_until(lambda: held.made, "the first rendering")
        more = [pool.submit(ask, server, path="/api/stats/app?depth=0") for _ in range(40)]
        wait_until(lambda: count_joined(server) == 40, "all requests")
        held.go_on.set()
        assert first.result(DEADLINE)[0].status == 200
        assert len({one.result(DEADLINE)[1] for one in more}) == 1
    assert held.made == ["", "app"]


def test_metrics_do_not_wait_for_all(
    registry: Registry, server: MetricsServer, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scrape waits for one rendering of another thing, and too many are refused at once."""
    monkeypatch.setattr(shared_renderings, "WAITING_MAX", 10)
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(ask, server, path="/api/stats")
        wait_until(lambda: held.made, "the first rendering")
        paths = [f"/api/stats/app?depth={depth}" for depth in range(10)]
        waiting = [pool.submit(ask, server, path=path) for path in paths]
        wait_until(lambda: count_joined(server) == 10, "all requests")
        refused, body = ask(server, path="/api/stats/app?depth=99")
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        assert body == b"503 Service Unavailable\n"
        scrape = pool.submit(ask, server)
        wait_until(lambda: count_joined(server) == 11, "the scrape")
        held.go_on.set()
        for one in (first, *waiting, scrape):
            assert one.result(DEADLINE)[0].status == 200
    assert held.made == ["", "", *["app"] * 10]


def test_who_hung_up_costs_nothing(server: MetricsServer, held: Held) -> None:
    """What nobody waits for any more is not made."""
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, server, path="/api/stats")
        wait_until(lambda: held.made, "the first rendering")
        gone = connect(server, request("/api/stats/app"))
        wait_until(lambda: count_joined(server) == 1, "both requests")
        hang_up(gone)
        held.go_on.set()
        first.result(DEADLINE)
    assert ask(server, path="/api/stats?depth=0")[0].status == 200
    assert held.made == ["", ""]


def test_a_source_that_leaves_meanwhile(
    registry: Registry, app: Source, server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is gone, which is no failure."""

    def leave(root: Registry | Source) -> Snapshot:
        registry.unregister(app)
        app.put()
        return take_snapshot(root)

    monkeypatch.setattr(views, "take_snapshot", leave)
    assert ask(server, path="/api/stats/app")[0].status == 404


def test_a_failure(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is answered, logged once, and others go on."""

    def fail(root: Registry | Source) -> Snapshot:
        raise OSError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(views, "take_snapshot", fail)
        for _ in range(2):
            assert ask(server, path="/api/stats")[0].status == 500
    assert [record.message for record in caplog.records] == ["scrapes fail: .stats.json"]
    assert ask(server, path="/api/stats")[0].status == 200
