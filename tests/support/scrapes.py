"""Clients of a server of metrics: those that ask as they should, and sockets for all others."""

import contextlib
import http.client
import socket
import struct
from collections.abc import Iterator

from statsfs.monitoring.http_server import MetricsServer
from tests.support.deadlines import DEADLINE

__all__ = [
    "REQUEST",
    "ask",
    "connect",
    "connecting",
    "count_clients",
    "count_waiting",
    "hang_up",
    "read_all",
    "talk",
]

REQUEST = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"


def ask(
    server: MetricsServer, method: str = "GET", path: str = "/metrics", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    """Ask once."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=DEADLINE)
    with contextlib.closing(connection):
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        connection.request(method, path, headers={"Accept-Encoding": "identity", **named})
        response = connection.getresponse()
        return response, response.read()


def connect(server: MetricsServer, text: bytes = b"", buffer: int | None = None) -> socket.socket:
    """Connect, and send bytes; `buffer` is how many the system takes in for this client."""
    with contextlib.ExitStack() as failed:
        connection = failed.enter_context(socket.socket())
        if buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.settimeout(DEADLINE)
        connection.connect((server.host, server.port))
        connection.sendall(text)
        failed.pop_all()
    return connection


@contextlib.contextmanager
def connecting(
    server: MetricsServer, count: int, text: bytes = b"", buffer: int | None = None
) -> Iterator[list[socket.socket]]:
    """Connect many, each of which sends bytes; close all at the end."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect(server, text, buffer)) for _ in range(count)]


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server ends the connection, in whichever way."""
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while some := connection.recv(65536):
            answer += some
    return answer


def talk(server: MetricsServer, text: bytes) -> bytes:
    """Send bytes and nothing after them, and return all that comes back."""
    with connect(server, text) as connection:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        return read_all(connection)


def count_clients(server: MetricsServer) -> int:
    """How many clients have a place."""
    return len(server._listening._clients._all)


def count_waiting(server: MetricsServer) -> int:
    """How many of them have asked, and not got all of the answer."""
    return len(server._listening._clients._busy)


def hang_up(connection: socket.socket) -> None:
    """Close so that the server is told at once, and not when it sends something."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
