"""The journal: what must outlive the collector, written before it may be forgotten.

Owns the order of a fold, and what the record of a top-level name has at any moment: what its path
sources retain, what segments that are being folded add to it, and what was cleared of others. A
collector may be killed between any two steps, and counts nothing twice and loses nothing: (1) the
segment's lock is free; (2) its numbers are read for the last time, from the open descriptor; (3) a
record with its numbers and its file's id is renamed over the old one; (4) its file is removed, and
in the tree its source leaves. A file of which a record has the id is never counted again, wherever
it comes from: it is removed.

A clear, and an rmdir, are recorded before they are made: where the record cannot be written they
are refused. After a kill they are what the record says, made or not begun.

While another process takes over, the journal is *held*: nothing is written or removed. Clears wait
until it is decided which of the two processes writes. Segments are folded in the tree alone: their
files stay, and are removed when a record has their ids.

Threading: `clear` and `record` come from any thread, all else from the collector's. The lock of the
journal guards the state here, and is held while a record is made and written, so that the last one
written is that of the last moment; and while what was recorded is cleared. The tree's lock is taken
under it, and never the other way round: under the journal's lock nothing in the tree changes but
what is retained, of which listeners are not told.
"""

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from statsfs.collector import counted_files
from statsfs.collector.counted_files import CountedFiles, find_ids
from statsfs.collector.directories import Directories
from statsfs.collector.journal_file import (
    Baselines,
    JournalFiles,
    JournalRecord,
    RetainedSource,
    ValueTable,
)
from statsfs.collector.known_values import KnownValues
from statsfs.collector.live_segment import LiveSegment
from statsfs.collector.path_sources import PathSources
from statsfs.collector.record_rows import add_rows, clear_rows
from statsfs.exceptions import SegmentError
from statsfs.model.arrays import Array
from statsfs.model.locking import Flag, call_locked, locked
from statsfs.model.values import Value
from statsfs.tree.index import Part
from statsfs.tree.lock import lock_tree
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source

__all__ = ["Journal"]

log = logging.getLogger(__name__)

_PATIENCE: Final = 30.0  # seconds that a clear waits for the end of a takeover


@dataclass(slots=True)
class _Clear:
    # What one clear covers: the values of living segments, by name, and of rows, by place.
    values: dict[LiveSegment, set[str]] = field(default_factory=dict)
    rows: dict[Source, dict[tuple[Value, ...], set[int]]] = field(default_factory=dict)

    @property
    def top(self) -> str:
        # One total covers nothing of two top-level names.
        paths = [one.metadata.path for one in self.values] + [one.path for one in self.rows]
        return paths[0].partition("/")[0] if paths else ""


class Journal:
    """The records of a collector, and the path sources that they are of.

    Args:
        registry: for the path sources.
        known_values: the tree's values for those of records.
        wake: called, in any thread, when a record could not be written and `write_all` is wanted.

    Attributes:
        failed: whether a record could not be written, or is to be written again.
        held: whether nothing is written, as another process writes, or may.
    """

    def __init__(
        self, registry: Registry, known_values: KnownValues, wake: Callable[[], object]
    ) -> None:
        self.path_sources: Final = PathSources(registry, self.clear, self.record)
        self.failed = False
        self.held = False
        self._decided = Flag()  # set when it is decided which process writes
        self._decided.set()
        self._known_values = known_values
        self._wake = wake
        # Reentrant: a signal handler may clear in the middle of a clear.
        self._lock = threading.RLock()
        self._files: JournalFiles | None = None  # without a directory nothing outlives
        self._written: Final[dict[str, JournalRecord]] = {}
        self._unrestored: Final[dict[str, JournalRecord]] = {}
        self._folding: Final[set[LiveSegment]] = set()
        # By top-level name, the segments of which a record says something, and its values.
        self._noted: Final[dict[str, set[LiveSegment]]] = {}
        self._tables: Final[dict[str, ValueTable]] = {}
        self._clearing: _Clear | None = None
        self._counted: Final[dict[str, CountedFiles]] = {}
        self._missing = ""  # why there is no directory for records
        self._logged: Final[set[str]] = set()

    @locked
    def hold(self) -> None:
        """Write all records, then none until `let_go`; SegmentError if one cannot be written.

        A journal that was not loaded yet has none.
        """
        self.write_all()
        if self.failed:
            self._wake()
            raise SegmentError("the records cannot be written; see the log")
        self.held = True
        self._decided = Flag()

    @locked
    def let_go(self) -> None:
        """Write again, and first all changes since `hold`."""
        self.held, self.failed = False, True
        self._decided.set()

    def give_up(self) -> None:
        """Never write again: another process does."""
        self._decided.set()

    def load(self, directories: Directories) -> None:
        """Take over the records of earlier collectors, but of names that are in the tree."""
        self.path_sources.find_owner = directories.find_owner
        files = self._files = JournalFiles(directories.top)
        found = files.load()
        for name, record in found.items():
            if self.path_sources.find_top(name) is None:
                self._take_over(name, record, directories)
        for name in list(self._unrestored):
            self.restore(name)
        self.write_all()

    @locked
    def _take_over(self, name: str, record: JournalRecord, directories: Directories) -> None:
        self._written[name] = record
        self._remember(name, find_ids(record, directories))
        if record.sources:
            self._unrestored[name] = record

    def _remember(self, name: str, record: JournalRecord) -> None:
        counted = self._counted.setdefault(name, CountedFiles())
        counted.add(record.folded)
        counted.add_baselines(record.baselines)
        for id in record.removed:
            counted.note_removed(id)

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

    def is_counted(self, name: str, id: str) -> bool:
        """Tell whether the record of a top-level name counts a file, or what it is a copy of."""
        return name in self._counted and id in self._counted[name]

    def find_baselines(self, name: str, id: str) -> Baselines:
        """Return what was cleared of a file when it was in the tree before."""
        return self._counted[name].baselines.get(id, {}) if name in self._counted else {}

    @locked
    def expect(self, segment: LiveSegment) -> None:
        """Note a segment that comes into the tree, if it was cleared when it was there before."""
        if self.find_baselines(segment.metadata.components[0], segment.id):
            self._note(segment)

    def _note(self, segment: LiveSegment) -> None:
        self._noted.setdefault(segment.metadata.components[0], set()).add(segment)

    @locked
    def forget(self, segment: LiveSegment) -> None:
        """Forget a segment that did not come into the tree."""
        self._noted.get(segment.metadata.components[0], set()).discard(segment)

    @locked
    def forget_baselines(self, name: str, id: str) -> None:
        """Forget what was cleared of a file: it is in the tree."""
        if name in self._counted:
            self._counted[name].baselines.pop(id, None)

    @locked
    def close_files(self) -> None:
        """Write nothing until `load` is called again: the directory is gone."""
        if self._files is not None:
            self._files.close()
        self._files = None
        self._written.clear()

    def leave_to_parent(self) -> None:
        """Write nothing any more, in a forked child: the records are its parent's."""
        # A thread that is not in this process may have held the lock.
        self._lock = threading.RLock()
        self.close_files()

    @locked
    def write(self, name: str) -> bool:
        """Bring a record up to date; return whether it is; log an error, once until it is."""
        if self.held:
            return False
        return self._files is None or (self._check_files() and self._write(name))

    def _check_files(self) -> bool:
        # Whether the directory of the records is there. One that was made again has none of them.
        assert self._files is not None
        try:
            if self._files.check():
                self._written.clear()
                self.failed = True
        except OSError as error:
            self.failed, self._missing = True, str(error)
            return self._log("", "the records cannot be written: %s; trying again", error)
        self._logged.discard("")
        return True

    def _log(self, name: str, text: str, *args: object) -> bool:
        # Once, until the name leaves `_logged`; it is always False.
        if name not in self._logged:
            self._logged.add(name)
            log.error(text, *args)
        return False

    def _write(self, name: str) -> bool:
        why = self._try(name)
        if why is not None:
            text = "the record of %r cannot be written: %s; trying again"
            return self._log(name, text, name, why)
        return True

    def _try(self, name: str) -> str | None:
        # Writes a record, or returns why not.
        assert self._files is not None
        # A record that is not in the tree yet must not be replaced.
        record = self._unrestored.get(name) or self._make_record(name)
        if record != self._written.get(name):
            try:
                self._files.write(name, record)
            except OSError as error:
                return f"{self._files.path}: {error.strerror}"
        self._logged.discard(name)
        # The same numbers in other objects are not kept twice.
        self._written[name] = record
        if record.empty:
            for one in (self._written, self._counted, self._tables):
                one.pop(name, None)
        return None

    @locked
    def record(self, name: str) -> None:
        """Record what is about to be done, or raise SegmentError; in any thread."""
        if self.held:
            text = f"{name}: nothing was changed, as another process takes over, or has taken over"
            raise SegmentError(text, name)
        if self._files is None:
            return
        why = self._try(name) if self._check_files() else self._missing
        if self.failed:
            self._wake()
        if why is not None:
            text = f"{name}: nothing was changed, as its record cannot be written: {why}"
            self._log(name, "%s", text)
            raise SegmentError(text, name)

    def clear(self, parts: Sequence[Part], clear: Callable[[], object]) -> None:
        """Record a clear and make it, or raise SegmentError; called in the thread that clears."""
        self._decided.wait(_PATIENCE)
        self._clear(parts, clear)

    @locked
    def _clear(self, parts: Sequence[Part], clear: Callable[[], object]) -> None:
        clearing = self._find_cleared(parts)
        for segment, names in clearing.values.items():
            segment.numbers.begin_clear(names)
            self._note(segment)
        outer, self._clearing = self._clearing, clearing
        try:
            if clearing.top:  # nothing in the tree may be covered any more
                self._check_baselines(clearing.top)
                self.record(clearing.top)
            clear()
        finally:
            self._clearing = outer
            for segment in clearing.values:
                segment.numbers.end_clear()
        self.path_sources.cleared = True

    def _find_cleared(self, parts: Sequence[Part]) -> _Clear:
        found = _Clear()
        for index, place in parts:
            array = index.array
            places = {place, array.sums.get(place, place)}
            for members in index.groups.copy().values():
                for entry in members.copy():
                    segment = self.path_sources.find_segment(entry.source)
                    if segment is not None:
                        names = {array.values[one].name for one in places}
                        found.values.setdefault(segment, set()).update(names)
            for record in list(index.records or ()):
                rows = found.rows.setdefault(record.source, {})
                rows.setdefault(array.values, set()).update(places)
        return found

    def _check_baselines(self, name: str) -> None:
        size = sum(one.numbers.find_cleared().size for one in self._noted.get(name, ()))
        if size > counted_files.BASELINES_MAX:
            raise SegmentError(
                f"{name}: nothing was cleared: {size} integers would have to be recorded that were "
                f"cleared of segments; no more than {counted_files.BASELINES_MAX}",
                name,
            )

    @locked
    def write_all(self) -> None:
        """Bring all records up to date."""
        if self.held:
            return
        self.failed = False
        if self._files is None or not self._check_files():
            return
        tops = (top.name for top in self.path_sources.tops)
        names = {*tops, *self._written, *self._unrestored, *self._counted}
        self.failed = bool([name for name in names if not self._write(name)])

    @locked
    def _write_changed(self) -> None:
        # The records of which path sources changed.
        for name in self.path_sources.take_changed():
            self.failed = not self.write(name) or self.failed

    @locked
    def look_at_files(self) -> None:
        """Have `write_all` write again what somebody removed."""
        if self._files is not None and not self.held and self._check_files():
            for name in self._files.find_missing(self._written):
                del self._written[name]
                self.failed = True

    def _make_record(self, name: str) -> JournalRecord:
        # Under the tree's lock: a fold of this moment is seen done, or not begun.
        sources, segments = lock_tree(partial(self._look, name))
        counted = self._counted.get(name, CountedFiles())
        folded, baselines = counted.folded.copy(), counted.baselines.copy()
        by_path = {one.path: one for one in sources}
        for segment in segments:
            above = segment.metadata.components[:-1]
            folding = segment in self._folding
            if folding and above in by_path:
                by_path[above] = add_rows(by_path[above], segment.numbers.retained_rows())
            baselines.pop(segment.id, None)
            if folding and segment.refused:
                baselines[segment.id] = segment.numbers.find_baselines()
            elif folding:
                folded[segment.id] = None
            elif cleared := segment.numbers.find_cleared():
                baselines[segment.id] = cleared
        self._change_rows(by_path)
        # A source that retains nothing is left out, if that is so of all below it.
        full = [path for path, one in by_path.items() if one.rows]
        needed = {path[:size] for path in full for size in range(1, len(path) + 1)}
        kept = [one for path, one in by_path.items() if path in needed]
        table = self._tables.setdefault(name, ValueTable())
        return JournalRecord(kept, baselines, list(folded), list(counted.removed), table)

    def _look(self, name: str) -> tuple[list[RetainedSource], list[LiveSegment]]:
        paths, noted = self.path_sources, self._noted.get(name, ())
        return paths.look(name), [one for one in noted if paths.is_in_tree(one)]

    def _change_rows(self, by_path: dict[tuple[str, ...], RetainedSource]) -> None:
        # The record is made as after the clear, or the removal, that is under way.
        rows = {} if self._clearing is None else self._clearing.rows
        cleared = {tuple(source.path.split("/")): places for source, places in rows.items()}
        for path in cleared.keys() & by_path.keys():
            by_path[path] = clear_rows(by_path[path], cleared[path])
        leaving = self.path_sources.leaving
        left = None if leaving is None else by_path.pop(tuple(leaving.path.split("/")), None)
        if left is not None and left.path[:-1] in by_path:
            by_path[left.path[:-1]] = add_rows(by_path[left.path[:-1]], left.rows)

    @locked
    def begin_fold(self, name: str, segments: Collection[LiveSegment]) -> bool | None:
        """Write what dead segments counted, step 3; return whether that was done.

        If so, their files may be removed. At None they are to be folded, and their files stay.
        """
        self._folding.update(segments)
        for segment in segments:
            self._note(segment)
        held = self.held
        # What a segment at the top counted goes with it.
        top = name not in self._written and any(one.metadata.path == name for one in segments)
        if top and not held:
            return True
        if not held and not self.write(name):
            self._folding.difference_update(segments)
            return False
        counted = self._counted.setdefault(name, CountedFiles())
        counted.add(segment.id for segment in segments if not segment.refused)
        refused = (segment for segment in segments if segment.refused)
        counted.add_baselines({one.id: one.numbers.find_baselines() for one in refused})
        return None if held else True

    @locked
    def note_removed(self, name: str, id: str) -> None:
        """Note that a folded file does not exist any more."""
        if name in self._counted:
            self._counted[name].note_removed(id)

    def end_fold(self, name: str, segments: Collection[LiveSegment]) -> None:
        """Note that the sources of dead segments have left the tree."""
        call_locked(self._lock, lambda: self._end_fold(name, segments))
        self.path_sources.fold_surplus()
        self._write_changed()

    def _end_fold(self, name: str, segments: Collection[LiveSegment]) -> None:
        self._folding.difference_update(segments)
        noted = self._noted[name]
        noted.difference_update(segments)
        if not noted:
            del self._noted[name]

    def make_room(self, segment: LiveSegment, arrays: Collection[Array]) -> None:
        """Make room for a segment with such arrays in its user's share, or raise SegmentError."""
        self.path_sources.make_room(segment.metadata.components, arrays)
        self._write_changed()

    def tidy(self) -> None:
        """Have path sources work off what happened, and write what follows from it."""
        self.path_sources.tidy()
        self._write_changed()
