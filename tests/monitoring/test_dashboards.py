"""`examples/monitoring`: dashboards and rules that ask only for what there is."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from statsfs.demo.real_kvm import RealKvm
from statsfs.kvm.host import KvmHost
from statsfs.model.values import Aggregate, Kind, Unit, Value
from statsfs.monitoring.exposition import serve_metrics
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.dashboards import (
    MONITORING,
    add_own_source,
    describe,
    find_expressions,
    find_unknown,
    list_labels,
    load,
    substitute,
    watched,
)
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.prometheus_server import PrometheusServer, free_port, observing, promtool

SCRIPT = MONITORING / "make_dashboards.py"
DASHBOARDS = ("kvm.json", "application.json")
BOTH = pytest.mark.parametrize("name", DASHBOARDS)


def read(name: str) -> Any:
    return json.loads((MONITORING / name).read_text())


@pytest.fixture
def script() -> Any:
    """The script that makes dashboards."""
    pytest.importorskip("grafana_foundation_sdk")
    return load(SCRIPT)


# Dashboards


def test_committed_dashboards_are_those_that_the_script_makes(script: Any) -> None:
    """A change of a value's name, kind, unit or description shows here."""
    # In a process of its own: the order of values is that in which a process came to know them.
    program = (
        "import json; from tests.support.dashboards import make_committed; "
        "print(json.dumps(make_committed()))"
    )
    made = json.loads(subprocess.check_output([sys.executable, "-c", program], text=True))
    assert set(made) == set(DASHBOARDS)
    for name, text in made.items():
        # So that a failure names what differs, and not 80 KB.
        assert json.loads(text) == read(name), "python -m tests.support.dashboards makes them anew"
        assert text == (MONITORING / name).read_text()


def test_each_query_asks_for_what_there_is() -> None:
    """Each metric of each query, and each label, is one that the host and the program export."""
    with watched() as (host, program, _):
        names = {**list_labels(host), **list_labels(program)}
    for dashboard in map(read, DASHBOARDS):
        queries = [*find_expressions(dashboard)]
        assert len(queries) > 7
        for title, query in queries:
            assert find_unknown(substitute(query), names) == set(), title


def test_each_value_has_a_panel() -> None:
    """And so the queries together ask for each metric."""
    with watched() as (host, program, _):
        exported = {*list_labels(host), *list_labels(program)}
    text = "".join(query for one in DASHBOARDS for _, query in find_expressions(read(one)))
    others = {"web_api_jobs", "statsfs_left_out_metrics", "statsfs_info"}
    assert {name for name in exported if f"{name}{{" not in text} == others


@pytest.mark.parametrize(
    ("query", "unknown"),
    [
        ('sum by (vm) (rate(a_total{vm=~".*",job="x"}[5m]))', set()),
        ("a_total > 0.5 and on (instance) up == 1 unless b offset 5m", {"up"}),
        ('sum by (vm) (rate(c_total{vm="a_total"}[5m]))', {"c_total", "c_total:vm", "vm"}),
        ('sum without (vmm) (a_total{cpu="0"})', {"vmm", "a_total:cpu"}),
        ("level:x:rate5m / a_total", {"level:x:rate5m"}),
    ],
)
def test_unknown_names_are_found(query: str, unknown: set[str]) -> None:
    """The check itself."""
    assert find_unknown(query, {"a_total": {"vm"}, "b": set()}) == unknown


@BOTH
def test_panels_have_numbers_and_places_of_their_own(name: str) -> None:
    """No two panels have one number; none lies over another; none is wider than the screen."""
    ids, taken = set[int](), set[tuple[int, int]]()

    def place(panels: list[Any], taken: set[tuple[int, int]]) -> None:
        for panel in panels:
            assert panel["id"] not in ids
            ids.add(panel["id"])
            at = panel["gridPos"]
            cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
            assert max(x for x, _ in cells) < 24
            assert taken.isdisjoint(cells), panel["title"]
            taken |= cells
            # Those of a row that is folded have their places when it is unfolded.
            place(panel.get("panels", []), set())

    place(read(name)["panels"], taken)
    assert len(ids) >= 8


def find_panels(dashboard: Any) -> dict[str, Any]:
    return {panel["title"]: panel for panel in dashboard["panels"]}


def queries_of(panel: Any) -> list[str]:
    return [target["expr"].partition("{")[0] for target in panel["targets"]]


def make_odd(registry: Registry) -> None:
    """A source with each kind, aggregate and unit, and labels on two levels."""
    sized = Value(
        "sizes",
        kind=Kind.LINEAR_HIST,
        size=3,
        bucket_size=7,
        unit=Unit.BYTES,
        aggregate=Aggregate.SUM,
    )
    values = (
        Value("sent_kb", aggregate=Aggregate.SUM, unit=Unit.BYTES, exponent=10, base=2),
        Value("busy_ns", aggregate=Aggregate.SUM, unit=Unit.SECONDS, exponent=-9),
        Value("lag", kind=Kind.INSTANT, aggregate=Aggregate.MIN | Aggregate.AVG, unit=Unit.SECONDS),
        Value("queue", kind=Kind.INSTANT, aggregate=Aggregate.SUM | Aggregate.MAX),
        Value("port", kind=Kind.INSTANT),
        Value("ticks", aggregate=Aggregate.SUM, unit=Unit.CYCLES),
        sized,
    )
    base = {value.name: 1 for value in values} | {"sizes": [1, 2, 3]}
    top = registry.register(Source("my app"))
    with Source("eu", label="zone") as zone, Source("w1", label="worker") as worker:
        worker.add_values(values, base)
        zone.add_subordinate(worker)
        top.add_subordinate(zone)


def test_what_a_panel_shows_follows_from_the_kind(script: Any) -> None:
    """Counters as rates, gauges as levels, histograms as heat maps; in Grafana's units."""
    registry = Registry(prefix="corp")
    make_odd(registry)
    dashboard = json.loads(script.make_dashboard(describe(registry), "my app", "corp"))
    names = list_labels(registry)
    for title, query in find_expressions(dashboard):
        assert find_unknown(substitute(query, by="zone"), names) == set(), title
    panels = find_panels(dashboard)
    shown = {
        title: (panel["fieldConfig"]["defaults"].get("unit"), *queries_of(panel))
        for title, panel in panels.items()
        if panel["type"] == "timeseries"
    }
    assert shown == {
        "sent_kb per second": ("binBps", "sum by ($by) (rate(corp_my_app_sent_bytes_total"),
        "busy_ns per second": ("percentunit", "sum by ($by) (rate(corp_my_app_busy_seconds_total"),
        "ticks per second": ("hertz", "sum by ($by) (rate(corp_my_app_ticks_total"),
        "lag": ("s", "min by ($by) (corp_my_app_lag_seconds"),
        "queue": ("short", "sum by ($by) (corp_my_app_queue"),
        "port": ("short", "corp_my_app_port"),
        "sizes: quantiles": (
            "bytes",
            *(
                f"histogram_quantile({quantile}, sum by ($by, le) "
                "(rate(corp_my_app_sizes_bytes_bucket"
                for quantile in (0.5, 0.9, 0.99)
            ),
        ),
    }
    heat = panels["sizes"]
    assert (heat["type"], heat["targets"][0]["format"]) == ("heatmap", "heatmap")
    assert heat["options"]["yAxis"]["unit"] == "bytes"
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    assert [*variables] == ["datasource", "job", "instance", "zone", "worker", "by"]
    assert variables["by"]["query"] == "zone,worker,instance,job"


def test_kvm_panels_whose_values_are_missing_are_left_out(script: Any) -> None:
    """As on a host whose kernel counts no steal."""
    registry = Registry()
    kvm = registry.register(Source("kvm"))
    with Source("1-2", label="vm") as vm:
        vm.add_values([Value("exits", aggregate=Aggregate.SUM)], {"exits": 1})
        kvm.add_subordinate(vm)
    dashboard = json.loads(script.make_dashboard(describe(registry), "kvm"))
    titles = [panel["title"] for panel in dashboard["panels"] if panel["type"] != "row"]
    assert titles == ["VMs", "Exits per second", "exits per second"]
    for title, query in find_expressions(dashboard):
        assert find_unknown(substitute(query), list_labels(registry)) == set(), title


@pytest.mark.kvm
@pytest.mark.root
@pytest.mark.host
def test_the_dashboard_of_a_real_host(script: Any) -> None:
    """Real guests, read as by `--kvm`: steal and what is known of VMs have panels too."""
    registry = Registry()
    with RealKvm(Registry(), rate=0) as guests, KvmHost() as host:
        registry.register(host.source)
        vm = guests.create_vm(1)
        wait_until(lambda: registry.find(f"kvm/{vm.name}/vcpu0"), "the VM")
        names = list_labels(registry)
        dashboard = json.loads(script.make_dashboard(describe(registry), "kvm"))
    for title, query in find_expressions(dashboard):
        assert find_unknown(substitute(query), names) == set(), title
    titles = {panel["title"] for panel in dashboard["panels"]}
    assert titles >= {"vCPUs", "exits per second", "steal", "What is known of each VM"}


def test_what_a_daemon_counts_of_itself(script: Any) -> None:
    """A folded row of each dashboard from its schema, by instance and user; no secret is in it."""
    registry = Registry()
    add_own_source(registry)
    app = registry.register(Source("app"))
    app.add_values([Value("done", aggregate=Aggregate.SUM)], {"done": 1})
    dashboard = json.loads(script.make_dashboard(describe(registry), "app"))
    (row,) = (panel for panel in dashboard["panels"] if panel["title"] == "The daemon itself")
    assert row["collapsed"]
    queries = {panel["title"]: panel["targets"][0]["expr"] for panel in row["panels"]}
    chosen = '{job=~"$job",instance=~"$instance"}'
    assert queries["scrapes per second"] == (
        f"sum by (instance) (rate(statsfs_scrapes_total{chosen}[$__rate_interval]))"
    )
    assert queries["refused_files"] == f"sum by (instance, user) (statsfs_refused_files{chosen})"
    assert "refusal_reasons" not in queries
    names = list_labels(registry)
    for title, query in find_expressions(dashboard):
        assert find_unknown(substitute(query), names) == set(), title
    alone = json.loads(script.make_dashboard(describe(registry), "statsfs"))
    assert "The daemon itself" not in {panel["title"] for panel in alone["panels"]}


def test_each_total_is_of_one_metric(script: Any) -> None:
    """`size.min` and `size.max` above are of `size`, also while nobody has one."""
    registry = Registry()
    app = registry.register(Source("app"))
    both = Value("size", kind=Kind.INSTANT, aggregate=Aggregate.MIN | Aggregate.MAX)
    app.add_values([both], None)
    app.add_values([Value("last.max", kind=Kind.PEAK, aggregate=Aggregate.MAX)], {"last.max": 1})
    dashboard = json.loads(script.make_dashboard(describe(registry), "app"))
    assert sorted(app.names()) == ["last.max", "size.max", "size.min"]
    queries = [query for _, query in find_expressions(dashboard)]
    assert sorted(query.partition("{")[0] for query in queries) == [
        "max by ($by) (app_last_max",
        "max by ($by) (app_size",
    ]


def test_labels_that_prometheus_renames(script: Any) -> None:
    """`job` and `instance` are the target's; what a source calls so is `exported_job`."""
    registry = Registry()
    batch = registry.register(Source("batch"))
    with Source("nightly", label="job") as job:
        job.add_values([Value("done", aggregate=Aggregate.SUM)], {"done": 1})
        batch.add_subordinate(job)
    dashboard = json.loads(script.make_dashboard(describe(registry), "batch"))
    variables = {one["name"]: one["query"] for one in dashboard["templating"]["list"]}
    assert [*variables] == ["datasource", "job", "instance", "exported_job", "by"]
    assert variables["exported_job"].endswith(", exported_job)")
    [(_, query)] = find_expressions(dashboard)
    assert 'exported_job=~"$exported_job"' in query


def test_the_script_reads_a_schema(script: Any, tmp_path: Path) -> None:
    """As the manual runs it; what is wrong is one line, and status 2."""
    schema, empty = tmp_path / ".schema.json", tmp_path / "empty"
    with watched() as (_, program, _):
        program.register(Source("nothing"))
        schema.write_text(json.dumps(describe(program)))
    empty.write_text("")

    def run(path: Path, source: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), str(path), source]
        return subprocess.run(
            command, capture_output=True, timeout=DEADLINE, text=True, check=False
        )

    done = run(schema, "http")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (MONITORING / "application.json").read_text()
    for path, source, reason in (
        (schema, "htp", "there is no source htp"),
        (schema, "nothing", "nothing has no values"),
        (empty, "http", "Expecting value: line 1 column 1 (char 0)"),
        (tmp_path / "none", "http", "[Errno 2] No such file or directory"),
    ):
        failed = run(path, source)
        assert (failed.returncode, failed.stdout) == (2, "")
        assert f"error: {path}: {reason}" in failed.stderr.splitlines()[-1]


# Rules


@pytest.mark.tools
@pytest.mark.parametrize(
    "command",
    [["check", "config", "prometheus.yml"], ["test", "rules", "rules_test.yml"]],
    ids=" ".join,
)
def test_promtool_agrees(command: list[str]) -> None:
    """The configuration is valid, as are its rules, which give what their tests say."""
    done = promtool(MONITORING, *command)
    assert "SUCCESS" in done.stdout + done.stderr


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[PrometheusServer, Any]]:
    """A Prometheus server with the configuration of the example, but for its ports and intervals.

    With it comes what makes numbers move.
    """
    directory = tmp_path / "monitoring"
    directory.mkdir()
    for name in ("recording.yml", "alerts.yml"):
        (directory / name).write_text((MONITORING / name).read_text())
    with (
        watched(rate=100) as (host, program, move),
        serve_metrics(host, "127.0.0.1", free_port()) as first,
        serve_metrics(program, "127.0.0.1", free_port()) as second,
    ):
        text = (MONITORING / "prometheus.yml").read_text()
        for before, after in (
            ("127.0.0.1:9464", f"127.0.0.1:{first.port}"),
            ("127.0.0.1:9465", f"127.0.0.1:{second.port}"),
            ("interval: 15s", "interval: 1s"),
        ):
            assert before in text
            text = text.replace(before, after)
        configuration = directory / "prometheus.yml"
        configuration.write_text(text)
        with observing(configuration, tmp_path / "data", 2) as server:
            yield server, move


@pytest.mark.tools
def test_a_real_prometheus_answers_each_query(server: tuple[PrometheusServer, Any]) -> None:
    """Each query of each panel has numbers, each variable values; each rule works."""
    prometheus, move = server
    queries = [substitute(query) for one in DASHBOARDS for _, query in find_expressions(read(one))]
    recorded = [
        rule
        for group in prometheus.api("rules")["groups"]
        for rule in group["rules"]
        if rule["type"] == "recording"
    ]
    assert len(recorded) == 12
    wanted = {*queries, *(rule["name"] for rule in recorded)}

    def answered() -> bool:
        move()
        wanted.difference_update([q for q in wanted if prometheus.api("query", query=q)["result"]])
        return not wanted

    wait_until(answered, "numbers for all queries")
    for name in DASHBOARDS:
        for variable in read(name)["templating"]["list"]:
            if variable["type"] != "query":
                continue
            metric, _, label = variable["query"][len("label_values(") : -1].rpartition(", ")
            found = prometheus.api(f"label/{label}/values", **{"match[]": substitute(metric)})
            assert found, variable

    def evaluated() -> bool:
        # An alert too, of two metrics that one of two users lost, and of no other.
        groups = prometheus.api("rules")["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert [rule["name"] for rule in rules if rule.get("lastError")] == []
        states = {rule["name"]: rule["state"] for rule in rules if rule["type"] == "alerting"}
        healthy = all(rule["health"] == "ok" for rule in rules)
        return healthy and states["StatsfsMetricsLeftOut"] == "pending"

    wait_until(evaluated, "an evaluation")


@pytest.mark.tools
def test_rules_ask_for_what_there_is(server: tuple[PrometheusServer, Any]) -> None:
    """Each metric of each rule, and each label, is exported, recorded or Prometheus's own."""
    prometheus, _ = server
    rules = [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]
    with watched() as (host, program, _):
        names = {**list_labels(host), **list_labels(program)}
    assert "statsfs_left_out_metrics" in names
    names |= {"up": set(), "scrape_samples_scraped": set()}
    recorded = [rule for rule in rules if rule["type"] == "recording"]
    for rule in recorded:  # a rule uses those before it
        assert find_unknown(rule["query"], names) == set(), rule["name"]
        # The first part of the name says which labels are left.
        names[rule["name"]] = set(rule["name"].partition(":")[0].split("_"))
    alerts = [rule for rule in rules if rule["type"] == "alerting"]
    for rule in alerts:
        assert find_unknown(rule["query"], names) == set(), rule["name"]
    assert (len(recorded), len(alerts)) == (12, 10)
