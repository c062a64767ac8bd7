"""A socket that two servers share, one after the other, and what their clients notice of it."""

import http.client
import os
import socket

from statsfs.monitoring.http_server import MetricsServer
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.scrapes import REQUEST, ask, connect, count_clients, read_all


def test_clients_of_both(registry: Registry, app: Source) -> None:
    """New ones wait for the other server; those that are there are answered, once more."""
    with MetricsServer(registry, "127.0.0.1", 0) as old:
        kept = http.client.HTTPConnection(old.host, old.port, timeout=DEADLINE)
        kept.request("GET", "/metrics")
        assert kept.getresponse().read()
        fresh = connect(old)
        asking = connect(old, REQUEST[:10])
        wait_until(lambda: count_clients(old) == 3, "the clients")
        old.pause()
        assert kept.sock is not None
        assert kept.sock.recv(1) == b""  # it had its answer
        with (
            connect(old, REQUEST) as waiting,
            MetricsServer(Registry(), old.host, old.port, os.dup(old.listener)) as new,
        ):
            assert (new.host, new.port, new.url) == (old.host, old.port, old.url)
            assert waiting.recv(12) == b"HTTP/1.1 200"
            old.leave()
            for one, rest in ((fresh, REQUEST), (asking, REQUEST[10:])):
                one.sendall(rest)
                answer = read_all(one)
                assert b"connection: close" in answer.lower()
                assert b"app_" in answer
            assert b"app_" not in ask(new)[1]
        for one in (fresh, asking):
            one.close()
        kept.close()
        with socket.socket() as nobody:
            assert nobody.connect_ex((old.host, old.port))


def test_a_server_that_goes_on(registry: Registry, app: Source) -> None:
    """If the other one failed, those who waited are answered, and may ask again."""
    with (
        MetricsServer(registry, "127.0.0.1", 0) as server,
        connect(server, REQUEST[:10]) as slow,
    ):
        wait_until(lambda: count_clients(server) == 1, "the client")
        server.pause()
        with connect(server, REQUEST) as waiting:
            server.resume()
            assert waiting.recv(12) == b"HTTP/1.1 200"
        slow.sendall(REQUEST[10:])
        assert b"connection: close" not in slow.recv(300).lower()


def test_the_end_of_a_server_that_was_left(registry: Registry, app: Source) -> None:
    """Whoever came just before is answered even if the server ends."""
    server = MetricsServer(registry, "127.0.0.1", 0)
    with connect(server) as fresh:
        wait_until(lambda: count_clients(server) == 1, "the client")
        server.pause()
        server.leave()
        pid = os.fork()
        if not pid:
            fresh.sendall(REQUEST)
            os._exit(b"app_" not in read_all(fresh))
        server.close()
        assert os.waitpid(pid, 0)[1] == 0
