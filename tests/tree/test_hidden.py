"""What is hidden: a source, a value, an array over one base; docs/api.md, line by line."""

from typing import Any

import pytest

from statsfs.exceptions import DuplicateNameError, UnknownValueError
from statsfs.model.fields import counter, u64
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate, Value
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.formats.test_metric_families import lines


class WorkerStats(Stats):
    jobs: int = counter("Jobs done")
    retries: int = u64(hidden=True)


@pytest.fixture
def app(registry: Registry) -> Source:
    """A registered source."""
    app = Source("app")
    registry.register(app)
    return app


def show(app: Source) -> Any:
    """The files of a source, and those in each subordinate, with their numbers."""
    tree = app.snapshot().to_dict()
    return tree["values"], {name: one["values"] for name, one in tree["subordinates"].items()}


def test_a_hidden_value(app: Source, registry: Registry) -> None:
    """Has no file where it is counted, and one above."""
    worker = Source("worker1", label="worker")
    worker.add_values(WorkerStats, WorkerStats(jobs=3, retries=2))
    app.add_subordinate(worker)
    assert show(app) == ({"jobs": 3, "retries": 2}, {"worker1": {"jobs": 3}})
    assert worker.names() == ["jobs"]
    assert registry["app/worker1/retries"] == worker.get_value("retries") == 2
    assert 'app_retries_total{worker="worker1"} 2' in lines(registry)


def test_a_hidden_source(app: Source, registry: Registry) -> None:
    """Has no directory, nor has what is in it; its siblings have other names."""
    thread, below = Source("thread7", hidden=True), Source("below")
    for source in (thread, below):
        source.add_values(WorkerStats, WorkerStats(jobs=3, retries=2))
    thread.add_subordinate(below)
    app.add_subordinate(thread)
    assert show(app) == ({"jobs": 6, "retries": 4}, {})
    assert registry.find("app/thread7/below") is below
    assert app.subordinates == (thread,)
    with pytest.raises(DuplicateNameError):
        app.add_subordinate(Source("thread7"))
    assert lines(registry) == ["app_jobs_total 6", "app_retries_total 4"]


def test_a_hidden_array(app: Source, registry: Registry) -> None:
    """Has no files in its source, whose directory is there; it may be there over several bases."""
    worker = Source("worker1", label="worker")
    for part in (WorkerStats(jobs=3), WorkerStats(jobs=30)):
        worker.add_values(WorkerStats, part, hidden=True)
    app.add_subordinate(worker)
    assert show(app) == ({"jobs": 33, "retries": 0}, {"worker1": {}})
    assert worker.names() == []
    assert 'app_jobs_total{worker="worker1"} 33' in lines(registry)


def test_a_hidden_value_without_an_aggregate(app: Source, registry: Registry) -> None:
    """Is in no file, view or sample; the program can read it."""
    app.add_values([Value("shown"), Value("internal", hidden=True)], {"shown": 1, "internal": 2})
    assert show(app) == ({"shown": 1}, {})
    assert app.get_value("internal") == 2
    assert lines(registry) == ["app_shown_total 1"]
    with pytest.raises(UnknownValueError):
        app.get_value("other")
    assert Value("internal", hidden=True).aggregate is Aggregate.NONE
