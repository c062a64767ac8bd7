"""Monitoring, for real: promtool, a Prometheus server and node_exporter, each its own process."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from statsfs.demo.mock_kvm import MockKvm
from statsfs.formats import prometheus
from statsfs.model.fields import hist, linear_hist
from statsfs.model.histograms import make_sum
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate, Kind, Unit, Value
from statsfs.monitoring.exposition import serve_metrics
from statsfs.monitoring.http_server import MetricsServer
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.bare import bare_log_hist
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.exported import Exported, parse_openmetrics, parse_text
from tests.support.mounts import directory_for_a_mount
from tests.support.prometheus_server import (
    Job,
    PrometheusServer,
    answers,
    fetch,
    free_port,
    running,
    scraping,
    tool,
)


def check_metrics(text: bytes) -> tuple[int, str]:
    """What promtool says of a view, and its status: 1 if it cannot read it, 3 for bad style."""
    done = subprocess.run(
        [tool("promtool"), "check", "metrics"],
        input=text,
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).decode()


@pytest.mark.tools
def test_promtool_has_no_complaint(registry: Registry) -> None:
    """Names, types, helps and units of the mock KVM are as Prometheus wants them."""
    with MockKvm(registry, rate=0) as kvm:
        kvm.create_vm(2)
        text = prometheus.render(registry.snapshot())
    assert check_metrics(text) == (0, "")
    assert text.count(b"# TYPE ") == text.count(b"# HELP ") > 60


def make_odd(registry: Registry) -> None:
    """Fill a registry with odd names, labels, descriptions and numbers."""
    values = (
        Value("1 + é:%d", description='\\ "quoted" \n%s\t{a="b"} \u2028\x85 # EOF'),
        Value("vast", kind=Kind.PEAK, exponent=400, description="\0"),
        Value("tiny", kind=Kind.LINEAR_HIST, size=3, bucket_size=7, exponent=-400),
        Value("slow", kind=Kind.LOG_HIST, size=65, unit=Unit.SECONDS, exponent=-9),
    )
    top = Source("9 lives")
    for name, label in (('a\\b"c', "quantile"), ("{é} \u2028%d", None), ("x", "_9")):
        child = Source("%s", name, label=label)
        child.add_values(values, {"1 + é:%d": 1, "vast": 2, "tiny": [3] * 3, "slow": [4] * 65})
        top.add_subordinate(child)
    registry.register(top)


@pytest.mark.tools
def test_promtool_reads_whatever_there_is(registry: Registry) -> None:
    """What can be declared at all is escaped and written as it expects."""
    make_odd(registry)
    status, said = check_metrics(prometheus.render(registry.snapshot()))
    assert status == 3, said  # read, and found to be of bad style
    assert all(line.startswith("_9_lives_") for line in said.splitlines())


@pytest.mark.tools
def test_promtool_reads_what_is_left_out(registry: Registry) -> None:
    """And histograms of which only some edges are there."""
    fine = Value("fine", kind=Kind.LINEAR_HIST, size=1_000, bucket_size=1, description="Fine")
    for name, owner, value in (
        ("web", (1001, 1001), Value("api_fine_count", kind=Kind.INSTANT)),
        ("web_api", (1002, 1002), fine),
    ):
        top = Source(name, owner=owner)
        values = (value, make_sum(value)) if value.histogram else (value,)
        number = [0, 1] * 500 if value.histogram else 3
        top.add_values(values, {value.name: number, "fine.sum": 7})
        registry.register(top)
    text = prometheus.render(registry.snapshot())
    assert b'statsfs_left_out_metrics{reason="name",source="web",user="1001"} 1\n' in text
    assert check_metrics(text) == (0, "")


# A demo, and programs that watch it


class Demo:
    """A mock KVM that stands still: where it is mounted, and where it is scraped."""

    def __init__(self, mountpoint: Path, url: str) -> None:
        self.mountpoint = mountpoint
        self.url = url

    def read(self, name: str) -> int:
        """The number in a file."""
        return int((self.mountpoint / "kvm" / name).read_text())

    @property
    def vms(self) -> list[str]:
        """The names of the virtual machines."""
        return [path.name for path in (self.mountpoint / "kvm").iterdir() if path.is_dir()]


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """`statsfs demo` with `--listen`, as a process of its own."""
    options = ("--vms", "2", "--vcpus", "2", "--rate", "0", "--listen", "0")
    with directory_for_a_mount() as mountpoint:
        command = (sys.executable, "-m", "statsfs", "demo", str(mountpoint), *options)
        with running(*command) as process:
            assert process.stdout is not None
            mounted, metrics = process.stdout.readline(), process.stdout.readline()
            assert mounted == f"statsfs: mounted at {mountpoint}\n"
            start, _, url = metrics.strip().rpartition(" ")
            assert start == "statsfs: metrics at"
            yield Demo(mountpoint, url)


@pytest.mark.mount
def test_views_and_scrapes_of_a_process(demo: Demo) -> None:
    """The files and `/metrics` say the same, in both formats."""
    scraped = fetch(demo.url)
    assert (demo.mountpoint / ".stats.prom").read_bytes() == scraped
    assert check_metrics(scraped) == (0, "")
    accept = "application/openmetrics-text"
    scraped = fetch(demo.url, Accept=accept)
    assert (demo.mountpoint / ".stats.openmetrics").read_bytes() == scraped
    some = parse_openmetrics(fetch(f"{demo.url}?name[]=kvm_exits_total", Accept=accept))
    assert some == {"kvm_exits": parse_openmetrics(scraped)["kvm_exits"]}
    vm, vcpu = demo.vms[0], frozenset({("vm", demo.vms[0]), ("vcpu", "vcpu1")})
    part = (demo.mountpoint / "kvm" / vm / "vcpu1" / ".stats.openmetrics").read_bytes()
    exits = parse_openmetrics(part)["kvm_exits"].samples
    assert exits == {("kvm_exits_total", vcpu): demo.read(f"{vm}/vcpu1/exits")}


@pytest.fixture(scope="module")
def odd() -> Iterator[MetricsServer]:
    """A server in this process, of what is odd."""
    registry = Registry()
    make_odd(registry)
    with serve_metrics(registry) as server:
        yield server


class Times(Stats):
    """A histogram with bounds in milliseconds, and one as the kernel's, without a sum."""

    answers = hist([100, 300, 500], Aggregate.SUM, unit=Unit.SECONDS, exponent=-3)
    polls = bare_log_hist(12, Aggregate.SUM, unit=Unit.SECONDS, exponent=-3, description="Polls")
    fine = linear_hist(65_535, 1, Aggregate.SUM, unit=Unit.SECONDS, exponent=-3)


class Timed:
    """What counts in histograms, and a server of it."""

    def __init__(self, registry: Registry, server: MetricsServer) -> None:
        self.registry = registry
        self.url = server.url
        self.stats = Times()
        with Source("app") as app:
            app.add_values(Times, self.stats)
            registry.register(app)

    def observe(self, milliseconds: int, times: int) -> None:
        """Count something that often."""
        for _ in range(times):
            self.stats.answers.observe(milliseconds)
            self.stats.polls.observe(milliseconds)
            self.stats.fine.observe(milliseconds)


@pytest.fixture(scope="module")
def timed() -> Iterator[Timed]:
    """A server in this process, of histograms that count."""
    registry = Registry()
    with serve_metrics(registry) as server:
        yield Timed(registry, server)


@pytest.fixture(scope="module")
def server(
    demo: Demo, odd: MetricsServer, timed: Timed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrometheusServer]:
    """A Prometheus server that has scraped the demo."""
    urls = {"demo": demo.url, "odd": odd.url, "timed": timed.url}
    jobs = {name: Job(url, "500ms") for name, url in urls.items()}
    with scraping(tmp_path_factory.mktemp("prometheus"), jobs) as server:
        yield server


@pytest.mark.mount
def test_a_prometheus_server_reads_what_the_files_show(
    demo: Demo, server: PrometheusServer
) -> None:
    """Its queries make the totals that the directories have."""
    for target in server.api("targets")["activeTargets"]:
        assert (target["health"], target["lastError"]) == ("up", "")
    assert list(server.query("up").values()) == [1, 1, 1]
    vms = demo.vms
    assert server.query("sum(kvm_exits_total)") == {(): demo.read("exits")}
    expected = {(vm,): demo.read(f"{vm}/exits") for vm in vms}
    assert server.query("sum by (vm) (kvm_exits_total)") == expected
    by_vcpu = {
        (vcpu, vm): demo.read(f"{vm}/{vcpu}/exits") for vm in vms for vcpu in ("vcpu0", "vcpu1")
    }
    assert server.query("sum by (vm, vcpu) (kvm_exits_total)") == by_vcpu
    waited = server.query("sum(kvm_halt_wait_seconds_total)")[()]
    assert waited == pytest.approx(demo.read("halt_wait_ns") / 1e9)
    assert server.query("max(kvm_max_mmu_rmap_size)") == {(): demo.read("max_mmu_rmap_size")}


@pytest.mark.mount
def test_a_prometheus_server_knows_what_the_metrics_are(
    demo: Demo, server: PrometheusServer
) -> None:
    """Type, unit and help arrive, and the buckets of a histogram make quantiles."""
    (known,) = server.api("metadata", metric="kvm_halt_wait_seconds")["kvm_halt_wait_seconds"]
    assert (known["type"], known["unit"]) == ("counter", "seconds")
    assert known["help"]
    name = "kvm_halt_wait_hist_seconds_bucket"
    (known,) = server.api("metadata", metric=name)[name]
    assert known["type"] == "unknown"
    assert known["help"]
    (whole,) = server.query(f'sum({name}{{le="+Inf"}})').values()
    lines = (demo.mountpoint / "kvm" / "halt_wait_hist").read_text().splitlines()
    assert whole == sum(int(line.split()[1]) for line in lines)
    (half,) = server.query(f"histogram_quantile(0.5, sum by (le) ({name}))").values()
    assert 0 < half < 10


@pytest.mark.mount
def test_a_prometheus_server_computes_averages_and_quantiles(
    timed: Timed, server: PrometheusServer
) -> None:
    """The average of what was observed between two scrapes is exact, the median within a bucket."""

    def wait_for_count(count: int) -> None:
        query = f"app_answers_seconds_count == {count}"
        wait_until(lambda: bool(server.query(query)), "a scrape")

    wait_for_count(0)
    timed.observe(200, 100)
    timed.observe(400, 300)
    wait_for_count(400)
    rates = {name: f"rate(app_answers_seconds_{name}[10m])" for name in ("sum", "count", "bucket")}
    (average,) = server.query(f"{rates['sum']} / {rates['count']}").values()
    assert average == pytest.approx(0.35)
    (median,) = server.query(f"histogram_quantile(0.5, {rates['bucket']})").values()
    assert median == pytest.approx(0.3 + 0.2 * 100 / 300)
    assert list(server.query("app_answers_seconds_sum").values()) == [140]
    # A histogram without a sum has a median, too, and nothing that is called a sum.
    (median,) = server.query(
        "histogram_quantile(0.5, rate(app_polls_seconds_bucket[10m]))"
    ).values()
    assert median == pytest.approx(0.255 + 0.256 * 100 / 300)
    assert server.query('{__name__=~"app_polls.*_(sum|count)"}') == {}
    # One of very many buckets has the edges of those that hold something.
    (median,) = server.query("histogram_quantile(0.5, app_fine_seconds_bucket)").values()
    assert median == pytest.approx(0.399 + 0.001 * 100 / 300)
    assert list(server.query("count(app_fine_seconds_bucket)").values()) == [5]
    (known,) = server.api("metadata", metric="app_answers_seconds")["app_answers_seconds"]
    assert (known["type"], known["unit"]) == ("histogram", "seconds")


@pytest.mark.mount
def test_a_prometheus_server_reads_whatever_there_is(server: PrometheusServer) -> None:
    """In OpenMetrics, too, what is odd arrives as it was."""
    found = server.api("query", query="_9_lives_1______d_total")["result"]
    labels = [{name: text for name, text in one["metric"].items() if name in ODD} for one in found]
    expected = [{"quantile": 'a\\b"c'}, {"source": "{é} \u2028%d"}, {"_9": "x"}]
    assert sorted(map(str, labels)) == sorted(map(str, expected))
    assert set(server.query('{__name__=~"_9_lives_vast"}').values()) == {float("inf")}
    help = server.api("metadata", metric="_9_lives_1______d")["_9_lives_1______d"][0]["help"]
    assert help == '\\ "quoted" \n%s\t{a="b"} \u2028\x85 # EOF'


ODD = ("quantile", "source", "_9")


def read_textfiles(directory: Path) -> dict[str, Exported]:
    """What node_exporter's textfile collector makes of a directory."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/metrics"
    with running(
        tool("prometheus-node-exporter"),
        f"--web.listen-address=127.0.0.1:{port}",
        "--web.disable-exporter-metrics",
        "--collector.disable-defaults",
        "--collector.textfile",
        f"--collector.textfile.directory={directory}",
        "--log.level=error",
    ) as process:
        wait_until(lambda: process.poll() is not None or answers(url), "node_exporter")
        return parse_text(fetch(url))


@pytest.mark.tools
def test_node_exporter_invents_nothing(tmp_path: Path) -> None:
    """A histogram that lacks `_sum` or `_count` would have them, as 0."""
    registry = Registry()
    stats, top = Times(), Source("app")
    top.add_values(Times, stats)
    registry.register(top)
    for number in range(1000):
        stats.answers.observe(number)
        stats.polls.observe(number)
    text = prometheus.render(registry.snapshot())
    assert check_metrics(text)[0] in (0, 3)
    (tmp_path / "statsfs.prom").write_bytes(text)
    shown = read_textfiles(tmp_path)
    ours = {name: family.samples for name, family in shown.items() if name.startswith("app_")}
    assert ours == {name: family.samples for name, family in parse_text(text).items()}
    types = {name: family.type for name, family in shown.items() if name.startswith("app_")}
    assert types == {
        "app_answers_seconds": "histogram",
        "app_fine_seconds": "histogram",
        "app_polls_seconds_bucket": "unknown",
    }


@pytest.mark.mount
def test_node_exporter_reads_a_view_through_a_symlink(demo: Demo, tmp_path: Path) -> None:
    """`ln -s MOUNT/.stats.prom statsfs.prom` is all that its textfile collector needs."""
    (tmp_path / "statsfs.prom").symlink_to(demo.mountpoint / ".stats.prom")
    shown = read_textfiles(tmp_path)
    assert list(shown["node_textfile_scrape_error"].samples.values()) == [0]
    assert list(shown["node_textfile_mtime_seconds"].samples.values()) > [0]
    view = parse_text((demo.mountpoint / ".stats.prom").read_bytes())
    assert len(view) > 60
    for name, family in view.items():
        assert shown[name].samples.keys() >= family.samples.keys()
        for key, number in family.samples.items():
            assert shown[name].samples[key] == pytest.approx(number, rel=1e-15)
