"""An asyncio daemon: tasks count plain integers, the filesystem is served from a thread beside.

Run it, and read it from another shell::

    python examples/asyncio_daemon.py ./stats
    cat ./stats/queue/jobs_done ./stats/queue/high/length

All tasks of a queue share one `Stats`: they run in one thread, so no increment is ever lost.
"""

import argparse
import asyncio
import random
import signal

from statsfs import Aggregate, Kind, Registry, Source, Stats, mount, s32, u64


class QueueStats(Stats):
    """What one queue counts."""

    jobs_done = u64(Aggregate.SUM, description="Jobs that were carried out")
    length = s32(
        Aggregate.SUM | Aggregate.MAX, kind=Kind.INSTANT, description="Jobs that wait in the queue"
    )


async def produce(queue: "asyncio.Queue[float]", stats: QueueStats) -> None:
    """Put a job into the queue now and then."""
    while True:
        await asyncio.sleep(random.uniform(0, 0.02))
        await queue.put(random.uniform(0, 0.01))
        stats.length += 1


async def consume(queue: "asyncio.Queue[float]", stats: QueueStats) -> None:
    """Carry out one job after the other."""
    while True:
        await asyncio.sleep(await queue.get())
        stats.length -= 1
        stats.jobs_done += 1


async def main() -> None:
    """Serve until SIGINT, SIGTERM or the time is over."""
    parser = argparse.ArgumentParser(description="an asyncio daemon with statistics")
    parser.add_argument("mountpoint")
    parser.add_argument("--for", dest="seconds", type=float, default=None)
    args = parser.parse_args()

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    registry = Registry()
    top = Source("queue")
    registry.register(top)
    tasks: list[asyncio.Task[None]] = []
    for name in ("high", "low"):
        queue: asyncio.Queue[float] = asyncio.Queue()
        stats = QueueStats()
        with Source(name, label="priority") as source:  # the tree keeps it
            source.add_values(QueueStats, stats)
            top.add_subordinate(source)
        tasks += [asyncio.create_task(produce(queue, stats))]
        tasks += [asyncio.create_task(consume(queue, stats)) for _ in range(3)]

    with mount(registry, args.mountpoint, create=True):
        try:
            await asyncio.wait_for(stop.wait(), args.seconds)
        except TimeoutError:
            pass
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main())
