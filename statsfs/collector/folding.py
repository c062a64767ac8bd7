"""Folding: dead segments become retained numbers.

Owns the batches, and the removal of files as they are folded. What a fold writes is in `journal`.
A batch is of one top-level name, and takes milliseconds.

Threading: for the collector's thread alone.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from statsfs.collector.admission import Admission
from statsfs.collector.journal import Journal
from statsfs.collector.live_segment import LiveSegment
from statsfs.collector.liveness import Liveness
from statsfs.collector.timers import Timers
from statsfs.tree.log_budget import LogBudget

__all__ = ["SegmentFolding"]

log = logging.getLogger(__name__)

_PAUSE: Final = 1.0  # seconds between two tries
_BATCH: Final = 64  # segments that are folded together
# And what they weigh: of 1,000 values each, 64 held all others for 1.6 s.
_BATCH_WEIGHT: Final = 16_384


@dataclass(slots=True)
class SegmentFolding:
    """Folds dead segments, and removes their files."""

    journal: Journal
    liveness: Liveness
    admission: Admission
    timers: Timers
    budget: LogBudget

    def fold(self, name: str) -> Iterator[None]:
        """Fold the dead segments of a top-level name, batch by batch."""
        while segments := self.liveness.take_dead(name, _BATCH, _BATCH_WEIGHT):
            if found := list(filter(self._is_found, segments)):
                self._fold(name, found)
            yield

    def _is_found(self, segment: LiveSegment) -> bool:
        # A file that was just moved will be found where it is now, or folded in a second.
        return segment.removed or segment.numbers.final or self.liveness.is_in_place(segment)

    def fold_full_batch(self, name: str) -> None:
        """Fold dead segments of a top-level name if there are enough for a batch."""
        if len(self.liveness.dead.get(name, ())) >= _BATCH:
            next(self.fold(name))

    def _fold(self, name: str, segments: list[LiveSegment]) -> None:
        for segment in segments:
            if not segment.numbers.finish():
                text = "%s: its last numbers cannot be read; those before count"
                self.budget.log(segment.owner[0], log, text, segment.metadata.path)
        recorded = self.journal.begin_fold(name, segments)
        if recorded is False:
            self.timers.add(_PAUSE, lambda: [*map(self.liveness.note_dead, segments)])
            return
        for segment in segments:
            # A file that is somewhere else, or has other names, may come back.
            if segment.refused:
                continue
            if recorded and not segment.removed and self.liveness.is_in_place(segment):
                self._remove(segment)
            if not segment.numbers.status.st_nlink:
                self.journal.note_removed(name, segment.id)
        for segment in segments:
            self.journal.path_sources.remove(segment.source)
            self.liveness.drop(segment)
        self.journal.end_fold(name, segments)
        self.admission.vacant.add(name)
        for segment in segments:
            if segment.refused:  # its directory may be its user's by now
                self.admission.look_later(segment.location)

    def _remove(self, segment: LiveSegment) -> None:
        if why := segment.location.remove():
            self.budget.log(segment.owner[0], log, "%s: %s", segment.location, why)
