"""What moved in a tree while something ran, once or several times.

Owns which numbers are compared, and how. Threading: pure.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from statsfs.eyes.descriptions import Description, Path, Schema
from statsfs.eyes.rates import subtract
from statsfs.eyes.samples import Number, Sample

__all__ = ["Moved", "Repeated", "find_totals", "list_moved", "measure", "repeat"]


@dataclass(frozen=True, slots=True)
class Moved:
    """One number before and after.

    Attributes:
        source: the path of its source.
        what: its description.
        counter: whether it counts; else it is a level, which may fall.
        before: None if there was none, as the source came meanwhile.
        after: the number, or the buckets.
    """

    source: Path
    what: Description
    counter: bool
    before: Number | None
    after: Number

    @property
    def difference(self) -> Number | None:
        """What it grew by; None of a counter that was cleared or restarted.

        A counter that came counts from 0.
        """
        if self.counter:
            nothing: Number = [0] * len(self.after) if isinstance(self.after, list) else 0
            return subtract(nothing if self.before is None else self.before, self.after)
        assert isinstance(self.after, int)
        return self.after - (self.before if isinstance(self.before, int) else 0)

    @property
    def count(self) -> int | None:
        """The difference; of a histogram, how much was observed."""
        grown = self.difference
        return sum(grown) if isinstance(grown, list) else grown


def find_totals(sample: Sample) -> set[Path]:
    """Return the outermost sources with numbers: each is the total of its subtree."""
    found = set()
    waiting: list[tuple[Path, Mapping[str, Any]]] = [((), sample.root)]
    while waiting:
        path, node = waiting.pop()
        if node["values"]:
            found.add(path)
        else:
            waiting += [((*path, name), child) for name, child in node["subordinates"].items()]
    return found


def list_moved(
    before: Sample, after: Sample, schema: Schema, *, sources: Iterable[Path] | None = None
) -> Iterator[Moved]:
    """Yield each number that is another one than before, from the top down.

    Args:
        before: the sample of the beginning.
        after: that of the end.
        schema: describes the files in `after`.
        sources: only these; without it, all.
    """
    chosen = None if sources is None else set(sources)
    for path, numbers in after.walk():
        if chosen is not None and path not in chosen:
            continue
        node = before.find(path)
        old = {} if node is None else node["values"]
        known = schema.find(path) or {}
        below = after.find(path)
        total = bool(below and below["subordinates"])
        for name, number in numbers.items():
            # A file that the schema lacks is a level, or a histogram.
            what = known.get(name, Description(name, kind="instant"))
            counter = isinstance(number, list) or what.counts(known, total)
            moved = Moved(path, what, counter, old.get(name), number)
            if moved.before != number and (name in old or moved.count != 0):
                yield moved


@dataclass(frozen=True, slots=True)
class Repeated:
    """The same number in several runs.

    Attributes:
        last: in the last of them in which it moved.
        counts: its growth in each run in which that is known.
        elapsed: the seconds between the samples of these.
    """

    last: Moved
    counts: Sequence[int]
    elapsed: float

    @property
    def rate(self) -> float | None:
        """The growth of a counter in a second."""
        known = self.last.counter and self.counts and self.elapsed
        return sum(self.counts) / self.elapsed if known else None

    @property
    def mean(self) -> float:
        """The mean of its growth in a run."""
        return measure(self.counts)[0]

    @property
    def deviation(self) -> float:
        """The standard deviation of a run."""
        return measure(self.counts)[1]


def measure(numbers: Sequence[float]) -> tuple[float, float]:
    """Return the mean of some numbers, and their standard deviation: 0 of one alone."""
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return statistics.fmean(numbers), deviation


def repeat(runs: Sequence[tuple[float, Sequence[Moved]]]) -> list[Repeated]:
    """Return what moved in any of several runs; where it did not, it moved by 0.

    Args:
        runs: of each the seconds between its samples, and what moved.
    """
    last: dict[tuple[Path, str], Moved] = {}
    tables = [(took, {(one.source, one.what.name): one for one in run}) for took, run in runs]
    for _, run in tables:
        last |= run
    repeated = []
    for key, moved in last.items():
        counts = [(took, run[key].count if key in run else 0) for took, run in tables]
        known = [(took, count) for took, count in counts if count is not None]
        elapsed = sum(took for took, _ in known)
        repeated.append(Repeated(moved, [count for _, count in known], elapsed))
    return repeated
