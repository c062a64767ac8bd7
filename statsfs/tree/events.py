"""Events: which sources came into a tree and left it, as lines of JSON; the newest ones are kept.

Owns the lines of a mount's `.events`. A change of the tree adds its lines in its own steps: they
are in the order of the changes, and there is none of a change that was not made.

Threading: lines are made and read under the tree's lock; the newest is for any thread.
"""

import json
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, takewhile
from operator import itemgetter
from typing import Any, Final, NamedTuple

__all__ = ["ADDED", "REMOVED", "TEXT_MAX", "EventLine", "Events"]

ADDED: Final = "added"
REMOVED: Final = "removed"

TEXT_MAX: Final = 1 << 21
"""How many bytes of lines are kept: 20,000 lines of paths with 50 bytes, in some 8 MiB."""

_start_of: Final = itemgetter(0)


class EventLine(NamedTuple):
    """One event, or what is told in place of lines that are not kept any more.

    Attributes:
        start: how many bytes were written before it.
        number: how many lines were written before it.
        moment: when it was made, in nanoseconds since the epoch.
    """

    start: int
    number: int
    moment: int
    text: bytes

    @property
    def end(self) -> int:
        """How many bytes were written before it and with it."""
        return self.start + len(self.text)


class Events:
    """The lines about the sources below a registry, from `Listening.tell` on.

    Args:
        top: the name of the one top-level source that is the root of the mount: then only sources
            in it have lines, with their paths from there.
    """

    def __init__(self, top: str | None = None) -> None:
        self._above: Final = "" if top is None else f"{top}/"
        self._lines: Final[deque[EventLine]] = deque()

    def lines(self, start: int, size: int) -> list[EventLine]:
        """Return the lines that have so many bytes from a position on; under the tree's lock.

        Where that is not kept any more, the first is the oldest that is; at the end there are none.
        """
        found: list[EventLine] = []
        first = max(0, bisect_right(self._lines, start, key=_start_of) - 1)
        for index in range(first, len(self._lines)):
            line = self._lines[index]
            if found and line.start >= start + size:
                break
            if line.end > start:
                found.append(line)
        return found

    @property
    def written(self) -> tuple[int, int] | None:
        """How many bytes were written, and when the last; None if none were."""
        newest = self.newest
        return None if newest is None else (newest.end, newest.moment)

    @property
    def newest(self) -> EventLine | None:
        """The newest line, if there is one."""
        try:
            return self._lines[-1]
        except IndexError:
            return None

    def make(self, moment: int, event: str, paths: Iterable[str]) -> Iterator[tuple[int, bytes]]:
        """Yield a line for each source of an event, with the moment."""
        seconds, rest = divmod(moment // 1000, 1_000_000)
        for path in paths:
            if path.startswith(self._above):
                name = json.dumps(path[len(self._above) :])
                text = f'{{"time":{seconds}.{rest:06d},"event":"{event}","path":{name}}}\n'
                yield moment, text.encode()

    def steps(self, made: Sequence[tuple[int, bytes]]) -> list[tuple[Any, ...]]:
        """Return the steps of a change that add what `make` made, and drop what is too old."""
        newest = self.newest
        start, number = (newest.end, newest.number + 1) if newest else (0, 0)
        lines: list[EventLine] = []
        for moment, text in made:
            lines.append(EventLine(start, number + len(lines), moment, text))
            start += len(text)
        old = takewhile(lambda line: start - line.start > TEXT_MAX, chain(self._lines, lines[:-1]))
        return [(self._lines.extend, lines), *((self._lines.popleft,) for _ in old)]
