"""What a real Prometheus computes of workers that come and go, in each way of labelling them."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from statsfs.formats import prometheus
from statsfs.model.values import Aggregate, Value
from statsfs.monitoring.exposition import serve_metrics
from statsfs.tree.source import Source
from tests.support.collecting import collecting
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import ROOT
from tests.support.prometheus_server import Job, PrometheusServer, scraping

# Between scrapes: less and more than a short life, and the life of a longer one many times.
JOBS = ("500ms", "1s", "3s")
SHORT, LONG = 1.0, 12.0  # the lives, in seconds; 0 is for ever
RANGE = "5m"  # before any of it

# A worker counts in three applications, for so long, or from a line of input to the next. It says
# how much, and ends with its input.
PROGRAM = """
import os, select, sys, time
from statsfs import Aggregate, Stats, log_hist, publish, u64

class Counts(Stats):
    requests = u64(Aggregate.SUM)
    times = log_hist(3, Aggregate.SUM)

labels = {"alone": None, "joined": ("app", None), "each": ("app", "worker")}
all_stats = [
    publish(f"{app}/w{os.getpid()}", values=Counts, labels=labels, directory=sys.argv[1]).stats
    for app, labels in labels.items()
]
seconds = float(sys.argv[2])
if not seconds:
    sys.stdin.readline()
end = time.monotonic() + (seconds or 1000)
while time.monotonic() < end and not select.select([sys.stdin], [], [], 0.01)[0]:
    for stats in all_stats:
        stats.requests += 1
        stats.times.observe(2)
print(all_stats[0].requests, flush=True)
sys.stdin.readline()
sys.stdin.readline()
"""


class Worker:
    """A process that counts."""

    def __init__(self, directory: Path, seconds: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(directory), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")},
        )
        self.name = f"w{self.process.pid}"

    def tell(self) -> None:
        """Have it begin or end counting."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def counted(self) -> int:
        """Wait until it has counted; return how much that was."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        """End it by SIGKILL."""
        self.process.kill()
        self.process.communicate()


def live(directory: Path, seconds: float, kill: bool) -> tuple[str, int]:
    """Have a worker live and die; return its name, and what it counted."""
    with Worker(directory, seconds) as worker:
        counted = worker.counted()
        if not kill:
            worker.process.communicate(timeout=DEADLINE)
            assert worker.process.returncode == 0
    return worker.name, counted


def live_and_die(directory: Path, during: Callable[[], None]) -> dict[str, int]:
    """Have long lives, and short ones one after the other; return what each worker counted."""
    with ThreadPoolExecutor() as pool:
        long = [pool.submit(live, directory, LONG, kill) for kill in (True, False)]
        short = [live(directory, SHORT, kill) for kill in (True, False, True)]
        during()
        short += [live(directory, SHORT, kill) for kill in (False, True, False)]
        return dict([*short, *(one.result() for one in long)])


class Series:
    """The samples of one metric that one job scraped, by series, and what is computed of them."""

    def __init__(self, server: PrometheusServer, metric: str, job: str) -> None:
        self._server = server
        self._selector = f'{metric}{{job="{job}"}}[{RANGE}]'
        found = server.api("query", query=self._selector)["result"]
        self.samples: dict[str, list[float]] = {
            one["metric"].get("worker", ""): [float(number) for _, number in one["values"]]
            for one in found
        }
        assert len(self.samples) == len(found)
        # No extrapolation beyond the last sample; and none before a first one that is 0.
        self._last = max(one["values"][-1][0] for one in found)

    def compute(self, function: str) -> dict[str, float]:
        """The results of a function over all samples, by series."""
        query = f"{function}({self._selector})"
        found = self._server.api("query", query=query, time=str(self._last))["result"]
        return {one["metric"].get("worker", ""): float(one["value"][1]) for one in found}


def check_one(series: Series, counted: int) -> None:
    """One series, that starts at 0, has all that was counted: exactly, and it never falls."""
    ((samples,),) = [series.samples.values()]
    assert (samples[0], samples[-1], samples) == (0, counted, sorted(samples))
    assert series.compute("increase") == {"": pytest.approx(counted)}
    assert series.compute("rate") == {"": pytest.approx(counted / 300)}
    assert series.compute("resets") == {"": 0}


def check_each(series: Series, counted: dict[str, int], forever: str) -> None:
    """A series has what its worker counted while it was scraped; Prometheus extrapolates the rest.

    That is at most 1.1 times the time between two scrapes at each end.
    """
    assert series.samples.keys() <= counted.keys()
    assert set(series.compute("resets").values()) == {0}
    increases = series.compute("increase")
    for name, samples in series.samples.items():
        assert samples == sorted(samples)
        assert samples[-1] <= counted[name]
        if len(samples) > 1:
            seen = samples[-1] - samples[0]
            assert seen <= increases[name] + 0.01
            assert increases[name] <= seen * (1 + 2.2 / (len(samples) - 1)) + 0.01
    assert increases[forever] == pytest.approx(counted[forever])
    # What lived for several scrapes was counted in most of its life.
    assert all(increases[name] > n / 2 for name, n in counted.items() if n > counted[forever] / 2)


@pytest.mark.tools
@pytest.mark.slow
def test_prometheus_computes_what_was_counted(directory: Path, tmp_path: Path) -> None:
    """Of lives of 1 s, 12 s and for ever, that are killed or end, at each interval of scrapes.

    What the dead had counted was once more in a series of its own: 4,129 for 1,999. And a counter
    fell when a hidden source left a source that retains.
    """
    own, leaving = Source("own", retain=True), Source("leaving", hidden=True)
    staying = Source("staying", hidden=True)
    for source in (staying, leaving):
        source.add_values([Value("n", aggregate=Aggregate.SUM)], {"n": 1000})
        own.add_subordinate(source)
    with collecting(directory) as registry, serve_metrics(registry) as metrics:
        registry.register(own)
        jobs = {interval: Job(metrics.url, interval) for interval in JOBS}

        def leave() -> None:
            before = prometheus.render(own.snapshot())
            own.remove_subordinate(leaving)
            assert prometheus.render(own.snapshot()) == before
            assert b"own_n_total 2000\n" in before

        with scraping(tmp_path, jobs) as server, Worker(directory, 0) as forever:

            def wait_for_scrapes(metric: str, number: int) -> None:
                query = f"sum by (job) ({metric}) == {number}"
                wait_until(lambda: set(server.query(query)) == {(job,) for job in jobs}, query)

            def list_series() -> list[str]:
                matching = {"match[]": '{__name__=~"(alone|joined|own)_.+"}'}
                return sorted(map(str, server.api("series", **matching)))

            for app in ("alone", "joined", "each"):
                wait_for_scrapes(f"{app}_requests_total", 0)
            before = list_series()
            forever.tell()
            counted = live_and_die(directory, leave)
            forever.tell()
            counted[forever.name] = forever.counted()
            whole = sum(counted.values())
            for app in ("alone", "joined"):
                wait_for_scrapes(f"{app}_requests_total", whole)
            wait_for_scrapes(
                f'each_requests_total{{worker="{forever.name}"}}', counted[forever.name]
            )

            assert len(counted) == 9
            for job in jobs:
                for app in ("alone", "joined"):
                    check_one(Series(server, f"{app}_requests_total", job), whole)
                    check_one(Series(server, f"{app}_times_count", job), whole)
                    check_one(Series(server, f"{app}_times_sum", job), 2 * whole)
                check_each(Series(server, "each_requests_total", job), counted, forever.name)
                check_each(Series(server, "each_times_count", job), counted, forever.name)
                shown = Series(server, "own_n_total", job)
                assert {*shown.samples[""]} == {2000}
                assert shown.compute("resets") == {"": 0}
            assert list_series() == before
            assert server.query('{retained!=""}') == {}
