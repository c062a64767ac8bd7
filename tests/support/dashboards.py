"""What `examples/monitoring` watches, in this process: a host with VMs, and a program.

`python -m tests.support.dashboards` writes the dashboards there anew.
"""

import contextlib
import importlib.util
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple, cast

from prometheus_client.parser import text_string_to_metric_families

from statsfs.cli.own_source import OwnSource
from statsfs.collector.user_stats import UserStats
from statsfs.demo.mock_kvm import MockKvm
from statsfs.filesystem.serving_stats import ServingStats
from statsfs.formats import prometheus, schema
from statsfs.kvm.steal import SCHEDULER_VALUES
from statsfs.model.values import Kind, Value
from statsfs.monitoring.scrape_stats import ScrapeStats
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.mounts import ROOT

__all__ = [
    "MONITORING",
    "Names",
    "Watched",
    "add_own_source",
    "describe",
    "find_expressions",
    "find_unknown",
    "list_labels",
    "load",
    "make_committed",
    "substitute",
    "watched",
]

MONITORING = ROOT / "examples" / "monitoring"
_TARGET = {"job", "instance"}  # labels that Prometheus gives to each series of a target

# By metric, the labels that its series have.
Names = Mapping[str, set[str]]


def load(path: Path) -> ModuleType:
    """Import a file of the examples, a fresh copy of it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Watched(NamedTuple):
    """The registries of a host and of a program, and what makes their numbers move."""

    host: Registry
    program: Registry
    move: Callable[[], None]


@contextlib.contextmanager
def watched(rate: float = 0) -> Iterator[Watched]:
    """Have a host and the program of an example.

    The host's VMs are mock ones, with what `--kvm` adds: the scheduler's numbers, and what is known
    of a VM. Two users there want one metric, which one of them loses. The daemon's own numbers are
    there, too.
    """
    host = Registry()
    for name, owner, value in (("web", 1001, "api_jobs"), ("web_api", 1002, "jobs")):
        source = host.register(Source(name, owner=(owner, owner)))
        source.add_values([Value(value, kind=Kind.INSTANT)], {value: 1})
    add_own_source(host)
    example = load(ROOT / "examples" / "aiohttp_service.py")
    stats = example.endpoint("/item/{id}", "GET")
    threads: list[dict[str, int]] = []
    with MockKvm(host, rate=rate) as kvm:
        for number in range(2):
            vm = kvm.create_vm(2).source
            vm.info = {"pid": f"{number}", "uuid": f"uuid-{number}", "vmm": "qemu"}
            for vcpu in vm.subordinates:
                threads.append({"run_ns": 1, "wait_ns": 1, "timeslices": 1})
                vcpu.add_values(SCHEDULER_VALUES, threads[-1])

        def move() -> None:
            stats.requests += 1
            stats.latency.observe(20_000_000)
            stats.largest = 7
            for thread in threads:
                for name in thread:
                    thread[name] += 1_000_000

        yield Watched(host, example.registry, move)


def add_own_source(registry: Registry) -> None:
    """The source that a daemon has of itself, with two users who publish."""
    own = OwnSource(registry, collects=False)
    mounted, server = SimpleNamespace(stats=ServingStats()), SimpleNamespace(stats=ScrapeStats())
    own.show(cast(Any, mounted), cast(Any, server))
    for user in (1001, 1002):
        directory = Source("user-%d", user, label="user", label_value=str(user))
        directory.add_values(UserStats, UserStats())
        reasons = Value("refusal_reasons", mode=0o400, kind=Kind.INSTANT)
        directory.add_values([reasons], {"refusal_reasons": 0})
        found = registry.find("statsfs")
        assert found is not None
        found.add_subordinate(directory)


def describe(registry: Registry) -> dict[str, Any]:
    """The schema of a registry."""
    described: dict[str, Any] = json.loads(schema.render(registry.snapshot()))
    return described


def make_committed() -> dict[str, str]:
    """The dashboards that are committed, by the names of their files."""
    script = load(MONITORING / "make_dashboards.py")
    with watched() as (host, program, _):
        return {
            "kvm.json": script.make_dashboard(describe(host), "kvm"),
            "application.json": script.make_dashboard(describe(program), "http"),
        }


# What dashboards and rules ask for


def find_expressions(dashboard: Any) -> Iterator[tuple[str, str]]:
    """The queries of all panels of a dashboard, each with the panel's title."""
    for panel in itertools.chain(
        dashboard["panels"], *(panel.get("panels", ()) for panel in dashboard["panels"])
    ):
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def substitute(query: str, by: str = "instance") -> str:
    """A query with all chosen, as Grafana asks it."""
    query = query.replace("$__rate_interval", "10s").replace("($by", f"({by}")
    query = re.sub(r'"\$\w+"', '".*"', query)
    assert "$" not in query
    return query


def list_labels(registry: Registry) -> dict[str, set[str]]:
    """The labels of each metric that everybody may scrape, by the name of its samples."""
    found: dict[str, set[str]] = {}
    text = prometheus.render(registry.snapshot(), mask=0o004).decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_STRING = re.compile(r'"[^"]*"')
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}")
_IDENTIFIER = re.compile(r"(?<![\w.:])[a-zA-Z_:][\w:]*(?!\w|:|\s*\()")
_KEYWORDS = {"and", "or", "unless", "offset", "bool"}


def find_unknown(query: str, names: Names) -> set[str]:
    """The metrics of a query that are unknown, and its labels that none of its metrics has."""
    rest = re.sub(r"\[[^]]*\]", "", _STRING.sub("", query))
    grouped = {
        label.strip() for labels in _GROUPING.findall(rest) for label in labels.split(",")
    } - {""}
    rest = _GROUPING.sub("", rest)
    unknown = set[str]()
    for metric, matchers in _SELECTOR.findall(rest):
        labels = set(re.findall(r"\w+", matchers))
        unknown |= {f"{metric}:{label}" for label in labels - names.get(metric, set()) - _TARGET}
    metrics = set(_IDENTIFIER.findall(re.sub(r"\{[^}]*\}", "", rest))) - _KEYWORDS
    known = set[str]().union(_TARGET, *(names.get(metric, set()) for metric in metrics))
    return unknown | (metrics - names.keys()) | (grouped - known)


if __name__ == "__main__":
    for name, text in make_committed().items():
        (MONITORING / name).write_text(text)
