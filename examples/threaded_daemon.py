"""A threaded daemon: each worker counts in a hidden source of its own, readers see one total.

Run it, and read it from another shell::

    python examples/threaded_daemon.py ./stats
    cat ./stats/daemon/requests

No worker ever waits for another: nothing is shared, so nothing is locked. A hidden source has no
directory, but what it counts is in the aggregates above it.
"""

import argparse
import random
import signal
import threading

from statsfs import Aggregate, Kind, Registry, Source, Stats, Unit, mount, u64

STOP = {signal.SIGINT, signal.SIGTERM}


class WorkerStats(Stats):
    """What one worker counts."""

    requests = u64(Aggregate.SUM, description="Requests answered")
    errors = u64(Aggregate.SUM, description="Requests that failed")
    slowest_us = u64(
        Aggregate.MAX,
        kind=Kind.PEAK,
        unit=Unit.SECONDS,
        exponent=-6,
        description="The longest that a request took",
    )


def work(daemon: Source, number: int, ended: threading.Event) -> None:
    """Answer requests until the daemon ends; an answer takes 1 to 20 ms."""
    stats = WorkerStats()
    with Source("worker%d", number, hidden=True) as source:
        source.add_values(WorkerStats, stats)
        daemon.add_subordinate(source)
        while not ended.wait(seconds := random.uniform(0.001, 0.02)):
            stats.requests += 1
            stats.errors += random.random() < 0.01
            stats.slowest_us = max(stats.slowest_us, int(seconds * 1e6))
        daemon.remove_subordinate(source)


def main() -> None:
    """Serve until SIGINT, SIGTERM or the time is over."""
    parser = argparse.ArgumentParser(description="a threaded daemon with statistics")
    parser.add_argument("mountpoint")
    parser.add_argument("--for", dest="seconds", type=float, default=1e9, help="end by itself")
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args()

    # Blocked here, and so in every thread: the signals wait until the main thread asks for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    ended = threading.Event()
    registry = Registry()
    daemon = Source("daemon")
    daemon.add_values(WorkerStats, None)  # the files are there before the first worker is
    registry.register(daemon)
    workers = [
        threading.Thread(target=work, args=(daemon, number, ended))
        for number in range(args.workers)
    ]
    with mount(registry, args.mountpoint, create=True):
        for worker in workers:
            worker.start()
        signal.sigtimedwait(STOP, args.seconds)
        ended.set()
        for worker in workers:
            worker.join()


if __name__ == "__main__":
    main()
