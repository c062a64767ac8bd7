"""The last two minutes of the visible numbers, and their look as a line of bars.

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

_BARS: Final = "▁▂▃▄▅▆▇"  # not █: the bars of rows below each other must not meet
_Point = tuple[float, Mapping[str, int]]

_NOTHING: Final[_Point] = (0.0, {})


class History:
    """What sources had, at each sample of the last two minutes."""

    def __init__(self) -> None:
        self._points: OrderedDict[Path, deque[_Point]] = OrderedDict()

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
            if not (points and points[-1][0] >= sample.moment):
                points.append((sample.moment, {} if node is None else _add_up(node["values"])))
            while points and points[0][0] < sample.moment - SECONDS - 1:
                points.popleft()

    def interrupt(self) -> None:
        """Know that there was no sample: nothing is drawn from the one before to the next."""
        for points in self._points.values():
            if points[-1][1]:  # one is enough, however long there is none
                points.append((points[-1][0], {}))

    def levels(self, path: Path, name: str, now: float, width: int) -> list[float | None]:
        """Return the newest number in each of so many parts of the two minutes; None for none."""
        found: list[float | None] = [None] * width
        for before, after in pairwise([_NOTHING, *self._points.get(path, ())]):
            if name not in after[1]:
                continue
            begin, end = _find_part(before[0], now, width), _find_part(after[0], now, width)
            if name in before[1]:  # it stays until the next sample
                for part in range(max(begin + 1, 0), end):
                    found[part] = before[1][name]
            if end >= 0:
                found[end] = after[1][name]
        return found

    def rates(self, path: Path, name: str, now: float, width: int) -> list[float | None]:
        """Return the mean rate in each of so many parts of the two minutes; None for none."""
        grown, seconds = [0.0] * width, [0.0] * width
        for before, after in pairwise(self._points.get(path, ())):
            if name not in before[1] or name not in after[1]:
                continue
            moved = after[1][name] - before[1][name]
            if moved < 0:
                continue  # it was cleared
            begin, end = _find_part(before[0], now, width), _find_part(after[0], now, width)
            # An interval that is longer than a part is in all of its parts.
            for part in range(max(min(begin + 1, end), 0), end + 1):
                grown[part] += moved
                seconds[part] += after[0] - before[0]
        return [
            moved / spent if spent else None for moved, spent in zip(grown, seconds, strict=True)
        ]


def _find_part(moment: float, now: float, width: int) -> int:
    # Below 0 if it is older than two minutes.
    return width - 1 - math.floor(max(now - moment, 0) / (SECONDS / width))


def _add_up(numbers: Mapping[str, Number]) -> Mapping[str, int]:
    return {
        name: sum(number) if isinstance(number, list) else number
        for name, number in numbers.items()
    }


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
