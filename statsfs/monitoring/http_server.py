"""The HTTP server that answers scrapes of `/metrics`.

Owns the sockets, and what a client may ask for: GET and HEAD of one path, of all metrics or of
those that `name[]` names, in a format and an encoding that it accepts. Anybody may ask, so only
values that everybody may read are exported.
Threading: any thread. Each connection has a daemon thread: a slow or silent client delays only
itself, and is cut off in the end.
"""

import gzip
import logging
import re
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from socketserver import TCPServer, ThreadingMixIn
from stat import S_IROTH
from threading import BoundedSemaphore, Lock, Thread
from typing import Any, Final
from urllib.parse import parse_qs

from statsfs.formats import openmetrics, prometheus
from statsfs.formats.views import VIEWS, Rendering, View
from statsfs.tree.refresh import refresh_all
from statsfs.tree.registry import Registry

__all__ = ["MetricsServer", "accepts_gzip", "choose_content_type"]

log = logging.getLogger(__name__)

_PATIENCE: Final = 30.0  # seconds for a client to ask, and again to take the answer
_CONNECTIONS: Final = 128  # at a time: each is a thread
_REST: Final = 0.1  # seconds until the next try after the system ran out of descriptors or threads

# Proxies get whole URLs.
_TARGET: Final = re.compile(r"(?i:https?://[^/?#]*)?/metrics(\?(?P<query>[^#]*))?(#.*)?")
_QUALITY: Final = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")
_VIEWS: Final = {
    prometheus.CONTENT_TYPE: VIEWS[".stats.prom"],
    openmetrics.CONTENT_TYPE: VIEWS[".stats.openmetrics"],
}


def _parse(header: str) -> Iterator[tuple[str, str, float]]:
    # Yields the name, the version and the quality of each item of an Accept or Accept-Encoding.
    for item in header.split(","):
        name, *rest = (part.strip().lower() for part in item.split(";"))
        pairs = {key.strip(): text.strip() for key, _, text in (one.partition("=") for one in rest)}
        quality = pairs.get("q", "1")
        if _QUALITY.fullmatch(quality):
            yield name, pairs.get("version", "").strip('"'), float(quality)


def _rate(header: str, content_type: str) -> tuple[float, bool]:
    # Returns the quality of a content type, and whether it is named: a name outweighs a pattern.
    ((named, current, _),) = _parse(content_type)
    patterns = ("*/*", f"{named.partition('/')[0]}/*", named)
    rated = {
        (patterns.index(name), quality)
        for name, version, quality in _parse(header)
        if name in patterns and version in ("", current)
    }
    weight, quality = max(rated, default=(0, 0.0))
    return quality, weight == patterns.index(named)


def choose_content_type(accept: str) -> str:
    """Choose by an `Accept` header: OpenMetrics if it is preferred, or named and liked as well."""
    wanted, named = _rate(accept, openmetrics.CONTENT_TYPE)
    other, _ = _rate(accept, prometheus.CONTENT_TYPE)
    preferred = wanted and (wanted, named) > (other, False)
    return openmetrics.CONTENT_TYPE if preferred else prometheus.CONTENT_TYPE


def accepts_gzip(header: str) -> bool:
    """Tell whether an `Accept-Encoding` header lets the answer be compressed."""
    return any(name in ("gzip", "x-gzip") and quality > 0 for name, _, quality in _parse(header))


class _Handler(BaseHTTPRequestHandler):
    # One connection, which is one request.
    server: "_Server"
    raw_requestline: bytes
    query = ""
    timeout = _PATIENCE
    disable_nagle_algorithm = True
    error_content_type = "text/plain; charset=utf-8"
    error_message_format = "%(code)d %(message)s\n"

    def parse_request(self) -> bool:
        if len(self.raw_requestline.split()) == 2:
            # HTTP/0.9: no header follows. Python waits for one before 3.14, which has no Message.
            self.rfile = BytesIO()
        if not super().parse_request():
            return False
        self.headers = self.headers or self.MessageClass()
        self.server.silent.pop(self.request, None)
        target = _TARGET.fullmatch(self.path)
        if target is None:
            self.send_error(HTTPStatus.NOT_FOUND)
        elif self.command not in ("GET", "HEAD"):
            headers = {"Content-Type": self.error_content_type, "Allow": "GET, HEAD"}
            self._answer(HTTPStatus.METHOD_NOT_ALLOWED, b"405 Method Not Allowed\n", headers)
        else:
            self.query = target["query"] or ""
            return True
        return False

    def do_GET(self) -> None:
        content_type = choose_content_type(",".join(self.headers.get_all("Accept", [])))
        view = _VIEWS[content_type]
        # As in prometheus_client: without a name all metrics, and what is no name is ignored.
        names = parse_qs(self.query).get("name[]")
        if names is not None:
            view = replace(view, render=partial(view.render, names=frozenset(names)))
        try:
            body = self.server.render(view)
        except Exception:
            log.exception("a scrape failed")
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        if accepts_gzip(",".join(self.headers.get_all("Accept-Encoding", []))):
            # The fastest level makes it ten times smaller, and leaves the CPU to the producers.
            body = gzip.compress(body, 1, mtime=0)
            headers["Content-Encoding"] = "gzip"
        self._answer(HTTPStatus.OK, body, headers)

    do_HEAD = do_GET

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
    # HTTPServer would ask the DNS for its own name.
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = _CONNECTIONS

    def __init__(self, registry: Registry, family: int, address: Any) -> None:
        self.address_family = family
        self.closing = False
        self.silent: dict[socket.socket, None] = {}  # without a request yet, the oldest first
        self._registry = registry
        # Two views at a time would take twice as long and twice the memory.
        self._rendering = Lock()
        self._free = BoundedSemaphore(_CONNECTIONS)
        super().__init__(address, _Handler)

    def render(self, view: View) -> bytes:
        # Without the lock: a refresh that does not answer delays this scrape, and no other.
        refresh_all(self._registry.sources)
        with self._rendering:
            rendering = Rendering(view, self._registry, S_IROTH)
            rendering.run()
            return rendering.text

    def serve(self) -> None:
        # serve_forever would poll twice a second.
        while not self.closing:
            self.handle_request()

    def get_request(self) -> Any:
        try:
            return super().get_request()
        except OSError:
            if not self.closing:
                time.sleep(_REST)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False) or self._make_room():
            self.silent[request] = None
            super().process_request(request, client_address)
        else:
            super().shutdown_request(request)

    def _make_room(self) -> bool:
        # Cuts off the connection that has been silent for longest, if there is one.
        for silent in list(self.silent)[:1]:
            self.silent.pop(silent, None)
            with suppress(OSError):  # it may have gone meanwhile
                silent.shutdown(socket.SHUT_RDWR)
            return self._free.acquire(timeout=_REST)
        return False

    def shutdown_request(self, request: Any) -> None:
        self.silent.pop(request, None)
        self._free.release()
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a connection failed", exc_info=True)


class MetricsServer(AbstractContextManager["MetricsServer"]):
    """Answers `/metrics` with a registry's values until it is closed; made by `serve_metrics`.

    `url` is that of the metrics; `host` and `port` are the address, as numbers.
    """

    def __init__(self, registry: Registry, host: str, port: int) -> None:
        where = f"{_bracket(host)}:{port}"
        if not 0 <= port <= 65535:
            raise OSError(f"cannot listen on {where}: invalid port")
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self._server = _Server(registry, found[0][0], found[0][4])
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OSError(f"cannot listen on {where}: {reason}") from error
        bound: Any = self._server.server_address  # of four parts with IPv6
        self.host: str = bound[0]
        self.port: int = bound[1]
        self.url = f"http://{_bracket(self.host)}:{self.port}/metrics"
        self._thread = Thread(target=self._server.serve, name=f"statsfs {self.url}", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<MetricsServer {self.url}{' closed' if self._server.closing else ''}>"

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening; scrapes under way are answered. Closing again does nothing."""
        if self._server.closing:
            return
        self._server.closing = True
        if self._thread.is_alive():
            # This wakes the thread; from a forked child it would end the parent's server.
            self._server.socket.shutdown(socket.SHUT_RDWR)
            self._thread.join()
        self._server.server_close()


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host
