"""Counted files: the ids of files that have left the tree and may come back.

Owns how many are remembered. A file that was moved away while its producer died is folded from its
open descriptor, and may be moved back; one that was removed may have a copy.

Threading: no lock; the caller has that of `journal`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final

from statsfs.collector.directories import Directories
from statsfs.collector.file_ids import outlives_file
from statsfs.collector.journal_file import Baselines, JournalRecord, count_integers
from statsfs.segments.places import SUFFIX

__all__ = ["BASELINES_MAX", "FOLDED_MAX", "REMOVED_MAX", "CountedFiles", "find_ids"]

FOLDED_MAX: Final = 10_000  # of a top-level name; as many segments as one user may have
REMOVED_MAX: Final = 1000  # of which only copies may come back
BASELINES_MAX: Final = 1 << 20  # integers of baselines: of living files, and of those of others


@dataclass(slots=True)
class CountedFiles:
    """The files of one top-level name, by id, the oldest first.

    Attributes:
        folded: those that are counted already, and may exist somewhere.
        removed: those that are counted already, and of which nothing but copies may exist.
        baselines: what was cleared of living ones.
    """

    folded: dict[str, None] = field(default_factory=dict)
    removed: dict[str, None] = field(default_factory=dict)
    baselines: dict[str, Baselines] = field(default_factory=dict)

    def __contains__(self, id: str) -> bool:
        """Tell whether a file, or what it is a copy of, is counted already."""
        return id in self.folded or id in self.removed

    def add(self, ids: Iterable[str]) -> None:
        """Note that files are counted."""
        self.folded.update(dict.fromkeys(ids))
        _forget_oldest(self.folded, FOLDED_MAX)

    def add_baselines(self, baselines: dict[str, Baselines]) -> None:
        """Note what was cleared of files."""
        self.baselines.update(baselines)
        _forget_oldest(self.baselines, FOLDED_MAX)
        sizes = {id: count_integers(one) for id, one in self.baselines.items()}
        surplus = sum(sizes.values()) - BASELINES_MAX
        for id in list(self.baselines):
            if surplus > 0:
                surplus -= sizes[id]
                del self.baselines[id]

    def note_removed(self, id: str) -> None:
        """Note that a file that is counted does not exist any more."""
        self.folded.pop(id, None)
        if outlives_file(id):
            self.removed[id] = None
            _forget_oldest(self.removed, REMOVED_MAX)


def _forget_oldest(known: dict[str, Any], most: int) -> None:
    for id in list(islice(known, max(0, len(known) - most))):
        del known[id]


def find_ids(record: JournalRecord, directories: Directories) -> JournalRecord:
    """Return a record with the ids of files, for one of an older version that has their keys."""
    keys = [key for key in (*record.folded, *record.baselines) if key.endswith(SUFFIX)]
    if not keys:
        return record
    found = {key: location.look() for key in keys if (location := directories.locate(key))}
    seen = {key: one for key, one in found.items() if one is not None}
    # A living segment has the name of what was folded.
    folded = [seen[key].id for key in record.folded if key in seen and not seen[key].alive]
    baselines = {seen[key].id: one for key, one in record.baselines.items() if key in seen}
    return replace(record, folded=folded, baselines=baselines)
