"""An aiohttp service: a middleware counts requests by endpoint and method.

Run it, and read it from another shell::

    python examples/aiohttp_service.py ./stats
    curl http://127.0.0.1:8080/item/7
    cat ./stats/http/requests ./stats/http/%2Fitem%2F{id}/GET/requests
    curl http://127.0.0.1:9464/metrics

`aiohttp_prometheus_client.py` is the same with prometheus_client: one scrape of both is the same.
"""

import argparse

from aiohttp import web
from aiohttp.typedefs import Handler

from statsfs import (
    Family,
    Registry,
    Source,
    Stats,
    Unit,
    counter,
    gauge,
    hist,
    mount,
    peak,
    serve_metrics,
)


class EndpointStats(Stats):
    """What is counted of one endpoint and method."""

    requests = counter("Requests answered")
    in_flight = gauge("Requests being answered")
    largest = peak("Largest body", unit=Unit.BYTES)
    latency = hist(
        [
            ms * 10**6
            for ms in (5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10**4)
        ],
        unit=Unit.SECONDS,
        exponent=-9,
        description="Time to answer",
    )


registry = Registry()
http = registry.register(Source("http"))
endpoint = Family(http, EndpointStats, "endpoint", "method")


@web.middleware
async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count a request; all run in one thread, so that no count is lost."""
    # A client that asks for what is not there must not choose a label.
    resource = request.match_info.route.resource
    stats = endpoint(resource.canonical, request.method) if resource else endpoint("none", "none")
    with stats.adding(in_flight=1, requests=1), stats.latency.time():
        response = await handler(request)
        stats.largest = max(stats.largest, response.content_length or 0)
        return response


async def get_item(request: web.Request) -> web.Response:
    """Answer with as many bytes as the item's number says."""
    return web.Response(text="x" * int(request.match_info["id"]))


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description="an aiohttp service with statistics")
    parser.add_argument("mountpoint")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--metrics-port", type=int, default=9464)
    args = parser.parse_args()

    app = web.Application(middlewares=[count])
    app.add_routes([web.get("/item/{id}", get_item), web.put("/item/{id}", get_item)])
    with (
        mount(registry, args.mountpoint, create=True),
        serve_metrics(registry, "127.0.0.1", args.metrics_port),
    ):
        web.run_app(app, host="127.0.0.1", port=args.port, print=None)


if __name__ == "__main__":
    main()
