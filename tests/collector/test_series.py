"""Which series Prometheus gets of segments: by the labels of their paths."""

from pathlib import Path

import pytest

from statsfs.collector import Collector
from statsfs.formats import prometheus
from statsfs.model.values import Aggregate, Value
from statsfs.monitoring.exposition import serve_metrics
from statsfs.segments import publish
from statsfs.tree.registry import Registry
from tests.support.collecting import HandMade, WorkerStats, collecting, files_in, wait_for
from tests.support.deadlines import wait_until
from tests.support.prometheus_server import Job, scraping

REQUESTS = Value("requests", aggregate=Aggregate.SUM)


def series(registry: Registry) -> list[str]:
    """The samples of one metric."""
    text = prometheus.render(registry.snapshot()).decode()
    return [line for line in text.splitlines() if line.startswith("app_requests_total")]


@pytest.mark.parametrize("labels", [None, ("app", None)])
def test_segments_without_labels_are_one_series(
    directory: Path, labels: tuple[str | None, ...] | None
) -> None:
    """It never goes backwards: not with a worker's death, nor with the collector's."""
    with collecting(directory) as registry:
        for name, requests in (("w1", 5), ("w2", 2)):
            path = f"app/{name}"
            with publish(path, values=WorkerStats, labels=labels, directory=directory) as segment:
                wait_for(registry, path)
                segment.stats.requests = requests
        wait_until(lambda: files_in(directory) == [], "the fold")
        assert series(registry) == ["app_requests_total 7"]
    with collecting(directory) as registry:
        assert series(registry) == ["app_requests_total 7"]


def test_each_segment_with_a_label_is_a_series(directory: Path) -> None:
    """As long as it lives; what the dead counted is in no series, whose value would go back."""
    labels = ("app", "worker")
    with publish("app/w1", values=WorkerStats, labels=labels, directory=directory) as segment:
        segment.stats.requests = 5
        with collecting(directory) as registry:
            wait_for(registry, "app/w1")
            with publish("app/w2", values=WorkerStats, labels=labels, directory=directory) as two:
                wait_for(registry, "app/w2")
                two.stats.requests = 2
                assert series(registry) == [
                    'app_requests_total{worker="w1"} 5',
                    'app_requests_total{worker="w2"} 2',
                ]
            wait_until(lambda: len(files_in(directory)) == 1, "the fold")
            assert series(registry) == ['app_requests_total{worker="w1"} 5']
        with collecting(directory) as registry:
            wait_for(registry, "app/w1")
            assert registry.by_name["app"].get_value("requests") == 7
            assert series(registry) == ['app_requests_total{worker="w1"} 5']


LABELS = ("app", "site", None)


@pytest.mark.tools
def test_rolling_restarts_as_prometheus_sees_them(directory: Path, tmp_path: Path) -> None:
    """A directory's series stays while it is empty, and never falls; nor does another one begin."""
    registry = Registry()

    def live(total: int) -> None:
        with publish("app/web/w1", values=WorkerStats, labels=LABELS, directory=directory) as one:
            wait_for(registry, "app/web/w1")
            one.stats.requests = 100
            wait_until(lambda: requests() == {("web",): total}, "a scrape")
        wait_until(lambda: files_in(directory) == [], "the fold")
        seen = scrapes()
        wait_until(lambda: scrapes() > seen, "a scrape of what is empty")
        assert requests() == {("web",): total}

    with (
        serve_metrics(registry) as metrics,
        scraping(tmp_path, {"app": Job(metrics.url, "100ms")}) as server,
    ):

        def requests() -> dict[tuple[str, ...], float]:
            return server.query("sum by (site) (app_requests_total)")

        def scrapes() -> float:
            return server.query("sum(count_over_time(up[1h]))")[()]

        for life in range(3):
            # The next collector finds what the last one left.
            with Collector(registry, directory):
                for worker in range(1, 4):
                    live(300 * life + 100 * worker)
        assert server.query("sum(resets(app_requests_total[1h]))") == {(): 0}
        assert server.query("count(count_over_time(app_requests_total[1h]))") == {(): 1}


def test_labels_that_prometheus_would_rewrite(directory: Path) -> None:
    """A program in another language may write any: it is shown as Prometheus has it."""
    labels = [None, "my-x", "__y", "le"]
    one = HandMade.of(directory / "a.stats", "app/x/y/w", [3], [REQUESTS], labels=labels)
    with collecting(directory) as registry:
        wait_for(registry, "app/x/y/w")
        assert registry.find("app/x").label == "my_x"  # type: ignore[union-attr]  # it is there
        assert series(registry) == ['app_requests_total{_y="y",exported_le="w",my_x="x"} 3']
    one.die()
