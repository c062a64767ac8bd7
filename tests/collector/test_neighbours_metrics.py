"""Metrics of several users at one collector: nobody takes another's, nor too much room."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from statsfs.formats import metric_families
from statsfs.model.values import Aggregate, Value
from statsfs.monitoring.exposition import serve_metrics
from statsfs.tree.registry import Registry
from tests.support.collecting import HandMade, collecting, find, total, wait_for
from tests.support.deadlines import wait_until
from tests.support.mounts import ROOT
from tests.support.other_users import USER, shared_directory

pytestmark = pytest.mark.root

OTHER = 4321


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that others may enter, with `www` of one user, and `www_api` of another."""
    # Each test is as in a new process.
    monkeypatch.setattr(metric_families, "_complaints", {})
    with shared_directory() as path:
        (path / "www_api").mkdir()
        os.chown(path / "www_api", OTHER, OTHER)
        yield path


def scrape(registry: Registry) -> list[str]:
    """The samples that anybody gets over HTTP, sorted."""
    with serve_metrics(registry) as server, urlopen(server.url) as answer:
        text = answer.read().decode()
    return sorted(line for line in text.splitlines() if not line.startswith("#"))


def publish(directory: Path, path: str, user: int, value: Value, number: int) -> HandMade:
    """Put a segment of a user's into the user's directory."""
    hidden = directory / path.replace("/", "/.")
    made = HandMade.of(hidden, path, [number], [value])
    os.chown(hidden, user, user)
    hidden.rename(hidden.with_name(f"{path.partition('/')[2]}.stats"))
    return made


SQUATTING = Value("api_requests_total", aggregate=Aggregate.SUM)
REQUESTS = Value("requests", aggregate=Aggregate.SUM, description="Theirs")


@pytest.mark.parametrize("squatter_first", [True, False])
def test_a_user_takes_no_metric_from_another(directory: Path, squatter_first: bool) -> None:
    """Whoever comes first, whoever lives, and also after a restart of the collector."""
    left_out = f'statsfs_left_out_metrics{{reason="name",source="www",user="{USER}"}} 1'

    def squat() -> HandMade:
        return publish(directory, "www/w", USER, SQUATTING, 666)

    with collecting(directory) as registry:
        squatting = [squat()] if squatter_first else []
        if squatter_first:
            wait_for(registry, "www/w")
            # Nobody is there whose it is.
            assert scrape(registry) == ["www_api_requests_total 666"]
        theirs = publish(directory, "www_api/w", OTHER, REQUESTS, 5)
        wait_for(registry, "www_api/w")
        squatting += [] if squatter_first else [squat()]
        wait_for(registry, "www/w")
        assert scrape(registry) == [left_out, "www_api_requests_total 5"]
        theirs.die()
        wait_until(lambda: find(registry, "www_api/w") is None)
        assert scrape(registry) == [left_out, "www_api_requests_total 5"]
    with collecting(directory) as registry:
        assert scrape(registry) == [left_out, "www_api_requests_total 5"]
    squatting[0].die()


_PROGRAM = """
import sys
from statsfs import Aggregate, Stats, linear_hist, publish
from tests.support.collecting import become

class Wide(Stats):
    waits = linear_hist(65535, 10, Aggregate.SUM)

become(int(sys.argv[2]))
segments = [publish(f"www/w{n}", values=Wide, directory=sys.argv[1]) for n in range(20)]
for number, segment in enumerate(segments):
    segment.stats.waits.observe(10_000 * number)
print("counted", flush=True)
sys.stdin.read()
"""


def test_wide_histograms_of_producers_that_are_killed(directory: Path) -> None:
    """What they counted stays, as a few lines, however many buckets there are."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
    command = [sys.executable, "-c", _PROGRAM, str(directory / "www"), str(USER)]
    with (
        collecting(directory) as registry,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == "counted\n"
        for number in range(20):
            wait_for(registry, f"www/w{number}")
        # Each bucket that holds something, and before it the edge where it begins.
        begins = [(10_000.0 * number - 1, number) for number in range(1, 20)]
        ends = [(10_000.0 * number + 9, number + 1) for number in range(20)]
        living = scrape(registry)
        found = [line for line in living if "www_waits_bucket" in line and "+Inf" not in line]
        counts = [(float(line.split('"')[1]), int(line.split()[-1])) for line in found]
        assert sorted(counts) == sorted([*begins, *ends])
        assert "www_waits_count 20" in living
        process.kill()
        process.wait()
        wait_until(lambda: not list((directory / "www").glob("*.stats")), "their end")
        wait_until(lambda: find(registry, "www/w19") is None, "its end")
        assert scrape(registry) == living
        assert sum(total(registry, "waits", "www")) == 20
    with collecting(directory) as registry:
        assert scrape(registry) == living
