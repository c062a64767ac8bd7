"""A move from prometheus_client: lines, what a request costs, and the numbers of one scrape.

The programs are those of `examples/`, and the same with prometheus_client in `before/`.
"""

import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.bench.measuring import Line, Loop, divide, show, take_turns, tell
from tests.support.moves import (
    MOVES,
    Samples,
    compare_samples,
    scrape_aiohttp,
    scrape_workers,
)

TIMES = 5_000
ROUNDS = 15
BOUND_SERVICE = 2  # times faster than theirs
BOUND_WORKERS = 3

RESOURCE = SimpleNamespace(canonical="/item/{id}")
REQUEST = SimpleNamespace(
    method="GET", match_info=SimpleNamespace(route=SimpleNamespace(resource=RESOURCE))
)
RESPONSE = SimpleNamespace(content_length=5)

# It answers as often as it is told to: prometheus_client's mode for several processes is of a whole
# process.
ANSWERS = f"""
import os, runpy, sys
from itertools import repeat
answer = lambda path: f"{{os.getpid():10}} {{path}}\\n".encode()
if sys.argv[1:]:
    answer = runpy.run_path(sys.argv[1])["answer"]
for _ in sys.stdin:
    for _ in repeat(None, {TIMES}):
        answer("/item/5")
    print(flush=True)
"""


def measure_lines() -> Iterator[Line]:
    """Logical lines of each program, with what both need, without docstrings."""
    for name, move in MOVES.items():
        before, after = move.count_lines()
        figure = f"{after} for {before}"
        yield Line(name, figure, after / before, "< 1 x", after < before)


async def respond(_: object) -> object:
    """What counts nothing."""
    return RESPONSE


async def pass_on(request: Any, handler: Any) -> object:
    """A middleware that counts nothing."""
    return await handler(request)


def drive(middleware: Any) -> Loop:
    """A loop of requests through a middleware."""

    def loop() -> None:
        for _ in repeat(None, TIMES):
            try:
                middleware(REQUEST, respond).send(None)
            except StopIteration:
                pass

    return loop


@contextmanager
def answering(program: Path | None, directory: str) -> Iterator[Loop]:
    """A loop of requests in a process of its own; without a program nothing is counted."""
    variables = {"STATSFS_DIR": directory, "PROMETHEUS_MULTIPROC_DIR": directory}
    with subprocess.Popen(
        [sys.executable, "-c", ANSWERS, *([program] if program else [])],
        env={**os.environ, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def loop() -> None:
            print(file=stdin, flush=True)
            assert stdout.readline() == "\n"

        yield loop
        stdin.close()


def subtract(seconds: list[float], bare: list[float]) -> list[float]:
    """What is left of each round without what the request itself takes."""
    return [one - other for one, other in zip(seconds, bare, strict=True)]


def be_faster(what: str, ours: list[float], theirs: list[float], least: float) -> Line:
    """A line for what must be so many times as fast as theirs."""
    line, ratio = tell(what, ours, "us"), divide(theirs, ours)
    return Line(line.what, line.figure, ratio, f">= {least} x", ratio >= least)


def measure_requests() -> Iterator[Line]:
    """What is counted of a request: four metrics of a service, three of a worker."""
    service, worker = MOVES["aiohttp_service"], MOVES["web_workers"]
    counts = [runpy.run_path(str(one))["count"] for one in (service.before, service.after)]
    with ExitStack() as stack:
        loops = [drive(one) for one in (pass_on, *counts)]
        for program in (None, worker.before, worker.after):
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            os.chmod(directory, 0o755)
            loops.append(stack.enter_context(answering(program, directory)))
        rounds = take_turns(loops, ROUNDS)
    passed, *served, bare, before, after = (
        [seconds / TIMES for seconds in each] for each in rounds
    )
    theirs, ours = (subtract(each, passed) for each in served)
    yield tell("prometheus_client: a request of the service", theirs, "us")
    yield be_faster("statsfs: the same", ours, theirs, BOUND_SERVICE)
    theirs, ours = (subtract(each, bare) for each in (before, after))
    yield tell("prometheus_client: a request of one of several workers", theirs, "us")
    yield be_faster("statsfs: the same", ours, theirs, BOUND_WORKERS)


def agree(what: str, before: Samples, after: Samples) -> Line:
    """A line for the samples of two scrapes."""
    same, both = compare_samples(before, after)
    return Line(what, f"{same} of {both}", same / both, "= 1 x", same == both)


def measure_samples() -> Iterator[Line]:
    """Samples that are the same before and after, once the same was asked of both."""
    service, worker = MOVES["aiohttp_service"], MOVES["web_workers"]
    with tempfile.TemporaryDirectory() as name:
        at = Path(name)
        found = [scrape_aiohttp(one, at / "stats") for one in (service.before, service.after)]
        yield agree("aiohttp_service", *found)
        found = [scrape_workers(one, at / one.parent.name) for one in (worker.before, worker.after)]
        yield agree("web_workers", *found)


def main() -> None:
    """Print what was measured."""
    show(
        "moving from prometheus_client: logical lines of a program, after for before",
        measure_lines(),
    )
    show("what counting costs a request (ratios: how many times faster)", measure_requests())
    show("samples of one scrape that are the same before and after", measure_samples())
