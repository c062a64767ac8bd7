"""`examples/web_workers.py` with prometheus_client, in its mode for several processes.

    mkdir counts
    PROMETHEUS_MULTIPROC_DIR=counts gunicorn -c web_workers_hooks.py web_workers:wsgi

Any worker answers /metrics, from the files of all. uvicorn has no hook for the end of a worker.
"""

import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
    multiprocess,
)

REQUESTS = Counter("web_requests", "Requests answered")
SENT = Counter("web_sent_bytes", "Bytes of the bodies")
BUCKETS = [(2**n - 1) / 1e9 for n in range(39)]
LATENCY = Histogram("web_latency_seconds", "Time to answer", buckets=BUCKETS)


def answer(path: str) -> tuple[str, bytes]:
    """Answer a request, and count it, unless it is a scrape."""
    if path == "/metrics":
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # theirs
        return CONTENT_TYPE_LATEST, generate_latest(registry)
    with LATENCY.time():
        body = f"{os.getpid():10} {path}\n".encode()
    REQUESTS.inc()
    SENT.inc(len(body))
    return "text/plain", body


def wsgi(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Answer gunicorn."""
    kind, body = answer(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Length", str(len(body))), ("Content-Type", kind)])
    return [body]


async def asgi(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[object]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answer uvicorn."""
    if scope["type"] == "http":
        kind, body = answer(scope["path"])
        headers = [(b"content-length", b"%d" % len(body)), (b"content-type", kind.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
