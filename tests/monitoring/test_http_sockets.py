"""Who is let in, and what becomes of sockets at the end of a process and in its children."""

import contextlib
import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from statsfs.formats import views
from statsfs.model.values import Value
from statsfs.monitoring import http_sockets
from statsfs.monitoring.exposition import serve_metrics
from statsfs.monitoring.http_server import MetricsServer
from statsfs.tree.registry import Registry
from statsfs.tree.snapshot import Snapshot, take_snapshot
from statsfs.tree.source import Source
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.forking import run_forking
from tests.support.scrapes import (
    REQUEST,
    ask,
    connect,
    connecting,
    count_clients,
    count_waiting,
    read_all,
)


@pytest.fixture
def small(
    registry: Registry, app: Source, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MetricsServer]:
    """A server of two clients at a time."""
    monkeypatch.setattr(http_sockets, "_CLIENTS_MAX", 2)
    with serve_metrics(registry) as server:
        yield server


def test_silent_clients_give_way(small: MetricsServer) -> None:
    """The one that was silent for longest; one that has asked meanwhile stays."""
    with connecting(small, 2) as (first, second):
        wait_until(lambda: count_clients(small) == 2, "the clients")
        second.sendall(REQUEST)
        assert second.recv(4) == b"HTTP"
        assert ask(small)[0].status == 200
        assert read_all(first) == b""
        second.sendall(REQUEST)
        assert ask(small)[0].status == 200


def test_clients_that_do_not_read_give_way(small: MetricsServer, app: Source) -> None:
    """They keep their places only as long as nobody else wants one."""
    app.add_values([Value("big", description="x" * 20_000_000)], {"big": 1})
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            reading = stack.enter_context(connect(small, REQUEST))
            assert reading.recv(4) == b"HTTP"
        for _ in range(3):
            assert ask(small, "HEAD")[0].status == 200


class Held:
    """Renderings that wait until they may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        monkeypatch.setattr(views, "take_snapshot", self._wait)

    def _wait(self, root: Registry | Source) -> Snapshot:
        assert self.go_on.wait(DEADLINE)
        return take_snapshot(root)


def test_too_many_that_wait(small: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that come then wait as well, and are answered in their turn."""
    held = Held(monkeypatch)
    with ThreadPoolExecutor(20) as pool:
        try:
            answers = [pool.submit(ask, small) for _ in range(20)]
            wait_until(lambda: count_waiting(small) == 2, "the scrapes")
        finally:
            held.go_on.set()
        assert {answer.result(DEADLINE)[0].status for answer in answers} == {200}


def test_too_many_that_wait_for_long(small: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is told to come again; those under way are answered."""
    monkeypatch.setattr(http_sockets, "_PATIENCE", 0.1)
    held = Held(monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        try:
            answers = [pool.submit(ask, small) for _ in range(2)]
            wait_until(lambda: count_waiting(small) == 2, "the scrapes")
            for text in (b"", REQUEST):
                with connect(small, text) as client:
                    told = read_all(client)
                    assert told.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
                    assert b"\r\nRetry-After: 1\r\n" in told
        finally:
            held.go_on.set()
        assert [answer.result(DEADLINE)[0].status for answer in answers] == [200, 200]


def test_closing_while_one_waits_to_be_let_in(
    small: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told to come again."""
    held = Held(monkeypatch)
    with ThreadPoolExecutor(3) as pool, connecting(small, 2, REQUEST):
        try:
            wait_until(lambda: count_waiting(small) == 2, "the scrapes")
            with connect(small, REQUEST) as client:
                wait_until(lambda: len(http_sockets._sockets) == 4, "the client")
                closing = pool.submit(small.close)
                assert read_all(client).startswith(b"HTTP/1.1 503 ")
        finally:
            held.go_on.set()
        closing.result(DEADLINE)
    assert http_sockets._sockets == set()


# A thousand clients that ask and do not read; each that is cut off comes again.
CROWD = """
import select, socket, sys
clients, poll, come = {}, select.poll(), 0
while True:
    while len(clients) < 1000:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(30)
        client.connect(("127.0.0.1", int(sys.argv[1])))
        client.sendall(b"GET /metrics HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
        clients[client.fileno()] = client
        poll.register(client, select.POLLRDHUP)
        come += 1
        if come == 1000:
            print("complete", flush=True)
    for descriptor, _ in poll.poll(100):
        poll.unregister(descriptor)
        clients.pop(descriptor).close()
"""


@pytest.mark.slow
def test_a_scraper_beside_a_thousand_that_do_not_read(registry: Registry, app: Source) -> None:
    """Each of its scrapes is answered."""
    app.add_values([Value("big", description="x" * 300_000)], {"big": 1})
    command = [sys.executable, "-c", CROWD]
    with (
        serve_metrics(registry) as server,
        subprocess.Popen([*command, str(server.port)], stdout=subprocess.PIPE) as crowd,
    ):
        try:
            assert crowd.stdout is not None
            assert crowd.stdout.readline() == b"complete\n"
            for _ in range(50):
                response, body = ask(server)
                assert response.status == 200
                assert b"app_requests_total 5\n" in body
            assert crowd.poll() is None
        finally:
            crowd.kill()


def test_places_are_a_share_of_the_descriptors(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that serves needs descriptors for itself."""
    for soft, expected in ((1 << 20, 1024), (-1, 1024), (256, 64), (3, 1)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, -1))
        with serve_metrics(registry) as server:
            assert server._listening._clients._most == expected


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ECONNABORTED, errno.EAGAIN])
def test_a_client_that_cannot_be_let_in(
    registry: Registry, app: Source, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """There are no descriptors, or it has gone: the server tries again."""
    monkeypatch.setattr(http_sockets, "_REST", 0.01)
    failures = [OSError(number, os.strerror(number))]
    accept = http_sockets._accept

    def fail_once(listener: socket.socket) -> socket.socket:
        if failures:
            raise failures.pop()
        return accept(listener)

    monkeypatch.setattr(http_sockets, "_accept", fail_once)
    with serve_metrics(registry) as server:
        assert ask(server)[0].status == 200
        assert failures == []


def test_a_connection_that_fails(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was not foreseen is logged, and ends this connection alone."""

    def fail(*args: object, **options: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("statsfs.monitoring.http_connections.make_error", fail)
        with connect(server, b"nonsense\n\n") as client:
            assert read_all(client) == b""
    assert "ZeroDivisionError" in caplog.text
    assert ask(server)[0].status == 200


# Forks

SERVING = (
    "import os, signal, socket, sys, time\n"
    "from statsfs import Registry, serve_metrics\n"
    "server = serve_metrics(Registry())\n"
)


def test_a_child_that_outlives_its_parent() -> None:
    """The port of a parent that was killed is free, and its clients have no connection left."""
    program = (
        f"{SERVING}"
        "client = socket.create_connection((server.host, server.port))\n"
        "client.sendall(b'GET /metrics HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n')\n"
        "assert client.recv(4) == b'HTTP'\n"
        "if not os.fork():\n"
        "    client.close()\n"
        "    print(os.getpid(), server.port, repr(server).endswith(' closed>'), flush=True)\n"
        "    sys.stdin.read()\n"
        "    os._exit(0)\n"
        "time.sleep(100)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        child, port, closed = parent.stdout.readline().split()
        assert closed == "True"
        with socket.create_connection(("127.0.0.1", int(port)), DEADLINE) as client:
            client.sendall(REQUEST)
            assert client.recv(4) == b"HTTP"
            os.kill(parent.pid, signal.SIGKILL)
            parent.wait(DEADLINE)
            read_all(client)
        os.kill(int(child), 0)  # it is there yet
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(port)), DEADLINE)
        serve_metrics(Registry(), port=int(port)).close()


def test_forks_beside_clients_that_come() -> None:
    """No child has a socket of the server, whatever the server was at when it was forked."""
    program = (
        f"{SERVING}"
        "import threading\n"
        "ended = threading.Event()\n"
        "def come():\n"
        "    while not ended.is_set():\n"
        "        with socket.create_connection((server.host, server.port)) as client:\n"
        "            client.sendall(b'GET /metrics HTTP/1.0\\r\\n\\r\\n')\n"
        "            while client.recv(4096):\n"
        "                pass\n"
        "def find():\n"
        "    for name in os.listdir('/proc/self/fd'):\n"
        "        try:\n"
        "            with socket.socket(fileno=os.dup(int(name))) as one:\n"
        "                if one.family == socket.AF_INET and one.getsockname()[1] == server.port:\n"
        "                    return 1\n"
        "        except OSError:\n"
        "            pass\n"
        "    return 0\n"
        "assert find() == 1\n"
        "threads = [threading.Thread(target=come) for _ in range(4)]\n"
        "for thread in threads:\n"
        "    thread.start()\n"
        "found = 0\n"
        "for _ in range(100):\n"
        "    if not (child := os.fork()):\n"
        "        os._exit(find())\n"
        "    found += os.waitpid(child, 0)[1]\n"
        "ended.set()\n"
        "for thread in threads:\n"
        "    thread.join()\n"
        "assert found == 0, found\n"
        "server.close()\n"
    )
    assert run_forking(program) == (0, "")


def test_closing_in_a_forked_child() -> None:
    """The child has no thread that answers; the parent's goes on."""
    program = (
        f"{SERVING}"
        "import urllib.request\n"
        "if not (child := os.fork()):\n"
        "    server.close()\n"
        "    with serve_metrics(Registry()) as own:\n"
        "        assert urllib.request.urlopen(own.url).status == 200\n"
        "    raise SystemExit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "assert urllib.request.urlopen(server.url).status == 200\n"
        "server.close()\n"
    )
    assert run_forking(program, measured=True) == (0, "")


def test_a_program_that_ends_without_closing() -> None:
    """It ends at once, whatever its clients are at, and says nothing."""
    program = (
        f"{SERVING}"
        "client = socket.create_connection((server.host, server.port))\n"
        "client.sendall(b'GET')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_signals_are_the_programs_own(server: MetricsServer) -> None:
    """Serving changes no handler, nor who is woken by a signal."""
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    assert before == -1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert ask(server)[0].status == 200
