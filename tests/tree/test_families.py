"""Families of sources, and stats for each thread."""

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from statsfs.exceptions import (
    DuplicateNameError,
    InvalidNameError,
    ReleasedError,
    UnknownValueError,
)
from statsfs.formats import prometheus
from statsfs.model.fields import counter, gauge, log_hist, peak
from statsfs.model.histograms import Histogram
from statsfs.model.stats import Stats
from statsfs.tree.families import Family
from statsfs.tree.per_thread import PerThread
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.deadlines import DEADLINE, wait_until


class EndpointStats(Stats):
    """What an endpoint counts."""

    requests: int = counter("Requests answered")
    in_flight: int = gauge("Requests being answered")
    largest: int = peak("Largest body")
    latency: Histogram = log_hist(4)


@pytest.fixture
def http(registry: Registry) -> Iterator[Source]:
    """A top-level source."""
    with Source("http") as http:
        registry.register(http)
        yield http


@pytest.fixture
def endpoint(http: Source) -> Family[EndpointStats]:
    """A family of two labels."""
    return Family(http, EndpointStats, "endpoint", "method")


def exported(registry: Registry) -> list[str]:
    """The lines of samples, but for histograms."""
    lines = prometheus.render(registry.snapshot()).decode().splitlines()
    return [line for line in lines if line[0] != "#" and "latency" not in line]


def test_a_member_is_made_when_it_is_asked_for(
    registry: Registry, http: Source, endpoint: Family[EndpointStats]
) -> None:
    """And is the same one from then on; its labels are the texts, its directories are safe."""
    member = endpoint("/item/{id}", "GET")
    member.requests += 2
    assert endpoint("/item/{id}", "GET") is member
    endpoint("/item/{id}", "PUT").requests += 1
    endpoint("..", "GET").in_flight -= 1
    assert [source.name for source in http.subordinates] == ["%2Fitem%2F{id}", "%2E."]
    assert registry["http/requests"] == 3
    assert registry["http/%2Fitem%2F{id}/GET/requests"] == 2
    assert exported(registry)[:3] == [
        'http_requests_total{endpoint="/item/{id}",method="GET"} 2',
        'http_requests_total{endpoint="/item/{id}",method="PUT"} 1',
        'http_requests_total{endpoint="..",method="GET"} 0',
    ]
    assert [labels for labels, _ in endpoint] == [
        ("/item/{id}", "GET"), ("/item/{id}", "PUT"), ("..", "GET"),
    ]  # fmt: skip
    assert repr(endpoint) == "<Family 'http' endpoint, method: 3 members>"


def test_the_totals_are_there_before_the_first_member(registry: Registry, http: Source) -> None:
    """Of each family of a class; and they are 0."""
    Family(http, EndpointStats, "endpoint")
    Family(http, EndpointStats, "peer")
    assert registry["http/requests"] == 0
    assert registry["http/latency"] == [0] * 4


def test_a_member_is_removed(http: Source, endpoint: Family[EndpointStats]) -> None:
    """With the levels above it that are then empty; it may be made anew."""
    for method in ("GET", "PUT"):
        endpoint("/", method).requests += 1
    endpoint.remove("/", "GET")
    assert len(endpoint) == 1
    assert [source.name for source in http.subordinates[0].subordinates] == ["PUT"]
    endpoint.remove("/", "PUT")
    assert http.subordinates == ()
    assert http.get_value("requests") == 0
    endpoint("/", "PUT").requests += 1
    assert http.get_value("requests") == 1
    with pytest.raises(UnknownValueError, match="http: no member endpoint='/', method='GET'"):
        endpoint.remove("/", "GET")


def test_a_source_that_retains_keeps_what_a_member_counted(registry: Registry) -> None:
    """Its total never falls, and a member that comes back counts on."""
    http = Source("http", retain=True)
    registry.register(http)
    endpoint = Family(http, EndpointStats, "endpoint")
    endpoint("/").requests += 5
    endpoint.remove("/")
    endpoint("/").requests += 1
    assert registry["http/requests"] == 6
    assert exported(registry)[0] == "http_requests_total 6"


def test_what_was_removed_otherwise(http: Source, endpoint: Family[EndpointStats]) -> None:
    """By the program, with all sources of the family: then there is nothing to remove."""
    endpoint("/", "GET")
    endpoint("/", "PUT")
    http.remove_subordinate(http.subordinates[0])
    endpoint.remove("/", "GET")
    assert len(endpoint) == 1
    endpoint("/", "GET").requests += 1
    assert http.get_value("requests") == 1


WRONG = {
    "too few values": (("/",), r"1 value for 2 labels \(endpoint, method\)"),
    "too many values": (("/", "GET", "x"), "3 values"),
    "no text": (("/", 5), "the label 'method' must be a str, not int: 5"),
}


@pytest.mark.parametrize("what", WRONG)
def test_labels_that_are_refused(http: Source, endpoint: Family[EndpointStats], what: str) -> None:
    """Nothing is made then."""
    values, words = WRONG[what]
    with pytest.raises(TypeError, match=words):
        endpoint(*values)  # type: ignore[arg-type]  # that is the question
    assert http.subordinates == ()


def test_families_that_are_refused(http: Source) -> None:
    """Each in a line that says why."""
    with pytest.raises(TypeError, match="name of a label"):
        Family(http, EndpointStats)
    with pytest.raises(TypeError, match="not a Stats class"):
        Family(http, int, "endpoint")  # type: ignore[type-var]
    with pytest.raises(TypeError, match="not a Source"):
        Family("http", EndpointStats, "endpoint")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a label is given twice: l, l"):
        Family(http, EndpointStats, "l", "l")
    with pytest.raises(InvalidNameError, match="a source's label"):
        Family(http, EndpointStats, "end/point")


def test_a_name_that_is_taken(http: Source, endpoint: Family[EndpointStats]) -> None:
    """By a source that is not the family's."""
    http.add_subordinate(Source("x"))
    with pytest.raises(DuplicateNameError, match="'x'"):
        endpoint("x", "GET")
    assert len(endpoint) == 0


def test_after_the_end(endpoint: Family[EndpointStats], registry: Registry, http: Source) -> None:
    """Known members count on; there are no new ones."""
    member = endpoint("/", "GET")
    registry.unregister(http)
    http.get()
    http.put()
    member.requests += 1
    assert http.get_value("requests") == 1


def test_a_released_source(endpoint: Family[EndpointStats]) -> None:
    """It has no members any more, and gets none."""
    other = Source("other")
    family = Family(other, EndpointStats, "endpoint")
    family("/").requests += 1
    other.put()
    family("/").requests += 1
    family.remove("/")
    with pytest.raises(ReleasedError):
        family("/x")


def test_many_threads_make_one_member(endpoint: Family[EndpointStats]) -> None:
    """Whoever is first."""
    barrier = threading.Barrier(8)

    def ask(_: int) -> EndpointStats:
        barrier.wait(DEADLINE)
        return endpoint("/", "GET")

    with ThreadPoolExecutor(8) as pool:
        members = list(pool.map(ask, range(8)))
    assert all(member is members[0] for member in members)


# Threads


def test_each_thread_has_its_own(registry: Registry, http: Source) -> None:
    """Together they are one total, and no directory; what a thread counted outlives it."""
    stats = PerThread(http, EndpointStats)
    assert registry["http/requests"] == 0
    gate = threading.Barrier(5)

    def work() -> None:
        for _ in range(1000):
            stats.mine.requests += 1
        stats.mine.in_flight -= 1
        stats.mine.largest = 7
        gate.wait(DEADLINE)
        gate.wait(DEADLINE)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    gate.wait(DEADLINE)
    stats.mine.in_flight += 4
    assert registry["http/requests"] == 4000
    assert registry["http/in_flight"] == 0
    assert repr(stats) == f"<PerThread {stats._threads.path!r}: 5 threads>"
    assert not [source for source in http.subordinates if not source.hidden]
    gate.wait(DEADLINE)
    for thread in threads:
        thread.join()
    wait_until(lambda: len(stats._threads.subordinates) == 1, "the threads' end")
    assert registry["http/requests"] == 4000
    assert registry["http/largest"] == 7
    assert registry["http/in_flight"] == 4
    assert exported(registry)[0] == "http_requests_total 4000"


def test_two_for_one_source(registry: Registry, http: Source) -> None:
    """Of one class, or of two."""
    one, other = PerThread(http, EndpointStats), PerThread(http, EndpointStats)
    one.mine.requests += 1
    other.mine.requests += 2
    assert one.mine is not other.mine
    assert registry["http/requests"] == 3


def test_when_all_of_it_goes(registry: Registry) -> None:
    """Source and stats, in either order; the end of the thread has nothing left to do."""
    for released_first in (True, False):
        source = Source("pool")
        stats = PerThread(source, EndpointStats)
        stats.mine.requests += 1
        if released_first:
            source.put()
        del stats
        gc.collect()


def test_what_per_thread_refuses(http: Source) -> None:
    """Each in a line that says why."""
    with pytest.raises(TypeError, match="not a Stats class"):
        PerThread(http, int)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="not a Source"):
        PerThread("http", EndpointStats)  # type: ignore[arg-type]
    stats = PerThread(http, EndpointStats)
    with pytest.raises(AttributeError, match="no attribute 'yours'"):
        stats.yours  # noqa: B018  # that is the question


def test_a_member_that_another_thread_has_just_made(endpoint: Family[EndpointStats]) -> None:
    """It is found once more under the lock."""
    assert endpoint._add(("/", "GET")) is endpoint._add(("/", "GET"))


def test_files_by_their_paths(registry: Registry, http: Source) -> None:
    """What there is not is said in a line."""
    Family(http, EndpointStats, "endpoint")
    assert registry["http/requests"] == 0
    for path, words in (("http", "no value 'http'"), ("x/requests", "no source 'x'")):
        with pytest.raises(UnknownValueError, match=words):
            registry[path]
    with pytest.raises(TypeError, match="a path is a str, not int: 5"):
        registry[5]  # type: ignore[index]  # that is the question
