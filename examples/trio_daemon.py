"""A trio daemon: each connection is a source that comes and goes while the tree is mounted.

Run it, and read it from another shell::

    python examples/trio_daemon.py ./stats
    grep -r . ./stats/echo

The filesystem is served by a task of the same trio loop; `async with` ends it with the program.
"""

import argparse
import random
import signal
from collections.abc import Iterator
from itertools import count

import trio

from statsfs import Aggregate, Kind, Registry, Source, Stats, Unit, boolean, mounted, u64

CONNECTIONS = 5


class ConnectionStats(Stats):
    """What one connection counts."""

    messages = u64(Aggregate.SUM, description="Messages answered")
    sent_bytes = u64(Aggregate.SUM, unit=Unit.BYTES, description="Bytes sent")
    busy = boolean(Aggregate.SUM, kind=Kind.INSTANT, description="Whether an answer is being made")


async def converse(server: Source, number: int) -> None:
    """Answer some messages, then hang up."""
    stats = ConnectionStats()
    with Source("connection%d", number, label="connection") as source:
        source.add_values(ConnectionStats, stats)
        server.add_subordinate(source)
        try:
            for _ in range(random.randint(10, 100)):
                await trio.sleep(random.uniform(0.001, 0.02))
                stats.busy = True
                await trio.sleep(0.001)
                stats.messages += 1
                stats.sent_bytes += random.randint(20, 1400)
                stats.busy = False
        finally:
            server.remove_subordinate(source)


async def accept(server: Source, numbers: Iterator[int]) -> None:
    """Have one connection after the other."""
    while True:
        await converse(server, next(numbers))


async def main() -> None:
    """Serve until SIGINT, SIGTERM or the time is over."""
    parser = argparse.ArgumentParser(description="a trio daemon with statistics")
    parser.add_argument("mountpoint")
    parser.add_argument("--for", dest="seconds", type=float, default=float("inf"))
    args = parser.parse_args()

    registry = Registry()
    server = Source("echo")
    server.add_values(ConnectionStats, None)  # the totals are there without a connection, too
    registry.register(server)
    numbers = count(1)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with mounted(registry, args.mountpoint, create=True), trio.open_nursery() as nursery:
            for _ in range(CONNECTIONS):
                nursery.start_soon(accept, server, numbers)
            with trio.move_on_after(args.seconds):
                await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
