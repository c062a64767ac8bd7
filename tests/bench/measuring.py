"""How things are measured: interleaved rounds, medians, ratios.

A machine's speed changes while it is measured, so nothing is compared across runs: what is compared
takes turns, each round has a ratio of its own, and of all rounds the median counts.
"""

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median

Loop = Callable[[], object]
SCALES = {"ns": 1e9, "us": 1e6, "ms": 1e3}


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        what: what was measured.
        figure: the figure, with its unit.
        ratio: how many times the baseline it is, or None.
        bound: what is required of it, or "".
        kept: whether it is within the bound; None where nothing is required.
    """

    what: str
    figure: str
    ratio: float | None = None
    bound: str = ""
    kept: bool | None = None


@contextmanager
def collection_off() -> Iterator[None]:
    """Keep garbage collection, and what it costs, out of what is timed."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def time_once(loop: Loop) -> float:
    """Seconds that one call takes."""
    before = time.perf_counter()
    loop()
    return time.perf_counter() - before


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process, those that ended included.

    It is the first number of schedstat, added up: to the nanosecond, and not in ticks.
    """
    return time.clock_gettime(~pid << 3 | 2)  # as clock_getcpuclockid(3) makes it


def take_turns(loops: Iterable[Loop], rounds: int) -> list[list[float]]:
    """The seconds of each loop in each of some rounds, in which all take turns."""
    loops = list(loops)
    seconds: list[list[float]] = [[] for _ in loops]
    with collection_off():
        for loop in loops:
            loop()
        for _ in range(rounds):
            for loop, found in zip(loops, seconds, strict=True):
                found.append(time_once(loop))
    return seconds


def tell(what: str, seconds: Sequence[float], unit: str) -> Line:
    """A line for something that is compared with nothing."""
    return Line(what, f"{median(seconds) * SCALES[unit]:.1f} {unit}")


def divide(seconds: Sequence[float], baseline: Sequence[float]) -> float:
    """How many times as long something took as another, in the same rounds."""
    return median(one / other for one, other in zip(seconds, baseline, strict=True))


def compare(
    what: str, seconds: Sequence[float], baseline: Sequence[float], most: float | None, unit: str
) -> Line:
    """A line for something that may be at most so many times as slow as its baseline.

    Args:
        what: what was measured.
        seconds: what it took in each round.
        baseline: what the baseline took in each round.
        most: the bound, or None.
        unit: "ns", "us" or "ms".
    """
    ratio = divide(seconds, baseline)
    bound = f"<= {most:g} x" if most is not None else ""
    kept = None if most is None else ratio <= most
    return replace(tell(what, seconds, unit), ratio=ratio, bound=bound, kept=kept)


def show(title: str, lines: Iterable[Line]) -> None:
    """Print a small table."""
    lines = list(lines)
    width = max(len(line.what) for line in lines)
    print(f"\n{title}")
    for line in lines:
        ratio = f"{line.ratio:9.2f} x" if line.ratio is not None else " " * 11
        verdict = {True: "ok", False: "MISSED", None: ""}[line.kept]
        text = f"  {line.what:<{width}}  {line.figure:>14} {ratio}  {line.bound:>12}  {verdict}"
        print(text.rstrip())
