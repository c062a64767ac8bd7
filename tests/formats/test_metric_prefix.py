"""The prefix of a registry: one name for a program's metrics, of all its top-level sources."""

import json
import sys
import urllib.request

import prometheus_client
import pytest

from statsfs.exceptions import InvalidNameError
from statsfs.formats import openmetrics
from statsfs.formats.metric_names import make_prefix
from statsfs.model.values import Aggregate, Kind, Unit, Value
from statsfs.monitoring.exposition import RegistryCollector, serve_metrics
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.formats.test_metric_families import lines
from tests.support.mounts import directory_for_a_mount, run

RSS = Value("rss", kind=Kind.INSTANT, unit=Unit.BYTES, aggregate=Aggregate.SUM)
JOBS = Value("jobs", aggregate=Aggregate.SUM)


def top(registry: Registry, name: str, *values: Value, **arguments: object) -> Source:
    """Register a source that counted 1 in each value."""
    source = Source("%s", name, **arguments)  # type: ignore[arg-type]
    source.add_values(values, {value.name: 1 for value in values})
    registry.register(source)
    return source


def test_all_metrics_begin_with_the_prefix() -> None:
    """Those of each top-level source, in both formats, in each directory and as info."""
    registry = Registry(prefix="myapp")
    assert registry.prefix == "myapp"
    host = top(registry, "host", RSS, info={"version": "1.2"})
    procs = top(registry, "procs", RSS)
    worker = Source("7", label="pid")
    worker.add_values([JOBS], {"jobs": 3})
    procs.add_subordinate(worker)
    assert lines(registry) == [
        "myapp_host_rss_bytes 1",
        "myapp_procs_rss_bytes 1",
        'myapp_procs_jobs_total{pid="7"} 3',
        'myapp_host_info{version="1.2"} 1',
    ]
    assert lines(worker) == ['myapp_procs_jobs_total{pid="7"} 3']
    assert lines(host) == ["myapp_host_rss_bytes 1", 'myapp_host_info{version="1.2"} 1']
    assert b"# TYPE myapp_host_rss_bytes gauge\n" in openmetrics.render(registry.snapshot())
    # Files, paths and schemas have the names as they are.
    assert registry["host/rss"] == 1
    assert worker.path == "procs/7"
    registry.unregister(host)
    assert lines(host) == ["host_rss_bytes 1", 'host_info{version="1.2"} 1']


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("host", "my_app_host"),
        ("my_app", "my_app"),
        ("my_app_host", "my_app_host"),
        ("my-app", "my_app"),
        ("my app.host", "my_app_host"),
        ("my_apple", "my_app_my_apple"),
        ("my", "my_app_my"),
        ("9p", "my_app_9p"),
        ("ünï", "my_app__n_"),
    ],
)
def test_a_name_that_has_the_prefix_does_not_get_it_twice(name: str, begins: str) -> None:
    """A program's one source is called as the program; so may the prefix be."""
    assert make_prefix("my_app", name) == begins
    registry = Registry(prefix="my_app")
    top(registry, name, JOBS)
    assert lines(registry) == [f"{begins}_jobs_total 1"]


def test_two_sources_with_one_metric() -> None:
    """The rules are those of names without a prefix: the longer, then the cleaner has it."""
    registry = Registry(prefix="myapp")
    top(registry, "myapp", Value("host_jobs"))
    top(registry, "host", JOBS)
    assert lines(registry) == ["myapp_host_jobs_total 1"]
    other = Registry(prefix="myapp")
    top(other, "web-api", JOBS)
    top(other, "web_api", JOBS).clear_value("jobs")
    assert lines(other) == ["myapp_web_api_jobs_total 0"]


def test_the_metric_of_our_own_keeps_its_name() -> None:
    """No prefix takes it: what is left out is told under the name that alerts ask for."""
    registry = Registry(prefix="statsfs")
    top(registry, "left", Value("out_metrics", kind=Kind.INSTANT), owner=(1001, 1001))
    assert lines(registry) == [
        'statsfs_left_out_metrics{reason="name",source="left",user="1001"} 1'
    ]


def test_scrapes_and_prometheus_client_have_the_prefix() -> None:
    """Each way has the same names, those of values that are only declared too."""
    registry = Registry(prefix="myapp")
    top(registry, "host", RSS)
    later = Source("later")
    later.add_values([JOBS], None)
    registry.register(later)
    with (
        serve_metrics(registry, "127.0.0.1", 0) as server,
        urllib.request.urlopen(f"{server.url}?name[]=myapp_host_rss_bytes") as answer,
    ):
        assert b"myapp_host_rss_bytes 1\n" in answer.read()
    theirs = prometheus_client.CollectorRegistry()
    theirs.register(RegistryCollector(registry))
    assert theirs.get_sample_value("myapp_host_rss_bytes") == 1
    with pytest.raises(ValueError, match="myapp_later_jobs"):
        prometheus_client.Counter("myapp_later_jobs", "Taken", registry=theirs)
    prometheus_client.Counter("later_jobs", "Free", registry=theirs)


PROGRAM = """
import subprocess, sys
from statsfs import Registry, Source, Stats, counter, mount

class Host(Stats):
    jobs = counter("Jobs done")

registry, host = Registry(prefix="myapp"), Source("host")
host.add_values(Host, Host(jobs=5))
registry.register(host)
with mount(registry, sys.argv[1]):
    for name in ("host/jobs", ".stats.prom", "host/.stats.prom", ".stats.json"):
        subprocess.run(["cat", f"{sys.argv[1]}/{name}"], check=True)
"""


@pytest.mark.mount
def test_a_mount_shows_names_as_they_are() -> None:
    """The prefix is of metrics alone: directories have no other names."""
    with directory_for_a_mount() as mountpoint:
        said = run(sys.executable, "-c", PROGRAM, mountpoint).stdout.splitlines()
    samples = [line for line in said if not line.startswith("#")]
    assert samples[:3] == ["5", *["myapp_host_jobs_total 5"] * 2]
    assert list(json.loads("".join(samples[3:]))["subordinates"]) == ["host"]


@pytest.mark.parametrize(
    ("prefix", "error"),
    [
        ("", InvalidNameError),
        ("my-app", InvalidNameError),
        ("my app", InvalidNameError),
        ("my:app", InvalidNameError),
        ("myapp_", InvalidNameError),
        ("_myapp", InvalidNameError),
        ("9app", InvalidNameError),
        ("äpp", InvalidNameError),
        ("app\n", InvalidNameError),
        (5, TypeError),
        (b"app", TypeError),
        (Source("app"), TypeError),
    ],
)
def test_a_prefix_that_would_be_changed_is_refused(prefix: object, error: type[Exception]) -> None:
    """A dashboard asks for the name that the program gave."""
    with pytest.raises(error, match=r"^prefix is not ") as raised:
        Registry(prefix=prefix)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
