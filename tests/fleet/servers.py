"""The programs that watch a fleet, each a process: Prometheus or its agent, VictoriaMetrics.

All listen on the loopback address, and are ended by those who started them.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import ROOT
from tests.support.prometheus_server import PrometheusServer, fetch, free_port, running, tool

__all__ = [
    "MONITORING",
    "RULES",
    "Watcher",
    "hosts",
    "memory",
    "prometheus",
    "victoria_metrics",
    "vmalert",
]

_SAMPLE = re.compile(r"^(\w+)((?:\{.*\})?) (\S+)$", re.MULTILINE)
MONITORING = ROOT / "examples" / "monitoring"
RULES = ("recording.yml", "alerts.yml")


def memory(pid: int, name: str = "VmRSS") -> int:
    """Bytes of resident memory of a process; of `VmHWM`, the most that it had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) << 10


class Watcher(PrometheusServer):
    """A server with Prometheus's API, as a process."""

    def __init__(self, port: int, process: "subprocess.Popen[str]", data: Path) -> None:
        super().__init__(port)
        self.pid = process.pid
        self.data = data

    def metrics(self) -> list[tuple[str, str, float]]:
        """What it says of itself: names, labels and numbers."""
        text = fetch(f"{self.url}/metrics").decode()
        return [(name, labels, float(number)) for name, labels, number in _SAMPLE.findall(text)]

    def total(self, name: str, part: str = "") -> float:
        """The sum of a metric of its own, over the series whose labels have a text in them."""
        return sum(
            number for one, labels, number in self.metrics() if one == name and part in labels
        )

    def count(self, query: str) -> int:
        """The number that a query answers, or 0 if there is none."""
        return int(self.query(query).get((), 0))

    def count_series(self, hosts: int) -> int:
        """The series of hosts, with the five that Prometheus adds to each, without recorded ones.

        Each host is asked for alone: VictoriaMetrics refuses queries of 300,000 series.
        """
        picked = '__name__!~".*:.*|ALERTS.*"'
        return sum(
            self.count(f'count({{instance="{name_host(number)}",{picked}}})')
            for number in range(hosts)
        )

    def disk(self) -> int:
        """Bytes of its files."""
        found = 0
        for path in self.data.rglob("*"):
            with suppress(FileNotFoundError):  # just removed
                found += path.stat().st_size
        return found


@contextmanager
def hosts(count: int, interval: float) -> Iterator[tuple[int, list[int]]]:
    """Run hosts that move once in an interval of so many seconds; the process, and their ports."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.fleet.hosts", str(count), str(interval)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdin is not None
            yield process.pid, json.loads(process.stdout.readline())
            process.stdin.close()
            assert process.wait(DEADLINE + count / 10) == 0
        finally:
            process.kill()


@contextmanager
def _watching(data: Path, port: int, *command: str) -> Iterator[Watcher]:
    with running(*command) as process:
        watcher = Watcher(port, process, data)

        def is_ready() -> bool:
            assert process.poll() is None, process.stdout and process.stdout.read()
            with suppress(OSError):
                return bool(fetch(f"{watcher.url}/metrics"))
            return False

        wait_until(is_ready, command[0])
        yield watcher


@contextmanager
def victoria_metrics(data: Path) -> Iterator[Watcher]:
    """Run a VictoriaMetrics that keeps what it has in a directory."""
    port = free_port()
    options = {
        "storageDataPath": data,
        "httpListenAddr": f"127.0.0.1:{port}",
        "loggerLevel": "ERROR",
        "search.latencyOffset": "0s",  # else the newest half minute is not shown
    }
    command = [f"-{name}={value}" for name, value in options.items()]
    with _watching(data, port, tool("victoria-metrics"), *command) as watcher:
        yield watcher


@contextmanager
def vmalert(data: Path, interval: float, remote: str) -> Iterator[Watcher]:
    """Run a vmalert, which evaluates the recording rules for an agent.

    It asks a VictoriaMetrics, and writes into it. Alerts would need an Alertmanager.
    """
    port = free_port()
    options = {
        "rule": MONITORING / "recording.yml",
        "evaluationInterval": f"{interval}s",
        "datasource.url": remote,
        "remoteWrite.url": remote,
        "httpListenAddr": f"127.0.0.1:{port}",
        "loggerLevel": "ERROR",
    }
    command = [f"-{name}={value}" for name, value in options.items()]
    with _watching(data, port, tool("vmalert"), *command) as watcher:
        yield watcher


def _agent_options() -> list[str]:
    # Since 3.0 it is an option of its own.
    told = subprocess.run(
        [tool("prometheus"), "--help"], capture_output=True, text=True, check=True
    )
    is_own = re.search(r"^\s+--(\[no-\])?agent\b", told.stdout, re.MULTILINE)
    return ["--agent" if is_own else "--enable-feature=agent"]


def name_host(number: int) -> str:
    """What a host is called."""
    return f"host-{number:05}"


def configure(ports: Sequence[int], interval: float, remote: str, agent: bool) -> dict[str, Any]:
    """A configuration of Prometheus: a target for each host, and where samples are sent."""
    targets = [
        {"targets": [f"127.0.0.1:{port}"], "labels": {"instance": name_host(number)}}
        for number, port in enumerate(ports)
    ]
    often = f"{interval * 1000:.0f}ms"
    found: dict[str, Any] = {
        "global": {"scrape_interval": often, "scrape_timeout": often},
        "scrape_configs": [{"job_name": "statsfs", "static_configs": targets}],
        "remote_write": [{"url": f"{remote}/api/v1/write"}],
    }
    if not agent:
        found["global"]["evaluation_interval"] = often
        found["rule_files"] = list(RULES)
    return found


@contextmanager
def prometheus(
    directory: Path, ports: Sequence[int], interval: float, remote: str, *, agent: bool
) -> Iterator[Watcher]:
    """Run a Prometheus, or its agent, that scrapes hosts and sends all to another server.

    Args:
        directory: where its configuration and what it has are.
        ports: those of the hosts.
        interval: seconds between scrapes, and between evaluations of the rules.
        remote: the URL of the other server.
        agent: whether it keeps and answers nothing.
    """
    for name in RULES:
        shutil.copy(MONITORING / name, directory)
    configuration, data, port = directory / "prometheus.yml", directory / "data", free_port()
    made = configure(ports, interval, remote, agent)
    configuration.write_text(json.dumps(made))  # which is YAML, too
    options = ["--storage.tsdb.path"]
    if agent:
        options = [*_agent_options(), "--storage.agent.path"]
    options[-1] += f"={data}"
    command = (
        tool("prometheus"),
        f"--config.file={configuration}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
        *options,
    )
    with _watching(data, port, *command) as watcher:
        yield watcher
