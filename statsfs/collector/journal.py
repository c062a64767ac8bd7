"""The journal: what must outlive the collector, written before it may be forgotten.

Owns the order of a fold, and what the record of a top-level name has at any moment: what its path
sources retain, what segments that are being folded add to it, and what was cleared of others. A
collector may be killed between any two steps, and counts nothing twice and loses nothing: (1) the
segment's lock is free; (2) its numbers are read for the last time, from the open descriptor; (3) a
record with its numbers and its file's name is renamed over the old one; (4) its file is removed,
and in the tree its source leaves. The next start first removes the files that a record names.

Threading: `note_clear` comes from any thread, all else from the collector's. The lock of the
journal guards the state here, and is held while a record is made and written, so that the last one
written is that of the last moment. The tree's lock is taken under it, to look, and never the other
way round: the tree is not changed under the journal's lock.
"""

import logging
import threading
from collections.abc import Callable, Collection
from functools import partial
from typing import Final

from statsfs.collector.directories import Directories
from statsfs.collector.journal_file import Baselines, JournalFiles, JournalRecord, RetainedRows
from statsfs.collector.known_values import KnownValues
from statsfs.collector.live_segment import LiveSegment
from statsfs.collector.path_sources import PathSources
from statsfs.formats.binary import Number
from statsfs.model.values import Kind, Value
from statsfs.tree.lock import lock_tree
from statsfs.tree.registry import Registry
from statsfs.tree.rows import add_numbers

__all__ = ["Journal"]

log = logging.getLogger(__name__)


class Journal:
    """The records of a collector, and the path sources that they are of.

    Args:
        registry: for the path sources.
        known_values: the tree's values for those of records.
        wake: called, in any thread, when a record could not be written and `write_all` is wanted.

    Attributes:
        folded: by top-level name the keys of files that its record counts and that may exist still.
        baselines: what an earlier collector cleared of segments that are not in the tree yet, by
            key, with the top-level name.
        failed: whether a record could not be written.
    """

    def __init__(
        self, registry: Registry, known_values: KnownValues, wake: Callable[[], object]
    ) -> None:
        self.path_sources: Final = PathSources(registry, self.note_clear)
        self.folded: Final[dict[str, set[str]]] = {}
        self.baselines: Final[dict[str, tuple[str, Baselines]]] = {}
        self.failed = False
        self._known_values = known_values
        self._wake = wake
        # Reentrant: a signal handler may clear in the middle of a clear.
        self._lock = threading.RLock()
        self._files: JournalFiles | None = None  # without a directory nothing outlives
        self._written: Final[dict[str, JournalRecord]] = {}
        self._unrestored: Final[dict[str, JournalRecord]] = {}
        self._folding: Final[set[LiveSegment]] = set()
        self._logged: Final[set[str]] = set()

    def load(self, directories: Directories) -> None:
        """Take over the records of earlier collectors, but of names that are in the tree."""
        self.path_sources.find_owner = directories.find_owner
        files = self._files = JournalFiles(directories.top)
        found = files.load()
        with self._lock:
            for name, record in found.items():
                if self.path_sources.find_top(name) is not None:
                    continue
                self.folded[name] = set(record.folded)
                self._written[name] = record
                self.baselines.update((key, (name, one)) for key, one in record.baselines.items())
                if record.sources:
                    self._unrestored[name] = record
        for name in list(self._unrestored):
            self.restore(name)
        self.write_all()

    def restore(self, name: str) -> None:
        """Put what a record retains into the tree, if that is not done and the name is free."""
        record = self._unrestored.get(name)
        if record is None or self.path_sources.find_holder((name,)) is not None:
            return
        for one in record.sources:
            source = self.path_sources.make(one.path[-1], one.label, name, one.collapse)
            for array, row in one.rows.items():
                source.restore([self._known_values.restore(value) for value in array], row)
            self.path_sources.place(source, one.path, (None,) * len(one.path))
        del self._unrestored[name]

    def forget_baselines(self, key: str) -> None:
        """Forget what was cleared of a segment: it is in the tree, or gone."""
        with self._lock:
            self.baselines.pop(key, None)

    def close_files(self) -> None:
        """Write nothing until `load` is called again: the directory is gone."""
        with self._lock:
            if self._files is not None:
                self._files.close()
            self._files = None
            self._written.clear()

    def leave_to_parent(self) -> None:
        """Write nothing any more, in a forked child: the records are its parent's."""
        # A thread that is not in this process may have held the lock.
        self._lock = threading.RLock()
        self.close_files()

    def write(self, name: str) -> bool:
        """Bring a record up to date; return whether it is; log an error, once until it is."""
        with self._lock:
            # A record that is not in the tree yet must not be replaced.
            if self._files is None or name in self._unrestored:
                return True
            record = self._make_record(name)
            if record == self._written.get(name):
                return True
            try:
                self._files.write(name, record)
            except OSError as error:
                if name not in self._logged:
                    self._logged.add(name)
                    why = error.strerror
                    log.error("the record of %r cannot be written: %s; trying again", name, why)
                return False
            self._logged.discard(name)
            self._written[name] = record
            if record.empty:
                del self._written[name]
                self.folded.pop(name, None)
            return True

    def note_clear(self) -> None:
        """Write what was cleared; called in the thread that cleared, after that."""
        self.write_all()
        if self.failed:
            self._wake()

    def write_all(self) -> None:
        """Bring all records up to date."""
        with self._lock:
            names = {*(top.name for top in self.path_sources.tops), *self._written}
            self.failed = bool([name for name in names if not self.write(name)])

    def _make_record(self, name: str) -> JournalRecord:
        # Under the tree's lock: a fold of this moment is seen done, or not begun.
        sources, segments = lock_tree(partial(self.path_sources.look, name, self._matters))
        folded = set(self.folded.get(name, ()))
        baselines = {key: one for key, (top, one) in self.baselines.items() if top == name}
        rows = {one.path: one.rows for one in sources}
        for segment in segments:
            above = rows.get(segment.metadata.components[:-1])
            if segment in self._folding and above is not None:
                _add_rows(above, segment.numbers.retained_rows())
            if segment.removed:
                continue  # another file may have its name
            key = segment.location.key
            baselines.pop(key, None)
            if segment in self._folding:
                folded.add(key)
            elif segment.numbers.baselines:
                baselines[key] = dict(segment.numbers.baselines)
        # A source that retains nothing is left out, if that is so of all below it.
        full = [path for path, retained in rows.items() if retained]
        needed = {path[:size] for path in full for size in range(1, len(path) + 1)}
        kept = [one for one in sources if one.path in needed]
        return JournalRecord(kept, baselines, sorted(folded))

    def _matters(self, segment: LiveSegment) -> bool:
        # Few of thousands do; to write all of 8,000 made a death take 30 ms.
        if segment.numbers.baselines or segment in self._folding:
            return True
        return bool(self.baselines) and segment.location.key in self.baselines

    def begin_fold(self, name: str, segments: Collection[LiveSegment]) -> bool:
        """Write what dead segments counted, step 3; return whether their files may be removed."""
        with self._lock:
            self._folding.update(segments)
            # What a segment at the top counted goes with it.
            if name not in self._written and any(one.metadata.path == name for one in segments):
                return True
            if not self.write(name):
                self._folding.difference_update(segments)
                return False
            keys = {segment.location.key for segment in segments if not segment.removed}
            self.folded.setdefault(name, set()).update(keys)
            return True

    def note_removed(self, name: str, key: str) -> None:
        """Note that a folded file does not exist any more."""
        with self._lock:
            self.folded.get(name, set()).discard(key)

    def disown(self, key: str) -> bool:
        """Have no record name a file as folded, for a new one has its name; return whether so."""
        names = [name for name, record in self._written.items() if key in record.folded]
        for name in names:
            self.note_removed(name, key)
        return not [name for name in names if not self.write(name)]

    def end_fold(self, name: str, segments: Collection[LiveSegment]) -> None:
        """Note that the sources of dead segments have left the tree."""
        with self._lock:
            self._folding.difference_update(segments)
        if self.path_sources.fold_surplus() or self.path_sources.find_top(name) is None:
            self.write_all()

    def tidy(self) -> None:
        """Have path sources work off what happened, and write what follows from it."""
        if self.path_sources.tidy():
            self.write_all()


def _add_rows(kept: RetainedRows, rows: RetainedRows) -> None:
    for array, row in rows.items():
        before = kept.get(array, (None,) * len(array))
        kept[array] = tuple(map(_add_number, array, before, row))


def _add_number(value: Value, before: Number | None, number: Number) -> Number:
    # A peak of 0 may stand for none, and another one may be negative.
    if before is None or (value.kind is Kind.PEAK and not before):
        return number
    added: Number = add_numbers(value, [before, number])
    return added
