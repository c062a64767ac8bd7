"""The last two minutes of what is on the screen, and how they look as a line of bars.

Of ten thousand sources only those are kept that were shown last: `SOURCES_MAX` of them.
Threading: one thread's.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final

from statsfs.eyes.descriptions import Path
from statsfs.eyes.samples import Number, Sample

__all__ = ["SECONDS", "SOURCES_MAX", "History", "draw_bars", "draw_buckets"]

SECONDS: Final = 120.0
SOURCES_MAX: Final = 128

_BARS: Final = "▁▂▃▄▅▆▇█"
_Points = deque[tuple[float, Mapping[str, int]]]


class History:
    """What sources had, at each sample of the last two minutes."""

    def __init__(self) -> None:
        self._points: OrderedDict[Path, _Points] = OrderedDict()

    def reset(self) -> None:
        """Forget everything."""
        self._points.clear()

    def add(self, sample: Sample, shown: Iterable[Path]) -> None:
        """Take what a sample has of the sources that are shown, and of those that were."""
        for path in shown:
            self._points.setdefault(path, deque())
            self._points.move_to_end(path)
        while len(self._points) > SOURCES_MAX:
            self._points.popitem(last=False)
        for path, points in self._points.items():
            node = sample.find(path)
            if node is not None and not (points and points[-1][0] >= sample.moment):
                points.append((sample.moment, _add_up(node["values"])))
            while points and points[0][0] < sample.moment - SECONDS - 1:
                points.popleft()

    def levels(self, path: Path, name: str, now: float, width: int) -> list[float | None]:
        """Return the newest number in each of so many parts of the two minutes; None for none."""
        found: list[float | None] = [None] * width
        for moment, numbers in self._points.get(path, ()):
            if name in numbers:
                _put(found, now - moment, numbers[name], add=False)
        return found

    def rates(self, path: Path, name: str, now: float, width: int) -> list[float | None]:
        """Return the mean rate in each of so many parts of the two minutes; None for none."""
        found: list[float | None] = [None] * width
        counts: list[float | None] = [None] * width
        points = [
            (at, numbers[name]) for at, numbers in self._points.get(path, ()) if name in numbers
        ]
        for (begin, before), (end, after) in pairwise(points):
            if after >= before:  # else it was cleared
                _put(found, now - end, after - before, add=True)
                _put(counts, now - end, end - begin, add=True)
        return [
            None if grown is None or not seconds else grown / seconds
            for grown, seconds in zip(found, counts, strict=True)
        ]


def _add_up(numbers: Mapping[str, Number]) -> Mapping[str, int]:
    return {
        name: sum(number) if isinstance(number, list) else number
        for name, number in numbers.items()
    }


def _put(parts: list[float | None], age: float, number: float, *, add: bool) -> None:
    index = len(parts) - 1 - math.floor(max(age, 0) / (SECONDS / len(parts)))
    if index >= 0:
        parts[index] = number + ((parts[index] or 0) if add else 0)


def draw_bars(numbers: Sequence[float | None]) -> str:
    """Return a bar for each number, from 0 to the largest; a blank where there is none."""
    known = [number for number in numbers if number is not None]
    low, high = min(known, default=0), max(known, default=0)
    low = min(low, 0)
    span = high - low
    top = len(_BARS) - 1
    return "".join(
        " " if number is None else _BARS[math.ceil((number - low) / span * top) if span else 0]
        for number in numbers
    )


def draw_buckets(buckets: Sequence[int], width: int) -> str:
    """Return the buckets that hold something, and those between them, as bars."""
    held = [index for index, count in enumerate(buckets) if count]
    if not held:
        return ""
    shown = buckets[held[0] : held[-1] + 1]
    each = math.ceil(len(shown) / width)
    return draw_bars([sum(shown[at : at + each]) for at in range(0, len(shown), each)])
