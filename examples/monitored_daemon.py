"""A daemon that Prometheus scrapes: statsfs counts where it is hot, prometheus_client elsewhere.

Run it, and scrape it from another shell; without `--port` it takes a free one, and shows which::

    python examples/monitored_daemon.py ./stats
    curl http://127.0.0.1:$(cat ./stats/crawler/port)/metrics

Both kinds of metrics are in the one answer: `crawler_pages_total` of statsfs, a plain increment in
each worker, labelled by its directory; and `robots_seconds`, a summary of prometheus_client's own.
"""

import argparse
import random
import signal
import threading

from prometheus_client import REGISTRY, Summary, start_http_server

from statsfs import Aggregate, Kind, Registry, RegistryCollector, Source, Stats, mount, u16, u64

STOP = {signal.SIGINT, signal.SIGTERM}
ROBOTS = Summary("robots_seconds", "Time to fetch a robots.txt")


class WorkerStats(Stats):
    """What one worker counts."""

    pages = u64(Aggregate.SUM, description="Pages fetched")
    links = u64(Aggregate.SUM, description="Links found in them")


class CrawlerStats(Stats):
    """What the crawler itself shows."""

    port = u16(Aggregate.NONE, kind=Kind.INSTANT, description="The port that answers /metrics")


def crawl(crawler: Source, number: int, ended: threading.Event) -> None:
    """Fetch pages until the daemon ends; a page takes 1 to 20 ms."""
    stats = WorkerStats()
    with Source("worker%d", number, label="worker") as source:
        source.add_values(WorkerStats, stats)
        crawler.add_subordinate(source)
        while not ended.wait(random.uniform(0.001, 0.02)):
            stats.pages += 1
            stats.links += random.randrange(100)
            if random.random() < 0.1:
                ROBOTS.observe(random.random())


def main() -> None:
    """Serve until SIGINT, SIGTERM or the time is over."""
    parser = argparse.ArgumentParser(description="a daemon that Prometheus scrapes")
    parser.add_argument("mountpoint")
    parser.add_argument("--port", type=int, default=0, help="where /metrics is answered")
    parser.add_argument("--for", dest="seconds", type=float, default=1e9, help="end by itself")
    args = parser.parse_args()

    # Blocked here, and so in every thread: the signals wait until the main thread asks for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    ended = threading.Event()
    registry, crawler, shown = Registry(), Source("crawler"), CrawlerStats()
    crawler.add_values(CrawlerStats, shown)
    crawler.add_values(WorkerStats, None)  # so that prometheus_client knows the names at once
    registry.register(crawler)
    REGISTRY.register(RegistryCollector(registry))
    server, _ = start_http_server(args.port, addr="127.0.0.1")
    shown.port = server.server_port
    workers = [threading.Thread(target=crawl, args=(crawler, n, ended)) for n in range(4)]
    with mount(registry, args.mountpoint, create=True):
        for worker in workers:
            worker.start()
        signal.sigtimedwait(STOP, args.seconds)
        ended.set()
        for worker in workers:
            worker.join()


if __name__ == "__main__":
    main()
