"""Histograms of segments, and their sums: in totals, folded, cleared, exported, and restarted."""

from pathlib import Path
from typing import Any

import pytest

from statsfs.formats import prometheus
from statsfs.model.fields import hist, log_hist
from statsfs.model.histograms import make_sum
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate, Kind, Unit, Value
from statsfs.segments import publish
from statsfs.tree.registry import Registry
from tests.support.collecting import HandMade, collecting, files_in, total, wait_for
from tests.support.deadlines import wait_until


class Work(Stats):
    """Two histograms."""

    waits = log_hist(3, Aggregate.SUM)
    answers = hist([100, 300], Aggregate.SUM, unit=Unit.SECONDS, exponent=-3)


WAITS = Value("waits", aggregate=Aggregate.SUM, kind=Kind.LOG_HIST, size=3)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory for segments."""
    path = tmp_path / "segments"
    path.mkdir()
    return path


def read(registry: Registry, path: str = "app") -> tuple[Any, ...]:
    """What a directory shows of both."""
    return tuple(total(registry, value, path) for value in ("waits", "waits.sum", "answers"))


def read_waits(registry: Registry) -> tuple[Any, Any]:
    """The same where there is one."""
    return total(registry, "waits"), total(registry, "waits.sum")


def lines(registry: Registry, name: str) -> list[str]:
    """The samples of a metric."""
    text = prometheus.render(registry.snapshot()).decode()
    return [line for line in text.splitlines() if line.startswith(name)]


def test_a_sum_stays_with_its_histogram(directory: Path) -> None:
    """While its producer lives, after its death, when it is cleared, and after a restart."""
    with publish("app/a", values=Work, directory=directory) as segment:
        with collecting(directory) as registry:
            wait_for(registry, "app/a")
            for number in (1, 3, 200):
                segment.stats.waits.observe(number)
                segment.stats.answers.observe(number)
            assert read(registry) == read(registry, "app/a") == ([0, 1, 2], 204, [2, 1, 0])
            assert total(registry, "answers.sum") == 204
            assert lines(registry, "app_answers") == [
                'app_answers_seconds_bucket{le="0.1"} 2',
                'app_answers_seconds_bucket{le="0.3"} 3',
                'app_answers_seconds_bucket{le="+Inf"} 3',
                "app_answers_seconds_sum 0.204",
                "app_answers_seconds_count 3",
            ]
            wait_for(registry, "app").clear_value("waits")
            segment.stats.waits.observe(2)
            assert read(registry) == ([0, 0, 1], 2, [2, 1, 0])
        # What was cleared is a baseline, of both.
        with collecting(directory) as registry:
            assert read(registry, "app/a") == read(registry) == ([0, 0, 1], 2, [2, 1, 0])
    with collecting(directory) as registry:
        wait_until(lambda: files_in(directory) == [], "the fold")
        assert read(registry) == ([0, 0, 1], 2, [2, 1, 0])
        assert [line.rpartition(" ")[2] for line in lines(registry, "app_waits")] == [
            "0", "0", "1", "2", "1",
        ]  # fmt: skip
    with collecting(directory) as registry:
        assert read(registry) == ([0, 0, 1], 2, [2, 1, 0])
        wait_for(registry, "app").clear_value("waits")
        assert read(registry) == ([0, 0, 0], 0, [2, 1, 0])
    with collecting(directory) as registry:
        assert read(registry) == ([0, 0, 0], 0, [2, 1, 0])


def test_releases_with_and_without_a_sum(directory: Path) -> None:
    """One total of the buckets; as a sum is not that of all, it is not exported."""
    buckets = 'app_waits_bucket{le="0.0"} 2'

    def leave(number: int, *values: Value) -> None:
        numbers = ([1, 1, 0], 1)[: len(values)]
        HandMade.of(directory / f"{number}.stats", f"app/{number}", numbers, values, alive=False)

    leave(1, WAITS)
    leave(2, WAITS, make_sum(WAITS))
    for _ in range(2):
        with collecting(directory) as registry:
            wait_until(lambda: files_in(directory) == [], "the fold")
            assert read_waits(registry) == ([2, 2, 0], 1)
            assert lines(registry, "app_waits")[0] == buckets
            assert lines(registry, "app_waits_sum") == []
    with collecting(directory) as registry:
        # Both are cleared: the next sum is that of all.
        wait_for(registry, "app").clear_value("waits")
        leave(3, WAITS, make_sum(WAITS))
        wait_until(lambda: read_waits(registry) == ([1, 1, 0], 1), "the fold")
        assert lines(registry, "app_waits_sum") == ["app_waits_sum 1"]
