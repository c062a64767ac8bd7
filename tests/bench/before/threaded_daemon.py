"""`examples/threaded_daemon.py` with prometheus_client."""

import argparse
import random
import signal
import threading

from prometheus_client import Counter, Gauge, start_http_server

STOP = {signal.SIGINT, signal.SIGTERM}
REQUESTS = Counter("daemon_requests", "Requests answered")
ERRORS = Counter("daemon_errors", "Requests that failed")
SLOWEST = Gauge("daemon_slowest_seconds", "The longest that a request took")

lock = threading.Lock()
slowest = 0.0  # a gauge cannot be asked for its number


def work(ended: threading.Event) -> None:
    """Answer requests until the daemon ends; an answer takes 1 to 20 ms."""
    global slowest
    while not ended.wait(seconds := random.uniform(0.001, 0.02)):
        REQUESTS.inc()
        ERRORS.inc(random.random() < 0.01)
        with lock:
            slowest = max(slowest, seconds)
            SLOWEST.set(slowest)


def main() -> None:
    """Serve until SIGINT, SIGTERM or the time is over."""
    parser = argparse.ArgumentParser(description="a threaded daemon with statistics")
    parser.add_argument("--metrics-port", type=int, default=9464)
    parser.add_argument("--for", dest="seconds", type=float, default=1e9, help="end by itself")
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args()

    # Blocked here, and so in every thread: the signals wait until the main thread asks for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    ended = threading.Event()
    workers = [threading.Thread(target=work, args=(ended,)) for _ in range(args.workers)]
    start_http_server(args.metrics_port, addr="127.0.0.1")
    for worker in workers:
        worker.start()
    signal.sigtimedwait(STOP, args.seconds)
    ended.set()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
