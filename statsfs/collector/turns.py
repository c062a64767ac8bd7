"""Turns: long work in short pieces, so that none holds the others.

Owns whose turn it is. A piece of work is what a generator does up to its next `yield`: at most some
milliseconds. Work has a key; each key has a turn, and then the next one.

Threading: for one thread at a time.
"""

import time
from collections.abc import Callable, Hashable, Iterator
from typing import Final

from statsfs.tree.pauses import make_pause

__all__ = ["Turns"]

_TURN: Final = 0.002  # seconds; then it is the turn of the next key


class Turns:
    """Works that take turns, by key.

    Attributes:
        yielding: whether other threads have the interpreter between two turns.
    """

    def __init__(self) -> None:
        self.yielding = False
        self._works: Final[dict[Hashable, Iterator[object]]] = {}
        # Not for the block of `pausing`: a piece may make a change, which never waits.
        self._pause: Final = make_pause(_TURN)

    def __bool__(self) -> bool:
        return bool(self._works)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._works

    def add(self, key: Hashable, begin: Callable[[], Iterator[object]]) -> None:
        """Add work, behind all other; nothing happens if the key has some."""
        if key not in self._works:
            self._works[key] = begin()

    def clear(self) -> None:
        """Drop all work."""
        self._works.clear()

    def run(self, seconds: float) -> None:
        """Let works take turns for so long, or until all is done.

        What a piece raises ends its work, and is raised here.
        """
        end = time.monotonic() + seconds
        while self._works and time.monotonic() < end:
            key, work = next(iter(self._works.items()))
            unfinished = False
            try:
                unfinished = self._take_turn(work)
            finally:
                # A piece may have dropped all work.
                if self._works.get(key) is work:
                    del self._works[key]
                    if unfinished:
                        self._works[key] = work

    def _take_turn(self, work: Iterator[object]) -> bool:
        end = time.monotonic() + _TURN
        for _ in work:
            if self.yielding:
                self._pause()
            if time.monotonic() >= end:
                return True
        return False
