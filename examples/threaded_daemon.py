"""A threaded daemon: each thread counts in stats of its own, readers see one total.

Run it, and read it from another shell::

    python examples/threaded_daemon.py ./stats
    cat ./stats/daemon/requests

No worker ever waits for another: nothing is shared, so nothing is locked.
"""

import argparse
import random
import signal
import threading

from statsfs import PerThread, Registry, Source, Stats, Unit, counter, mount, peak

STOP = {signal.SIGINT, signal.SIGTERM}


class WorkerStats(Stats):
    """What one worker counts."""

    requests = counter("Requests answered")
    errors = counter("Requests that failed")
    slowest_us = peak("The longest that a request took", unit=Unit.SECONDS, exponent=-6)


def work(stats: PerThread[WorkerStats], ended: threading.Event) -> None:
    """Answer requests until the daemon ends; an answer takes 1 to 20 ms."""
    mine = stats.mine
    while not ended.wait(seconds := random.uniform(0.001, 0.02)):
        mine.requests += 1
        mine.errors += random.random() < 0.01
        mine.slowest_us = max(mine.slowest_us, int(seconds * 1e6))


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
    # The files are there before the first worker is.
    stats = PerThread(registry.register(Source("daemon")), WorkerStats)
    workers = [threading.Thread(target=work, args=(stats, ended)) for _ in range(args.workers)]
    with mount(registry, args.mountpoint, create=True):
        for worker in workers:
            worker.start()
        signal.sigtimedwait(STOP, args.seconds)
        ended.set()
        for worker in workers:
            worker.join()


if __name__ == "__main__":
    main()
