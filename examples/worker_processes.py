"""Worker processes: each publishes a segment of its own, and a collector shows one tree of them.

Run it, let a daemon show what it counts, and read that from another shell::

    python examples/worker_processes.py ./segments &
    statsfs mount ./stats --create --segments ./segments
    cat ./stats/app/requests ./stats/app/worker-0/requests

The daemon may start before or after, or not at all: counting is the same. A worker that is killed
takes nothing with it. `web_workers.py` is the same under gunicorn and uvicorn; under uWSGI publish
in `uwsgi.post_fork_hook`.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import signal

from statsfs import Aggregate, Stats, Unit, log_hist, publish, u64

STOP = {signal.SIGINT, signal.SIGTERM}


class WorkerStats(Stats):
    """What one worker counts."""

    requests = u64(Aggregate.SUM, description="Requests answered")
    errors = u64(Aggregate.SUM, description="Requests that failed")
    latency = log_hist(32, Aggregate.SUM, unit=Unit.SECONDS, exponent=-6, description="To answer")


def work(directory: str, number: int) -> None:
    """Answer requests until told to stop; an answer takes 1 to 20 ms."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)  # whichever way the process was started
    # In the process that counts, not in the one that starts it: a forked child inherits nothing.
    labels = ("app", "worker")
    with publish(
        "app/worker-%d", number, values=WorkerStats, labels=labels, directory=directory
    ) as segment:
        stats = segment.stats
        while signal.sigtimedwait(STOP, seconds := random.uniform(0.001, 0.02)) is None:
            stats.requests += 1
            stats.errors += random.random() < 0.01
            stats.latency.observe(int(seconds * 1e6))


def main() -> None:
    """Work until SIGINT, SIGTERM or the time is over."""
    parser = argparse.ArgumentParser(description="worker processes with statistics")
    parser.add_argument("directory", help="of the segments, made if it is not there")
    parser.add_argument("--for", dest="seconds", type=float, default=1e9, help="end by itself")
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args()

    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    made = not os.path.exists(args.directory)
    os.makedirs(args.directory, mode=0o755, exist_ok=True)
    workers = [
        multiprocessing.Process(target=work, args=(args.directory, number))
        for number in range(args.workers)
    ]
    for worker in workers:
        worker.start()
    signal.sigtimedwait(STOP, args.seconds)
    # A multiprocessing.Event would wait for ever for a worker that was killed in its `wait`.
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join()
    if made:
        with contextlib.suppress(OSError):  # a collector has its own files there
            os.rmdir(args.directory)


if __name__ == "__main__":
    main()
