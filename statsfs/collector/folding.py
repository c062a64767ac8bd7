"""Folding: dead segments become retained numbers.

Owns the batches, and the removal of files as they are folded. What a fold writes is in `journal`.

Threading: for the collector's thread alone.
"""

import logging
from dataclasses import dataclass
from typing import Final

from statsfs.collector.admission import Admission
from statsfs.collector.journal import Journal
from statsfs.collector.live_segment import LiveSegment
from statsfs.collector.liveness import Liveness
from statsfs.collector.timers import Timers
from statsfs.tree.pauses import pause

__all__ = ["SegmentFolding"]

log = logging.getLogger(__name__)

_PAUSE: Final = 1.0  # seconds between two tries
_BATCH: Final = 256  # segments that are folded together


@dataclass(slots=True)
class SegmentFolding:
    """Folds dead segments, and removes their files."""

    journal: Journal
    liveness: Liveness
    admission: Admission
    timers: Timers

    def fold_dead(self) -> None:
        """Fold all dead segments, and admit those that waited for their paths."""
        while self.liveness.dead or self.admission.vacant:
            for name, segments in self._take_batch().items():
                self._fold(name, segments)
            if not self.liveness.dead and self.admission.vacant:
                self.admission.admit_waiting()

    def _take_batch(self) -> dict[str, list[LiveSegment]]:
        by_top: dict[str, list[LiveSegment]] = {}
        for segment in list(self.liveness.dead)[:_BATCH]:
            del self.liveness.dead[segment]
            # A file that was just moved will be found where it is now, or folded in a second.
            if segment.removed or segment.numbers.final or self.liveness.is_in_place(segment):
                by_top.setdefault(segment.metadata.components[0], []).append(segment)
        return by_top

    def _fold(self, name: str, segments: list[LiveSegment]) -> None:
        for segment in segments:
            if not segment.numbers.finish():
                path = segment.metadata.path
                log.warning("%s: its last numbers cannot be read; those before count", path)
            pause()
        if not self.journal.begin_fold(name, segments):
            self.timers.add(_PAUSE, lambda: self.liveness.dead.update(dict.fromkeys(segments)))
            return
        for segment in segments:
            # A file that is somewhere else, or has other names, may come back.
            if segment.refused:
                continue
            if not segment.removed and self.liveness.is_in_place(segment):
                segment.location.remove()
            if not segment.numbers.status.st_nlink:
                self.journal.note_removed(name, segment.id)
        for segment in segments:
            self.journal.path_sources.remove(segment.source)
            self.liveness.drop(segment)
            pause()  # others may have the tree's lock
        self.journal.end_fold(name, segments)
        self.admission.vacant = True
