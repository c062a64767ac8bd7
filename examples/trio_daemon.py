"""A trio daemon: each connection is a directory that comes and goes while the tree is mounted.

Run it, talk to it and read it from other shells; without `--port` it takes a free one::

    python examples/trio_daemon.py ./stats
    nc 127.0.0.1 $(cat ./stats/echo/port)
    grep -r . ./stats/echo

What a connection counted stays in the totals when it ends. The filesystem is served by a task of
the same trio loop.
"""

import argparse
import signal
from itertools import count

import trio

from statsfs import Family, Kind, Registry, Source, Stats, Unit, Value, counter, gauge, mounted


class ConnectionStats(Stats):
    """What one connection counts."""

    connections = counter("Connections that were accepted")
    open = gauge("Connections that are open")
    messages = counter("Messages answered")
    sent_bytes = counter("Bytes sent", unit=Unit.BYTES)


registry = Registry()
echo = registry.register(Source("echo", retain=True))
connection = Family(echo, ConnectionStats, "connection")
numbers = map(str, count(1))


async def converse(stream: trio.SocketStream) -> None:
    """Send back what comes, until the client hangs up."""
    number = next(numbers)
    stats = connection(number)
    stats.connections = stats.open = 1
    try:
        async for data in stream:
            await stream.send_all(data)
            stats.messages += 1
            stats.sent_bytes += len(data)
    except trio.BrokenResourceError:
        pass  # it did not say goodbye
    finally:
        connection.remove(number)


async def main() -> None:
    """Serve until SIGINT, SIGTERM or the time is over."""
    parser = argparse.ArgumentParser(description="a trio daemon with statistics")
    parser.add_argument("mountpoint")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--for", dest="seconds", type=float, default=float("inf"))
    args = parser.parse_args()

    listeners = await trio.open_tcp_listeners(args.port, host="127.0.0.1")
    echo.add_values(
        [Value("port", kind=Kind.INSTANT)], {"port": listeners[0].socket.getsockname()[1]}
    )
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with mounted(registry, args.mountpoint, create=True), trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, converse, listeners)
            with trio.move_on_after(args.seconds):
                await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
