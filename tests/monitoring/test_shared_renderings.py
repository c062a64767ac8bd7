"""Scrapes that share a rendering, and those that must not."""

import gzip
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from statsfs.formats import views
from statsfs.model.values import Value
from statsfs.monitoring import shared_renderings
from statsfs.monitoring.http_server import MetricsServer
from statsfs.tree.registry import Registry
from statsfs.tree.snapshot import Snapshot, take_snapshot
from statsfs.tree.source import Source
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.exported import parse_openmetrics, parse_text
from tests.support.scrapes import (
    REQUEST,
    ask,
    connect,
    connecting,
    count_clients,
    count_waiting,
    hang_up,
    read_all,
)

MANY = 60


class Snapshots:
    """The snapshots that are taken; each waits until it may go on, once it was taken."""

    def __init__(self) -> None:
        self.begun = 0
        self.go_on = threading.Event()

    def take(self, root: Registry | Source) -> Snapshot:
        """Take one."""
        snapshot = take_snapshot(root)
        self.begun += 1
        assert self.go_on.wait(DEADLINE)
        return snapshot

    def wait_for(self, count: int) -> None:
        """Wait until so many have begun."""
        wait_until(lambda: self.begun == count, "a snapshot")


@pytest.fixture
def snapshots(monkeypatch: pytest.MonkeyPatch) -> Iterator[Snapshots]:
    """All snapshots of views."""
    snapshots = Snapshots()
    monkeypatch.setattr(views, "take_snapshot", snapshots.take)
    yield snapshots
    snapshots.go_on.set()


@pytest.fixture
def counts(registry: Registry) -> dict[str, int]:
    """What a source counts."""
    counts = {"n": 1}
    source = Source("count")
    source.add_values([Value("n")], counts)
    registry.register(source)
    return counts


class Scrapes:
    """Scrapes that wait for their answers, in threads."""

    def __init__(self, server: MetricsServer, pool: ThreadPoolExecutor) -> None:
        self.server = server
        self.pool = pool

    def ask(self, path: str = "/metrics", **headers: str) -> "Future[bytes]":
        """Ask, and return when the server knows."""

        def scrape() -> bytes:
            response, body = ask(self.server, path=path, **headers)
            assert response.status == 200
            return body

        before = count_waiting(self.server)
        answer = self.pool.submit(scrape)
        wait_until(lambda: count_waiting(self.server) > before, "a scrape")
        return answer


@pytest.fixture
def scrapes(server: MetricsServer) -> Iterator[Scrapes]:
    """Scrapes of this server."""
    with ThreadPoolExecutor(MANY + 2) as pool:
        yield Scrapes(server, pool)


def test_scrapes_of_one_moment_share(
    scrapes: Scrapes, snapshots: Snapshots, counts: dict[str, int]
) -> None:
    """All that come while a rendering is made have the next one, which has newer numbers."""
    first = scrapes.ask()
    snapshots.wait_for(1)
    counts["n"] = 2
    others = [scrapes.ask(Accept_Encoding="gzip" if n % 2 else "identity") for n in range(MANY)]
    counts["n"] = 3
    snapshots.go_on.set()
    assert b"\ncount_n_total 1\n" in first.result(DEADLINE)
    plain = {other.result(DEADLINE) for other in others[::2]}
    packed = {other.result(DEADLINE) for other in others[1::2]}
    assert {gzip.decompress(one) for one in packed} == plain
    assert [b"\ncount_n_total 3\n" in one for one in plain] == [True]
    assert snapshots.begun == 2


def test_numbers_are_not_older_than_their_scrape(
    scrapes: Scrapes, snapshots: Snapshots, counts: dict[str, int]
) -> None:
    """What was sampled before somebody asked is not the answer, however new it is."""
    snapshots.go_on.set()
    for number in range(2, 30):
        counts["n"] = number
        response, body = ask(scrapes.server)
        assert response.status == 200
        assert b"\ncount_n_total %d\n" % number in body


def test_formats_take_turns(scrapes: Scrapes, snapshots: Snapshots) -> None:
    """Of each there is one rendering that has not begun."""
    first = scrapes.ask()
    snapshots.wait_for(1)
    accept = "application/openmetrics-text"
    both = [(scrapes.ask(), scrapes.ask(Accept=accept)) for _ in range(5)]
    snapshots.go_on.set()
    for text, openmetrics in both:
        assert parse_text(text.result(DEADLINE)).keys() == {
            *parse_openmetrics(openmetrics.result(DEADLINE))
        }
    assert first.result(DEADLINE)
    assert snapshots.begun == 3


def test_other_names_each_time_take_no_turns(scrapes: Scrapes, snapshots: Snapshots) -> None:
    """They are cut out of one text, as all metrics are."""
    first = scrapes.ask("/metrics?name[]=count_0")
    snapshots.wait_for(1)
    path = "/metrics?name[]=app_requests&name[]=random"
    some = [scrapes.ask(f"{path}_{number}") for number in range(MANY // 2)]
    packed = [scrapes.ask(f"{path}_{number}", Accept_Encoding="gzip") for number in range(5)]
    whole = scrapes.ask()
    snapshots.go_on.set()
    assert first.result(DEADLINE) == b""
    (found,) = {one.result(DEADLINE) for one in some}
    assert {gzip.decompress(one.result(DEADLINE)) for one in packed} == {found}
    assert parse_text(found).keys() == {"app_requests"}
    assert found in whole.result(DEADLINE)
    assert snapshots.begun == 2


def test_a_text_is_compressed_once(
    scrapes: Scrapes, snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever accepts it gets the same bytes; for nobody it is not compressed at all."""
    compressed: list[bytes] = []
    compress: Callable[[bytes], bytes] = shared_renderings.compress

    def count(text: bytes) -> bytes:
        compressed.append(text)
        return compress(text)

    monkeypatch.setattr(shared_renderings, "compress", count)
    first = scrapes.ask()
    snapshots.wait_for(1)
    others = [scrapes.ask(Accept_Encoding="gzip") for _ in range(MANY)]
    snapshots.go_on.set()
    (packed,) = {other.result(DEADLINE) for other in others}
    assert compressed == [first.result(DEADLINE)] == [gzip.decompress(packed)]


def test_what_nobody_waits_for_is_not_made(scrapes: Scrapes, snapshots: Snapshots) -> None:
    """A hundred clients that ask and hang up cost nothing; another one is answered."""
    first = scrapes.ask()
    snapshots.wait_for(1)
    with connecting(scrapes.server, 100, REQUEST) as gone:
        wait_until(lambda: count_waiting(scrapes.server) == 101, "the requests")
        for connection in gone:
            hang_up(connection)
    snapshots.go_on.set()
    assert first.result(DEADLINE)
    wait_until(lambda: count_clients(scrapes.server) == 0, "the end of the connections")
    assert snapshots.begun == 1
    assert ask(scrapes.server)[0].status == 200


def test_one_that_is_at_its_end_may_read_yet(scrapes: Scrapes, snapshots: Snapshots) -> None:
    """A client that sends nothing more is answered, as `nc -N` wants it."""
    first = scrapes.ask()
    snapshots.wait_for(1)
    with connect(scrapes.server, REQUEST) as client:
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: count_waiting(scrapes.server) == 2, "the request")
        snapshots.go_on.set()
        assert read_all(client).endswith(first.result(DEADLINE))


def test_hang_ups_share_as_well(scrapes: Scrapes, snapshots: Snapshots) -> None:
    """A hundred that may read yet, for all that the server can know, have one rendering."""
    first = scrapes.ask()
    snapshots.wait_for(1)
    with connecting(scrapes.server, 100, REQUEST) as gone:
        wait_until(lambda: count_waiting(scrapes.server) == 101, "the requests")
        for connection in gone:
            connection.close()
    snapshots.go_on.set()
    assert first.result(DEADLINE)
    wait_until(lambda: count_clients(scrapes.server) == 0, "the end of the connections")
    assert snapshots.begun == 2


def test_no_text_is_kept(
    registry: Registry, server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When all have it, a text takes no memory any more."""
    made: list[weakref.ref[shared_renderings.Text]] = []

    class Text(shared_renderings.Text):
        __slots__ = ("__weakref__",)

        def __init__(self, *fields: Any) -> None:
            super().__init__(*fields)
            made.append(weakref.ref(self))

    monkeypatch.setattr(shared_renderings, "Text", Text)
    for encoding in ("gzip", "identity"):
        assert ask(server, Accept_Encoding=encoding)[0].status == 200
    wait_until(lambda: [text() for text in made] == [None, None], "the end of the texts")
