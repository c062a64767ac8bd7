"""What reading a mount costs, beside a minimal filesystem on stock pyfuse3."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.bench import served
from tests.bench.measuring import Line, compare, show, time_once
from tests.support.mounts import serving

ROUNDS = 5
DIRECTORIES, FILES = 200, 50
VCPUS = 1_000
TURNS = {"orc": 1_000, "pread": 2_000}
NAMES = {"orc": "open + read + close", "pread": "pread of an open value"}
# What each may take of the yardstick's time, by place. A fast CPU has a hard time: the kernel's
# part, which both have, is then most of it.
BOUNDS = {
    "one CPU": {"orc": 0.40, "pread": 0.43, "grep": 0.48},
    "free": {"orc": 0.5, "pread": 0.5, "grep": 0.5},
}


def alternate(
    loops: list[Callable[[], float]], rounds: int = ROUNDS
) -> Iterator[tuple[float, ...]]:
    """The seconds of each in each round, after one round for nothing."""
    for number in range(rounds + 1):
        seconds = tuple(loop() for loop in loops)
        if number:
            yield seconds


def times(client: Path, what: str, file: Path) -> Callable[[], float]:
    """The median that a client finds."""
    return lambda: served.ask(client, what, file, TURNS[what]).median


def command(*words: str | Path) -> Callable[[], float]:
    """What a command takes."""
    # Into a pipe: grep stops at the first match if nobody reads.
    loop = partial(subprocess.run, words, check=True, stdout=subprocess.PIPE)
    return lambda: time_once(loop)


def compare_with(
    what: str, loops: list[Callable[[], float]], most: float, unit: str, rounds: int = ROUNDS
) -> Line:
    """A line for the second of two, which may take so many times what the first does."""
    baseline, seconds = zip(*alternate(loops, rounds), strict=True)
    return compare(what, seconds, baseline, most, unit)


def measure_place(place: str, client: Path, stock: Path, ours: Path) -> Iterator[Line]:
    """Everything beside the yardstick, wherever server and client run."""
    bounds = BOUNDS[place]
    for what, name in NAMES.items():
        loops = [times(client, what, at / "d0/f0") for at in (stock, ours)]
        yield compare_with(f"{name}, {place}", loops, bounds[what], "us")
    number = f"{DIRECTORIES * FILES:,}"
    greps = [command("grep", "-r", "12345", at) for at in (stock, ours)]
    yield compare_with(f"grep -r over {number} values, {place}", greps, bounds["grep"], "ms", 3)
    listing = [command("ls", "-lR", at) for at in (stock, ours)]
    yield compare_with(f"ls -l of {number} values, {place}", listing, 1, "ms", 3)


def measure_aggregate(place: str, client: Path, ours: Path) -> Line:
    """A total beside a plain value."""
    files = (ours / "vm/vcpu0/value_0", ours / "vm/value_0")
    loops = [times(client, "orc", file) for file in files]
    what = f"a total of {VCPUS:,} vCPUs, {place} (to a plain value)"
    return compare_with(what, loops, 3, "us")


def measure() -> Iterator[Line]:
    """First with server and client on one CPU, then free; each with servers of its own."""
    for place in ("one CPU", "free"):
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(served.compiled_client())
            stock, pid = stack.enter_context(served.yardstick(DIRECTORIES, FILES))
            server = stack.enter_context(serving("thread", lifetime=600))
            server.call(served.add_files, DIRECTORIES, FILES)
            if place == "one CPU":
                stack.enter_context(served.one_cpu_with(pid, server.pid))
            yield from measure_place(place, client, stock, server.mountpoint)
        with served.compiled_client() as client, serving("thread", lifetime=600) as server:
            server.call(served.add_vcpus, VCPUS)
            with (
                served.one_cpu_with(server.pid) if place == "one CPU" else contextlib.nullcontext()
            ):
                yield measure_aggregate(place, client, server.mountpoint)


def main() -> None:
    """Print what was measured."""
    show("reading a mount (ratios: to a minimal filesystem on stock pyfuse3)", measure())
