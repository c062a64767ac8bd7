"""Tests of a program's counters, without a mount: `pytest examples/test_jobs.py`.

Counters are plain attributes, so a test reads them as the program counts them; the totals are read
through the registry, by the paths that the files would have.
"""

import copy
from collections.abc import Callable, Iterator

import pytest

from statsfs import Family, Registry, Source, Stats, counter, hist

# The program


class JobStats(Stats):
    """What is counted of one kind of job."""

    done: int = counter("Jobs done")
    failed: int = counter("Jobs that raised")
    sizes = hist([10, 100], description="Sizes of what jobs returned")


class Runner:
    """Runs jobs, and counts them by their kinds."""

    def __init__(self, registry: Registry) -> None:
        self.source = Source("runner")
        registry.register(self.source)
        self.jobs = Family(self.source, JobStats, "kind")

    def run(self, kind: str, job: Callable[[], str]) -> None:
        """Run a job."""
        stats = self.jobs(kind)
        try:
            stats.sizes.observe(len(job()))
            stats.done += 1
        except Exception:
            stats.failed += 1


# Its tests


@pytest.fixture
def registry() -> Registry:
    """A registry of the test's own: nothing that another test counted is in it."""
    return Registry()


@pytest.fixture
def runner(registry: Registry) -> Iterator[Runner]:
    """A program that has run one job."""
    runner = Runner(registry)
    runner.run("print", lambda: "hello")
    yield runner
    registry.unregister(runner.source)


def test_a_job_is_counted(runner: Runner) -> None:
    """All counters of one object, compared at once."""
    expected = JobStats(done=1)
    expected.sizes.observe(5)
    assert runner.jobs("print") == expected


def test_what_a_call_adds(runner: Runner) -> None:
    """A copy is what there was before."""
    stats = runner.jobs("print")
    before = copy.copy(stats)
    runner.run("print", lambda: "x" * 50)
    assert stats.done - before.done == 1
    assert stats.sizes.sum - before.sizes.sum == 50


def test_nothing_else_is_counted(runner: Runner) -> None:
    """Of a job that fails."""
    stats = runner.jobs("print")
    stats.reset()
    runner.run("print", lambda: str(1 / 0))
    assert stats == JobStats(failed=1)


def test_the_totals(runner: Runner, registry: Registry) -> None:
    """As the files would show them."""
    runner.run("mail", lambda: "bye")
    assert registry["runner/done"] == 2
    assert registry["runner/mail/done"] == 1
    assert registry["runner/sizes"] == [2, 0, 0]
