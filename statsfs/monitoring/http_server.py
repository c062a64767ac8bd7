"""The HTTP server: scrapes of `/metrics`, a page for browsers, and the views that the page shows.

Owns the paths, and the life of a server. `/metrics` has all metrics, or those that `name[]` names,
in a format that the client accepts; `/` is the page; the views are below `/api` (`wishes`). The
methods are GET and HEAD. Any client may ask, so answers have only values that everybody may read.

Threading: any thread. A daemon thread with a trio loop of its own serves all clients, and
renderings are made in a worker thread: slow and silent clients delay no others.
"""

import logging
import os
import re
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qs

import trio

from statsfs.model.locking import Flag
from statsfs.model.names import show_text
from statsfs.monitoring.http_messages import Answer, Request, make_error
from statsfs.monitoring.http_sockets import RETRY_LATER, Listening, adopt, close, listen
from statsfs.monitoring.negotiation import accepts, accepts_gzip, choose_content_type, has_tag
from statsfs.monitoring.page import CONTENT_TYPE, load_page
from statsfs.monitoring.scrape_stats import ScrapeStats
from statsfs.monitoring.shared_renderings import (
    BusyError,
    RenderingError,
    SharedRenderings,
    UnknownPathError,
    compress,
)
from statsfs.monitoring.wishes import METRICS, Wish, parse_wish
from statsfs.tree.registry import Registry

__all__ = ["MetricsServer"]

log = logging.getLogger(__name__)

_PATIENCE: Final = 60.0  # seconds that a client waits for a rendering
_SMALL: Final = 256 << 10  # bytes of some metrics that are compressed, 2 ms for each client

_ORIGIN: Final = re.compile(r"(?i:https?://[^/?#]*)")  # proxies get whole URLs
_JSON: Final = "application/json"
_VARY: Final = ("Vary", "Accept, Accept-Encoding")
_PACKED: Final = ("Content-Encoding", "gzip")
_NO_SNIFFING: Final = ("X-Content-Type-Options", "nosniff")


class _Answers:
    # The answers to requests.

    def __init__(self, renderings: SharedRenderings, stats: ScrapeStats) -> None:
        self._renderings = renderings
        self._stats = stats
        self._packing = trio.CapacityLimiter(1)

    async def answer(self, request: Request, is_wanted: Callable[[], bool]) -> Answer:
        target = request.target
        origin = _ORIGIN.match(target)
        path, _, query = target[origin.end() if origin else 0 :].partition("#")[0].partition("?")
        try:
            wish = parse_wish(path, query)
        except ValueError as error:
            return make_error(HTTPStatus.BAD_REQUEST, _NO_SNIFFING, reason=str(error))
        if wish is None and path not in ("/", "/metrics"):
            return make_error(HTTPStatus.NOT_FOUND)
        if request.method not in ("GET", "HEAD"):
            return make_error(HTTPStatus.METHOD_NOT_ALLOWED, ("Allow", "GET, HEAD"))
        if request.has_body:
            return make_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        is_scrape = path == "/metrics"
        self._stats.scrapes += is_scrape
        try:
            with trio.fail_after(_PATIENCE):
                if is_scrape:
                    with self._stats.scrape_duration_ns.time():
                        return await self._answer_metrics(request, query, is_wanted)
                if wish is None:
                    return _answer_page(request)
                return await self._answer_wish(request, wish, is_wanted)
        except UnknownPathError:
            return make_error(HTTPStatus.NOT_FOUND)
        except RenderingError:
            self._stats.failed_scrapes += is_scrape
            return make_error(HTTPStatus.INTERNAL_SERVER_ERROR)
        except (trio.TooSlowError, BusyError, RuntimeError):  # or no thread can be started
            self._stats.failed_scrapes += is_scrape
            return make_error(HTTPStatus.SERVICE_UNAVAILABLE, RETRY_LATER)

    async def _answer_metrics(
        self, request: Request, query: str, is_wanted: Callable[[], bool]
    ) -> Answer:
        content_type = choose_content_type(request.headers.get("accept", ""))
        packed = accepts_gzip(request.headers.get("accept-encoding", ""))
        # As in prometheus_client: without a name all metrics; other parameters are ignored.
        names = parse_qs(query).get("name[]")
        whole = packed and names is None
        text = await self._renderings.render(METRICS[content_type], whole, is_wanted)
        kept = text.packed if whole else text.plain
        body: list[bytes | memoryview] = [kept]
        if names is not None:
            body = [*text.select(frozenset(names))]
            small = sum(map(len, body)) <= _SMALL
            packed = packed and small
            if small:
                kept = b"".join(body)  # which does not keep the whole text
                if packed:
                    kept = await trio.to_thread.run_sync(compress, kept, limiter=self._packing)
                body = [kept]
        headers = [("Content-Type", content_type), _VARY]
        if packed:
            headers.append(_PACKED)
        return Answer(HTTPStatus.OK, headers, body, kept)

    async def _answer_wish(
        self, request: Request, wish: Wish, is_wanted: Callable[[], bool]
    ) -> Answer:
        if not accepts(request.headers.get("accept", ""), _JSON):
            return make_error(HTTPStatus.NOT_ACCEPTABLE)
        packed = accepts_gzip(request.headers.get("accept-encoding", ""))
        text = await self._renderings.render(wish, packed, is_wanted)
        headers = [("Content-Type", _JSON), ("Statsfs-Moment", str(text.moment))]
        return _answer(request, headers, text.digest, text.plain, text.packed if packed else None)


def _answer_page(request: Request) -> Answer:
    if not accepts(request.headers.get("accept", ""), CONTENT_TYPE.partition(";")[0]):
        return make_error(HTTPStatus.NOT_ACCEPTABLE)
    found = load_page()
    packed = accepts_gzip(request.headers.get("accept-encoding", ""))
    headers = [("Content-Type", CONTENT_TYPE), *found.headers]
    return _answer(request, headers, found.digest, found.text, found.packed if packed else None)


def _answer(
    request: Request,
    headers: list[tuple[str, str]],
    digest: str,
    plain: bytes,
    packed: bytes | None,
) -> Answer:
    # A client that has this text already gets 304. Each encoding has an entity tag of its own.
    tag = f'"{digest}"' if packed is None else f'"{digest}-gzip"'
    headers += [_VARY, ("ETag", tag), ("Cache-Control", "no-cache"), _NO_SNIFFING]
    if has_tag(request.headers.get("if-none-match", ""), tag):
        return Answer(HTTPStatus.NOT_MODIFIED, headers, [])
    if packed is None:
        return Answer(HTTPStatus.OK, headers, [plain], plain)
    return Answer(HTTPStatus.OK, [*headers, _PACKED], [packed], packed)


class MetricsServer(AbstractContextManager["MetricsServer"]):
    """Answers with a registry's values until it is closed; made by `serve_metrics`.

    `url` is that of the metrics; `host` and `port` are the address, as numbers. `stats` counts
    scrapes; it is a `Stats`: `source.add_values(type(stats), stats)` shows it. `listener` is the
    descriptor of a socket that listens there already, in another process. With `paused`, no client
    is accepted until `resume`.

    >>> with serve_metrics(Registry(), port=0) as server:
    ...     server.url
    ...     server.stats.scrapes
    'http://127.0.0.1:.../metrics'
    0
    """

    def __init__(
        self,
        registry: Registry,
        host: str,
        port: int,
        listener: int | None = None,
        paused: bool = False,
    ) -> None:
        where = f"{_bracket(show_text(host[:80]))}:{port}"
        if not 0 <= port <= 65535:
            raise OSError(f"cannot listen on {where}: invalid port")
        try:
            self._listener = _listen(host, port) if listener is None else adopt(listener)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OSError(f"cannot listen on {where}: {reason}") from None
        bound: Any = self._listener.getsockname()  # of four parts with IPv6
        self.host: str = bound[0]
        self.port: int = bound[1]
        self.url = f"http://{_bracket(self.host)}:{self.port}/metrics"
        self.stats: Final = ScrapeStats()
        self._registry = registry
        self._paused = paused
        self._pid = os.getpid()
        self._ended = False
        self._failure: BaseException | None = None
        self._begun = threading.Lock()  # taken by the thread, or when there is to be none
        self._serving = Flag()
        self._thread = threading.Thread(target=self._run, name=f"statsfs {self.url}", daemon=True)
        self._start()

    def __repr__(self) -> str:
        return f"<MetricsServer {self.url}{' closed' if self._closed else ''}>"

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def _closed(self) -> bool:
        # A forked child has no thread that serves.
        return self._ended or os.getpid() != self._pid

    def _start(self) -> None:
        try:
            self._thread.start()
            self._serving.wait()
        except BaseException as error:
            # Ctrl-C, too: the thread may have been started, or not.
            if self._begun.acquire(blocking=False):
                close(self._listener)
            else:
                self.close()
            if isinstance(error, RuntimeError):
                raise OSError(f"cannot serve metrics: no thread can be started: {error}") from None
            raise
        if self._failure is not None:
            raise OSError(f"cannot serve metrics: {self._failure}") from self._failure

    def _run(self) -> None:
        if not self._begun.acquire(blocking=False):
            return
        try:
            trio.run(self._serve)
        except BaseException as error:
            log.exception("%s: serving failed", self.url)
            self._failure = error
        finally:
            close(self._listener)
            self._serving.set()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        load_page()  # not when it is asked for: an upgrade may have replaced the file by then
        renderings = SharedRenderings(self._registry)
        self._listening = Listening(self._listener, _Answers(renderings, self.stats).answer)
        if self._paused:
            self._listening.pause()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(renderings.run)
            self._serving.set()
            await self._listening.run()
            nursery.cancel_scope.cancel()

    @property
    def listener(self) -> int:
        """The descriptor of the socket that listens."""
        return self._listener.fileno()

    def pause(self) -> None:
        """Accept no more clients, which another process may accept; return when that is so."""
        trio.from_thread.run_sync(self._listening.pause, trio_token=self._token)

    def resume(self) -> None:
        """Accept clients again."""
        trio.from_thread.run_sync(self._listening.resume, trio_token=self._token)

    def leave(self) -> None:
        """Close the listening socket; connected clients are answered until `close`."""
        close(self._listener)

    def close(self) -> None:
        """Stop listening; scrapes under way are answered within seconds, or never.

        Closing again does nothing.

        >>> server = serve_metrics(Registry())
        >>> server.close()
        >>> server
        <MetricsServer http://127.0.0.1:.../metrics closed>
        """
        if self._closed:
            return
        self._ended = True
        self._serving.wait()
        # It may have failed, and at once.
        with suppress(AttributeError, trio.RunFinishedError):
            self._token.run_sync_soon(self._listening.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join()


def _listen(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return listen(found[0][0], found[0][4])


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host
