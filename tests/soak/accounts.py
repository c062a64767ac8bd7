"""An account of what producers count, kept beside their segments; standard library only.

A page that all share, in which each slot is written by one process at a time. What is to be counted
is written here first, then in the segment, then here again as done: at any moment a segment has at
least what is done, and at most what is begun. Where a producer was killed in between nobody knows
which of the two it is, and that is noted as a doubt of one.
"""

import mmap
import os
from typing import Final

__all__ = ["GROUPS", "PER_GROUP", "SLOTS", "VALUES", "Account", "paths_of"]

GROUPS: Final = 4
PER_GROUP: Final = 50
SLOTS: Final = GROUPS * PER_GROUP
READERS: Final = 16
# CUMULATIVE values, and what of them is cleared in the scenario of that name; `more` is in the
# later release alone. The sum of the buckets of `sizes` is that of the requests.
VALUES: Final = ("requests", "begun", "more", "largest")
_BEGUN, _DONE, _DOUBT = range(3)

_STOPPED, _HELD, _HOLDING = range(3)
_WORDS: Final = 8
_SEEN: Final = _WORDS + SLOTS * len(VALUES) * 3
_FLOORS: Final = _SEEN + READERS * (GROUPS + 1) * (len(VALUES) + 1)
_SIZE: Final = 8 * (_FLOORS + GROUPS)


def paths_of(group: int) -> str:
    """The directory of a group; that of all is -1."""
    return "app" if group < 0 else f"app/group{group}"


class Account:
    """The account, in a file that is made if it is not there.

    Args:
        file: where.
    """

    def __init__(self, file: str | os.PathLike[str]) -> None:
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(fd, _SIZE)
        self._words = memoryview(mmap.mmap(fd, _SIZE)).cast("Q")
        os.close(fd)

    # Words from one process to another

    @property
    def stopped(self) -> bool:
        """Whether all are to end."""
        return bool(self._words[_STOPPED])

    @property
    def held(self) -> bool:
        """Whether no producer is to be born."""
        return bool(self._words[_HELD])

    @property
    def holding(self) -> bool:
        """Whether none is, and each that lives has begun."""
        return bool(self._words[_HOLDING])

    def stop(self) -> None:
        """Have all end."""
        self._words[_STOPPED] = 1

    def hold(self, held: bool) -> None:
        """Let no producer be born, or let them again."""
        self._words[_HELD] = held

    def note_holding(self, holding: bool) -> None:
        """Say that there is none that has not begun."""
        self._words[_HOLDING] = holding

    # Counting

    @staticmethod
    def _at(value: str, what: int, slot: int) -> int:
        return _WORDS + (VALUES.index(value) * 3 + what) * SLOTS + slot

    def begin(self, value: str, slot: int) -> tuple["memoryview[int]", int, int]:
        """Return what is counted where: the words, the place for what is begun, and for done."""
        return self._words, self._at(value, _BEGUN, slot), self._at(value, _DONE, slot)

    def find_doubt(self, slot: int) -> int:
        """Note what is in doubt of one who is dead; return how much it is."""
        found = 0
        for value in VALUES:
            words, begun, done = self.begin(value, slot)
            pending = words[begun] - words[done]
            if pending:
                # A doubt is greater too early, never too late.
                words[self._at(value, _DOUBT, slot)] += pending
                words[done] = words[begun]
                found += pending
        return found

    def _all(self, value: str, what: int, group: int) -> "memoryview[int]":
        first, count = (0, SLOTS) if group < 0 else (group * PER_GROUP, PER_GROUP)
        at = self._at(value, what, first)
        return self._words[at : at + count]

    def most(self, value: str, group: int = -1) -> int:
        """What the segments of a group can have counted by now, at most."""
        add = max if value == "largest" else sum
        return add(self._all(value, _BEGUN, group))

    def least(self, value: str, group: int = -1) -> int:
        """What they have counted by now, at least; of the largest, 0 if there is a doubt."""
        done = list(self._all(value, _DONE, group))
        doubt = self.doubt(value, group)
        if value == "largest":
            return 0 if doubt else max(done)
        return sum(done) - doubt

    def doubt(self, value: str, group: int = -1) -> int:
        """How much of that is in doubt."""
        return sum(self._all(value, _DOUBT, group))

    # What was seen, and what was cleared

    @staticmethod
    def _seen(value: str, group: int) -> int:
        names = (*VALUES, "sizes")
        return _SEEN + READERS * ((group + 1) * len(names) + names.index(value))

    def seen(self, value: str, group: int, reader: int | None = None) -> int:
        """The most that any reader has seen of a total, or that this one has."""
        at = self._seen(value, group)
        if reader is not None:
            return self._words[at + reader]
        return max(self._words[at : at + READERS])

    def note_seen(self, reader: int, value: str, group: int, number: int) -> None:
        """Note what a reader has seen."""
        self._words[self._seen(value, group) + reader] = number

    def floor(self, group: int) -> int:
        """How many requests of a group have been cleared, at least."""
        floors = self._words[_FLOORS : _FLOORS + GROUPS]
        return sum(floors) if group < 0 else floors[group]

    def note_floor(self, group: int, floor: int) -> None:
        """Note that so many are cleared."""
        self._words[_FLOORS + group] = floor
