"""The examples, each as its own process: it counts, it is read, it ends."""

import ctypes
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from statsfs.segments.places import COLLECTOR
from tests.support import commands
from tests.support.code_lines import count_code_lines
from tests.support.deadlines import wait_until
from tests.support.mounts import run
from tests.support.moves import (
    EXAMPLES,
    MOVES,
    Move,
    compare_samples,
    gunicorn,
    read_samples,
    scrape_aiohttp,
    scrape_workers,
    uvicorn,
)
from tests.support.prometheus_server import Job, answers, fetch, free_port, free_ports, scraping
from tests.support.scrapes import hang_up
from tests.support.segment_files import alive, read_segment, segments_in

DEADLINE = 30.0  # seconds
# What each needs of the machine: of most, a mount.
MARKS = {"tiny_vmm.py": [pytest.mark.mount, pytest.mark.kvm], "worker_processes.py": []}
PIDFD_GETFD = 438  # the number of the system call, the same everywhere
ENDS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


@contextmanager
def example(name: str, mountpoint: Path, number: signal.Signals, *args: str) -> Iterator[Path]:
    """Run an example while the test looks at it; then end it, and see that it ended well."""
    with subprocess.Popen(
        [sys.executable, EXAMPLES / name, mountpoint, *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            wait_until(lambda: process.poll() is not None or os.path.ismount(mountpoint))
            yield mountpoint
            process.send_signal(number)
            output, _ = process.communicate(timeout=DEADLINE)
            assert (process.returncode, output) == (0, "")
            assert not mountpoint.exists()
        finally:
            process.kill()
            if os.path.ismount(mountpoint):
                subprocess.run(["fusermount3", "-uz", mountpoint], check=False)


def integer(path: Path) -> int:
    return int(path.read_text())


@pytest.mark.mount
@ENDS
def test_threaded_daemon(number: signal.Signals, tmp_path: Path) -> None:
    """Hidden workers: one visible total, no directories."""
    with example("threaded_daemon.py", tmp_path / "stats", number) as mountpoint:
        daemon = mountpoint / "daemon"
        assert sorted(os.listdir(daemon)) == ["errors", "requests", "slowest_us"]
        wait_until(lambda: integer(daemon / "requests") > 20)
        assert 1000 <= integer(daemon / "slowest_us") <= 20_000
        (daemon / "slowest_us").write_text("0\n")


@pytest.mark.mount
@ENDS
def test_trio_daemon(number: signal.Signals, tmp_path: Path) -> None:
    """1,000 connections come and go, 250 at a time: no total falls, and none counts twice."""
    with example("trio_daemon.py", tmp_path / "stats", number) as mountpoint:
        echo = mountpoint / "echo"
        address = "127.0.0.1", integer(echo / "port")
        totals = ["connections", "messages", "sent_bytes"]
        seen = [[0, 0, 0]]

        def look() -> list[int]:
            found = [integer(echo / name) for name in totals]
            assert all(now >= before for now, before in zip(found, seen[-1], strict=True))
            seen.append(found)
            return found

        for wave in range(1, 5):
            with ExitStack() as stack:
                clients = [
                    stack.enter_context(socket.create_connection(address)) for _ in range(250)
                ]
                for client in clients:
                    client.settimeout(DEADLINE)
                    client.sendall(b"hello")
                for client in clients:
                    assert client.recv(5, socket.MSG_WAITALL) == b"hello"
                wait_until(lambda: look()[1] >= 250 * wave)  # noqa: B023  # it is asked at once
                assert integer(echo / "open") == 250
                names = [name for name in os.listdir(echo) if name.isdecimal()]
                assert len(names) == 250
                assert integer(echo / names[0] / "sent_bytes") == 5
                for client in clients[:50]:
                    hang_up(client)
            wait_until(lambda: look() and integer(echo / "open") == 0)
            assert look() == [250 * wave, 250 * wave, 1250 * wave]
        assert sorted(os.listdir(echo)) == ["connections", "messages", "open", "port", "sent_bytes"]


@pytest.mark.mount
@ENDS
def test_asyncio_daemon(number: signal.Signals, tmp_path: Path) -> None:
    """Two queues: their sum, and the longest, stand above them."""
    with example("asyncio_daemon.py", tmp_path / "stats", number) as mountpoint:
        queue = mountpoint / "queue"
        names = ["high", "jobs_done", "length", "length.max", "low"]
        assert sorted(os.listdir(queue)) == names
        wait_until(lambda: all(integer(queue / x / "jobs_done") > 10 for x in ("high", "low")))
        assert integer(queue / "jobs_done") >= 20


@pytest.mark.mount
@ENDS
def test_ctypes_counters(number: signal.Signals, tmp_path: Path) -> None:
    """The kernel's own numbers, written by C code into a C structure."""
    with example("ctypes_counters.py", tmp_path / "stats", number) as mountpoint:
        own = mountpoint / "rusage" / "self"
        wait_until(lambda: integer(own / "minflt") > 100 and integer(own / "nvcsw") > 10)
        children = integer(mountpoint / "rusage" / "children" / "maxrss")
        assert integer(mountpoint / "rusage" / "maxrss") >= max(children, 1000)
        with pytest.raises(PermissionError):
            (own / "minflt").write_text("0\n")


@pytest.mark.mount
@ENDS
def test_monitored_daemon(number: signal.Signals, tmp_path: Path) -> None:
    """One scrape has statsfs's metrics, by worker, and prometheus_client's own."""
    with example("monitored_daemon.py", tmp_path / "stats", number) as mountpoint:
        crawler = mountpoint / "crawler"
        wait_until(lambda: (crawler / "worker3").exists() and integer(crawler / "pages") > 50)
        url = f"http://127.0.0.1:{integer(crawler / 'port')}/metrics"
        with urllib.request.urlopen(url, timeout=DEADLINE) as response:
            lines = response.read().decode().splitlines()
        assert "# HELP crawler_pages_total Pages fetched" in lines
        samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        pages = [float(samples[f'crawler_pages_total{{worker="worker{n}"}}']) for n in range(4)]
        assert 50 < sum(pages) <= integer(crawler / "pages")
        assert float(samples["robots_seconds_count"]) >= 0
        assert "python_info" in "".join(samples)


@pytest.mark.mount
@ENDS
def test_process_poller(number: signal.Signals, tmp_path: Path) -> None:
    """Each process has a directory while it lives; what it has used of a CPU stays in the total."""
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    with example("process_poller.py", tmp_path / "stats", number) as mountpoint:
        procs = mountpoint / "procs"
        pid = str(os.getpid())
        assert {"1", pid} <= {*os.listdir(procs)}
        assert integer(procs / pid / "resident_bytes") > 1_000_000
        assert integer(procs / pid / "threads") >= 1
        assert (procs / pid / "read_bytes").exists()
        samples = read_samples((mountpoint / ".stats.prom").read_text(), "procs_")
        assert samples[f"resident_bytes[('pid', '{pid}')]"] > 1_000_000
        with subprocess.Popen(
            [sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            own = procs / str(child.pid)
            wait_until(lambda: integer(procs / "threads") > 0 and own.exists())
            wait_until(lambda: integer(own / "cpu_ns") >= 200_000_000)
            total = integer(procs / "cpu_ns")
            child.communicate(b"\n")
        wait_until(lambda: integer(procs / "cpu_ns") >= total and not own.exists())
        assert integer(procs / "cpu_ns") >= total


@pytest.mark.mount
@ENDS
def test_prometheus_daemon(number: signal.Signals, tmp_path: Path) -> None:
    """What it counts with prometheus_client is in files, and says what its own /metrics says."""
    with example("prometheus_daemon.py", tmp_path / "stats", number) as mountpoint:
        web = mountpoint / "web"
        view = web / ".stats.json"
        wait_until(lambda: json.loads(view.read_text())["values"].get("http_requests", 0) > 50)
        endpoints = ["%2F", "%2Fitem%2F{id}"]
        each = [web / method / endpoint for method in ("GET", "POST") for endpoint in endpoints]
        wait_until(lambda: view.read_text() != "" and all(one.is_dir() for one in each))
        before = sum(integer(one / "http_requests") for one in each)
        total = integer(web / "http_requests")
        assert before <= total <= sum(integer(one / "http_requests") for one in each)
        assert integer(web / "GET" / "http_requests") <= integer(web / "http_requests")
        assert 0 <= integer(web / "http_busy") <= 4
        assert os.getxattr(web / "http_latency_seconds.sum", "user.statsfs.exponent") == b"-9"
        url = f"http://127.0.0.1:{integer(web / 'port')}/metrics"
        first = read_samples((mountpoint / ".stats.prom").read_text(), "web_")
        with urllib.request.urlopen(url, timeout=DEADLINE) as response:
            theirs = read_samples(response.read().decode())
        last = read_samples((mountpoint / ".stats.prom").read_text(), "web_")
        counted = [name for name in theirs if name.startswith("http_") and "_created" not in name]
        assert len(counted) == 4 * (1 + 17) + 1
        counted.remove("http_busy[]")
        for name in counted:
            # Sums are rounded to nanoseconds.
            assert first[name] - 1e-8 <= theirs[name] <= last[name] + 1e-8
        assert theirs["process_start_time_seconds[]"] == last["process_start_time_seconds[]"]
        # To clear a file is nothing to the program.
        (web / "http_requests").write_text("0\n")
        assert integer(web / "http_requests") < total
        with urllib.request.urlopen(url, timeout=DEADLINE) as response:
            after = read_samples(response.read().decode())
        assert all(after[name] >= theirs[name] for name in counted)


@pytest.mark.mount
@ENDS
def test_aiohttp_service(number: signal.Signals, tmp_path: Path) -> None:
    """Requests by endpoint and method; what no route has is refused, and counted together."""
    port, metrics = free_ports(2)
    ports = "--port", str(port), "--metrics-port", str(metrics)
    with example("aiohttp_service.py", tmp_path / "stats", number, *ports) as mountpoint:
        url = f"http://127.0.0.1:{port}"
        http = mountpoint / "http"
        wait_until(lambda: answers(f"{url}/item/5"))
        asked = integer(http / "requests")
        for path in ("/item/70", "/item/3", "/nothing", "/none"):
            with suppress(urllib.error.HTTPError):
                fetch(url + path)
        assert sorted(os.listdir(http)) == [
            *(
                "%2Fitem%2F{id}",
                "in_flight",
                "largest",
                "latency",
                "latency.sum",
                "none",
                "requests",
            ),
        ]
        item = http / "%2Fitem%2F{id}" / "GET"
        assert [integer(one / "requests") for one in (http, item)] == [asked + 4, asked + 2]
        assert [integer(one / "largest") for one in (http, item)] == [70, 70]
        assert [integer(one / "in_flight") for one in (http, item)] == [0, 0]
        samples = read_samples(fetch(f"http://127.0.0.1:{metrics}/metrics").decode())
        labels = "[('endpoint', '/item/{id}'), ('method', 'GET')]"
        assert samples[f"http_requests_total{labels}"] == asked + 2
        assert samples[f"http_latency_seconds_count{labels}"] == asked + 2


@pytest.mark.mount
def test_a_move_of_a_service(tmp_path: Path) -> None:
    """The same requests are the same metrics, labels, buckets and numbers as before."""
    move = MOVES["aiohttp_service"]
    before, after = (scrape_aiohttp(one, tmp_path / "stats") for one in (move.before, move.after))
    assert compare_samples(before, after) == (20, 20)


@pytest.mark.slow
def test_a_move_of_workers(tmp_path: Path) -> None:
    """The same of several processes."""
    move = MOVES["web_workers"]
    before = scrape_workers(move.before, tmp_path / "before")
    after = scrape_workers(move.after, tmp_path / "after")
    assert compare_samples(before, after) == (44, 44)


@pytest.mark.mount
@pytest.mark.tools
@pytest.mark.parametrize(
    ("serve", "recycle"), [(gunicorn, "--max-requests"), (uvicorn, "--limit-max-requests")]
)
def test_web_workers(serve: Any, recycle: str, tmp_path: Path) -> None:
    """Workers are recycled and killed under load: Prometheus sees all that was answered, once."""
    segments = tmp_path / "segments"
    segments.mkdir(mode=0o755)
    daemon = ["--create", "--segments", str(segments), "--listen", str(free_port())]
    ended = threading.Event()
    attempts: list[str | None] = []  # the worker that answered

    def ask() -> None:
        while not ended.is_set():
            try:
                attempts.append(fetch(url).split()[0].decode())
            except (OSError, HTTPException):
                attempts.append(None)  # a killed worker may have counted it

    def workers() -> set[str]:
        return {*filter(None, attempts)}

    with (
        commands.serving("mount", tmp_path / "stats", *daemon) as server,
        serve(segments, EXAMPLES / "web_workers.py", "--workers", "3", recycle, "40") as url,
        scraping(tmp_path, {"web": Job(f"http://127.0.0.1:{daemon[-1]}/metrics", "1s")}) as there,
    ):
        web = server.mountpoint / "web"
        wait_until((web / "requests").exists)
        begun = integer(web / "requests")
        with ThreadPoolExecutor(4) as pool:
            for _ in range(4):
                pool.submit(ask)
            try:
                for kill in range(1, 4):
                    seen = 3 + kill
                    # A new worker takes a second.
                    wait_until(lambda: len(workers()) > seen, deadline=60)  # noqa: B023  # at once
                    with suppress(ProcessLookupError):  # it has just been recycled
                        os.kill(int([*filter(None, attempts)][-1]), signal.SIGKILL)
            finally:
                ended.set()
        answered = len(attempts) - attempts.count(None)
        # A worker may have answered before the daemon has seen its segment.
        wait_until(lambda: integer(web / "requests") - begun >= answered)
        counted = integer(web / "requests")
        assert counted - begun <= len(attempts)
        assert attempts.count(None) < len(attempts) / 4
        wait_until(lambda: there.query("sum(web_requests_total)") == {(): counted})
        assert there.query("sum(resets(web_requests_total[1h]))") == {(): 0}
        server.stop()


@pytest.mark.slow
@pytest.mark.parametrize("collected", [False, True])
@ENDS
def test_worker_processes(number: signal.Signals, collected: bool, tmp_path: Path) -> None:
    """Each worker has a segment that lives; at the end they are gone, or left to the collector."""
    directory = tmp_path / "segments"
    if collected:
        directory.mkdir(mode=0o755)
        (directory / COLLECTOR).touch()
    with subprocess.Popen(
        [sys.executable, EXAMPLES / "worker_processes.py", directory],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            wait_until(lambda: len(segments_in(directory)) == 4)
            files = segments_in(directory)
            assert all(map(alive, files))
            seen = [read_segment(file) for file in files]
            assert {one.head.path for one in seen} == {f"app/worker-{n}" for n in range(4)}
            assert {one.head.labels for one in seen} == {("app", "worker")}
            wait_until(lambda: all(read_segment(file).numbers["requests"] for file in files))
            process.send_signal(number)
            output, _ = process.communicate(timeout=DEADLINE)
            assert (process.returncode, output) == (0, "")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert directory.exists() is collected
    assert segments_in(directory) == (files if collected else [])
    assert not any(map(alive, segments_in(directory)))


@pytest.mark.mount
@pytest.mark.kvm
@ENDS
def test_tiny_vmm(number: signal.Signals, tmp_path: Path) -> None:
    """A real guest: what a real cat reads is what the kernel's own descriptor says of it."""
    with example("tiny_vmm.py", tmp_path / "stats", number) as mountpoint:
        (vm,) = (mountpoint / "kvm").glob("*-*")
        vcpu = vm / "vcpu0"
        wait_until(lambda: integer(vcpu / "halt_exits") == 1)
        pid, fd = map(int, vm.name.split("-"))
        assert os.readlink(f"/proc/{pid}/fd/{fd}") == "anon_inode:kvm-vm"
        counted = read_stats(pid, "anon_inode:kvm-vcpu-stats:0")
        assert 101 <= counted["exits"] <= 105
        assert counted["halt_exits"] == 1
        for name, number_there in counted.items():
            assert cat(vcpu / name) == f"{number_there}\n"
        for name, number_there in read_stats(pid, "anon_inode:kvm-vm-stats").items():
            assert cat(vm / name) == f"{number_there}\n"
        assert cat(mountpoint / "kvm" / "exits") == f"{counted['exits']}\n"
        (vcpu / "exits").write_text("0\n")
        assert cat(vcpu / "exits", vm / "halt_exits") == "0\n1\n"


def cat(*paths: Path) -> str:
    done = subprocess.run(["cat", *paths], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout


def read_stats(pid: int, what: str) -> dict[str, int]:
    """Read another process's statistics descriptor, of which we take a copy, bare of statsfs.

    Histograms, of which a guest that halts once has no observation, are left out.
    """
    (theirs,) = (fd for fd in os.listdir(f"/proc/{pid}/fd") if link_of(pid, fd) == what)
    pidfd = os.pidfd_open(pid)
    fd = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, pidfd, int(theirs), 0)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    read = os.pread(fd, 1 << 16, 0)
    os.close(fd)
    os.close(pidfd)
    _, name_size, count, _, desc, data = struct.unpack_from("=6I", read)
    found = {}
    for start in range(desc, desc + count * (16 + name_size), 16 + name_size):
        _, _, size, offset = struct.unpack_from("=IhHI", read, start)
        name = read[start + 16 : start + 16 + name_size].partition(b"\0")[0].decode()
        if size == 1:
            (found[name],) = struct.unpack_from("=Q", read, data + offset)
    return found


def link_of(pid: int, fd: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}")
    except FileNotFoundError:
        return ""  # closed meanwhile


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.name, marks=MARKS.get(path.name, [pytest.mark.mount]))
        for path in sorted(EXAMPLES.glob("*.py"))
        if "--for" in path.read_text()
    ],
)
def test_an_example_can_end_by_itself(name: str, tmp_path: Path) -> None:
    """`--for` ends it with status 0."""
    path = EXAMPLES / name
    done = subprocess.run(
        [sys.executable, path, tmp_path / "stats", "--for", "0.3"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "stats").exists()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(path: Path) -> None:
    """Each fits on a page, give or take what is put on lines of its own."""
    assert path.read_text().count("\n") <= 90
    assert count_code_lines(path) <= 53


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_a_program_has_fewer_lines_than_with_prometheus_client(move: Move) -> None:
    """Logical lines, with what both need and no docstrings; each of ours also shows files."""
    before, after = move.count_lines()
    assert after < before


def test_every_example_is_tested() -> None:
    """A new example needs a test of its own here."""
    tested = Path(__file__).read_text()
    moved = {MOVES["aiohttp_service"].before}
    assert all(f'"{path.name}"' in tested for path in {*EXAMPLES.glob("*.py")} - moved)


def test_tests_of_counters() -> None:
    """The tests of a program's counters pass, and each is in the manual as it is there."""
    programs = [EXAMPLES / "test_jobs.py", EXAMPLES / "test_published.py"]
    run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *programs)
    program = "".join(path.read_text() for path in programs)
    page = (EXAMPLES.parent / "docs" / "howto" / "testing.md").read_text()
    lines = [line.split("  #")[0] for line in re.findall(r"^ *assert .*", page, re.MULTILINE)]
    assert len(lines) == 7
    assert [line for line in lines if line.strip() not in program] == []
