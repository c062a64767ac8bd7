"""What a client may do with its connection, and for how long."""

import http.client
import socket
import subprocess
import sys
import threading

import pytest

from statsfs.formats import prometheus
from statsfs.model.values import Value
from statsfs.monitoring import clients, http_connections
from statsfs.monitoring.http_server import MetricsServer
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.scrapes import (
    REQUEST,
    ask,
    connect,
    connecting,
    count_clients,
    count_waiting,
    hang_up,
    read_all,
)

LAST = b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@pytest.fixture
def big(app: Source) -> None:
    """A value whose text no socket takes at once."""
    app.add_values([Value("big", description="x" * 20_000_000)], {"big": 1})


def test_requests_on_one_connection(server: MetricsServer) -> None:
    """One after the other, as Prometheus asks."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=DEADLINE)
    used = set()
    for path, status in [("/metrics", 200), ("/x", 404), ("/metrics?name[]=x", 200)] * 5:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        assert response.status == status
        assert connection.sock is not None
        used.add(connection.sock.getsockname())
    connection.close()
    assert len(used) == 1


def test_requests_at_once(server: MetricsServer) -> None:
    """They are answered in their order; after the last one the server closes."""
    asked = b"".join(
        b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % path for path in [b"metrics", b"x"] * 50
    )
    with connect(server, asked + LAST + REQUEST) as client:
        answer = read_all(client)
    statuses = [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"404"] * 50 + [b"200"]


def test_requests_whose_answers_are_not_read(
    server: MetricsServer, app: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next answer waits until there is room for it; none is lost, but for who never reads."""
    app.add_values([Value("large", description="x" * 50_000)], {"large": 1})
    many = REQUEST * 199 + LAST
    with connect(server, many) as client:
        answers = read_all(client).split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert len(answers) == 200
    assert len({answer.partition(b"\r\n\r\n")[2] for answer in answers}) == 1
    monkeypatch.setattr(http_connections, "_STALL", 0.2)
    with connect(server, many, buffer=4096):
        wait_until(lambda: count_clients(server) == 0, "the end of the connection")


@pytest.mark.parametrize(
    "text", [b"", b"G", REQUEST[:-1], REQUEST + REQUEST[:-2]], ids=["none", "some", "most", "more"]
)
def test_a_request_that_does_not_come(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch, text: bytes
) -> None:
    """The client is cut off in time; others do not wait for it."""
    monkeypatch.setattr(http_connections, "_ASKING", 0.3)
    with connecting(server, 20, text) as slow:
        assert ask(server)[0].status == 200
        for client in slow:
            answers = read_all(client)
            assert answers.count(b"HTTP/1.1 200") == text.count(REQUEST)


def test_a_byte_at_a_time(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte takes no longer than it may, and all of them do."""
    monkeypatch.setattr(http_connections, "_ASKING", 0.3)
    ended = threading.Event()
    with connect(server) as client:

        def send() -> None:
            while not ended.wait(0.01):
                try:
                    client.sendall(b"a")
                except OSError:
                    return

        thread = threading.Thread(target=send)
        thread.start()
        assert read_all(client) == b""
        ended.set()
        thread.join()


def test_an_idle_connection(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits longer for the next request than for the first one, and not for ever."""
    monkeypatch.setattr(http_connections, "_ASKING", DEADLINE)
    monkeypatch.setattr(http_connections, "_IDLE", 0.1)
    with connect(server, REQUEST) as client:
        assert read_all(client).startswith(b"HTTP/1.1 200 ")
    assert http_connections._IDLE < http_connections._ASKING


@pytest.mark.usefixtures("big")
@pytest.mark.parametrize("limit", ["_STALL", "_TAKING"])
def test_an_answer_that_is_not_taken(
    server: MetricsServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    limit: str,
) -> None:
    """It is given up, and nothing is printed."""
    monkeypatch.setattr(http_connections, limit, 0.2)
    with connecting(server, 5, REQUEST):
        wait_until(lambda: count_clients(server) == 0, "the end of the connections")
    with connect(server, REQUEST) as client:
        client.recv(1)
    with connect(server, REQUEST) as client:
        client.recv(1)
        hang_up(client)
    wait_until(lambda: count_clients(server) == 0, "the end of the connections")
    assert ask(server, "HEAD")[0].status == 200
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("big")
def test_a_slow_reader_gets_all(registry: Registry, server: MetricsServer) -> None:
    """In small pieces, beside others that do not read."""
    expected = prometheus.render(registry.snapshot(), mask=0o004)
    with connecting(server, 10, REQUEST), connect(server, LAST, buffer=4096) as slow:
        answer = bytearray()
        while some := slow.recv(16384):
            answer += some
        assert ask(server)[1] == expected
    assert answer.endswith(b"\r\n\r\n" + expected)


@pytest.mark.usefixtures("big")
def test_what_slow_readers_keep_is_bounded(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each asks when another text is made; the slowest are cut off, and the newest goes on."""
    monkeypatch.setattr(clients, "KEPT_MAX", 50_000_000)
    table = server._listening._clients
    slow = []
    for _ in range(8):
        client = connect(server, LAST)
        slow.append(client)
        assert client.recv(4) == b"HTTP"
        wait_until(lambda: table._kept <= 75_000_000, "room")
    assert [len(read_all(client)) > 20_000_000 for client in slow] == [False] * 5 + [True] * 3
    for client in slow:
        client.close()


def test_what_is_not_read_takes_no_answer_with_it(server: MetricsServer) -> None:
    """A refused client that goes on sending has its answer; it may not go on for ever."""
    with connect(
        server, b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\n"
    ) as one:
        one.sendall(b"x" * 99_999)
        one.shutdown(socket.SHUT_WR)
        assert read_all(one).startswith(b"HTTP/1.1 405 ")
    with connect(server) as endless:

        def send() -> None:
            while True:
                endless.sendall(b"x" * 100_000)

        with pytest.raises(ConnectionError):
            send()
    wait_until(lambda: count_clients(server) == 0, "the end of the connections")


def test_one_that_does_not_close(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server does, in a moment."""
    monkeypatch.setattr(http_connections, "_PARTING", 0.1)
    with connect(server, LAST) as client:
        wait_until(lambda: count_waiting(server) == 0 and count_clients(server) == 0, "the end")
        assert read_all(client).startswith(b"HTTP/1.1 200 ")


def test_a_program_that_wants_sigpipe() -> None:
    """A client that hangs up does not kill it."""
    program = (
        "import signal, socket, urllib.request\n"
        "signal.signal(signal.SIGPIPE, signal.SIG_DFL)\n"
        "from statsfs import Registry, Source, Value, serve_metrics\n"
        "source, registry = Source('a'), Registry()\n"
        "source.add_values([Value('n', description='x' * 5_000_000)], {'n': 1})\n"
        "registry.register(source)\n"
        "with serve_metrics(registry) as server:\n"
        "    for _ in range(5):\n"
        "        with socket.create_connection((server.host, server.port)) as client:\n"
        "            client.sendall(b'GET /metrics HTTP/1.0\\n\\n')\n"
        "            client.recv(1)\n"
        "    assert urllib.request.urlopen(server.url).status == 200\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
