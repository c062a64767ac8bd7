"""Liveness: the segments in the tree, where their files are, and which of them are dead.

Owns which segments there are, what each user has of them, and when one is dead: its lock is free.

Threading: for the collector's thread alone, but for `counts` and `weights`, which any may read.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from statsfs.collector.live_segment import LiveSegment, weigh
from statsfs.collector.timers import Timers
from statsfs.collector.trusted_directory import Location, TrustedDirectory, identify
from statsfs.collector.turns import Turns

__all__ = ["Liveness"]

# The kernel tells of a death just before it drops the lock.
_PROBES: Final = (0.001, 0.01, 0.1)
_PATIENCE: Final = 1.0  # seconds between probes of orphans, and for a moved file to be found


class Liveness:
    """The segments in the tree.

    Attributes:
        by_key: the segments whose files are in a directory.
        orphans: the segments whose files are not there any more, though the producers may live.
        dead: the segments to be folded, in order, by the top-level name of their paths.
        counts, weights: by user, the number of all segments and what they weigh.
    """

    def __init__(self, timers: Timers, turns: Turns) -> None:
        self.by_key: Final[dict[str, LiveSegment]] = {}
        self.orphans: Final[set[LiveSegment]] = set()
        self.dead: Final[dict[str, dict[LiveSegment, None]]] = {}
        self.counts: Final[Counter[int]] = Counter()
        self.weights: Final[Counter[int]] = Counter()
        # While a file is open no other has its identity.
        self._by_identity: Final[dict[tuple[int, int], LiveSegment]] = {}
        self._by_directory: Final[dict[TrustedDirectory, dict[LiveSegment, None]]] = {}
        self._timers = timers
        self._turns = turns
        self._probing_orphans = False

    def add(self, segment: LiveSegment, alive: bool) -> None:
        """Note that a segment is in the tree."""
        self._note(segment)
        self._by_identity[segment.numbers.identity] = segment
        self._count(segment, 1)
        if not alive:
            self.note_dead(segment)

    def drop(self, segment: LiveSegment) -> None:
        """Close a segment that has left the tree."""
        segment.numbers.close()
        self.orphans.discard(segment)
        del self._by_identity[segment.numbers.identity]
        self._forget(segment)
        self._count(segment, -1)

    def _note(self, segment: LiveSegment) -> None:
        self.by_key[segment.location.key] = segment
        self._by_directory.setdefault(segment.location.directory, {})[segment] = None

    def _forget(self, segment: LiveSegment) -> None:
        location = segment.location
        if self.by_key.get(location.key) is segment:
            del self.by_key[location.key]
        here = self._by_directory.get(location.directory, {})
        here.pop(segment, None)
        if not here:
            self._by_directory.pop(location.directory, None)

    def note_dead(self, segment: LiveSegment) -> None:
        """Note that a segment is to be folded."""
        self.dead.setdefault(segment.metadata.components[0], {})[segment] = None

    def is_dead(self, segment: LiveSegment) -> bool:
        """Tell whether a segment is to be folded."""
        return segment in self.dead.get(segment.metadata.components[0], ())

    def take_dead(self, name: str, most: int, weight: int) -> list[LiveSegment]:
        """Return some segments of a top-level name that are to be folded, and note them no more.

        Args:
            name: of the source.
            most: how many.
            weight: what they weigh together, but for one.
        """
        dead = self.dead.get(name, {})
        taken: list[LiveSegment] = []
        for segment in islice(dead, most):
            weight -= weigh(segment.metadata)
            if taken and weight < 0:
                break
            taken.append(segment)
        for segment in taken:
            del dead[segment]
        if not dead:
            self.dead.pop(name, None)
        return taken

    def give(self, segment: LiveSegment, owner: tuple[int, int]) -> None:
        """Note that a segment has another owner."""
        self._count(segment, -1)
        segment.owner = owner
        self._count(segment, 1)

    def _count(self, segment: LiveSegment, sign: int) -> None:
        self.counts[segment.owner[0]] += sign
        self.weights[segment.owner[0]] += sign * weigh(segment.metadata)

    def close(self) -> None:
        """Close all files; the tree is left as it is."""
        for segment in (*self.by_key.values(), *self.orphans):
            segment.numbers.close()

    def files_in(self, directory: TrustedDirectory) -> list[str]:
        """Return the names of the files of segments in a directory."""
        return [segment.location.name for segment in self._by_directory.get(directory, ())]

    def is_in_place(self, segment: LiveSegment) -> bool:
        """Tell whether a segment's file is where it was; if not it becomes an orphan."""
        status = segment.location.find()
        if status is not None and identify(status) == segment.numbers.identity:
            return True
        self.make_orphan(segment)
        return False

    def leave(self, directory: TrustedDirectory) -> Iterator[None]:
        """Make orphans of the segments in a directory that is read no longer, one by one."""
        while here := self._by_directory.get(directory):
            self.make_orphan(next(iter(here)))
            yield

    def make_orphan(self, segment: LiveSegment) -> None:
        """Note that the file of a segment is not where it was."""
        # Its directory may still tell of its death, or not.
        segment.removed = True
        self._forget(segment)
        self.orphans.add(segment)
        if not self._probing_orphans:
            self._probe_orphans()
        self.probe(segment)

    def find_file(self, status: os.stat_result | None) -> LiveSegment | None:
        """Return the segment of a file, wherever its file is; a new one would count it twice."""
        return None if status is None else self._by_identity.get(identify(status))

    def move(self, segment: LiveSegment, location: Location) -> None:
        """Note that the file of a segment is here now."""
        self.orphans.discard(segment)
        self._forget(segment)
        segment.numbers.location = location
        segment.removed, segment.missing_since = False, 0.0
        self._note(segment)

    def probe(self, segment: LiveSegment, delays: Sequence[float] = _PROBES) -> None:
        """Find out whether a producer lives, now and after each of the delays, in seconds."""
        segment.probes += 1
        self._probe(segment, segment.probes, delays)

    def _probe(self, segment: LiveSegment, series: int, delays: Sequence[float]) -> None:
        if series != segment.probes or segment.numbers.final:
            return  # there is a newer series
        if not segment.numbers.probe():
            if not self._may_be_found(segment):
                self.note_dead(segment)
        elif delays:
            self._timers.add(delays[0], lambda: self._probe(segment, series, delays[1:]))

    def _may_be_found(self, segment: LiveSegment) -> bool:
        # A file that was moved may be found again. If it was folded before, it would count twice.
        if not segment.removed or not segment.numbers.status.st_nlink:
            return False
        segment.missing_since = segment.missing_since or time.monotonic()
        return time.monotonic() < segment.missing_since + _PATIENCE

    def _probe_orphans(self) -> None:
        self._probing_orphans = bool(self.orphans)
        if self._probing_orphans:
            self._timers.add(_PATIENCE, self._probe_orphans)
            self._turns.add("orphans", self._probe_each)

    def _probe_each(self) -> Iterator[None]:
        for segment in list(self.orphans):
            self.probe(segment, ())
            yield
