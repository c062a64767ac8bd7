"""A web application with several worker processes: each publishes a segment of its own.

Under gunicorn, or under uvicorn; a daemon shows what all workers count, to people and Prometheus::

    statsfs mount ./stats --create --segments ./segments --listen 9464
    STATSFS_DIR=./segments gunicorn --workers 4 --pythonpath examples web_workers:wsgi
    STATSFS_DIR=./segments uvicorn --workers 4 --app-dir examples web_workers:asgi
    cat ./stats/web/requests

Workers that end, or are killed, keep their counts in the totals; there is nothing to clean up.
"""

import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from statsfs import Stats, Unit, counter, log_hist, publish


class WebStats(Stats):
    """What one worker counts."""

    requests = counter("Requests answered")
    sent = counter("Bytes of the bodies", unit=Unit.BYTES)
    latency = log_hist(40, unit=Unit.SECONDS, exponent=-9, description="Time to answer")


# Both servers import this in each worker. With `gunicorn --preload`, publish in `post_fork`.
stats = publish("web/worker-%d", os.getpid(), values=WebStats, optional=True).stats


def answer(path: str) -> bytes:
    """Answer a request, and count it."""
    with stats.latency.time():
        body = f"{os.getpid():10} {path}\n".encode()
    stats.requests += 1
    stats.sent += len(body)
    return body


def wsgi(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Answer gunicorn."""
    body = answer(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


async def asgi(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[object]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answer uvicorn."""
    if scope["type"] == "http":
        body = answer(scope["path"])
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
