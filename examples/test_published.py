"""A test of what a process publishes, without a daemon: `pytest examples/test_published.py`."""

from pathlib import Path

import pytest

from statsfs import Collector, Registry, Stats, counter, publish


class JobStats(Stats):
    """What a worker counts."""

    done: int = counter("Jobs done")


def test_what_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a directory of the test's own; the collector has at once what was there before it."""
    monkeypatch.setenv("STATSFS_DIR", str(tmp_path))
    with publish("jobs/worker-1", values=JobStats) as segment:
        segment.stats.done += 1
        assert segment.stats == JobStats(done=1)
        registry = Registry()
        with Collector(registry, tmp_path):
            assert registry["jobs/done"] == 1
