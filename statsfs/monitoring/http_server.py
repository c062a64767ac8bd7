"""Scrapes: the HTTP server that answers `/metrics`.

Owns the sockets, and what a client may ask for: GET and HEAD of one path, in a format and an
encoding that it accepts. What is answered is the business of `formats`. Whoever asks is anybody, so
only values that everybody may read are exported.

It stands on the standard library's HTTP handler, one daemon thread a connection: a client that is
slow or says nothing keeps nobody waiting but itself, and that not for ever.

Threading: `MetricsServer` may be used from any thread.
"""

import gzip
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from stat import S_IROTH
from typing import Any, Final, NamedTuple

from statsfs.closings import Closing
from statsfs.formats import openmetrics, prometheus
from statsfs.formats.views import VIEWS, Rendering, View
from statsfs.tree.refresh import refresh_all
from statsfs.tree.registry import Registry

__all__ = ["Format", "MetricsServer", "accepts_gzip", "choose_format"]

log = logging.getLogger(__name__)

_PATIENCE: Final = 30.0  # seconds for a client to ask, and again to take the answer
_CONNECTIONS: Final = 128  # at a time: each is a thread
_REST: Final = 0.1  # seconds until the next try where there are no more descriptors or threads

_ORIGIN: Final = re.compile("https?://[^/?#]*", re.IGNORECASE)  # proxies are asked for whole URLs
_QUALITY: Final = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


class Format(NamedTuple):
    """One of the two formats, and which versions a client may call it."""

    view: View
    content_type: str
    versions: tuple[str, ...]


_TEXT: Final = Format(VIEWS[".stats.prom"], prometheus.CONTENT_TYPE, ("", "0.0.4"))
_OPENMETRICS: Final = Format(VIEWS[".stats.openmetrics"], openmetrics.CONTENT_TYPE, ("", "1.0.0"))


def _parse(header: str) -> Iterator[tuple[str, str, float]]:
    # What each item of an Accept or Accept-Encoding names, the version that it wants, its quality.
    for item in header.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        pairs = {
            key.strip(): text.strip() for key, _, text in (p.partition("=") for p in parameters)
        }
        quality = pairs.get("q", "1")
        if _QUALITY.fullmatch(quality):
            yield name, pairs.get("version", "").strip('"'), float(quality)


def _rate(header: str, format: Format) -> tuple[float, bool]:
    # The quality of a format, and whether it is named: what is named outweighs what matches.
    named = format.content_type.partition(";")[0]
    patterns = ("*/*", f"{named.partition('/')[0]}/*", named)
    rated = {
        (patterns.index(name), quality)
        for name, version, quality in _parse(header)
        if name in patterns and version in format.versions
    }
    weight, quality = max(rated, default=(0, 0.0))
    return quality, weight == len(patterns) - 1


def choose_format(accept: str) -> Format:
    """Choose what a client gets: OpenMetrics where it likes that at least as well, and says so.

    Args:
        accept: its `Accept` header, or "".
    """
    (wanted, named), (other, _) = _rate(accept, _OPENMETRICS), _rate(accept, _TEXT)
    better = wanted >= other if named else wanted > other
    return _OPENMETRICS if wanted and better else _TEXT


def accepts_gzip(header: str) -> bool:
    """Tell whether an `Accept-Encoding` header lets the answer be compressed."""
    return any(name in ("gzip", "x-gzip") and quality > 0 for name, _, quality in _parse(header))


class _Handler(BaseHTTPRequestHandler):
    # One connection, which is one request.

    server: "_Server"
    timeout = _PATIENCE
    disable_nagle_algorithm = True
    error_content_type = "text/plain; charset=utf-8"
    error_message_format = "%(code)d %(message)s\n"

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        self.server.silent.pop(self.request, None)
        path = re.split("[?#]", _ORIGIN.sub("", self.path, count=1), maxsplit=1)[0]
        if path != "/metrics":
            self._refuse(HTTPStatus.NOT_FOUND)
        elif self.command not in ("GET", "HEAD"):
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, Allow="GET, HEAD")
        else:
            return True
        return False

    def do_GET(self) -> None:
        format = choose_format(",".join(self.headers.get_all("Accept", [])))
        try:
            body = self.server.render(format)
        except Exception:
            log.exception("a scrape failed")
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        headers = {"Content-Type": format.content_type, "Vary": "Accept, Accept-Encoding"}
        if accepts_gzip(",".join(self.headers.get_all("Accept-Encoding", []))):
            # The fastest level: ten times smaller is small enough, and the producers want the CPU.
            body = gzip.compress(body, 1, mtime=0)
            headers["Content-Encoding"] = "gzip"
        self._answer(HTTPStatus.OK, body, headers)

    do_HEAD = do_GET

    def _refuse(self, status: HTTPStatus, **headers: str) -> None:
        body = f"{status.value} {status.phrase}\n".encode()
        self._answer(status, body, {"Content-Type": self.error_content_type, **headers})

    def _answer(self, status: HTTPStatus, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, text in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "statsfs"

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


class _Server(ThreadingMixIn, TCPServer):
    # Not HTTPServer, which asks the DNS for its own name.

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = _CONNECTIONS

    def __init__(self, registry: Registry, family: int, address: Any) -> None:
        self.address_family = family
        self.closing = False
        self.silent: dict[socket.socket, None] = {}  # who did not ask yet, the oldest first
        self._registry = registry
        # Two at a time would take twice as long and twice the memory.
        self._rendering = threading.Lock()
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        super().__init__(address, _Handler)

    def render(self, format: Format) -> bytes:
        """Return what is to be seen now."""
        # Not under the lock: nobody waits for who does not answer but the scrape that asks.
        refresh_all(self._registry.sources)
        with self._rendering:
            rendering = Rendering(format.view, self._registry, S_IROTH)
            rendering.run()
            return rendering.text

    def serve(self) -> None:
        # serve_forever would look twice a second whether it is to end.
        while not self.closing:
            try:
                request, address = self.get_request()
            except OSError:
                if not self.closing:
                    time.sleep(_REST)
                continue
            try:
                self.process_request(request, address)
            except RuntimeError:  # the system gives no more threads
                self._leave(request)
                self.shutdown_request(request)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False) or self._make_room():
            self.silent[request] = None
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def _make_room(self) -> bool:
        # Who has been silent for longest is sent away; those who are being answered are not.
        for silent in list(self.silent)[:1]:
            self.silent.pop(silent, None)
            try:
                silent.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has gone meanwhile
            return self._free.acquire(timeout=_REST)
        return False

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._leave(request)

    def _leave(self, request: Any) -> None:
        self.silent.pop(request, None)
        self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a client went away", exc_info=True)


class MetricsServer(Closing):
    """Answers `/metrics` with all that a registry's producers count, until it is closed.

    Made by `serve_metrics`; a context manager that closes.

    Attributes:
        host, port: the address that it listens on, as numbers.
        url: what to ask for.
    """

    def __init__(self, registry: Registry, host: str, port: int) -> None:
        where = f"{_bracket(host)}:{port}"
        if not 0 <= port <= 65535:
            raise OSError(f"cannot listen on {where}: no such port")
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, address = found[0]
            self._server = _Server(registry, family, address)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OSError(f"cannot listen on {where}: {reason}") from error
        bound: Any = self._server.server_address  # of four parts with IPv6
        self.host: str = bound[0]
        self.port: int = bound[1]
        self.url = f"http://{_bracket(self.host)}:{self.port}/metrics"
        self._pid = os.getpid()
        self._thread = threading.Thread(
            target=self._server.serve, name=f"statsfs {self.url}", daemon=True
        )
        self._thread.start()

    def __repr__(self) -> str:
        return f"<MetricsServer {self.url}{' closed' if self._server.closing else ''}>"

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port."""
        return self.host, self.port

    def close(self) -> None:
        """Listen no more; what is being answered is answered. Nothing happens the second time."""
        if self._server.closing:
            return
        self._server.closing = True
        if os.getpid() == self._pid:
            # This wakes the thread; from a forked child it would end the parent's server.
            self._server.socket.shutdown(socket.SHUT_RDWR)
            self._thread.join()
        self._server.server_close()


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host
