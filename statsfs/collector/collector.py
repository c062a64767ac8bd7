"""The collector: keeps a registry in step with a directory of segments.

Owns the thread, and the order of a start: records, the files that they name, living segments, dead
ones. All of that is done when `start` returns, so that a mount after it shows a whole tree.

Threading: the tree is changed by `start`, then by the collector's own thread, then by `close`, one
after the other. Readers' threads call `refresh` of segments, under the lock of their numbers, and
`note_clear`, under that of the journal. The tree is changed under neither, as the listeners of a
change may wait for a reader. The order of locks is: journal, tree, numbers.
"""

import logging
import os
import stat
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from statsfs.collector.admission import Admission
from statsfs.collector.directories import Directories, default_directory
from statsfs.collector.folding import SegmentFolding
from statsfs.collector.journal import Journal
from statsfs.collector.journal_file import RETAINED
from statsfs.collector.known_values import KnownValues
from statsfs.collector.liveness import Liveness
from statsfs.collector.timers import Timers
from statsfs.collector.trusted_directory import Location, TrustedDirectory, order_files
from statsfs.collector.watching import Events, Watch
from statsfs.exceptions import SegmentError, StatsfsError
from statsfs.segments.places import COLLECTOR, SUFFIX
from statsfs.tree.gil import GIL_OFF, is_gil_on
from statsfs.tree.lock import ChangeNotice
from statsfs.tree.registry import Registry

__all__ = ["Collector"]

log = logging.getLogger(__name__)

_RESCAN: Final = 60.0  # seconds; inotify may miss something
_PAUSE: Final = 1.0  # seconds between two tries
_BATCH: Final = 256  # files that are looked at before the dead ones are folded


class Collector:
    """Shows the segments of a directory in a registry, and keeps what dead ones counted.

    From `start` to `close`, or as a context manager. Several may have one registry: each top-level
    name is shown by the one that has it first.

    Args:
        registry: where the segments' paths begin.
        directory: theirs; it is made if it is missing. By default `/run/statsfs` for root,
            `$XDG_RUNTIME_DIR/statsfs` for others.

    Attributes:
        directory: of the segments.

    Raises:
        SegmentError: there is no default directory, or no GIL.
    """

    def __init__(self, registry: Registry, directory: str | os.PathLike[str] | None = None) -> None:
        self.directory: Final = Path(default_directory() if directory is None else directory)
        self._path = os.path.abspath(self.directory)
        if not is_gil_on():
            raise SegmentError(f"{self._path}: {GIL_OFF}", self._path)
        self._registry = registry
        self._thread: threading.Thread | None = None
        self._directories: Directories | None = None
        self._last_error = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "collecting" if self._thread is not None else "closed"
        return f"<Collector {self._path!r} {state}>"

    def start(self) -> None:
        """Show what is there, and begin to keep it up to date; nothing happens if it has begun.

        Raises:
            SegmentError: the directory is refused, it has another collector, or there is no
                inotify; the message is one line that says what to do.
        """
        if self._thread is not None:
            return
        self._stopping = False
        self._watch = Watch()
        known_values, self._timers = KnownValues(), Timers()
        self._journal = journal = Journal(self._registry, known_values, self._watch.wake)
        self._liveness = Liveness(self._timers)
        self._admission = Admission(journal, known_values, self._liveness, self._timers)
        self._folding = SegmentFolding(journal, self._liveness, self._admission, self._timers)
        try:
            self._open(make=True)
        except BaseException as error:
            self._end()
            if isinstance(error, OSError) and not isinstance(error, SegmentError):
                why = f"{self._path}: {error.strerror}"
                raise SegmentError(why, self._path, error.errno) from error
            raise
        self._registry.add_listener(self._hear)
        self._timers.add(_RESCAN, self._rescan_again)
        self._thread = threading.Thread(target=self._run, name="statsfs-collector", daemon=True)
        _live.add(self)
        self._thread.start()

    def close(self) -> None:
        """Take everything out of the registry, and leave the segments to the next collector."""
        if self._thread is None:
            return
        self._stopping = True
        self._watch.wake()
        self._thread.join()
        self._thread = None
        _live.discard(self)
        self._registry.remove_listener(self._hear)
        self._end()

    def _end(self) -> None:
        # First the records: a clear through an open file must not write that nothing is left.
        self._journal.close_files()
        self._journal.path_sources.clear()
        self._liveness.close()
        self._close_directories()
        self._watch.close()

    def _disown(self) -> None:
        # In a forked child: the lock, the watches and the records are the parent's.
        self._thread = None
        self._watch.close()
        self._journal.leave_to_parent()
        if self._directories is not None:
            self._directories.drop_lock()

    def _open(self, make: bool) -> None:
        directories = self._directories = Directories(self._path, self._watch, make)
        try:
            directories.look_around()
            self._journal.load(directories)
            self._scan(directories)
            self._journal.tidy()
        except BaseException:
            # Records that were not read must not be written.
            self._close_directories()
            raise

    def _close_directories(self) -> None:
        self._journal.close_files()
        if self._directories is not None:
            self._directories.close()
            self._directories = None

    def _lose(self) -> None:
        log.warning("%s is gone: waiting for it; what was counted stays", self._path)
        self._close_directories()
        self._liveness.keep_in({})
        # Not at once: a new lock file would hinder the removal of the directory.
        self._timers.add(_PAUSE, self._reopen)

    def _reopen(self) -> None:
        if self._directories is not None:
            return
        try:
            if not os.path.isdir(self._path):
                raise FileNotFoundError
            self._open(make=False)  # it may have been removed since
        except (OSError, StatsfsError) as error:
            if isinstance(error, StatsfsError) and str(error) != self._last_error:
                self._last_error = str(error)
                log.error("%s", error)
            self._timers.add(_PAUSE, self._reopen)
        else:
            self._last_error = ""
            log.warning("%s is there again", self._path)

    def _scan(self, directories: Directories) -> None:
        directories.look_around()
        self._liveness.keep_in(directories.by_prefix)
        self._journal.look_at_files()
        some = list(directories.by_prefix.values())
        self._look_at_files(directories, some)
        for directory in some:
            directory.remove_unfinished()
        self._folding.fold_dead()

    def _look_at_files(self, directories: Directories, some: Sequence[TrustedDirectory]) -> None:
        known: list[Location] = []
        unknown: list[Location] = []
        listed = directories.list_files(some)
        self._admission.note_names(listed)
        for directory, files in listed.items():
            here = dict.fromkeys(self._liveness.files_in(directory))
            known += (Location(directory, file) for file in here)
            unknown += (Location(directory, file) for file in files if file not in here)
        for number, location in enumerate([*known, *order_files(unknown)], 1):
            self._admission.look(location)
            if not number % _BATCH:
                self._folding.fold_dead()

    def _rescan_again(self) -> None:
        self._timers.add(_RESCAN, self._rescan_again)
        self._rescan()

    def _rescan(self) -> None:
        directories = self._directories
        if directories is not None and not directories.is_there():
            self._lose()
        elif directories is not None:
            self._scan(directories)

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._step()
            except Exception:
                # A daemon must not go on with old numbers and say nothing.
                log.exception("%s: collecting failed; looking at everything anew", self._path)
                time.sleep(_PAUSE)
                self._timers.add(0, self._reopen if self._directories is None else self._rescan)

    def _step(self) -> None:
        left = self._timers.seconds_left
        self._handle(self._watch.wait(min(left, _PAUSE) if self._journal.failed else left))
        self._timers.run()
        self._folding.fold_dead()
        self._journal.tidy()
        if self._journal.failed:
            self._journal.write_all()

    def _hear(self, change: ChangeNotice) -> None:
        # In any thread: a top-level name may have become free.
        if 0 in change.touched and self._admission.waiting:
            self._admission.vacant = True
            self._watch.wake()

    def _handle(self, events: Events) -> None:
        if "" in events.gone and self._directories is not None:
            self._lose()
        for prefix in events.gone:
            self._look_at_directory(prefix[:-1])
        for prefix, names in events.names.items():
            for name in names:
                self._look(prefix, name)
        for prefix, names in events.created.items():
            for name in names:
                self._look_at_link(prefix, name)
        if events.lost:
            self._rescan()

    def _look(self, prefix: str, name: str) -> None:
        # An earlier event may have closed the directory.
        directories = self._directories
        if directories is None or (directory := directories.by_prefix.get(prefix)) is None:
            return
        if name.startswith("."):
            if name == COLLECTOR and not prefix and not directories.is_there():
                self._lose()
            elif name == RETAINED and not prefix:
                self._journal.look_at_files()
            return
        status = Location(directory, name).find()
        known = f"{name}/" in directories.by_prefix
        if not prefix and (known or (status and stat.S_ISDIR(status.st_mode))):
            self._look_at_directory(name)
        elif name.endswith(SUFFIX):
            self._admission.look(Location(directory, name))

    def _look_at_link(self, prefix: str, name: str) -> None:
        # An earlier event may have closed the directory.
        directories = self._directories
        location = None if directories is None else directories.locate(prefix + name)
        status = None if location is None else location.find()
        if status is not None and (status.st_nlink > 1 or self._liveness.find_file(status)):
            self._look(prefix, name)

    def _look_at_directory(self, name: str) -> None:
        directories = self._directories
        if directories is None:
            return
        found = directories.look(name)
        self._liveness.keep_in(directories.by_prefix)
        if found is not None:
            self._look_at_files(directories, [found])


# Those that were started.
_live: Final[weakref.WeakSet[Collector]] = weakref.WeakSet()


def _disown_in_child() -> None:
    for collector in list(_live):
        collector._disown()
    _live.clear()


os.register_at_fork(after_in_child=_disown_in_child)
