"""What serving does to the program that mounts, and the program to its readers."""

import subprocess
import time
from collections.abc import Iterator

from tests.bench import served
from tests.bench.measuring import Line, show
from tests.support.mounts import serving

CLIENTS = 4
SECONDS = 3.0
CATS, PAUSE = 150, 0.01
# Seconds; for the first the program's own.
INTERVALS = (None, 0.002, 0.001)


def percentile(seconds: list[float], hundredths: int) -> float:
    """A percentile."""
    return sorted(seconds)[len(seconds) * hundredths // 100]


def measure_ticker(clients: int) -> Line:
    """How late a 1 ms ticker of a trio program is while clients read as fast as they can."""
    with served.compiled_client() as client, serving("trio", lifetime=600) as server:
        server.call(served.add_vcpus, 1)
        command = (client, "orc", "100000000", "0", server / "vm/value_0")
        readers = [subprocess.Popen(command) for _ in range(clients)]
        try:
            server.call(served.start_ticker)
            time.sleep(SECONDS)
            late = percentile(server.call(served.stop_ticker), 99)
        finally:
            for reader in readers:
                reader.kill()
                reader.wait()
    what = f"a 1 ms ticker's p99 of lateness, {clients} clients reading"
    bound = "<= 2 ms" if clients else ""
    return Line(what, f"{late * 1e3:.2f} ms", None, bound, late <= 2e-3 if clients else None)


def measure_busy(interval: float | None) -> Line:
    """An isolated `cat` beside a thread that computes."""
    options = {"switch_interval": interval}
    with (
        served.compiled_client() as client,
        serving("thread", options=options, lifetime=600) as server,
    ):
        server.call(served.add_vcpus, 1)
        server.call(served.start_busy_thread)
        found = served.ask(client, "cat", server / "vm/value_0", CATS, PAUSE).median
    shown = "not set" if interval is None else f"{interval:g} s"
    what = f"a cat beside a computing thread, switch_interval {shown}"
    bound = "<= 3 ms" if interval == INTERVALS[-1] else ""
    return Line(what, f"{found * 1e3:.2f} ms", None, bound, found <= 3e-3 if bound else None)


def measure() -> Iterator[Line]:
    """Both."""
    for clients in (0, CLIENTS):
        yield measure_ticker(clients)
    for interval in INTERVALS:
        yield measure_busy(interval)


def main() -> None:
    """Print what was measured."""
    show("embedding: a trio program, and a threaded one", measure())
