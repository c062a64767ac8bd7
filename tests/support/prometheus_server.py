"""Programs that watch: where they are, and a Prometheus server as a process of its own.

`make tools` unpacks them where they are not installed. Each listens on the loopback address, on a
port that was free a moment ago.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import ROOT

__all__ = [
    "Job",
    "PrometheusServer",
    "answers",
    "fetch",
    "free_port",
    "free_ports",
    "observing",
    "promtool",
    "running",
    "scraping",
    "tool",
]


def tool(name: str) -> str:
    """Where a program is."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:{ROOT}/.venv/debian/usr/bin")
    if path is None:
        pytest.skip(f"there is no {name}: make tools")
    return path


def promtool(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run promtool in a directory; it must be content."""
    done = subprocess.run(
        [tool("promtool"), *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@contextlib.contextmanager
def running(*command: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process, and end it."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
            assert process.poll() is None, process.stdout and process.stdout.read()
        finally:
            process.terminate()
            try:
                process.communicate(timeout=DEADLINE)
            finally:
                process.kill()


def free_port() -> int:
    """A free port of the loopback address."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """So many, each another one."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def fetch(url: str, **headers: str) -> bytes:
    """What is at a URL."""
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE) as response:
            body: bytes = response.read()
            return body
    except urllib.error.HTTPError as error:
        error.close()  # it is a response too, of a server that is just starting
        raise


def answers(url: str) -> bool:
    """Whether there is something at a URL."""
    with contextlib.suppress(OSError):
        return bool(fetch(url))
    return False


class PrometheusServer:
    """A Prometheus server."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def api(self, name: str, **parameters: str) -> Any:
        """Ask its HTTP API."""
        query = urllib.parse.urlencode(parameters)
        answer = json.loads(fetch(f"{self.url}/api/v1/{name}?{query}"))
        assert answer["status"] == "success"
        return answer["data"]

    def query(self, text: str) -> dict[tuple[str, ...], float]:
        """The values of a query by the values of their labels, in the order of the names."""
        found = self.api("query", query=text)["result"]
        return {
            tuple(text for _, text in sorted(one["metric"].items())): float(one["value"][1])
            for one in found
        }


class Job(NamedTuple):
    """What a Prometheus server scrapes, and how often."""

    url: str
    interval: str


@contextlib.contextmanager
def scraping(directory: Path, jobs: Mapping[str, Job]) -> Iterator[PrometheusServer]:
    """Run a Prometheus server; it has scraped each job once.

    Args:
        directory: where it keeps what it has.
        jobs: by name.
    """
    configuration = directory / "prometheus.yml"
    found = [
        {
            "job_name": name,
            "scrape_interval": job.interval,
            "scrape_timeout": job.interval,
            "static_configs": [{"targets": [urllib.parse.urlsplit(job.url).netloc]}],
        }
        for name, job in jobs.items()
    ]
    configuration.write_text(json.dumps({"scrape_configs": found}))  # which is YAML, too
    with observing(configuration, directory / "data", len(jobs)) as server:
        yield server


@contextlib.contextmanager
def observing(configuration: Path, data: Path, targets: int) -> Iterator[PrometheusServer]:
    """Run a Prometheus server with a configuration; it has scraped each target once.

    Args:
        configuration: its file.
        data: where it keeps what it has.
        targets: how many the configuration has.
    """
    port = free_port()
    with running(
        tool("prometheus"),
        f"--config.file={configuration}",
        f"--storage.tsdb.path={data}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ) as process:
        server = PrometheusServer(port)

        def scraped() -> bool:
            assert process.poll() is None
            with contextlib.suppress(OSError):
                return len(server.query("up")) == targets
            return False

        wait_until(scraped, "a scrape")
        yield server
