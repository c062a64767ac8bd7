"""The service of `aiohttp_service.py` with prometheus_client, as it is before a move to statsfs.

Run it, and scrape it from another shell::

    python examples/aiohttp_prometheus_client.py
    curl http://127.0.0.1:8080/item/7
    curl http://127.0.0.1:9464/metrics
"""

import argparse

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import Counter, Gauge, Histogram, start_http_server

LABELS = ["endpoint", "method"]
REQUESTS = Counter("http_requests", "Requests answered", LABELS)
IN_FLIGHT = Gauge("http_in_flight", "Requests being answered", LABELS)
LARGEST = Gauge("http_largest_bytes", "Largest body", LABELS)
LATENCY = Histogram("http_latency_seconds", "Time to answer", LABELS)

largest: dict[tuple[str, str], int] = {}  # a gauge cannot be asked for its number


@web.middleware
async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count a request."""
    # A client that asks for what is not there must not choose a label.
    resource = request.match_info.route.resource
    labels = (resource.canonical, request.method) if resource else ("none", "none")
    with IN_FLIGHT.labels(*labels).track_inprogress(), LATENCY.labels(*labels).time():
        try:
            response = await handler(request)
            largest[labels] = max(largest.get(labels, 0), response.content_length or 0)
            LARGEST.labels(*labels).set(largest[labels])
            return response
        finally:
            REQUESTS.labels(*labels).inc()


async def get_item(request: web.Request) -> web.Response:
    """Answer with as many bytes as the item's number says."""
    return web.Response(text="x" * int(request.match_info["id"]))


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description="an aiohttp service with statistics")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--metrics-port", type=int, default=9464)
    args = parser.parse_args()

    app = web.Application(middlewares=[count])
    app.add_routes([web.get("/item/{id}", get_item), web.put("/item/{id}", get_item)])
    start_http_server(args.metrics_port, addr="127.0.0.1")
    web.run_app(app, host="127.0.0.1", port=args.port, print=None)


if __name__ == "__main__":
    main()
