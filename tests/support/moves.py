"""Examples beside the same programs with prometheus_client: run both, and compare one scrape.

Both get the same requests. What each answers then has the same names, labels and buckets, and the
same numbers, but for how long answers took.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from statsfs import Collector, Registry, serve_metrics
from tests.support.code_lines import count_code_lines
from tests.support.deadlines import wait_until
from tests.support.mounts import ROOT
from tests.support.prometheus_server import answers, fetch, free_port, free_ports, running

__all__ = [
    "EXAMPLES",
    "MOVES",
    "Move",
    "Samples",
    "compare_samples",
    "gunicorn",
    "read_samples",
    "scrape_aiohttp",
    "scrape_workers",
    "uvicorn",
]

EXAMPLES: Final = ROOT / "examples"
BEFORE: Final = ROOT / "tests" / "bench" / "before"
BODIES: Final = (5, 700, 30)

Samples = dict[str, float]  # by name and labels


class Move(NamedTuple):
    """A program with prometheus_client, with its hooks if it needs any; the same with statsfs."""

    before: Path
    after: Path
    hooks: Path | None = None

    def count_lines(self) -> tuple[int, int]:
        """How long each is."""
        hooks = count_code_lines(self.hooks) if self.hooks else 0
        return count_code_lines(self.before) + hooks, count_code_lines(self.after)


MOVES: Final = {
    "aiohttp_service": Move(
        EXAMPLES / "aiohttp_prometheus_client.py", EXAMPLES / "aiohttp_service.py"
    ),
    "web_workers": Move(
        BEFORE / "web_workers.py", EXAMPLES / "web_workers.py", BEFORE / "web_workers_hooks.py"
    ),
    "trio_daemon": Move(BEFORE / "trio_daemon.py", EXAMPLES / "trio_daemon.py"),
    "threaded_daemon": Move(BEFORE / "threaded_daemon.py", EXAMPLES / "threaded_daemon.py"),
}


def read_samples(text: str, prefix: str = "") -> Samples:
    """The samples of a text by name and labels, in the order of the names of labels."""
    return {
        f"{sample.name.removeprefix(prefix)}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def compare_samples(before: Samples, after: Samples) -> tuple[int, int]:
    """Compare the metrics of two programs, but for prometheus_client's own.

    Returns:
        How many samples are the same, and how many there are in either. A bucket's count, and the
        sum of a histogram, are times: it is enough if both have them.
    """
    ours = [
        {name: sample for name, sample in samples.items() if name.startswith(("http_", "web_"))}
        for samples in (before, after)
    ]
    for samples in ours:
        for name in samples:
            if "_bucket[" in name or "_seconds_sum[" in name:
                samples[name] = -1
            elif "_created[" in name:
                samples[name] = -2
    first, second = ({pair for pair in samples.items() if pair[1] != -2} for samples in ours)
    return len(first & second), len(first | second)


def scrape_aiohttp(program: Path, mountpoint: Path) -> Samples:
    """Run either program of aiohttp, ask it a few times, and scrape it."""
    port, metrics = free_ports(2)
    with running(
        sys.executable,
        program,
        *([mountpoint] if program == MOVES["aiohttp_service"].after else []),
        *("--port", str(port), "--metrics-port", str(metrics)),
    ) as process:
        url = f"http://127.0.0.1:{port}/item"
        wait_until(lambda: process.poll() is not None or answers(f"{url}/{BODIES[0]}"))
        for size in BODIES[1:]:
            assert len(fetch(f"{url}/{size}")) == size
        return read_samples(fetch(f"http://127.0.0.1:{metrics}/metrics").decode())


def scrape_workers(program: Path, directory: Path) -> Samples:
    """Run either program of gunicorn's workers, ask it a few times, and scrape it."""
    directory.mkdir(mode=0o755)
    with gunicorn(directory, program, "--workers", "2") as url:
        for size in BODIES:
            fetch(f"{url}/{size}")
        if program == MOVES["web_workers"].before:
            return read_samples(fetch(f"{url}/metrics").decode())
        registry = Registry()
        with Collector(registry, directory), serve_metrics(registry) as server:
            return read_samples(fetch(f"http://127.0.0.1:{server.port}/metrics").decode())


@contextmanager
def gunicorn(directory: Path, program: Path, *args: str) -> Iterator[str]:
    """Run workers of gunicorn, and yield where they answer.

    Args:
        directory: of the segments, or of prometheus_client's files.
        program: a module with `wsgi`.
        args: further arguments.
    """
    move = MOVES["web_workers"]
    hooks = ["--config", str(move.hooks)] if program == move.before else []
    command = ["-m", "gunicorn", "--log-level", "error", "--chdir", str(program.parent), *hooks]
    with _workers(directory, [*command, *args], "--bind", f"{program.stem}:wsgi") as url:
        yield url


@contextmanager
def uvicorn(directory: Path, program: Path, *args: str) -> Iterator[str]:
    """The same of uvicorn, with `asgi`."""
    command = ["-m", "uvicorn", "--log-level", "error", "--app-dir", str(program.parent), *args]
    with _workers(directory, command, "--port", f"{program.stem}:asgi") as url:
        yield url


@contextmanager
def _workers(directory: Path, command: list[str], option: str, app: str) -> Iterator[str]:
    port = free_port()
    address = f"127.0.0.1:{port}" if option == "--bind" else str(port)
    variables = [f"{name}={directory}" for name in ("STATSFS_DIR", "PROMETHEUS_MULTIPROC_DIR")]
    with running("env", *variables, sys.executable, *command, option, address, app) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: process.poll() is not None or answers(url))
        yield url
