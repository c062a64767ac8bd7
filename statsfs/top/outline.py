"""The tree as rows: which sources are shown, folded, filtered and sorted.

A source is identified by its path, so one that goes and comes keeps its fold and the cursor.
Threading: one thread's.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from statsfs.eyes.descriptions import Path
from statsfs.eyes.samples import Sample

__all__ = ["Outline", "natural_key"]

_DIGITS: Final = re.compile(r"(\d+)")
_ROWS_MAX: Final = 64  # up to which sources are unfolded at the beginning


def natural_key(name: str) -> list[object]:
    """Return what to sort names by so that vcpu10 is behind vcpu9."""
    parts: list[Any] = _DIGITS.split(name)
    parts[1::2] = [(int(digits), digits) for digits in parts[1::2]]
    return parts


class Outline:
    """Which sources are unfolded, and the rows that follow from it.

    Attributes:
        pattern: what the paths of sources must have in them, or None. Those above are shown too.
        measure: what sources are sorted by, the largest first; None for their names.
        reverse: whether the order is turned round.
    """

    def __init__(self) -> None:
        self.pattern: re.Pattern[str] | None = None
        self.measure: Callable[[Path], float] | None = None
        self.reverse = False
        self._opened: dict[Path, set[str]] = {}  # by the source above
        self._root_opened = True
        self._rows: list[Path] = []
        self._made_of: object = None
        self._sorted: dict[Path, tuple[tuple[str, ...], list[str]]] = {}

    def begin(self, sample: Sample) -> None:
        """Unfold the upper levels, as far as they have few sources."""
        level: list[Path] = [()]
        count = 1
        while level and count <= _ROWS_MAX:
            for path in level:
                self.open(path, True)
            level = [
                (*path, name)
                for path in level
                for name in (sample.find(path) or {})["subordinates"]
            ]
            level = [path for path in level if (sample.find(path) or {})["subordinates"]]
            count += sum(len((sample.find(path) or {})["subordinates"]) for path in level)

    def open(self, path: Path, opened: bool) -> None:
        """Unfold or fold a source."""
        if not path:
            self._root_opened = opened
        elif opened:
            self._opened.setdefault(path[:-1], set()).add(path[-1])
        else:
            self._opened.get(path[:-1], set()).discard(path[-1])

    def open_all(self, sample: Sample, opened: bool) -> None:
        """Unfold or fold all sources, but for the root."""
        self._opened.clear()
        self._root_opened = True
        for path, _ in sample.walk() if opened else ():
            self.open(path, True)

    def is_open(self, path: Path) -> bool:
        """Tell whether a source is unfolded."""
        if self.pattern is not None or not path:
            return self.pattern is not None or self._root_opened
        return path[-1] in self._opened.get(path[:-1], ())

    def rows(self, sample: Sample, followed: Path) -> list[Path]:
        """Return the sources that are shown, from the top down.

        Args:
            sample: the numbers of now.
            followed: the source under the cursor. It has a row even if it is not there.
        """
        shown = None if self.pattern is None else self._match(sample, self.pattern)
        blocks = self._list_blocks(sample, shown)
        gone = followed if sample.find(followed) is None else None
        # Most ticks change numbers only: then the rows stay the same.
        if (gone, blocks) != self._made_of:
            self._made_of = gone, blocks
            self._rows = _lay_out(blocks)
            if gone is not None:
                _insert(self._rows, gone)
        return self._rows

    def _list_blocks(self, sample: Sample, shown: set[Path] | None) -> dict[Path, list[str]]:
        # The sources directly below each unfolded one.
        blocks: dict[Path, list[str]] = {}
        waiting: list[tuple[Path, Any]] = [((), sample.root)] if self.is_open(()) else []
        while waiting:
            path, node = waiting.pop()
            below = node["subordinates"]
            names = self._order(path, below)
            if shown is None:
                opened: Iterable[str] = self._opened.get(path, set()) & below.keys()
            else:
                names = [name for name in names if (*path, name) in shown]
                opened = names
            blocks[path] = names
            waiting += [((*path, name), below[name]) for name in opened]
        if len(self._sorted) > 2 * len(blocks) + _ROWS_MAX:  # most have gone, or are folded
            self._sorted = {path: self._sorted[path] for path in blocks if path in self._sorted}
        return blocks

    def _order(self, path: Path, below: Iterable[str]) -> list[str]:
        names = tuple(below)
        if self.measure is not None:
            measure = self.measure
            return sorted(names, key=lambda name: measure((*path, name)), reverse=not self.reverse)
        known = self._sorted.get(path)
        if known is None or known[0] != names:
            known = self._sorted[path] = names, sorted(names, key=natural_key)
        return known[1][::-1] if self.reverse else known[1]

    def _match(self, sample: Sample, pattern: re.Pattern[str]) -> set[Path]:
        # The sources that match, and those above them.
        found: set[Path] = set()
        for path, _ in sample.walk():
            if pattern.search("/".join(path)):
                while path not in found:
                    found.add(path)
                    path = path[:-1]
        return found


def _lay_out(blocks: dict[Path, list[str]]) -> list[Path]:
    rows: list[Path] = []
    waiting: list[Path] = [()]
    while waiting:
        path = waiting.pop()
        rows.append(path)
        names = blocks.get(path)
        if not names:
            continue
        below = [(*path, name) for name in names]
        if any(child in blocks for child in below):
            waiting += reversed(below)
        else:
            rows += below
    return rows


def _insert(rows: list[Path], gone: Path) -> None:
    # Below the nearest source above it that is shown; the root always is.
    above = next(gone[:length] for length in reversed(range(len(gone))) if gone[:length] in rows)
    rows.insert(rows.index(above) + 1, gone)
