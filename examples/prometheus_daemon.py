"""A daemon that counts with prometheus_client, and shows all of it as files: one line does that.

Run it, and read it from another shell; without `--port` it takes a free one, and shows which::

    python examples/prometheus_daemon.py ./stats
    cat ./stats/web/.stats.json ./stats/web/http_requests
    grep -r . ./stats/web/GET
    curl http://127.0.0.1:$(cat ./stats/web/port)/metrics

A label is a level of directories, here of methods and of endpoints; a directory has the totals of
all in it. What a file's name cannot have is quoted: `%2Fitem%2F{id}`. A new label set is there as
soon as anything was read.
"""

import argparse
import random
import signal
import threading

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, start_http_server

from statsfs import Registry, Source, mount, show_prometheus

STOP = {signal.SIGINT, signal.SIGTERM}
REQUESTS = Counter("http_requests", "Requests answered", ["method", "endpoint"])
LATENCY = Histogram("http_latency_seconds", "Time to answer", ["method", "endpoint"])
BUSY = Gauge("http_busy", "Requests being answered")
PORT = Gauge("port", "The port that answers /metrics")


def answer(ended: threading.Event) -> None:
    """Answer requests until the daemon ends; an answer takes 1 to 20 ms."""
    while not ended.is_set():
        labels = random.choice(["GET", "POST"]), random.choice(["/", "/item/{id}"])
        with BUSY.track_inprogress(), LATENCY.labels(*labels).time():
            ended.wait(random.uniform(0.001, 0.02))
        REQUESTS.labels(*labels).inc()


def main() -> None:
    """Serve until SIGINT, SIGTERM or the time is over."""
    parser = argparse.ArgumentParser(description="a daemon's metrics as files")
    parser.add_argument("mountpoint")
    parser.add_argument("--port", type=int, default=0, help="where /metrics is answered")
    parser.add_argument("--for", dest="seconds", type=float, default=1e9, help="end by itself")
    args = parser.parse_args()

    # Blocked here, and so in every thread: the signals wait until the main thread asks for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    server, _ = start_http_server(args.port, addr="127.0.0.1")
    PORT.set(server.server_port)
    registry, web = Registry(), Source("web")
    registry.register(web)
    show_prometheus(REGISTRY, web)
    ended = threading.Event()
    threads = [threading.Thread(target=answer, args=(ended,)) for _ in range(4)]
    with mount(registry, args.mountpoint, create=True):
        for thread in threads:
            thread.start()
        signal.sigtimedwait(STOP, args.seconds)
        ended.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
