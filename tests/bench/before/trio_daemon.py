"""`examples/trio_daemon.py` with prometheus_client.

What an ended connection counted must stay, so the totals are metrics of their own.
"""

import argparse
import signal
from itertools import count

import trio
from prometheus_client import Counter, Gauge, start_http_server

CONNECTIONS = Counter("echo_connections", "Connections that were accepted")
OPEN = Gauge("echo_open", "Connections that are open")
ALL_MESSAGES = Counter("echo_messages", "Messages answered")
ALL_SENT = Counter("echo_sent_bytes", "Bytes sent")
MESSAGES = Counter("echo_connection_messages", "Messages answered", ["connection"])
SENT = Counter("echo_connection_sent_bytes", "Bytes sent", ["connection"])
PORT = Gauge("echo_port", "Where clients connect")
numbers = map(str, count(1))


async def converse(stream: trio.SocketStream) -> None:
    """Send back what comes, until the client hangs up."""
    number = next(numbers)
    messages, sent = MESSAGES.labels(number), SENT.labels(number)
    CONNECTIONS.inc()
    try:
        with OPEN.track_inprogress():
            async for data in stream:
                await stream.send_all(data)
                ALL_MESSAGES.inc()
                messages.inc()
                ALL_SENT.inc(len(data))
                sent.inc(len(data))
    except trio.BrokenResourceError:
        pass  # it did not say goodbye
    finally:
        MESSAGES.remove(number)
        SENT.remove(number)


async def main() -> None:
    """Serve until SIGINT, SIGTERM or the time is over."""
    parser = argparse.ArgumentParser(description="a trio daemon with statistics")
    parser.add_argument("--metrics-port", type=int, default=9464)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--for", dest="seconds", type=float, default=float("inf"))
    args = parser.parse_args()

    listeners = await trio.open_tcp_listeners(args.port, host="127.0.0.1")
    PORT.set(listeners[0].socket.getsockname()[1])
    start_http_server(args.metrics_port, addr="127.0.0.1")
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, converse, listeners)
            with trio.move_on_after(args.seconds):
                await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
